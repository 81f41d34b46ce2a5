//! The store as the rest of Lichen sees it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::{Semaphore, watch};

use crate::disk::{DirLock, DiskError};
use crate::file::StateFile;
use crate::flush::Flusher;
use crate::hub::Hub;
use crate::log::LogStore;
use crate::machine::Machine;
use crate::ordered::{Alone, Applier, Order};
use crate::raft::{NoPeers, Replica};
use crate::state::State;
use crate::{
    CommitError, Committed, Compacted, HistoryBounds, Key, OpenError, Page, RangeError, RangeOptions, Record,
    Revision, TXN_BYTES_MAX, TXN_OPS_MAX, Term, Txn, View, Watch,
};

/// KiB of transactions that may be under way at once; more wait.
const PROPOSALS_KIB_MAX: usize = 64 * 1024;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it keeps its files. Made if it does not exist.
    pub dir: PathBuf,
    /// How much of the past is kept.
    pub history: HistoryBounds,
}

impl Config {
    /// The defaults, in a directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), history: HistoryBounds::default() }
    }
}

/// Whether this member leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// It leads, and its state has everything that was acknowledged under earlier leaders.
    pub leader: bool,
    /// The term: what transactions are fenced by.
    pub term: Term,
}

/// The store. Cheap to clone; all clones are the same store.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    hub: Arc<Hub>,
    leadership: watch::Sender<Leadership>,
    backend: Backend,
}

enum Backend {
    Ordered(Box<dyn Order>),
    Raft(Box<Member>),
}

/// A member with its files and the threads that own them.
struct Member {
    replica: Replica,
    log: LogStore,
    machine: Machine,
    /// Bytes of transactions that may be under way, in KiB.
    proposals: Semaphore,
    running: Mutex<Option<Running>>,
}

impl Drop for Member {
    /// For a store that goes away without a shutdown: the log's writer ends with the last who appends to it, but the
    /// other thread has to be told.
    fn drop(&mut self) {
        self.machine.flusher().stop();
    }
}

/// What ends with the store.
struct Running {
    threads: [JoinHandle<()>; 2],
    _lock: DirLock,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("revision", &self.revision()).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store in a directory, or makes one there. A lone member leads when this returns.
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        let dir = config.dir.clone();
        Self::open_files(&dir, move || Files::open(&config)).await
    }

    async fn open_files(
        dir: &Path,
        open: impl FnOnce() -> Result<Files, DiskError> + Send + 'static,
    ) -> Result<Self, OpenError> {
        let start = |detail: String| OpenError::Start { dir: dir.to_owned(), detail };
        let files = tokio::task::spawn_blocking(open).await.map_err(|error| start(error.to_string()))?;
        let Files { lock, id, log, writer, hub, machine, flusher } =
            files.map_err(|error| OpenError::disk(dir, error))?;
        let leadership = watch::Sender::new(Leadership::default());
        let replica = Replica::start(id, NoPeers, log.clone(), machine.clone(), leadership.clone()).await;
        let running = Running { threads: [writer, flusher], _lock: lock };
        let replica = match replica {
            Ok(replica) => replica,
            Err(detail) => {
                close(&log, &machine, running).await;
                return Err(start(detail));
            }
        };
        let member = Member {
            replica,
            log,
            machine,
            proposals: Semaphore::new(PROPOSALS_KIB_MAX),
            running: Mutex::new(Some(running)),
        };
        Ok(Self { inner: Arc::new(Inner { hub, leadership, backend: Backend::Raft(Box::new(member)) }) })
    }

    /// Opens a store on storages of a test's own.
    #[cfg(test)]
    pub(crate) async fn open_on(
        dir: &Path,
        log: impl redb::StorageBackend,
        state: impl redb::StorageBackend,
    ) -> Result<Self, OpenError> {
        let lock_dir = dir.to_owned();
        let open = move || {
            let lock = DirLock::acquire(&lock_dir)?;
            let (log, writer) = LogStore::on_storage(log)?;
            let file = StateFile::on_storage(state, log.member_id()?)?;
            Files::assemble(lock, log, writer, file, HistoryBounds::default())
        };
        Self::open_files(dir, open).await
    }

    /// A store that lives in memory alone, leads by itself and forgets everything at its end: for tests of what is
    /// built upon it.
    #[must_use]
    pub fn memory(history: HistoryBounds) -> Self {
        let term = Term(1);
        let applier = Applier::new(history);
        applier.lead(Leadership { leader: true, term });
        Self::ordered(applier.clone(), Alone { applier, term })
    }

    /// A store that something else orders the transactions of, and applies them to.
    #[must_use]
    pub fn ordered(applier: Applier, order: impl Order) -> Self {
        let Applier { hub, leadership } = applier;
        Self { inner: Arc::new(Inner { hub, leadership, backend: Backend::Ordered(Box::new(order)) }) }
    }

    /// The record under a key, from local state. Call [`Store::barrier`] before for a linearizable read.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Record> {
        self.inner.hub.read().get(key).cloned()
    }

    /// The records under a prefix, from local state. Call [`Store::barrier`] before for a linearizable read.
    pub fn range(&self, prefix: &str, options: &RangeOptions) -> Result<Page, RangeError> {
        self.inner.hub.read().range(prefix, options)
    }

    /// The revision of the local state.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.inner.hub.read().revision()
    }

    /// Proposes a transaction and waits until it is durable and applied here. If the caller goes away meanwhile, it
    /// may happen all the same.
    pub async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        let (bytes, ops) = (txn.size(), txn.ops.len());
        if bytes > TXN_BYTES_MAX || ops > TXN_OPS_MAX {
            return Err(CommitError::TooLarge { bytes, ops });
        }
        if self.inner.hub.is_closed() {
            return Err(closed());
        }
        match &self.inner.backend {
            Backend::Ordered(order) => order.propose(txn).await,
            Backend::Raft(member) => {
                if !self.inner.leadership.borrow().leader {
                    return Err(CommitError::NotLeader { leader: member.replica.leader() });
                }
                // TXN_BYTES_MAX in KiB fits.
                let permits = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX);
                let _permits = member.proposals.acquire_many(permits).await.map_err(|_| closed())?;
                member.replica.propose(txn).await
            }
        }
    }

    /// Waits until the local state has everything that was acknowledged anywhere before the call.
    pub async fn barrier(&self) -> Result<(), CommitError> {
        if self.inner.hub.is_closed() {
            return Err(closed());
        }
        match &self.inner.backend {
            Backend::Ordered(order) => order.barrier().await,
            Backend::Raft(member) => member.replica.barrier().await,
        }
    }

    /// Watches what changes under a prefix after a revision.
    pub fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Compacted> {
        self.inner.hub.watch(prefix, from)
    }

    /// Whether this member leads, and how that changes.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.subscribe()
    }

    /// How many times the store has synced its files. An idle store never does.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        match &self.inner.backend {
            Backend::Ordered(_) => 0,
            Backend::Raft(member) => member.log.disk().syncs() + member.machine.file().disk().syncs(),
        }
    }

    #[cfg(test)]
    pub(crate) async fn compact(&self) {
        if let Backend::Raft(member) = &self.inner.backend {
            member.replica.compact().await;
        }
    }

    /// Ends all watches and transactions, makes everything durable and closes the files. The directory may be opened
    /// again afterwards.
    pub async fn shutdown(&self) {
        self.inner.hub.close();
        self.inner.leadership.send_modify(|leadership| leadership.leader = false);
        let Backend::Raft(member) = &self.inner.backend else { return };
        member.proposals.close();
        let running = member.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(running) = running else { return };
        member.replica.stop().await;
        close(&member.log, &member.machine, running).await;
    }
}

