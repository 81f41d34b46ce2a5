//! Bugs that the simulation plants, to prove that it would find them. In no build but its own.

use std::sync::atomic::AtomicBool;

/// Bindings in flight are not reckoned with.
pub static IN_FLIGHT: AtomicBool = AtomicBool::new(false);
