//! The files of a store: who may open them, how many syncs they cost, what can go wrong with them.
//!
//! A directory holds `lock` (held by the process that has it open), `log.redb` (raft's log and vote) and `state.redb`
//! (records and history). Both databases carry the version of their format. All calls here block: they belong on the
//! threads that own the files, never on an async one.

use std::fmt::Display;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use redb::backends::FileBackend;
use redb::{
    BackendError, Database, Durability, ReadTransaction, ReadableDatabase as _, StorageBackend,
    TableDefinition, WriteTransaction,
};

use crate::codec::{self, DecodeError};

/// The version of both databases as a whole: which tables there are and what they mean.
const FORMAT: u32 = 1;
/// redb's own cache. The state is in memory anyway, and the log's readers have a cache of theirs.
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
    #[error("{name}: format {found}, while this build reads {FORMAT}")]
    Version { name: String, found: u32 },
    #[error("{name}: {detail}")]
    Io { name: String, detail: String },
}

impl From<DiskError> for io::Error {
    fn from(error: DiskError) -> Self {
        let kind = match &error {
            DiskError::Corrupt { .. } | DiskError::Version { .. } => io::ErrorKind::InvalidData,
            DiskError::InUse { .. } => io::ErrorKind::ResourceBusy,
            DiskError::Io { .. } => io::ErrorKind::Other,
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
        let failed = |error: io::Error| DiskError::Io { name: "lock".into(), detail: error.to_string() };
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
#[derive(Debug)]
pub(crate) struct Disk {
    name: &'static str,
    /// `None` once it is closed.
    database: RwLock<Option<Database>>,
    syncs: Arc<AtomicU64>,
}

impl Disk {
    /// Opens a database and checks it from end to end, or makes one with what `init` puts into it.
    pub(crate) fn open(dir: &Path, name: &'static str, init: Init<'_>) -> Result<Self, DiskError> {
        let path = dir.join(name);
        let failed = |error: io::Error| DiskError::Io { name: name.into(), detail: error.to_string() };
        let new = !path.exists();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt as _;
            options.mode(0o600);
        }
        let file = options.open(&path).map_err(failed)?;
        if new {
            // The file's name has to survive a power cut as much as what is in it.
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
        }
        let backend = FileBackend::new(file).map_err(|error| convert(name, error))?;
        Self::on(backend, name, init)
    }

    /// The same on any storage.
    pub(crate) fn on(
        storage: impl StorageBackend,
        name: &'static str,
        init: Init<'_>,
    ) -> Result<Self, DiskError> {
        let failed = |error: io::Error| DiskError::Io { name: name.into(), detail: error.to_string() };
        let syncs = Arc::new(AtomicU64::new(0));
        let new = storage.len().map_err(failed)? == 0;
        let database = redb::Builder::new()
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(!new)
            .create_with_backend(Counting { storage, syncs: syncs.clone() })
            .map_err(|error| match error {
                redb::DatabaseError::DatabaseAlreadyOpen => DiskError::InUse { path: name.into() },
                error => convert(name, error),
            })?;
        let disk = Self { name, database: RwLock::new(Some(database)), syncs };
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
        if format == FORMAT {
            return Ok(disk);
        }
        Err(DiskError::Version { name: name.into(), found: format })
    }

    /// How many times the file was synced.
    pub(crate) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    pub(crate) fn corrupt(&self, what: &str, error: impl Display) -> DiskError {
        DiskError::Corrupt { name: self.name.into(), detail: format!("{what}: {error}") }
    }

    fn closed(&self) -> DiskError {
        DiskError::Io { name: self.name.into(), detail: "it is closed".into() }
    }

    /// Runs a transaction and commits it.
    pub(crate) fn write<T>(
        &self,
        durability: Durability,
        run: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, DiskError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_ref().ok_or_else(|| self.closed())?;
        let attempt = || {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(durability)?;
            let out = run(&transaction)?;
            transaction.commit()?;
            Ok::<T, redb::Error>(out)
        };
        attempt().map_err(|error| convert(self.name, error))
    }

    /// A consistent view of what was committed.
    pub(crate) fn view(&self) -> Result<ReadTransaction, DiskError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_ref().ok_or_else(|| self.closed())?;
        database.begin_read().map_err(|error| convert(self.name, error))
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
        drop(self.database.write().unwrap_or_else(PoisonError::into_inner).take());
    }
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
        redb::Error::UpgradeRequired(found) => DiskError::Version { name, found: found.into() },
        redb::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            DiskError::Corrupt { name, detail: error.to_string() }
        }
        error => DiskError::Io { name, detail: error.to_string() },
    }
}

/// A storage that counts its syncs.
#[derive(Debug)]
struct Counting<S> {
    storage: S,
    syncs: Arc<AtomicU64>,
}

impl<S: StorageBackend> StorageBackend for Counting<S> {
    fn len(&self) -> io::Result<u64> {
        self.storage.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.storage.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.storage.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.storage.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.storage.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.storage.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.storage.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.storage.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.storage.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.storage.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.storage.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.storage.query_lock_range(start, end)
    }
}
