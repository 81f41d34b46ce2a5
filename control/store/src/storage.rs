//! What a database file stands on: opened as often as it takes, counted, and doubted until it is known to be at rest.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

/// What is rewritten at once: a page of the database and of the system.
const PAGE_BYTES: usize = 4096;
/// Where redb's header says, behind its magic number, whether the file was closed.
const FLAGS_AT: u64 = 9;
/// The bit for: it was not.
const UNCLOSED: u8 = 2;

/// Opens the storage of a database, anew after each failure.
pub(crate) type Source = Box<dyn Fn() -> io::Result<Box<dyn StorageBackend>> + Send + Sync>;

/// The storage in a file, which has to exist.
pub(crate) fn file(path: PathBuf) -> Source {
    Box::new(move || {
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let backend = FileBackend::new(file).map_err(io::Error::other)?;
        Ok(Box::new(backend))
    })
}

/// Makes an empty file that nobody else may read.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    options.open(path)
}

/// What a storage has done, over all the times that it was opened.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    syncs: AtomicU64,
    bytes: AtomicU64,
    /// What can be read is what is at rest, or will be after the next sync.
    trusted: AtomicBool,
}

impl Counters {
    pub(crate) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// Bytes that were written.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// A storage that counts what it does.
#[derive(Debug)]
pub(crate) struct Counting {
    storage: Box<dyn StorageBackend>,
    counters: Arc<Counters>,
}

impl Counting {
    /// Opens the storage. When a sync of it has failed, or it was not closed by whoever had it before, who may have seen
    /// one fail, then everything in it is written once more.
    ///
    /// For after a failed sync the system may take pages for written that are not: they can be read, and the next sync
    /// succeeds without them. Bytes that are at rest already are not changed by writing them again.
    pub(crate) fn open(source: &Source, counters: Arc<Counters>) -> io::Result<Self> {
        let this = Self { storage: source()?, counters };
        let len = this.len()?;
        if !this.counters.trusted.load(Ordering::Acquire) && len > FLAGS_AT {
            let mut flags = [0];
            this.read(FLAGS_AT, &mut flags)?;
            if flags[0] & UNCLOSED != 0 {
                this.rewrite(len)?;
            }
        }
        this.counters.trusted.store(true, Ordering::Release);
        Ok(this)
    }

    fn rewrite(&self, len: u64) -> io::Result<()> {
        let mut buffer = [0; PAGE_BYTES];
        for at in (0..len).step_by(PAGE_BYTES) {
            let size = usize::try_from(len - at).map_or(PAGE_BYTES, |rest| rest.min(PAGE_BYTES));
            let page = &mut buffer[..size];
            self.read(at, page)?;
            // A page of zeros holds nothing, and may be a hole for which there is no room.
            if page.iter().any(|byte| *byte != 0) {
                self.write(at, page)?;
            }
        }
        self.sync_data()
    }
}

impl StorageBackend for Counting {
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
        self.counters.syncs.fetch_add(1, Ordering::Relaxed);
        let synced = self.storage.sync_data();
        if synced.is_err() {
            self.counters.trusted.store(false, Ordering::Release);
        }
        synced
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.counters.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
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
