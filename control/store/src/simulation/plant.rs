//! Bugs that the simulation plants, to prove that it would find them.

use std::sync::atomic::{AtomicBool, Ordering};

/// An entry is acknowledged before it is durable.
pub static UNSYNCED: AtomicBool = AtomicBool::new(false);
/// A vote is not saved.
pub static VOTE: AtomicBool = AtomicBool::new(false);
/// A leader reads without asking the others whether it still leads.
pub static STALE_READ: AtomicBool = AtomicBool::new(false);
/// A watch goes on over what a snapshot has skipped.
pub static WATCH_GAP: AtomicBool = AtomicBool::new(false);
/// The position at rest is ahead of the records beside it.
pub static AHEAD: AtomicBool = AtomicBool::new(false);
/// What one member forwards to another one is proposed as often as it arrives.
pub static REPEAT: AtomicBool = AtomicBool::new(false);

pub(crate) fn is(bug: &AtomicBool) -> bool {
    bug.load(Ordering::Relaxed)
}
