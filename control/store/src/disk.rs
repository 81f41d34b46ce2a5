//! The files of a store: who may open them, how many syncs they cost, what can go wrong with them.
//!
//! A directory holds `lock` (held by the process that has it open), `state.redb` (records and history, a database) and the
//! segments of the log. All carry the version of their format. A new one is made under another name, so
//! that a file is either whole or not there. All calls here block: they belong on the threads that own the files, never
//! on an async one.

use std::fmt::{self, Debug, Display};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use redb::{
    Database, Durability, ReadTransaction, ReadableDatabase as _, StorageBackend as _, TableDefinition,
    WriteTransaction,
};

use crate::codec::{self, DecodeError};
use crate::health::{Reopen, advice};
use crate::storage::{Counters, Counting};
use crate::volume::Volume;

/// The version of a database as a whole: which tables there are and what they mean. The first had no packed values, and is
/// read as well.
const FORMAT: u32 = 2;
const FORMAT_MIN: u32 = 1;
/// redb's own cache. The state is in memory anyway.
const CACHE_BYTES: usize = 4 * 1024 * 1024;

/// Small values of a database, each sealed.
pub(crate) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const META_VERSION: u8 = 1;
const FORMAT_KEY: &str = "format";

/// What can go wrong with a file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error("{path}: in use")]
    InUse { path: PathBuf },
    #[error("{name}: {detail}")]
    Corrupt { name: String, detail: String },
    #[error("{name}: format {found}, while this build reads {known}")]
    Version { name: String, found: u32, known: u32 },
    #[error("{detail}")]
    Key { detail: String },
    #[error("{name}: {detail}")]
    Io { name: String, kind: io::ErrorKind, detail: String },
    #[error("{name}: it is closed")]
    Closed { name: String },
}

impl DiskError {
    pub(crate) fn io(name: &str, error: &io::Error) -> Self {
        Self::Io { name: name.into(), kind: error.kind(), detail: error.to_string() }
    }

    /// Whether the same may succeed later, without anybody touching the file.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Io { .. })
    }

    /// What a user can do about it.
    pub(crate) fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Io { kind, .. } => Some(advice(*kind)),
            Self::InUse { .. }
            | Self::Corrupt { .. }
            | Self::Version { .. }
            | Self::Key { .. }
            | Self::Closed { .. } => None,
        }
    }
}

