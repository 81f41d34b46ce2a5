//! Where each entry of the log is at rest.

use std::collections::VecDeque;

use super::segment::Record;
use crate::types::LogId;

/// An entry at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) term: u64,
    pub(super) segment: u64,
    pub(super) at: u32,
    pub(super) len: u32,
}

/// The places of all entries from one index on, without a gap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    first: u64,
    places: VecDeque<Place>,
}

impl Index {
    /// An empty one, whose next entry has this index.
    pub(super) fn starting(first: u64) -> Self {
        Self { first, places: VecDeque::new() }
    }

    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// The index that the next entry gets.
    pub(super) fn next(&self) -> u64 {
        self.first + self.places.len() as u64
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// The last entry.
    pub(super) fn last(&self) -> Option<LogId> {
        let last = self.places.back()?;
        Some(LogId { leader_id: last.term.into(), index: self.next() - 1 })
    }

    pub(super) fn get(&self, index: u64) -> Option<Place> {
        self.places.get(usize::try_from(index.checked_sub(self.first)?).ok()?).copied()
    }

    /// Adds an entry in place of whatever was there and after. Leaves no gap if its index is not beyond the next.
    pub(super) fn push(&mut self, index: u64, place: Place) {
        self.truncate(index);
        if self.places.is_empty() {
            self.first = index;
        }
        self.places.push_back(place);
    }

    /// Takes in what follows. Entries are pushed.
    pub(super) fn admit(&mut self, record: &Record<'_>) {
        match record {
            Record::Truncate(from) => self.truncate(*from),
            Record::Purge(upto) => self.purge(upto.index),
            Record::Entry { .. } | Record::Vote(_) | Record::Committed(_) | Record::Closed => {}
        }
    }

    /// Removes everything from an index on.
    fn truncate(&mut self, from: u64) {
        // What is before the first one here may be gone as well: it is in segments that are no more.
        self.first = self.first.min(from);
        self.places.truncate(usize::try_from(from - self.first).unwrap_or(usize::MAX));
    }

    /// Removes everything up to an index.
    pub(super) fn purge(&mut self, upto: u64) {
        while self.first <= upto && self.places.pop_front().is_some() {
            self.first += 1;
        }
        self.first = self.first.max(upto + 1);
    }
}
