//! Brings the state in memory to rest, now and then, off everyone's way.
//!
//! Applied changes gather here. A thread saves them together: some time after the first, or at once when there are many
//! or somebody waits for it. Nothing changed, nothing is saved, and no disk is touched. When more gathers than may be
//! held, applying waits.

use std::collections::btree_map::Entry;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;

use crate::Change;
use crate::disk::DiskError;
use crate::file::{Batch, Position, StateFile};
use crate::types::LogId;

/// How long a change may wait for company.
const DELAY: Duration = Duration::from_millis(500);
/// How long a save that failed waits before it is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Bytes that are saved at once, without waiting for more.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// Bytes beyond which applying waits.
const BACKLOG_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How far the saving is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// The last log entry in the state at rest.
    pub(crate) applied: Option<LogId>,
    /// Bytes that wait.
    backlog: usize,
    /// Why the last attempt failed, if it did.
    failed: Option<String>,
    /// The thread has ended.
    ended: bool,
}

#[derive(Debug, Default)]
struct Pending {
    batch: Batch,
    bytes: usize,
    dirty: bool,
    urgent: bool,
    stop: bool,
    /// Counts replacements of the whole state: what was taken before one must not come back after it.
    epoch: u64,
}

#[derive(Debug)]
struct Shared {
    pending: Mutex<Pending>,
    wake: Condvar,
    progress: watch::Sender<Progress>,
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The way to the thread.
#[derive(Clone, Debug)]
pub(crate) struct Flusher {
    shared: Arc<Shared>,
}

impl Flusher {
    /// Starts the thread, with the state at rest at `position`.
    pub(crate) fn start(file: Arc<StateFile>, position: Position) -> io::Result<(Self, JoinHandle<()>)> {
        let applied = position.applied;
        let pending = Pending { batch: Batch { position, ..Batch::default() }, ..Pending::default() };
        let progress = watch::Sender::new(Progress { applied, ..Progress::default() });
        let shared = Arc::new(Shared { pending: Mutex::new(pending), wake: Condvar::new(), progress });
        let flusher = Self { shared: shared.clone() };
        let thread = std::thread::Builder::new().name("store-state".into()).spawn(move || {
            run(&shared, &file);
            shared.progress.send_modify(|progress| progress.ended = true);
        })?;
        Ok((flusher, thread))
    }

    /// Takes in what was applied.
    pub(crate) fn push(&self, changes: Vec<Arc<Change>>, position: Position) {
        let mut pending = self.shared.pending();
        let first = !pending.dirty;
        let membership = pending.batch.position.membership != position.membership;
        for change in changes {
            pending.bytes += change.size();
            pending.batch.records.insert(change.key.clone(), change.new.clone());
            pending.batch.history.push(change);
            pending.dirty = true;
        }
        // A position alone is not worth a sync, since the log tells it again. A membership is.
        pending.dirty |= membership;
        pending.batch.position = position;
        if (first && pending.dirty) || pending.bytes >= BATCH_BYTES {
            self.shared.wake.notify_all();
        }
        let backlog = pending.bytes;
        drop(pending);
        self.shared.progress.send_if_modified(|progress| {
            progress.backlog = backlog;
            false
        });
    }

    /// Waits until no more is gathered than may be.
    pub(crate) async fn room(&self) {
        let mut progress = self.shared.progress.subscribe();
        // Fails only if the sender is gone, which `self` holds.
        let _ = progress.wait_for(|progress| progress.backlog <= BACKLOG_BYTES_MAX || progress.ended).await;
    }

    /// Saves everything that was pushed, and waits for it.
    pub(crate) async fn flush(&self) -> io::Result<()> {
        let mut progress = self.shared.progress.subscribe();
        let wanted = {
            let mut pending = self.shared.pending();
            pending.urgent = true;
            self.shared.progress.send_modify(|progress| progress.failed = None);
            self.shared.wake.notify_all();
            pending.batch.position.applied
        };
        let reached =
            |progress: &Progress| progress.applied >= wanted || progress.failed.is_some() || progress.ended;
        let progress = progress.wait_for(reached).await.map_err(io::Error::other)?;
        match &progress.failed {
            _ if progress.applied >= wanted => Ok(()),
            Some(error) => Err(io::Error::other(error.clone())),
            None => Err(io::Error::other("the store is shut down")),
        }
    }

    /// Forgets what was pushed, since `position` has replaced it all, at rest too.
    pub(crate) fn replace(
        &self,
        position: Position,
        save: impl FnOnce() -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let mut pending = self.shared.pending();
        // Under the lock: what the thread took before is saved either before this or not at all.
        save()?;
        let applied = position.applied;
        let epoch = pending.epoch + 1;
        *pending = Pending {
            batch: Batch { position, ..Batch::default() },
            epoch,
            stop: pending.stop,
            ..Pending::default()
        };
        drop(pending);
        self.shared.progress.send_modify(|progress| {
            progress.applied = applied;
            progress.backlog = 0;
        });
        Ok(())
    }

    /// Asks the thread to save what there is and end.
    pub(crate) fn stop(&self) {
        self.shared.pending().stop = true;
        self.shared.wake.notify_all();
    }
}

fn run(shared: &Shared, file: &StateFile) {
    loop {
        let mut pending = shared.pending();
        pending = wait_while(shared, pending, |pending| !(pending.dirty || pending.urgent || pending.stop));
        if pending.dirty {
            let early =
                |pending: &mut Pending| !(pending.urgent || pending.stop || pending.bytes >= BATCH_BYTES);
            let waited = shared.wake.wait_timeout_while(pending, DELAY, early);
            pending = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if !pending.dirty && !pending.urgent {
            return;
        }
        let position = pending.batch.position.clone();
        let fresh = Batch { position: position.clone(), ..Batch::default() };
        let batch = std::mem::replace(&mut pending.batch, fresh);
        let bytes = std::mem::take(&mut pending.bytes);
        let epoch = pending.epoch;
        let stopping = pending.stop;
        pending.dirty = false;
        pending.urgent = false;
        drop(pending);
        match file.save(&batch) {
            Ok(()) => {
                let pending = shared.pending();
                if pending.epoch == epoch {
                    let backlog = pending.bytes;
                    shared.progress.send_modify(|progress| {
                        *progress = Progress { applied: position.applied, backlog, ..Progress::default() };
                    });
                }
            }
            Err(error) => {
                tracing::error!(%error, "the state can't be saved; the log keeps what is missing");
                let mut pending = shared.pending();
                if pending.epoch == epoch {
                    put_back(&mut pending, batch, bytes);
                }
                shared.progress.send_modify(|progress| progress.failed = Some(error.to_string()));
                if stopping {
                    return;
                }
                let waited = shared.wake.wait_timeout_while(pending, RETRY, |pending| !pending.stop);
                drop(waited);
            }
        }
    }
}

fn wait_while<'a>(
    shared: &'a Shared,
    pending: MutexGuard<'a, Pending>,
    condition: impl FnMut(&mut Pending) -> bool,
) -> MutexGuard<'a, Pending> {
    shared.wake.wait_while(pending, condition).unwrap_or_else(PoisonError::into_inner)
}

/// Puts what could not be saved before what came since.
fn put_back(pending: &mut Pending, batch: Batch, bytes: usize) {
    for (key, record) in batch.records {
        if let Entry::Vacant(place) = pending.batch.records.entry(key) {
            place.insert(record);
        }
    }
    let since = std::mem::replace(&mut pending.batch.history, batch.history);
    pending.batch.history.extend(since);
    pending.bytes += bytes;
    pending.dirty = true;
}
