//! A machine whose two disks lose power together, fail, and come back.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use redb::StorageBackend;

use crate::storage::Source;
use crate::{OpenError, Store};

pub(super) const NO_SPACE: i32 = 28;
pub(super) const READ_ONLY: i32 = 30;
const BROKEN: i32 = 5;

/// What becomes of an operation that fails.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// Nothing was done.
    Refused(i32),
    /// Half of a write was.
    Short(i32),
    /// A sync fails, and what it should have written can be read, but is written by no other sync either.
    Forgotten,
    /// A sync fails, and what it should have written is gone.
    Reverted,
}

pub(super) const FAULTS: [Fault; 5] = [
    Fault::Refused(NO_SPACE),
    Fault::Short(NO_SPACE),
    Fault::Refused(READ_ONLY),
    Fault::Forgotten,
    Fault::Reverted,
];

/// What a disk holds: what would be there after a power cut, and what was written since the last sync.
#[derive(Debug, Default)]
struct Image {
    durable: Vec<u8>,
    current: Vec<u8>,
    unsynced: Vec<(u64, Vec<u8>)>,
}

#[derive(Debug)]
struct Inner {
    disks: [Image; 2],
    /// How many operations there were.
    done: u64,
    /// From which on they fail, and how many of them.
    from: u64,
    count: u64,
    fault: Fault,
}

#[derive(Clone, Debug)]
pub(super) struct Machine {
    inner: Arc<Mutex<Inner>>,
}

/// One of the disks.
#[derive(Debug)]
struct Disk {
    machine: Machine,
    index: usize,
}

impl Machine {
    pub(super) fn new() -> Self {
        let fault = Fault::Refused(BROKEN);
        let inner = Inner { disks: Default::default(), done: 0, from: 0, count: 0, fault };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    pub(super) async fn open(&self, dir: &Path) -> Result<Store, OpenError> {
        Store::open_on(dir, self.source(0), self.source(1)).await
    }

    /// A disk of it.
    pub(super) fn source(&self, index: usize) -> Source {
        let machine = self.clone();
        Box::new(move || Ok(Box::new(Disk { machine: machine.clone(), index })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Writes, syncs and changes of length until now.
    pub(super) fn done(&self) -> u64 {
        self.inner().done
    }

    /// Lets so many operations fail, once so many have succeeded.
    pub(super) fn fail(&self, from: u64, count: u64, fault: Fault) {
        let mut inner = self.inner();
        inner.from = inner.done + from;
        inner.count = count;
        inner.fault = fault;
    }

    pub(super) fn heal(&self) {
        self.inner().count = 0;
    }

    /// The machine after a power cut: of what was not synced, as much survives as `survives` says, piece by piece.
    pub(super) fn after_power_cut(&self, mut survives: impl FnMut() -> bool) -> Self {
        let after = Self::new();
        for (image, lost) in after.inner().disks.iter_mut().zip(&self.inner().disks) {
            image.durable = lost.durable.clone();
            for (offset, data) in &lost.unsynced {
                // A disk writes sectors, not what it was handed.
                for (index, sector) in data.chunks(512).enumerate() {
                    let start = *offset as usize + index * 512;
                    if survives() && start + sector.len() <= image.durable.len() {
                        image.durable[start..start + sector.len()].copy_from_slice(sector);
                    }
                }
            }
            image.current = image.durable.clone();
        }
        after
    }
}

impl Inner {
    /// Counts an operation, and tells whether it fails.
    fn count(&mut self, is_sync: bool) -> Option<Fault> {
        self.done += 1;
        let hit = is_sync || matches!(self.fault, Fault::Refused(_) | Fault::Short(_));
        if self.done <= self.from || self.count == 0 || !hit {
            return None;
        }
        self.count -= 1;
        Some(self.fault)
    }
}

impl Fault {
    fn error(self) -> io::Error {
        io::Error::from_raw_os_error(match self {
            Self::Refused(code) | Self::Short(code) => code,
            Self::Forgotten | Self::Reverted => BROKEN,
        })
    }
}

impl Image {
    fn write(&mut self, offset: u64, data: &[u8]) {
        let start = offset as usize;
        self.current[start..start + data.len()].copy_from_slice(data);
        self.unsynced.push((offset, data.to_vec()));
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.machine.inner().disks[self.index].current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let inner = self.machine.inner();
        let start = offset as usize;
        let found = inner.disks[self.index].current.get(start..start + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.machine.inner();
        if let Some(fault) = inner.count(false) {
            return Err(fault.error());
        }
        let image = &mut inner.disks[self.index];
        // A file's length is kept here at once; what is in the new part is not.
        image.current.resize(len as usize, 0);
        image.durable.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        // Others get a chance to be in the middle of something.
        std::thread::yield_now();
        let mut inner = self.machine.inner();
        let fault = inner.count(true);
        let image = &mut inner.disks[self.index];
        match fault {
            Some(Fault::Refused(_) | Fault::Short(_)) => {}
            Some(Fault::Forgotten) => image.unsynced.clear(),
            Some(Fault::Reverted) => {
                image.unsynced.clear();
                image.current = image.durable.clone();
            }
            None => {
                for (offset, data) in std::mem::take(&mut image.unsynced) {
                    let start = offset as usize;
                    if start + data.len() <= image.durable.len() {
                        image.durable[start..start + data.len()].copy_from_slice(&data);
                    }
                }
            }
        }
        fault.map_or(Ok(()), |fault| Err(fault.error()))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut inner = self.machine.inner();
        let fault = inner.count(false);
        let image = &mut inner.disks[self.index];
        match fault {
            None => image.write(offset, data),
            Some(Fault::Short(_)) => image.write(offset, &data[..data.len() / 2]),
            Some(_) => {}
        }
        fault.map_or(Ok(()), |fault| Err(fault.error()))
    }
}