impl From<DiskError> for io::Error {
    fn from(error: DiskError) -> Self {
        let kind = match &error {
            DiskError::Corrupt { .. } | DiskError::Version { .. } | DiskError::Key { .. } => {
                io::ErrorKind::InvalidData
            }
            DiskError::InUse { .. } => io::ErrorKind::ResourceBusy,
            DiskError::Io { kind, .. } => *kind,
            DiskError::Closed { .. } => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// Holds a store's directory for this process until it is dropped.
#[derive(Debug)]
pub(crate) struct DirLock {
    _file: File,
}

impl DirLock {
    /// Makes the directory, readable by nobody else, if it does not exist, and takes its lock.
    pub(crate) fn acquire(dir: &Path) -> Result<Self, DiskError> {
        let failed = |error: io::Error| DiskError::io("lock", &error);
        if !dir.exists() {
            fs::create_dir_all(dir).map_err(failed)?;
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt as _;
                fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(failed)?;
            }
        }
        let path = dir.join("lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(DiskError::InUse { path }),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

/// What a database begins with.
pub(crate) type Init<'a> = &'a dyn Fn(&WriteTransaction) -> Result<(), redb::Error>;

/// A database file.
pub(crate) struct Disk {
    name: &'static str,
    volume: Arc<dyn Volume>,
    held: RwLock<Held>,
    counters: Arc<Counters>,
    /// The version that it was in when it was first opened.
    format: u32,
}

#[derive(Debug)]
struct Held {
    state: State,
    /// Counts how often it was opened.
    generation: u64,
}

#[derive(Debug)]
enum State {
    Open(Database),
    /// It could not be opened again.
    Failed,
    /// It shall not be.
    Closed,
}

impl Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Disk {
    /// Opens a database and checks it from end to end, or makes one with what `init` puts into it.
    pub(crate) fn open(
        volume: &Arc<dyn Volume>,
        name: &'static str,
        init: Init<'_>,
    ) -> Result<Self, DiskError> {
        match Self::existing(volume.clone(), name, init) {
            Err(DiskError::Io { kind: io::ErrorKind::NotFound, .. }) => {
                create(volume, name, init)?;
                Self::existing(volume.clone(), name, init)
            }
            opened => {
                let disk = opened?;
                // Before there is anything that an earlier version would misread.
                if disk.format < FORMAT {
                    disk.write(Durability::Immediate, |view| {
                        write_meta(view, FORMAT_KEY, &FORMAT.to_le_bytes())
                    })?;
                }
                Ok(disk)
            }
        }
    }

    /// Opens a database that exists and checks it from end to end.
    pub(crate) fn existing(
        volume: Arc<dyn Volume>,
        name: &'static str,
        init: Init<'_>,
    ) -> Result<Self, DiskError> {
        Self::on(volume, name, name, init)
    }

    /// The same in a file that may have another name.
    fn on(
        volume: Arc<dyn Volume>,
        file: &str,
        name: &'static str,
        init: Init<'_>,
    ) -> Result<Self, DiskError> {
        let counters = Arc::new(Counters::default());
        let database = start(&*volume, file, name, &counters)?;
        let held = RwLock::new(Held { state: State::Open(database), generation: 0 });
        let mut disk = Self { name, volume, held, counters, format: FORMAT };
        let format = match disk.read(|view| read_meta(view, FORMAT_KEY))? {
            Some(format) => format.try_into().map(u32::from_le_bytes).unwrap_or_default(),
            None => {
                disk.write(Durability::Immediate, |transaction| {
                    init(transaction)?;
                    write_meta(transaction, FORMAT_KEY, &FORMAT.to_le_bytes())
                })?;
                FORMAT
            }
        };
        if (FORMAT_MIN..=FORMAT).contains(&format) {
            disk.format = format;
            return Ok(disk);
        }
        Err(DiskError::Version { name: name.into(), found: format, known: FORMAT })
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(crate) fn corrupt(&self, what: &str, error: impl Display) -> DiskError {
        DiskError::Corrupt { name: self.name.into(), detail: format!("{what}: {error}") }
    }

    fn closed(&self) -> DiskError {
        DiskError::Closed { name: self.name.into() }
    }

    fn with<T>(&self, run: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, DiskError> {
        match &self.held.read().unwrap_or_else(PoisonError::into_inner).state {
            State::Open(database) => run(database).map_err(|error| convert(self.name, error)),
            State::Failed => Err(convert(self.name, redb::Error::PreviousIo)),
            State::Closed => Err(self.closed()),
        }
    }

    /// Runs a transaction and commits it.
    pub(crate) fn write<T>(
        &self,
        durability: Durability,
        run: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, DiskError> {
        self.with(|database| {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(durability)?;
            let out = run(&transaction)?;
            transaction.commit()?;
            Ok(out)
        })
    }

    /// A consistent view of what was committed.
    pub(crate) fn view(&self) -> Result<ReadTransaction, DiskError> {
        self.with(|database| Ok(database.begin_read()?))
    }

    /// Reads from a consistent view.
    pub(crate) fn read<T>(
        &self,
        run: impl FnOnce(&ReadTransaction) -> Result<T, ReadError>,
    ) -> Result<T, DiskError> {
        self.read_view(&self.view()?, run)
    }

    /// Reads from a view taken before.
    pub(crate) fn read_view<T>(
        &self,
        view: &ReadTransaction,
        run: impl FnOnce(&ReadTransaction) -> Result<T, ReadError>,
    ) -> Result<T, DiskError> {
        run(view).map_err(|error| match error {
            ReadError::Redb(error) => convert(self.name, *error),
            ReadError::Decode { what, error } => self.corrupt(&what, &error),
        })
    }

    /// Closes the file; whatever comes later fails.
    pub(crate) fn close(&self) {
        self.held.write().unwrap_or_else(PoisonError::into_inner).state = State::Closed;
    }
}

impl Reopen for Disk {
    fn generation(&self) -> u64 {
        self.held.read().unwrap_or_else(PoisonError::into_inner).generation
    }

    fn reopen(&self, generation: u64) -> Result<(), DiskError> {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        if held.generation != generation {
            return Ok(());
        }
        if matches!(held.state, State::Closed) {
            return Err(self.closed());
        }
        // First, so that the old one lets go of the file. It leaves the file as it is, since it has failed.
        held.state = State::Failed;
        held.state = State::Open(start(&*self.volume, self.name, self.name, &self.counters)?);
        held.generation += 1;
        Ok(())
    }
}

/// Makes a database, under a name of its own until it is whole.
fn create(volume: &Arc<dyn Volume>, name: &'static str, init: Init<'_>) -> Result<(), DiskError> {
    let fresh = format!("{name}.new");
    let make = || {
        let failed = |error: io::Error| DiskError::io(name, &error);
        drop(volume.create(&fresh).map_err(failed)?);
        Disk::on(volume.clone(), &fresh, name, init)?.close();
        volume.rename(&fresh, name).map_err(failed)?;
        // The file's name has to survive a power cut as much as what is in it.
        volume.sync().map_err(failed)
    };
    let made = make();
    if made.is_err() {
        // It would take up room where there is none.
        let _ = volume.remove(&fresh);
    }
    made
}

fn start(
    volume: &dyn Volume,
    file: &str,
    name: &'static str,
    counters: &Arc<Counters>,
) -> Result<Database, DiskError> {
    let failed = |error: io::Error| DiskError::io(name, &error);
    let storage = Counting::open(volume, file, counters.clone()).map_err(failed)?;
    let new = storage.len().map_err(failed)? == 0;
    redb::Builder::new()
        .set_cache_size(CACHE_BYTES)
        .set_check_integrity_on_open(!new)
        .create_with_backend(storage)
        .map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => DiskError::InUse { path: name.into() },
            error => convert(name, error),
        })
}

/// Why something can't be read.
#[derive(Debug)]
pub(crate) enum ReadError {
    Redb(Box<redb::Error>),
    Decode { what: String, error: DecodeError },
}

impl<E: Into<redb::Error>> From<E> for ReadError {
    fn from(error: E) -> Self {
        Self::Redb(Box::new(error.into()))
    }
}

impl ReadError {
    pub(crate) fn decode(what: impl Into<String>) -> impl FnOnce(DecodeError) -> Self {
        let what = what.into();
        |error| Self::Decode { what, error }
    }
}

/// Reads a small value, without its seal.
pub(crate) fn read_meta(view: &ReadTransaction, key: &str) -> Result<Option<Vec<u8>>, ReadError> {
    let meta = match view.open_table(META) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        meta => meta?,
    };
    let Some(found) = meta.get(key)? else { return Ok(None) };
    let body = codec::open(found.value(), META_VERSION).map_err(ReadError::decode(key))?;
    Ok(Some(body.to_vec()))
}

/// Writes a small value and seals it.
pub(crate) fn write_meta(transaction: &WriteTransaction, key: &str, value: &[u8]) -> Result<(), redb::Error> {
    transaction.open_table(META)?.insert(key, &*codec::seal_bytes(value, META_VERSION))?;
    Ok(())
}

fn convert(name: &str, error: impl Into<redb::Error>) -> DiskError {
    let name = name.to_owned();
    match error.into() {
        redb::Error::Corrupted(detail) => DiskError::Corrupt { name, detail },
        redb::Error::UpgradeRequired(found) => {
            DiskError::Version { name, found: found.into(), known: FORMAT }
        }
        redb::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            DiskError::Corrupt { name, detail: error.to_string() }
        }
        redb::Error::Io(error) => DiskError::io(&name, &error),
        error => DiskError::io(&name, &io::Error::other(error)),
    }
}
