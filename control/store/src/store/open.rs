//! How a store comes up: its files are opened or made, then their owners start, then raft does.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::{Backend, Inner, Leadership, Store, close};
use crate::check::contradictions;
use crate::disk::{DirLock, DiskError};
use crate::encryption::{Encryption, Vault};
use crate::file::{Image, StateFile};
use crate::flush::Flusher;
use crate::health::Health;
use crate::hub::Hub;
use crate::log::LogStore;
use crate::machine::Machine;
use crate::member::{Member, Running, log_fault};
use crate::peers::Peers;
use crate::raft::{Origin, Pace, Replica};
use crate::runner::Runner;
use crate::state::State;
use crate::volume::{Dir, Volume};
use crate::{HistoryBounds, Network, OpenError};

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it keeps its files. Made if it does not exist.
    pub dir: PathBuf,
    /// How much of the past is kept.
    pub history: HistoryBounds,
    /// What is encrypted in the files, and with which key. A store that was plain becomes encrypted; one that is encrypted
    /// opens with its key only.
    pub encryption: Option<Encryption>,
}

impl Config {
    /// The defaults, in a directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), history: HistoryBounds::default(), encryption: None }
    }
}

/// A member as others reach it.
#[derive(Clone)]
pub struct Peering {
    /// Where it is reached.
    pub address: String,
    /// Whether it waits, when it is new, for a cluster that takes it in; else it becomes one of itself.
    pub joins: bool,
    /// How soon the members miss each other.
    pub pace: Pace,
    /// The way to the others.
    pub network: Arc<dyn Network>,
}

/// What a store runs on when that is no directory of this machine.
#[derive(Clone, Debug)]
pub struct Simulated {
    /// Its files.
    pub volume: Arc<dyn Volume>,
    /// The id that it gets if the volume is empty: one that no member has had.
    pub fresh_id: u64,
    /// How much of the past is kept.
    pub history: HistoryBounds,
}

impl Store {
    /// Opens the store in a directory, or makes one there. A lone member leads when this returns.
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        Self::open_with(config, None).await
    }

    /// Opens the store of a member that others know. One that is new becomes a cluster of itself, or waits for the one
    /// that it joins.
    pub async fn open_member(config: Config, peering: Peering) -> Result<Self, OpenError> {
        Self::open_with(config, Some(peering)).await
    }

    async fn open_with(config: Config, peering: Option<Peering>) -> Result<Self, OpenError> {
        let Config { dir, history, encryption } = config;
        let place = dir.clone();
        let open = move || {
            let lock = DirLock::acquire(&place)?;
            let volume: Arc<dyn Volume> = Arc::new(Dir::new(&place));
            // A fresh identity: a member must never be taken for one that had another log.
            let (fresh_id, _) = uuid::Uuid::new_v4().as_u64_pair();
            let keep = Keep { fresh_id, history, encryption };
            Files::open(place, Some(Arc::new(lock)), &volume, Runner::Threads, &keep)
        };
        let files = match tokio::task::spawn_blocking(open).await {
            Ok(files) => files.map_err(|error| OpenError::disk(&dir, error))?,
            Err(error) => return Err(OpenError::Start { dir, detail: error.to_string() }),
        };
        Self::start(&dir, files, peering).await
    }

    /// Opens a store on a volume of the caller's, with all its work in tasks of the runtime that this is called in: it
    /// starts no thread and reads no clock but the runtime's, so that a simulation decides about both.
    pub async fn simulate(ground: Simulated, peering: Option<Peering>) -> Result<Self, OpenError> {
        let Simulated { volume, fresh_id, history } = ground;
        // Only what is said of it.
        let dir = PathBuf::from("store");
        let keep = Keep { fresh_id, history, encryption: None };
        let files = Files::open(dir.clone(), None, &volume, Runner::Tasks(volume.clone()), &keep);
        Self::start(&dir, files.map_err(|error| OpenError::disk(&dir, error))?, peering).await
    }

    /// Opens a store on a volume of a test's own, with threads as on a directory.
    #[cfg(test)]
    pub(crate) async fn open_on(dir: &Path, volume: Arc<dyn Volume>) -> Result<Self, OpenError> {
        let place = dir.to_owned();
        let open = move || {
            let lock = DirLock::acquire(&place)?;
            let keep = Keep { fresh_id: 1, history: HistoryBounds::default(), encryption: None };
            Files::open(place, Some(Arc::new(lock)), &volume, Runner::Threads, &keep)
        };
        let files = tokio::task::spawn_blocking(open).await.unwrap();
        Self::start(dir, files.map_err(|error| OpenError::disk(dir, error))?, None).await
    }

    async fn start(dir: &Path, files: Files, peering: Option<Peering>) -> Result<Self, OpenError> {
        let start = |detail: String| OpenError::Start { dir: dir.to_owned(), detail };
        let Files { lock, health, runner, log, writer, file, image, history } = files;
        let position = image.position.clone();
        let (flusher, owner) =
            Flusher::start(file.clone(), health.clone(), runner.clone(), lock.clone(), position.clone())
                .map_err(|error| start(error.to_string()))?;
        let hub = Arc::new(Hub::new(State::restore(image, history)));
        let machine =
            Machine::new(hub.clone(), file, flusher, health.clone(), runner.clone(), &position, history);
        let mut owners = vec![owner];
        match runner.start("store-log", lock.clone(), writer) {
            Ok(writer) => owners.push(writer),
            Err(error) => {
                close(&log, &machine, Running { owners, _lock: lock }).await;
                return Err(start(error.to_string()));
            }
        }
        let running = Running { owners, _lock: lock };
        let leadership = watch::Sender::new(Leadership::default());
        let id = log.member_id();
        let (origin, pace, network) = match peering {
            None => (Origin::Alone(String::new()), Pace::default(), None),
            Some(Peering { joins: true, pace, network, .. }) => (Origin::Joins, pace, Some(network)),
            Some(Peering { address, pace, network, .. }) => (Origin::Alone(address), pace, Some(network)),
        };
        let peers = Peers::new(id, network, runner.clone());
        let mut faults = health.faults();
        let replica = tokio::select! {
            biased;
            replica = Replica::start(
                id, origin, pace, peers.clone(), log.clone(), machine.clone(), &health, leadership.clone(),
            ) => replica.map_err(start),
            detail = log_fault(&mut faults) => Err(OpenError::Disk { detail }),
        };
        let replica = match replica {
            Ok(replica) => replica,
            Err(error) => {
                health.end();
                close(&log, &machine, running).await;
                return Err(error);
            }
        };
        let member = Member::new(replica, log, machine, health, running, leadership.subscribe(), peers);
        Ok(Self { inner: Arc::new(Inner { hub, leadership, backend: Backend::Raft(Box::new(member)) }) })
    }
}

