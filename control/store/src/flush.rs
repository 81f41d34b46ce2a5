//! Brings the state in memory to rest, now and then, off everyone's way.
//!
//! Applied changes gather here. Their owner saves them together when somebody waits for it (a snapshot, after which the log
//! may be made shorter) or when the log would take too long to be applied again: until then the log has them, so saving
//! them sooner would only write each key as often as it changes. Nothing changed, nothing is saved, and no disk is touched.
//! When too much of the log is not at rest, applying waits. A disk that fails is waited for: the log keeps what is missing.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use crate::Change;
use crate::disk::{DirLock, DiskError};
use crate::file::{Batch, Image, Position, StateFile};
use crate::health::{Health, Part};
use crate::runner::{Owner, Runner};
use crate::types::LogId;

/// Bytes of the log after which the state is brought to rest: what a start has to apply again is no more than this and what
/// comes while it is saved. Large objects must not fill the disk with a log, either.
const LOG_BYTES: usize = 64 * 1024 * 1024;
/// Bytes beyond which applying waits. More than the backlog at which nothing is committed any more while the disk fails,
/// together with what may be under way at that moment: a leader never waits for a disk that fails.
const BACKLOG_BYTES_MAX: usize = 256 * 1024 * 1024;

/// How far the saving is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// The last log entry in the state at rest.
    pub(crate) applied: Option<LogId>,
    /// Bytes of the log that are not in it.
    backlog: usize,
    /// The owner has ended.
    ended: bool,
}

#[derive(Debug, Default)]
struct Pending {
    batch: Batch,
    /// Bytes of the log that the batch stands for.
    bytes: usize,
    /// Those of the one that is being saved.
    saving: usize,
    /// There is something to save.
    dirty: bool,
    /// It is to be saved now.
    urgent: bool,
    stop: bool,
    /// Counts replacements of the whole state: what was taken before one must not come back after it.
    epoch: u64,
}

impl Pending {
    fn is_long(&self) -> bool {
        self.bytes >= LOG_BYTES
    }
}

#[derive(Debug)]
struct Shared {
    pending: Mutex<Pending>,
    /// Wakes the owner, who looks what there is to do.
    wake: Notify,
    progress: watch::Sender<Progress>,
    file: Arc<StateFile>,
    health: Arc<Health>,
    runner: Runner,
    /// Held by whoever writes the file.
    writing: tokio::sync::Mutex<()>,
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the file, however long that takes.
    async fn persist(
        &self,
        write: impl Fn(&StateFile) -> Result<(), DiskError> + Sync,
    ) -> Result<(), DiskError> {
        let attempt = |again: bool| {
            if again {
                self.file.verify(self.progress.borrow().applied.as_ref())?;
            }
            write(&self.file)
        };
        self.health.persist(Some(Part::State), &self.runner, &**self.file.disk(), attempt).await
    }

    /// Waits until there is a reason.
    async fn woken(&self, reason: impl Fn(&Pending) -> bool) {
        while !reason(&self.pending()) {
            self.wake.notified().await;
        }
    }
}

/// The way to the owner of the file.
#[derive(Clone, Debug)]
pub(crate) struct Flusher {
    shared: Arc<Shared>,
}

impl Flusher {
    /// Starts the owner, with the state at rest at `position`.
    pub(crate) fn start(
        file: Arc<StateFile>,
        health: Arc<Health>,
        runner: Runner,
        lock: Option<Arc<DirLock>>,
        position: Position,
    ) -> io::Result<(Self, Owner)> {
        let applied = position.applied;
        let pending = Pending { batch: Batch { position, ..Batch::default() }, ..Pending::default() };
        let progress = watch::Sender::new(Progress { applied, ..Progress::default() });
        let shared = Arc::new(Shared {
            pending: Mutex::new(pending),
            wake: Notify::new(),
            progress,
            file,
            health,
            runner: runner.clone(),
            writing: tokio::sync::Mutex::default(),
        });
        let flusher = Self { shared: shared.clone() };
        let owner = runner.start("store-state", lock, async move {
            run(&shared).await;
            shared.progress.send_modify(|progress| progress.ended = true);
        })?;
        Ok((flusher, owner))
    }

