//! The store as the rest of Lichen sees it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::{Semaphore, watch};

use crate::check::contradictions;
use crate::disk::{DirLock, DiskError};
use crate::file::StateFile;
use crate::flush::Flusher;
use crate::health::{Faults, Health};
use crate::hub::Hub;
use crate::log::LogStore;
use crate::machine::Machine;
use crate::ordered::{Alone, Applier, Order};
use crate::raft::{NoPeers, Replica};
use crate::state::State;
use crate::storage::Counters;
use crate::{
    CommitError, Committed, Compacted, HistoryBounds, Key, OpenError, Page, RangeError, RangeOptions, Record,
    Revision, TXN_BYTES_MAX, TXN_OPS_MAX, Term, Txn, View, Watch,
};

/// KiB of transactions that may be under way at once; more wait.
const PROPOSALS_KIB_MAX: usize = 64 * 1024;
/// Bytes that may wait for a state file that can't be written before nothing more is committed.
const BACKLOG_BYTES_MAX: usize = 32 * 1024 * 1024;

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
    health: Arc<Health>,
    /// Bytes of transactions that may be under way, in KiB.
    proposals: Semaphore,
    running: Mutex<Option<Running>>,
}

impl Drop for Member {
    /// For a store that goes away without a shutdown: the log's writer ends with the last who appends to it, but the
    /// other thread has to be told.
    fn drop(&mut self) {
        self.health.end();
        self.machine.flusher().stop();
    }
}

impl Member {
    fn counters(&self) -> [&Counters; 2] {
        [self.log.disk().counters(), self.machine.file().disk().counters()]
    }

    /// Proposes a transaction, unless it would have to wait for a disk that fails.
    async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        let mut faults = self.health.faults();
        {
            let faults = faults.borrow_and_update();
            let full = self.machine.flusher().backlog() > BACKLOG_BYTES_MAX;
            if let Some(fault) = faults.log.as_ref().or(faults.state.as_ref().filter(|_| full)) {
                return Err(CommitError::Unavailable(fault.clone()));
            }
        }
        // TXN_BYTES_MAX in KiB fits.
        let permits = u32::try_from(txn.size() / 1024 + 1).unwrap_or(u32::MAX);
        let _permits = self.proposals.acquire_many(permits).await.map_err(|_| closed())?;
        tokio::select! {
            biased;
            outcome = self.replica.propose(txn) => outcome,
            fault = log_fault(&mut faults) => Err(CommitError::Stalled(fault)),
        }
    }
}

/// Waits until the log can't be written, and tells why.
async fn log_fault(faults: &mut watch::Receiver<Faults>) -> String {
    if let Ok(faults) = faults.wait_for(|faults| faults.log.is_some()).await {
        return faults.log.clone().unwrap_or_default();
    }
    // Nobody is left who could find a fault.
    std::future::pending().await
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
        let Files { lock, health, log, writer, hub, machine, flusher } =
            files.map_err(|error| OpenError::disk(dir, error))?;
        let leadership = watch::Sender::new(Leadership::default());
        let id = log.member_id();
        let mut faults = health.faults();
        let replica = tokio::select! {
            replica = Replica::start(id, NoPeers, log.clone(), machine.clone(), leadership.clone()) => {
                replica.map_err(start)
            }
            detail = log_fault(&mut faults) => Err(OpenError::Disk { detail }),
        };
        let running = Running { threads: [writer, flusher], _lock: lock };
        let replica = match replica {
            Ok(replica) => replica,
            Err(error) => {
                health.end();
                close(&log, &machine, running).await;
                return Err(error);
            }
        };
        let member = Member {
            replica,
            log,
            machine,
            health,
            proposals: Semaphore::new(PROPOSALS_KIB_MAX),
            running: Mutex::new(Some(running)),
        };
        Ok(Self { inner: Arc::new(Inner { hub, leadership, backend: Backend::Raft(Box::new(member)) }) })
    }

    /// Opens a store on storages of a test's own.
    #[cfg(test)]
    pub(crate) async fn open_on(
        dir: &Path,
        log: crate::storage::Source,
        state: crate::storage::Source,
    ) -> Result<Self, OpenError> {
        let lock_dir = dir.to_owned();
        let open = move || {
            let lock = DirLock::acquire(&lock_dir)?;
            let health = Arc::new(Health::new(lock_dir));
            let (log, writer) = LogStore::on_storage(log, health.clone())?;
            Files::assemble(lock, health, log, writer, HistoryBounds::default(), |id| {
                StateFile::on_storage(state, id)
            })
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
                member.commit(txn).await
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
            Backend::Raft(member) => member.counters().map(Counters::syncs).iter().sum(),
        }
    }

    /// How many bytes the store has written to its files.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        match &self.inner.backend {
            Backend::Ordered(_) => 0,
            Backend::Raft(member) => member.counters().map(Counters::bytes).iter().sum(),
        }
    }

    /// Why nothing can be written at present, if nothing can. It passes without a restart when the reason does.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        match &self.inner.backend {
            Backend::Ordered(_) => None,
            Backend::Raft(member) => member.health.faults().borrow().log.clone(),
        }
    }

    /// The same, or why the state can't be brought to rest.
    #[cfg(test)]
    pub(crate) fn any_fault(&self) -> Option<String> {
        let Backend::Raft(member) = &self.inner.backend else { return None };
        let faults = member.health.faults();
        let faults = faults.borrow();
        faults.log.clone().or(faults.state.clone())
    }

    /// Brings the state to rest.
    #[cfg(test)]
    pub(crate) async fn flush(&self) {
        if let Backend::Raft(member) = &self.inner.backend {
            member.machine.flusher().flush().await.unwrap();
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
        // What the disk does not take now it will not take.
        member.health.end();
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
    health: Arc<Health>,
    log: LogStore,
    writer: JoinHandle<()>,
    hub: Arc<Hub>,
    machine: Machine,
    flusher: JoinHandle<()>,
}

impl Files {
    fn open(config: &Config) -> Result<Self, DiskError> {
        let lock = DirLock::acquire(&config.dir)?;
        let health = Arc::new(Health::new(&config.dir));
        let (log, writer) = LogStore::open(&config.dir, health.clone())?;
        Self::assemble(lock, health, log, writer, config.history, |id| StateFile::open(&config.dir, id))
    }

    fn assemble(
        lock: DirLock,
        health: Arc<Health>,
        log: LogStore,
        writer: JoinHandle<()>,
        bounds: HistoryBounds,
        open: impl FnOnce(u64) -> Result<StateFile, DiskError>,
    ) -> Result<Self, DiskError> {
        let load = || {
            let file = Arc::new(open(log.member_id())?);
            let image = file.load()?;
            if let Some(problem) = contradictions(&log.facts(), &image.position).first() {
                return Err(file.disk().corrupt("the state and the log", problem));
            }
            let position = image.position.clone();
            let (flush, flusher) = Flusher::start(file.clone(), health.clone(), position.clone())
                .map_err(|error| DiskError::io("state.redb", &error))?;
            let hub = Arc::new(Hub::new(State::restore(image, bounds)));
            let machine = Machine::new(hub.clone(), file, flush, health.clone(), &position, bounds);
            Ok((hub, machine, flusher))
        };
        match load() {
            Ok((hub, machine, flusher)) => Ok(Self { lock, health, log, writer, hub, machine, flusher }),
            Err(error) => {
                // Whoever opens the directory next must not find it in use.
                log.stop();
                let _ = writer.join();
                log.disk().close();
                Err(error)
            }
        }
    }
}
