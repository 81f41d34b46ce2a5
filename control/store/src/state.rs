//! The state in memory: every record, the revision and the window of past changes, always consistent with each other.
//!
//! Everything is held in memory, so that a read never waits for a disk; what is at rest is `machine`'s business.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::file::Image;
use crate::history::{History, HistoryBounds};
use crate::{Applied, Change, Key, Record, Revision, View};

/// Which part of a prefix a range covers.
#[derive(Clone, Debug, Default)]
pub struct RangeOptions {
    /// Most items; all if not given.
    pub limit: Option<usize>,
    /// Only keys after this one.
    pub after: Option<Key>,
    /// The state as it was at this revision; the newest if not given.
    pub at: Option<Revision>,
}

/// The records under a prefix, at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The revision at which they were read.
    pub revision: Revision,
    /// The records, ordered by key.
    pub items: Vec<(Key, Record)>,
    /// Whether there are more after the last one.
    pub more: bool,
}

/// Why a range can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// The revision is older than the history.
    #[error("revision {wanted} is compacted: the oldest is {oldest}")]
    Compacted {
        /// The revision that was asked for.
        wanted: Revision,
        /// The oldest that can be read.
        oldest: Revision,
    },
    /// The revision is newer than the state.
    #[error("revision {wanted} is in the future: the newest is {newest}")]
    Future {
        /// The revision that was asked for.
        wanted: Revision,
        /// The newest that can be read.
        newest: Revision,
    },
}

#[derive(Debug)]
pub(crate) struct State {
    records: BTreeMap<Key, Record>,
    revision: Revision,
    history: History,
}

impl View for State {
    fn revision(&self) -> Revision {
        self.revision
    }

    fn get(&self, key: &Key) -> Option<&Record> {
        self.records.get(key)
    }
}

impl State {
    pub(crate) fn empty(bounds: HistoryBounds) -> Self {
        Self {
            records: BTreeMap::new(),
            revision: Revision::FIRST,
            history: History::new(Revision::FIRST, bounds),
        }
    }

    /// The state that an image holds, which has been checked.
    pub(crate) fn restore(image: Image, bounds: HistoryBounds) -> Self {
        let mut history = History::new(image.position.floor, bounds);
        for change in image.history {
            history.push(Arc::new(change));
        }
        // The bounds may have become tighter since.
        history.trim(|_| {});
        Self { records: image.records, revision: image.position.revision, history }
    }

    pub(crate) fn history(&self) -> &History {
        &self.history
    }

    /// Takes in what a transaction did, and tells which changes left the window for it.
    pub(crate) fn admit(&mut self, applied: Applied, dropped: impl FnMut(&Change)) -> Vec<Arc<Change>> {
        self.revision = applied.revision;
        let changes: Vec<_> = applied.changes.into_iter().map(Arc::new).collect();
        for change in &changes {
            match &change.new {
                Some(record) => self.records.insert(change.key.clone(), record.clone()),
                None => self.records.remove(&change.key),
            };
            self.history.push(change.clone());
        }
        self.history.trim(dropped);
        changes
    }

    /// Every record, and the revision.
    pub(crate) fn all(&self) -> (Revision, BTreeMap<Key, Record>) {
        (self.revision, self.records.clone())
    }

    pub(crate) fn range(&self, prefix: &str, options: &RangeOptions) -> Result<Page, RangeError> {
        let revision = options.at.unwrap_or(self.revision);
        if revision > self.revision {
            return Err(RangeError::Future { wanted: revision, newest: self.revision });
        }
        if revision < self.history.floor() {
            return Err(RangeError::Compacted { wanted: revision, oldest: self.history.floor() });
        }
        let undone = self.undone(prefix, revision);
        let after = options.after.as_ref().filter(|after| after.as_str() >= prefix);
        let start: Bound<&str> = match after {
            Some(after) => Bound::Excluded(after.as_str()),
            None => Bound::Included(prefix),
        };
        let within = |key: &Key| key.as_str().starts_with(prefix);
        let mut now = self.records.range::<str, _>((start, Bound::Unbounded)).peekable();
        let mut then = undone.range::<str, _>((start, Bound::Unbounded)).peekable();
        let mut page = Page { revision, items: Vec::new(), more: false };
        loop {
            let from_now = now.peek().map(|(key, _)| *key).filter(|key| within(key));
            let from_then = then.peek().map(|(key, _)| *key).filter(|key| within(key));
            let item = match (from_now, from_then) {
                (None, None) => break,
                (Some(key), Some(past)) if key < past => now.next().map(|(key, record)| (key, Some(record))),
                (Some(_), None) => now.next().map(|(key, record)| (key, Some(record))),
                (key, Some(past)) => {
                    if key == Some(past) {
                        now.next();
                    }
                    then.next().map(|(key, record)| (key, *record))
                }
            };
            let Some((key, Some(record))) = item else { continue };
            if options.limit.is_some_and(|limit| page.items.len() >= limit) {
                page.more = true;
                break;
            }
            page.items.push((key.clone(), record.clone()));
        }
        Ok(page)
    }

    /// What each key that changed after `revision` was at `revision`.
    fn undone(&self, prefix: &str, revision: Revision) -> BTreeMap<Key, Option<&Record>> {
        let mut undone = BTreeMap::new();
        for change in self.history.after(revision).rev() {
            if change.key.as_str().starts_with(prefix) {
                undone.insert(change.key.clone(), change.old.as_ref());
            }
        }
        undone
    }
}
