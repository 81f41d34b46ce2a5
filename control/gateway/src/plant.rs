//! Bugs that the simulation plants, to prove that it would find them. In no build but its own.

use std::sync::atomic::AtomicBool;

/// A node is sent what changes from here on, however long ago it had everything.
pub static STALE_SNAPSHOT: AtomicBool = AtomicBool::new(false);

/// Reports about one object are written at the same time.
pub static REPORTS_OVERTAKE: AtomicBool = AtomicBool::new(false);
