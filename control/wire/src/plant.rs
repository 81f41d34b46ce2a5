//! Bugs that the simulation plants, to prove that it would find them. In no build but its own.

use core::sync::atomic::AtomicBool;

/// An agent follows a gateway of an older epoch.
pub static OLDER_EPOCH: AtomicBool = AtomicBool::new(false);
