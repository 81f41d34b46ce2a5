//! Bugs that the simulation plants, to prove that it would find them. In no build but its own.

use std::sync::atomic::AtomicBool;

/// An owner is whoever has its name now.
pub static BY_NAME: AtomicBool = AtomicBool::new(false);
