//! Watches: one log of events, shared by any number of readers.
//!
//! A watch holds a position in the shared history and a small batch of what it has read from there. Nothing is
//! buffered on behalf of a slow reader: when the history has to drop a change which a reader has not seen, the reader is
//! cut off with [`WatchError::Lagged`]. Readers of the same prefix are woken together, and only by what concerns them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use tokio::sync::Notify;

#[cfg(feature = "simulation")]
use crate::simulation::plant;
use crate::state::State;
use crate::{Change, Revision, View};

/// Changes that a watch takes from the shared history at once.
const WATCH_BATCH: usize = 256;
/// Revisions after which a watch that nothing concerned is told of its progress, so that it can resume from there.
const PROGRESS_REVISIONS: u64 = 1024;

/// The revision to watch from is older than the history: list again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("revision {wanted} is compacted: the oldest is {oldest}")]
pub struct Compacted {
    /// The revision that was asked for.
    pub wanted: Revision,
    /// The oldest that can be resumed from.
    pub oldest: Revision,
}

/// Why a watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The reader was too slow, and what it has not seen is compacted: list again.
    #[error("the watch fell behind the history")]
    Lagged,
    /// The store shut down.
    #[error("the store is shut down")]
    Closed,
}

/// What a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A key under the prefix changed.
    Change(Arc<Change>),
    /// Nothing under the prefix is missing up to this revision.
    Progress(Revision),
}

/// All watches of one prefix.
#[derive(Debug)]
struct Group {
    /// By number: they are woken in the order in which they began.
    watches: BTreeMap<u64, Arc<Notify>>,
    /// The revision at which they were last woken.
    woken: Revision,
    /// The newest change of this prefix that the history dropped.
    dropped: Revision,
}

/// State and history with the watches of them.
#[derive(Debug)]
pub(crate) struct Hub {
    state: RwLock<State>,
    groups: Mutex<Groups>,
}

#[derive(Debug, Default)]
struct Groups {
    by_prefix: BTreeMap<String, Group>,
    /// How many watches there have been.
    count: u64,
    closed: bool,
}

impl Group {
    fn wake(&mut self, revision: Revision) {
        self.woken = revision;
        self.watches.values().for_each(|watch| watch.notify_one());
    }
}

impl Hub {
    pub(crate) fn new(state: State) -> Self {
        Self { state: RwLock::new(state), groups: Mutex::default() }
    }

    /// The state for reading. Never held across an await.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        // The lock is poisoned only if a writer panicked, and each write leaves the state whole at every step.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn groups(&self) -> MutexGuard<'_, Groups> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes whom the changes concern. `write` gets the state and a place to tell which changes
    /// the history dropped, and returns the new changes.
    pub(crate) fn write<T>(
        &self,
        write: impl FnOnce(&mut State, &mut dyn FnMut(&Change)) -> (T, Vec<Arc<Change>>),
    ) -> T {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let (out, changes) = write(&mut state, &mut |dropped| {
            for (prefix, group) in &mut self.groups().by_prefix {
                if dropped.key.as_str().starts_with(prefix.as_str()) {
                    group.dropped = dropped.revision;
                }
            }
        });
        let revision = state.revision();
        drop(state);
        if !changes.is_empty() {
            for (prefix, group) in &mut self.groups().by_prefix {
                let concerned = changes.iter().any(|change| change.key.as_str().starts_with(prefix.as_str()));
                if concerned || revision.0 >= group.woken.0 + PROGRESS_REVISIONS {
                    group.wake(revision);
                }
            }
        }
        out
    }

