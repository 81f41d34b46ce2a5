//! A file as a database stands on it: opened as often as it takes, counted, and doubted until it is known to be at rest.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use redb::StorageBackend;

use crate::volume::{Volume, VolumeFile};

/// What is rewritten at once: a page of the database and of the system.
const PAGE_BYTES: usize = 4096;
/// Where redb's header says, behind its magic number, whether the file was closed.
const FLAGS_AT: u64 = 9;
/// The bit for: it was not.
const UNCLOSED: u8 = 2;

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

    pub(crate) fn synced(&self) {
        self.syncs.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn wrote(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes that were written.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// A file as redb's storage, which counts what it does.
#[derive(Debug)]
pub(crate) struct Counting {
    file: Box<dyn VolumeFile>,
    counters: Arc<Counters>,
}

impl Counting {
    /// Opens the file. When a sync of it has failed, or it was not closed by whoever had it before, who may have seen
    /// one fail, then everything in it is written once more.
    ///
    /// For after a failed sync the system may take pages for written that are not: they can be read, and the next sync
    /// succeeds without them. Bytes that are at rest already are not changed by writing them again.
    pub(crate) fn open(volume: &dyn Volume, name: &str, counters: Arc<Counters>) -> io::Result<Self> {
        let this = Self { file: volume.open(name)?, counters };
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
        self.file.size()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_size(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.counters.synced();
        let synced = self.file.sync();
        if synced.is_err() {
            self.counters.trusted.store(false, Ordering::Release);
        }
        synced
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.counters.wrote(data.len());
        self.file.write(offset, data)
    }
}
