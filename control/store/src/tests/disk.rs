//! A machine whose disk loses power, fails, and comes back.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::{OpenError, Store, Volume, VolumeFile};

pub(crate) const NO_SPACE: i32 = 28;
pub(crate) const READ_ONLY: i32 = 30;
const BROKEN: i32 = 5;

/// What becomes of an operation that fails.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// Nothing was done.
    Refused(i32),
    /// Half of a write was.
    Short(i32),
    /// A sync fails, and what it should have written can be read, but is written by no other sync either.
    Forgotten,
    /// A sync fails, and what it should have written is gone.
    Reverted,
}

pub(crate) const FAULTS: [Fault; 5] = [
    Fault::Refused(NO_SPACE),
    Fault::Short(NO_SPACE),
    Fault::Refused(READ_ONLY),
    Fault::Forgotten,
    Fault::Reverted,
];

/// What a file holds: what would be there after a power cut, and what was written since the last sync.
#[derive(Debug, Default)]
struct Image {
    durable: Vec<u8>,
    current: Vec<u8>,
    unsynced: Vec<(u64, Vec<u8>)>,
}

#[derive(Debug)]
struct Inner {
    files: Vec<Image>,
    /// Which file has which name, and which would after a power cut.
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// What was done to the names since they were synced.
    unsynced_names: Vec<Naming>,
    /// How many operations there were.
    done: u64,
    /// From which on they fail, and how many of them.
    from: u64,
    count: u64,
    fault: Fault,
}

#[derive(Clone, Debug)]
pub(crate) struct Machine {
    inner: Arc<Mutex<Inner>>,
}

/// A change of the names, which happens as a whole.
#[derive(Clone, Debug)]
struct Naming {
    gone: Option<String>,
    new: Option<(String, usize)>,
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        if let Some(gone) = &self.gone {
            names.remove(gone);
        }
        if let Some((name, index)) = &self.new {
            names.insert(name.clone(), *index);
        }
    }
}

/// An open file.
#[derive(Debug)]
struct Open {
    machine: Machine,
    index: usize,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let fault = Fault::Refused(BROKEN);
        let (names, durable_names) = Default::default();
        let unsynced_names = Vec::new();
        let (files, done, from, count) = Default::default();
        let inner = Inner { files, names, durable_names, unsynced_names, done, from, count, fault };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    pub(crate) async fn start(&self, dir: &Path) -> Result<Store, OpenError> {
        Store::open_on(dir, self.volume()).await
    }

    pub(crate) fn volume(&self) -> Arc<dyn Volume> {
        Arc::new(self.clone())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Puts a file there, durable.
    pub(crate) fn put(&self, name: &str, bytes: Vec<u8>) {
        let mut inner = self.inner();
        inner.files.push(Image { durable: bytes.clone(), current: bytes, unsynced: Vec::new() });
        let index = inner.files.len() - 1;
        inner.names.insert(name.to_owned(), index);
        inner.durable_names.insert(name.to_owned(), index);
    }

    /// Files that were ever made.
    pub(crate) fn files(&self) -> usize {
        self.inner().files.len()
    }

    /// Writes, syncs and changes of length until now.
    pub(crate) fn done(&self) -> u64 {
        self.inner().done
    }

    /// Lets so many operations fail, once so many have succeeded.
    pub(crate) fn fail(&self, from: u64, count: u64, fault: Fault) {
        let mut inner = self.inner();
        inner.from = inner.done + from;
        inner.count = count;
        inner.fault = fault;
    }

    pub(crate) fn heal(&self) {
        self.inner().count = 0;
    }

    /// The machine after a power cut: of what was not synced, as much survives as `survives` says, piece by piece.
    pub(crate) fn after_power_cut(&self, mut survives: impl FnMut() -> bool) -> Self {
        let after = Self::new();
        let lost = self.inner();
        let mut names = lost.durable_names.clone();
        for naming in &lost.unsynced_names {
            if survives() {
                naming.apply(&mut names);
            }
        }
        for (name, index) in &names {
            let lost = &lost.files[*index];
            let mut image = Image { durable: lost.durable.clone(), ..Image::default() };
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
            let mut after = after.inner();
            let file = after.files.len();
            after.files.push(image);
            after.names.insert(name.clone(), file);
            after.durable_names.insert(name.clone(), file);
        }
        drop(lost);
        after
    }
}

impl Inner {
    fn name(&mut self, naming: Naming) {
        naming.apply(&mut self.names);
        self.unsynced_names.push(naming);
    }

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

impl Machine {
    /// Flips a bit of a file.
    pub(crate) fn flip(&self, name: &str, at: usize) {
        let mut inner = self.inner();
        let index = inner.names[name];
        inner.files[index].current[at] ^= 0x40;
        inner.files[index].durable[at] ^= 0x40;
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

impl Machine {
    /// Counts a change of the names, and makes it unless it fails. What is renamed or removed may come back.
    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> io::Result<T>) -> io::Result<T> {
        let mut inner = self.inner();
        match inner.count(false) {
            Some(fault) => Err(fault.error()),
            None => change(&mut inner),
        }
    }
}

impl Volume for Machine {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.inner().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn VolumeFile>> {
        let index = *self.inner().names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Open { machine: self.clone(), index }))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn VolumeFile>> {
        let index = self.change(|inner| {
            inner.files.push(Image::default());
            let index = inner.files.len() - 1;
            inner.name(Naming { gone: None, new: Some((name.to_owned(), index)) });
            Ok(index)
        })?;
        Ok(Box::new(Open { machine: self.clone(), index }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(|inner| {
            let index = *inner.names.get(from).ok_or(io::ErrorKind::NotFound)?;
            inner.name(Naming { gone: Some(from.to_owned()), new: Some((to.to_owned(), index)) });
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.change(|inner| {
            inner.names.get(name).ok_or(io::ErrorKind::NotFound)?;
            inner.name(Naming { gone: Some(name.to_owned()), new: None });
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.inner();
        match inner.count(true) {
            Some(fault) => Err(fault.error()),
            None => {
                inner.durable_names = inner.names.clone();
                inner.unsynced_names.clear();
                Ok(())
            }
        }
    }
}

impl VolumeFile for Open {
    fn size(&self) -> io::Result<u64> {
        Ok(self.machine.inner().files[self.index].current.len() as u64)
    }

    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        let inner = self.machine.inner();
        let start = at as usize;
        let found = inner.files[self.index].current.get(start..start + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        let mut inner = self.machine.inner();
        if let Some(fault) = inner.count(false) {
            return Err(fault.error());
        }
        let image = &mut inner.files[self.index];
        // A file's length is kept here at once; what is in the new part is not.
        image.current.resize(size as usize, 0);
        image.durable.resize(size as usize, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        // Others get a chance to be in the middle of something.
        std::thread::yield_now();
        let mut inner = self.machine.inner();
        let fault = inner.count(true);
        let image = &mut inner.files[self.index];
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

    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        let mut inner = self.machine.inner();
        let fault = inner.count(false);
        let image = &mut inner.files[self.index];
        match fault {
            None => image.write(at, data),
            Some(Fault::Short(_)) => image.write(at, &data[..data.len() / 2]),
            Some(_) => {}
        }
        fault.map_or(Ok(()), |fault| Err(fault.error()))
    }
}