    /// Replaces the whole state. A watch continues if the new history still has all that it needs.
    pub(crate) fn replace(&self, new: State) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let (revision, floor) = (new.revision(), new.history().floor());
        *state = new;
        for group in self.groups().by_prefix.values_mut() {
            #[cfg(feature = "simulation")]
            if plant::is(&plant::WATCH_GAP) {
                group.wake(revision);
                continue;
            }
            group.dropped = floor;
            group.wake(revision);
        }
    }

    pub(crate) fn watch(self: &Arc<Self>, prefix: &str, from: Revision) -> Result<Watch, Compacted> {
        let state = self.read();
        let oldest = state.history().floor();
        if from < oldest {
            return Err(Compacted { wanted: from, oldest });
        }
        let mut groups = self.groups();
        let closed = groups.closed;
        groups.count += 1;
        let number = groups.count;
        let wake = Arc::new(Notify::new());
        let group = groups.by_prefix.entry(prefix.to_owned()).or_insert_with(|| Group {
            watches: BTreeMap::new(),
            woken: state.revision(),
            dropped: oldest,
        });
        group.watches.insert(number, wake.clone());
        Ok(Watch {
            hub: self.clone(),
            prefix: prefix.to_owned(),
            position: from,
            told: from,
            batch: VecDeque::new(),
            number,
            wake: (!closed).then_some(wake),
        })
    }

    /// Ends every watch, once it has read what there is.
    pub(crate) fn close(&self) {
        let mut groups = self.groups();
        groups.closed = true;
        for mut group in std::mem::take(&mut groups.by_prefix).into_values() {
            group.wake(group.woken);
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.groups().closed
    }
}

/// The changes under a prefix after a revision: complete, in order, without repeats.
#[derive(Debug)]
pub struct Watch {
    hub: Arc<Hub>,
    prefix: String,
    /// Everything up to here has been read from the history.
    position: Revision,
    /// Everything up to here has been told to the reader.
    told: Revision,
    batch: VecDeque<Arc<Change>>,
    number: u64,
    /// `None` once the store is shut down.
    wake: Option<Arc<Notify>>,
}

impl Watch {
    /// The next event. Can be cancelled without losing one.
    pub async fn next(&mut self) -> Result<Event, WatchError> {
        loop {
            if let Some(event) = self.poll()? {
                return Ok(event);
            }
            let Some(wake) = &self.wake else { return Err(WatchError::Closed) };
            wake.notified().await;
            if self.hub.is_closed() {
                // What was committed before the end is told first.
                self.wake = None;
            }
        }
    }

    /// The next event if there is one already.
    pub fn try_next(&mut self) -> Result<Option<Event>, WatchError> {
        match (self.poll()?, &self.wake) {
            (None, None) => Err(WatchError::Closed),
            (event, _) => Ok(event),
        }
    }

    /// The revision up to which everything has been told: a reader may resume from it, and a bookmark may carry it.
    pub fn progress(&mut self) -> Result<Revision, WatchError> {
        if self.batch.is_empty() {
            self.fill()?;
        }
        if self.batch.is_empty() {
            self.told = self.position;
        }
        Ok(self.told)
    }

    fn poll(&mut self) -> Result<Option<Event>, WatchError> {
        if self.batch.is_empty() {
            self.fill()?;
        }
        if let Some(change) = self.batch.pop_front() {
            // The reader has everything of a revision only when the next one begins or nothing is left.
            let last = self.batch.front().is_none_or(|next| next.revision > change.revision);
            if last {
                self.told = change.revision;
            }
            return Ok(Some(Event::Change(change)));
        }
        if self.position.0 >= self.told.0 + PROGRESS_REVISIONS {
            self.told = self.position;
            return Ok(Some(Event::Progress(self.position)));
        }
        Ok(None)
    }

    /// Reads the next batch from the history, never a part of a transaction.
    fn fill(&mut self) -> Result<(), WatchError> {
        let state = self.hub.read();
        let revision = state.revision();
        if self.position >= revision {
            return Ok(());
        }
        if self.position < state.history().floor() {
            let missed = self.hub.groups().by_prefix.get(&self.prefix).map(|group| group.dropped);
            if missed.is_none_or(|missed| missed > self.position) {
                return Err(WatchError::Lagged);
            }
        }
        for change in state.history().after(self.position) {
            if self.batch.len() >= WATCH_BATCH && self.position < change.revision {
                return Ok(());
            }
            if change.key.as_str().starts_with(&self.prefix) {
                self.batch.push_back(change.clone());
            }
            self.position = change.revision;
        }
        self.position = revision;
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut groups = self.hub.groups();
        if let Some(group) = groups.by_prefix.get_mut(&self.prefix) {
            group.watches.remove(&self.number);
            if group.watches.is_empty() {
                groups.by_prefix.remove(&self.prefix);
            }
        }
    }
}
