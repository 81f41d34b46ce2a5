//! How badly things go at the moment.

use std::sync::{Arc, Mutex, PoisonError};

/// What can be turned. Chances are out of a thousand, times in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Levels {
    /// Messages that are lost.
    pub(crate) loss: u64,
    /// Messages that arrive twice.
    pub(crate) repeat: u64,
    /// The longest that a message is under way: what is late is overtaken.
    pub(crate) delay_ms: u64,
    /// Proposals that the store can't take.
    pub(crate) unavailable: u64,
    /// Acknowledgements that get lost.
    pub(crate) unacknowledged: u64,
    /// Proposals that reach the log twice.
    pub(crate) duplicate: u64,
    /// The longest that the log takes for a proposal.
    pub(crate) commit_ms: u64,
    /// The longest that a member lags behind.
    pub(crate) lag_ms: u64,
    /// The longest that a node's disk takes.
    pub(crate) disk_ms: u64,
    /// Images that can't be had, and probes that fail.
    pub(crate) broken: u64,
}

impl Levels {
    /// Nothing goes wrong.
    pub(crate) const CALM: Self = Self {
        loss: 0,
        repeat: 0,
        delay_ms: 2,
        unavailable: 0,
        unacknowledged: 0,
        duplicate: 0,
        commit_ms: 2,
        lag_ms: 2,
        disk_ms: 2,
        broken: 0,
    };
}

/// The levels that hold now. Clones are the same ones.
#[derive(Clone, Debug)]
pub(crate) struct Knobs(Arc<Mutex<Levels>>);

impl Knobs {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Levels::CALM)))
    }

    pub(crate) fn get(&self) -> Levels {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, levels: Levels) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = levels;
    }
}
