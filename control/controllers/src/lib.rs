//! The controllers, as pure reconcilers: (view, key, now) to steps.
//!
//! One controller is one small file and one entry of the table [`reconcilers`]. Nothing here does I/O, reads a
//! clock or draws a random number, so a simulation can run a whole cluster in one thread.

mod reconciler;

pub use reconciler::{Action, Event, Interest, Outcome, Propagation, Reconciler, Regarding, Severity, Step};
