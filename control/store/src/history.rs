//! The bounded window of past changes, from which watches resume.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::{Change, Revision};

/// How much of the past is kept. Whatever is older is compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryBounds {
    /// Most changes.
    pub changes_max: usize,
    /// Most bytes that they hold on to.
    pub bytes_max: usize,
}

impl Default for HistoryBounds {
    fn default() -> Self {
        Self { changes_max: 16 * 1024, bytes_max: 16 * 1024 * 1024 }
    }
}

/// The changes after `floor`, in order, none missing.
#[derive(Debug)]
pub(crate) struct History {
    changes: VecDeque<Arc<Change>>,
    bytes: usize,
    floor: Revision,
    bounds: HistoryBounds,
}

impl History {
    pub(crate) fn new(floor: Revision, bounds: HistoryBounds) -> Self {
        Self { changes: VecDeque::new(), bytes: 0, floor, bounds }
    }

    /// Every change after this revision is here.
    pub(crate) fn floor(&self) -> Revision {
        self.floor
    }

    pub(crate) fn push(&mut self, change: Arc<Change>) {
        self.bytes += change.size();
        self.changes.push_back(change);
    }

    /// Drops what exceeds the bounds and tells each dropped change. A transaction goes as a whole, for nobody could
    /// resume in the middle of one.
    pub(crate) fn trim(&mut self, mut dropped: impl FnMut(&Change)) {
        while self.changes.len() > self.bounds.changes_max || self.bytes > self.bounds.bytes_max {
            let Some(revision) = self.changes.front().map(|change| change.revision) else { return };
            while let Some(change) = self.changes.pop_front_if(|change| change.revision == revision) {
                self.bytes -= change.size();
                dropped(&change);
            }
            self.floor = revision;
        }
    }

    /// The changes after a revision, oldest first.
    pub(crate) fn after(&self, revision: Revision) -> impl DoubleEndedIterator<Item = &Arc<Change>> {
        let start = self.changes.partition_point(|change| change.revision <= revision);
        self.changes.range(start..)
    }
}