/// Makes a store with a state in a directory that has none. Blocks.
pub(crate) fn create(config: Config, image: &Image) -> Result<(), OpenError> {
    let Config { dir, history, encryption } = config;
    let create = || {
        let lock = DirLock::acquire(&dir)?;
        let volume: Arc<dyn Volume> = Arc::new(Dir::new(&dir));
        let names = volume.list().map_err(|error| DiskError::io("restore", &error))?;
        if names.iter().any(|name| name != "lock") {
            let there = std::io::Error::new(std::io::ErrorKind::AlreadyExists, "a store is there already");
            return Err(DiskError::io("restore", &there));
        }
        let (fresh_id, _) = uuid::Uuid::new_v4().as_u64_pair();
        let keep = Keep { fresh_id, history, encryption };
        let files = Files::open(dir.clone(), Some(Arc::new(lock)), &volume, Runner::Threads, &keep)?;
        files.file.replace(image)
    };
    create().map_err(|error| OpenError::disk(&dir, error))
}

/// Everything of a member that is on disk. Nothing is written before its owners start.
struct Files {
    lock: Option<Arc<DirLock>>,
    health: Arc<Health>,
    runner: Runner,
    log: LogStore,
    writer: BoxFuture<'static, ()>,
    file: Arc<StateFile>,
    image: Image,
    history: HistoryBounds,
}

/// What the files are to hold.
struct Keep {
    /// The member's id if there are none yet.
    fresh_id: u64,
    history: HistoryBounds,
    encryption: Option<Encryption>,
}

impl Files {
    /// Opens the files, or makes them. Blocks.
    fn open(
        dir: PathBuf,
        lock: Option<Arc<DirLock>>,
        volume: &Arc<dyn Volume>,
        runner: Runner,
        keep: &Keep,
    ) -> Result<Self, DiskError> {
        let health = Arc::new(Health::new(dir));
        let vault = Arc::new(Vault::open(volume, keep.encryption.as_ref())?);
        let (log, writer) =
            LogStore::open(volume, health.clone(), runner.clone(), keep.fresh_id, vault.clone())?;
        vault.bound(log.next_index())?;
        let file = Arc::new(StateFile::open(volume, log.member_id(), vault.clone())?);
        if vault.is_pending() {
            file.encrypt_anew()?;
        }
        vault.forget(log.first_index())?;
        let history = keep.history;
        let image = file.load()?;
        if let Some(problem) = contradictions(&log.facts(), &image.position).first() {
            return Err(file.disk().corrupt("the state and the log", problem));
        }
        Ok(Self { lock, health, runner, log, writer: Box::pin(writer), file, image, history })
    }
}