    /// Takes in what was applied, out of so many bytes of the log.
    pub(crate) fn push(&self, changes: Vec<Arc<Change>>, position: Position, bytes: usize) {
        let mut pending = self.shared.pending();
        // A position alone is not worth a sync, since the log tells it again. A membership is.
        let membership = pending.batch.position.membership != position.membership;
        pending.dirty |= membership || !changes.is_empty();
        pending.urgent |= membership;
        pending.bytes += bytes;
        for change in changes {
            pending.batch.records.insert(change.key.clone(), change.new.clone());
            pending.batch.history.push_back(change);
        }
        // What has left the window by now need not be kept for it.
        while pending.batch.history.pop_front_if(|change| change.revision <= position.floor).is_some() {}
        pending.batch.position = position;
        if pending.urgent || pending.is_long() {
            self.shared.wake.notify_one();
        }
        let backlog = pending.bytes + pending.saving;
        drop(pending);
        self.shared.progress.send_if_modified(|progress| {
            let long = backlog >= LOG_BYTES && progress.backlog < LOG_BYTES;
            progress.backlog = backlog;
            long
        });
    }

    /// Bytes of the log that are not at rest yet.
    pub(crate) fn backlog(&self) -> usize {
        self.shared.progress.borrow().backlog
    }

    /// Waits until the log is so long that it should be made shorter, or no longer so. Tells whether it still can be.
    pub(crate) async fn until_long(&self, long: bool) -> bool {
        self.wait(|progress| (progress.backlog >= LOG_BYTES) == long || progress.ended).await;
        !self.shared.progress.borrow().ended
    }

    /// Waits until no more is gathered than may be.
    pub(crate) async fn room(&self) {
        self.wait(|progress| progress.backlog <= BACKLOG_BYTES_MAX || progress.ended).await;
    }

    async fn wait(&self, until: impl FnMut(&Progress) -> bool) {
        // Fails only if the sender is gone, which `self` holds.
        let _ = self.shared.progress.subscribe().wait_for(until).await;
    }

    /// Saves everything that was pushed, and waits for it, as long as it takes.
    pub(crate) async fn flush(&self) -> io::Result<()> {
        let mut progress = self.shared.progress.subscribe();
        let wanted = {
            let mut pending = self.shared.pending();
            pending.urgent = true;
            self.shared.wake.notify_one();
            pending.batch.position.applied
        };
        let reached = |progress: &Progress| progress.applied >= wanted || progress.ended;
        let progress = progress.wait_for(reached).await.map_err(io::Error::other)?;
        if progress.applied >= wanted { Ok(()) } else { Err(io::Error::other("the store is shut down")) }
    }

    /// Replaces the whole state, at rest too, and forgets what was pushed. Only within what the runner has lent.
    pub(crate) async fn replace(&self, image: &Image) -> Result<(), DiskError> {
        // What the owner took before is saved either before this or, since the epoch is another one, not at all.
        let _writing = self.shared.writing.lock().await;
        self.shared.persist(|file| file.replace(image)).await?;
        let mut pending = self.shared.pending();
        let applied = image.position.applied;
        *pending = Pending {
            batch: Batch { position: image.position.clone(), ..Batch::default() },
            epoch: pending.epoch + 1,
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

    /// Has everything at rest encrypted with the current key.
    pub(crate) async fn encrypt_anew(&self) -> Result<(), DiskError> {
        let _writing = self.shared.writing.lock().await;
        self.shared.persist(StateFile::encrypt_anew).await
    }

    /// Asks the owner to save what there is and end.
    pub(crate) fn stop(&self) {
        self.shared.pending().stop = true;
        self.shared.wake.notify_one();
    }
}

async fn run(shared: &Shared) {
    loop {
        shared.woken(|pending| pending.urgent || pending.stop || pending.is_long()).await;
        let (batch, epoch) = {
            let mut pending = shared.pending();
            if pending.stop && !pending.dirty && !pending.urgent {
                return;
            }
            let fresh = Batch { position: pending.batch.position.clone(), ..Batch::default() };
            let batch = std::mem::replace(&mut pending.batch, fresh);
            pending.saving = std::mem::take(&mut pending.bytes);
            pending.dirty = false;
            pending.urgent = false;
            (batch, pending.epoch)
        };
        let _writing = shared.writing.lock().await;
        if shared.pending().epoch != epoch {
            continue;
        }
        if let Err(error) = shared.persist(|file| file.save(&batch)).await {
            tracing::error!(%error, "the state can't be saved any more; the log keeps what is missing");
            return;
        }
        let mut pending = shared.pending();
        pending.saving = 0;
        let backlog = pending.bytes;
        shared.progress.send_modify(|progress| {
            *progress = Progress { applied: batch.position.applied, backlog, ..Progress::default() };
        });
    }
}