fn closed() -> CommitError {
    CommitError::Closed("it is shut down".into())
}

/// Ends the threads and closes the files.
async fn close(log: &LogStore, machine: &Machine, running: Running) {
    log.stop();
    machine.flusher().stop();
    let (log, machine) = (log.clone(), machine.clone());
    let end = move || {
        for thread in running.threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the store panicked");
            }
        }
        log.disk().close();
        machine.file().disk().close();
    };
    if let Err(error) = tokio::task::spawn_blocking(end).await {
        tracing::error!(%error, "the store did not close");
    }
}

/// Everything of a member that is on disk, and the threads that own it.
struct Files {
    lock: DirLock,
    id: u64,
    log: LogStore,
    writer: JoinHandle<()>,
    hub: Arc<Hub>,
    machine: Machine,
    flusher: JoinHandle<()>,
}

impl Files {
    fn open(config: &Config) -> Result<Self, DiskError> {
        let lock = DirLock::acquire(&config.dir)?;
        let (log, writer) = LogStore::open(&config.dir)?;
        match log.member_id().and_then(|id| StateFile::open(&config.dir, id)) {
            Ok(file) => Self::assemble(lock, log, writer, file, config.history),
            Err(error) => {
                // Whoever opens the directory next must not find it in use.
                log.stop();
                let _ = writer.join();
                log.disk().close();
                Err(error)
            }
        }
    }

    fn assemble(
        lock: DirLock,
        log: LogStore,
        writer: JoinHandle<()>,
        file: StateFile,
        history: HistoryBounds,
    ) -> Result<Self, DiskError> {
        let id = log.member_id()?;
        let file = Arc::new(file);
        let image = file.load()?;
        let position = image.position.clone();
        let (flush, flusher) = Flusher::start(file.clone(), position.clone())
            .map_err(|error| DiskError::Io { name: "state.redb".into(), detail: error.to_string() })?;
        let hub = Arc::new(Hub::new(State::restore(image, history)));
        let machine = Machine::new(hub.clone(), file, flush, &position, history);
        Ok(Self { lock, id, log, writer, hub, machine, flusher })
    }
}
