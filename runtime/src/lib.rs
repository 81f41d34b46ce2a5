//! The component host: runs WebAssembly components in this process, each within its limits. It knows no Pod.
//!
//! A [`ComponentHost`] loads compiled components and starts them as [`Guest`]s: a command (`wasi:cli/run`) as one long-lived
//! instance, a request handler (`wasi:http`) behind listeners with an instance per request. WASI 0.2 and 0.3 both run.
//!
//! Invariants:
//! - Guests run on threads of the host's own, never on the caller's. One that computes without end yields every
//!   [`EPOCH_TICK_MS`] and can be ended at any time.
//! - All instances of a guest share one memory budget; whoever would exceed it is ended with a typed exit.
//! - A guest reaches nothing it was not given: no network, no file outside its mounts, no variable of this process.
//! - An idle host does nothing: the ticker's thread runs only while guest code runs.
//!
//! Absent on purpose: compiling (see `lichen-engine`), files of logs, restarts, and signature checks: whoever calls
//! [`ComponentHost::load`] vouches for the file.

mod command;
mod component;
mod context;
mod error;
mod guest;
mod host;
mod http;
mod lifecycle;
mod limits;
mod meter;
mod output;
mod pool;
mod proxy;

pub use component::{Loaded, World};
pub use error::HostError;
pub use guest::{Guest, GuestExit, GuestMount, GuestSpec, Usage};
pub use host::{ComponentHost, HostConfig};
pub use meter::EPOCH_TICK_MS;
pub use output::{LINE_BYTES_MAX, LineSink, Lines, Output};
