//! A disk in memory: what it was told to write is at rest once a sync has ended, and what was under way when the power
//! went may be there, or not, or in part.
//!
//! Time passes for whoever works on it, and yet all of a piece of work is done at once. So each operation has the time
//! at which it would really have been done, and those that a crash came before are undone.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lichen_store::simulation::Process;
use lichen_store::{Volume, VolumeFile};
use tokio::time::Instant;

use super::journal::{Fault, File, Journal, Names, Naming, Write};
use crate::dice::Dice;

/// How badly a disk does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Levels {
    /// How long a sync may take, in milliseconds.
    pub(super) sync_ms: (u64, u64),
    /// Nothing can be made longer.
    pub(super) full: bool,
    /// Nothing can be written.
    pub(super) broken: bool,
}

impl Levels {
    /// As a disk should.
    pub(super) const CALM: Self = Self { sync_ms: (1, 4), full: false, broken: false };
}

/// A machine's disk. Clones are the same one.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    dice: Dice,
    levels: Levels,
    files: Vec<File>,
    names: Journal<Names>,
    /// Operations that succeed before the next ones fail, how many of them, and how.
    failing: Option<(u64, u64, Fault)>,
    /// How long the piece of work that is being done has taken.
    took: Duration,
}

impl Disk {
    pub(super) fn new(dice: Dice) -> Self {
        let inner = Inner {
            dice,
            levels: Levels::CALM,
            files: Vec::new(),
            names: Journal::default(),
            failing: None,
            took: Duration::ZERO,
        };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// The disk as a process has it.
    pub(super) fn mount(&self, process: Process) -> Arc<dyn Volume> {
        self.inner().took = Duration::ZERO;
        Arc::new(Mount { disk: self.clone(), process })
    }

    pub(super) fn set(&self, levels: Levels) {
        self.inner().levels = levels;
    }

    /// Lets so many operations fail, once so many have succeeded.
    pub(super) fn fail(&self, from: u64, count: u64, fault: Fault) {
        self.inner().failing = Some((from, count, fault));
    }

    /// Nothing fails any more.
    pub(super) fn heal(&self) {
        let mut inner = self.inner();
        inner.levels = Levels::CALM;
        inner.failing = None;
    }

    /// Whoever has it mounted is killed.
    pub(super) fn crash(&self) {
        let (mut inner, now) = (self.inner(), Instant::now());
        inner.files.iter_mut().for_each(|file| file.crash(now));
        inner.names.crash(now);
    }

    /// The power fails, beside.
    pub(super) fn cut(&self) {
        let mut inner = self.inner();
        let now = Instant::now();
        let Inner { dice, files, names, .. } = &mut *inner;
        let permille = *dice.pick(&[0, 500, 900, 1000]).unwrap_or(&500);
        for file in files {
            file.cut(now, &mut || dice.chance(permille));
        }
        // Changes of names are journalled: none of them is there without those before it.
        let mut lost = false;
        names.cut(now, &mut || {
            lost |= !dice.chance(permille);
            !lost
        });
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// When what is done now would really have been done.
    fn now(&self) -> Instant {
        Instant::now() + self.took
    }

    /// Counts an operation, and tells how it fails if it does.
    fn count(&mut self, is_sync: bool) -> Option<Fault> {
        if self.levels.broken {
            return Some(Fault::Refused);
        }
        let (from, count, fault) = self.failing.as_mut()?;
        if *from > 0 {
            *from -= 1;
            return None;
        }
        let fault = *fault;
        if !is_sync && !matches!(fault, Fault::Refused | Fault::Short) {
            return None;
        }
        *count -= 1;
        if *count == 0 {
            self.failing = None;
        }
        Some(fault)
    }

    /// Lets a sync take its time, and tells when it ends.
    fn sync(&mut self) -> Instant {
        let (low, high) = self.levels.sync_ms;
        self.took += Duration::from_millis(self.dice.between(low, high));
        self.now()
    }

    fn name(&mut self, change: Naming) -> io::Result<()> {
        if self.count(false).is_some() {
            return Err(broken());
        }
        let now = self.now();
        self.names.settle(Instant::now());
        self.names.change(change, now);
        Ok(())
    }
}

/// A disk that a process has.
#[derive(Clone, Debug)]
struct Mount {
    disk: Disk,
    process: Process,
}

impl Mount {
    fn inner(&self) -> io::Result<MutexGuard<'_, Inner>> {
        if self.process.is_alive() {
            Ok(self.disk.inner())
        } else {
            Err(io::Error::other("the process is dead"))
        }
    }
}

fn broken() -> io::Error {
    io::Error::other("the disk is broken")
}

impl Volume for Mount {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.inner()?.names.current.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn VolumeFile>> {
        let file = *self.inner()?.names.current.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Open { mount: self.clone(), file }))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn VolumeFile>> {
        let mut inner = self.inner()?;
        if inner.levels.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = inner.files.len();
        inner.name(Naming::Created(name.to_owned(), file))?;
        inner.files.push(File::default());
        drop(inner);
        Ok(Box::new(Open { mount: self.clone(), file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.inner()?;
        if !inner.names.current.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        inner.name(Naming::Renamed(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.inner()?;
        if !inner.names.current.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        inner.name(Naming::Removed(name.to_owned()))
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.inner()?;
        let fault = inner.count(true);
        let end = inner.sync();
        match fault {
            Some(fault) => {
                inner.names.fail_sync(fault);
                Err(broken())
            }
            None => {
                inner.names.sync(end);
                Ok(())
            }
        }
    }

    fn took(&self) -> Duration {
        std::mem::take(&mut self.disk.inner().took)
    }
}

/// An open file.
#[derive(Debug)]
struct Open {
    mount: Mount,
    file: usize,
}

impl VolumeFile for Open {
    fn size(&self) -> io::Result<u64> {
        Ok(self.mount.inner()?.files[self.file].current.len() as u64)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        let mut inner = self.mount.inner()?;
        let longer = size > inner.files[self.file].current.len() as u64;
        if longer && inner.levels.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if inner.count(false).is_some() {
            return Err(broken());
        }
        let now = inner.now();
        inner.files[self.file].change(Write::Size(usize_of(size)), now);
        Ok(())
    }

    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        let inner = self.mount.inner()?;
        let at = usize_of(at);
        let found = inner.files[self.file].current.get(at..at + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        let mut inner = self.mount.inner()?;
        let at = usize_of(at);
        if at + data.len() > inner.files[self.file].current.len() && inner.levels.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let fault = inner.count(false);
        let data = match fault {
            None => data,
            Some(Fault::Short) => &data[..data.len() / 2],
            Some(_) => return Err(broken()),
        };
        let now = inner.now();
        inner.files[self.file].change(Write::Data(at, data.into()), now);
        if fault.is_some() { Err(broken()) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.mount.inner()?;
        let fault = inner.count(true);
        let end = inner.sync();
        let file = &mut inner.files[self.file];
        file.settle(Instant::now());
        match fault {
            Some(fault) => {
                file.fail_sync(fault);
                Err(broken())
            }
            None => {
                file.sync(end);
                Ok(())
            }
        }
    }
}

fn usize_of(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
