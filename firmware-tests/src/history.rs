//! What clients of a store did and saw, and whether one store that does one thing at a time could have shown them that.
//!
//! Every write that changes something has a revision, and revisions are in the order of the writes. So the order in
//! which the writes happened need not be searched for: [`Timeline`] collects it from all that anybody saw, and then each
//! operation only needs a place in it, between its beginning and its end. A place for every operation that keeps real
//! time is exactly what linearizability demands, for single keys, transactions and lists alike. An operation whose
//! outcome is not known may have happened at any time since it began, once, or never.
//!
//! Watches are held against the same timeline: complete, in order, without repeats, and cut off only where the history
//! that is promised had ended.
//!
//! Values must be unique: a value tells which write it came from.

mod operations;
#[cfg(test)]
mod tests;
mod timeline;
mod watches;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use timeline::Timeline;

/// A point in a store's history.
pub type Revision = u64;

/// What became of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// When.
    pub revision: Revision,
    /// The key.
    pub key: String,
    /// What it holds since; `None` if it is gone.
    pub value: Option<String>,
}

/// What must hold of a key for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Anything,
    /// It does not exist.
    Absent,
    /// It exists.
    Present,
    /// It was last written at this revision.
    Revision(Revision),
}

/// A part of a write; all parts happen together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The key.
    pub key: String,
    /// What must hold of it.
    pub expect: Expect,
    /// What it shall hold; `None` to delete it.
    pub value: Option<String>,
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It happened. With nothing to delete it changed nothing, and this is the revision that it saw.
    Done(Revision),
    /// It did not happen, since what it expected did not hold.
    Conflict,
    /// It did not happen.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Did {
    /// A write.
    Wrote {
        /// What it should do.
        steps: Vec<Step>,
        /// What it did.
        outcome: Outcome,
    },
    /// A read of one key.
    Read {
        /// The key.
        key: String,
        /// The revision of its last write, and its value.
        found: Option<(Revision, String)>,
    },
    /// A read of all keys under a prefix.
    Listed {
        /// The prefix.
        prefix: String,
        /// The revision of the whole.
        revision: Revision,
        /// Each with the revision of its last write, and its value.
        found: BTreeMap<String, (Revision, String)>,
    },
}

/// Something that a client did, from the call to the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// When it began, by the recorder's clock.
    pub began: u64,
    /// When it ended.
    pub ended: u64,
    /// What it was.
    pub did: Did,
}

/// What a watch told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// A change.
    Change(Change),
    /// That everything up to a revision has been told.
    Progress(Revision),
}

/// How a watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was cut at any point.
    Cut,
    /// It was told that the history does not reach back far enough, when nothing was newer than this.
    Compacted(Revision),
    /// It had time to tell everything up to this.
    Complete(Revision),
}

/// What a watch was told from its beginning to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Whose it was.
    pub who: String,
    /// What it was about.
    pub prefix: String,
    /// After which revision it began.
    pub from: Revision,
    /// What it was told.
    pub told: Vec<Told>,
    /// How it ended.
    pub end: End,
}

/// Everything that was done and seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// By clients.
    pub operations: Vec<Operation>,
    /// By watches.
    pub watches: Vec<Watched>,
}

/// What else is known about a store.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The revision before the first of all changes.
    pub first: Revision,
    /// Whether all its changes are in the history, so that no revision may be missing.
    pub all: bool,
    /// How many changes a watch may be behind, if all of them are in the history.
    pub window: Option<usize>,
}

/// What was seen that can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A write that was acknowledged did not happen.
    Lost,
    /// A write happened twice.
    Repeated,
    /// What happened is what nobody wrote, or what was refused.
    Invented,
    /// Two saw different things happen at one revision.
    Contradiction,
    /// A revision that nobody saw.
    Unseen,
    /// A write happened though what it expected did not hold.
    Unexpected,
    /// A write has its place before something that had ended when it began.
    Order,
    /// A read saw a state that was no more when it began.
    Stale,
    /// A read saw a state that never was.
    Wrong,
    /// A watch left out a change.
    Gap,
    /// A watch told what it should not: twice, out of order, or what did not happen.
    Told,
    /// A watch was cut off though the history reached back far enough.
    Compacted,
}

/// A fault and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub fault: Fault,
    /// What was seen.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.fault, self.detail)
    }
}

impl std::error::Error for Violation {}

impl Fault {
    fn at(self, detail: impl Into<String>) -> Violation {
        Violation { fault: self, detail: detail.into() }
    }
}

impl History {
    /// Holds everything against each other, and tells what happened.
    ///
    /// # Errors
    /// The first thing that can't be.
    pub fn check(&self, rules: &Rules) -> Result<Timeline, Violation> {
        let timeline = Timeline::collect(self, rules)?;
        operations::check(&self.operations, &timeline)?;
        for watched in &self.watches {
            watches::check(watched, &timeline, rules)?;
        }
        Ok(timeline)
    }
}

/// Records a history. Clones record the same one.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    clock: Arc<AtomicU64>,
    history: Arc<Mutex<History>>,
}

impl Recorder {
    /// A point in time, after all that were asked for before.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// Records an operation that ends now.
    pub fn operation(&self, began: u64, did: Did) {
        let mut history = self.history();
        let ended = self.now();
        history.operations.push(Operation { began, ended, did });
    }

    /// Records a watch that has ended.
    pub fn watch(&self, watched: Watched) {
        self.history().watches.push(watched);
    }

    /// What was recorded until now.
    pub fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
