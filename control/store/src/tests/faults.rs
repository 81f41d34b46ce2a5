//! Disks that lose what was not synced, that fail, and files that change under the store.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use redb::StorageBackend;
use tokio::task::JoinHandle;

use super::{key, put, value, write};
use crate::{Config, ErrorKind, Event, OpenError, Revision, Store};

/// What a disk holds: what would be there after a power cut, and what was written since the last sync.
#[derive(Debug, Default)]
struct Image {
    durable: Vec<u8>,
    current: Vec<u8>,
    unsynced: Vec<(u64, Vec<u8>)>,
}

/// Two disks that lose power together.
#[derive(Clone, Debug, Default)]
struct Machine {
    disks: Arc<Mutex<[Image; 2]>>,
    /// Writes and syncs until each one fails.
    until_failure: Arc<AtomicI64>,
    failing: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Disk {
    machine: Machine,
    index: usize,
}

impl Machine {
    fn new() -> Self {
        let machine = Self::default();
        machine.until_failure.store(i64::MAX, Ordering::SeqCst);
        machine
    }

    async fn open(&self, dir: &Path) -> Result<Store, OpenError> {
        let disk = |index| Disk { machine: self.clone(), index };
        Store::open_on(dir, disk(0), disk(1)).await
    }

    /// The machine after a power cut: of what was not synced, as much survives as `survives` says, piece by piece.
    fn after_power_cut(&self, mut survives: impl FnMut() -> bool) -> Self {
        let after = Self::new();
        for (image, lost) in after.disks.lock().unwrap().iter_mut().zip(self.disks.lock().unwrap().iter()) {
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

    fn count(&self) -> io::Result<()> {
        if self.until_failure.fetch_sub(1, Ordering::SeqCst) <= 0 {
            self.failing.store(true, Ordering::SeqCst);
            return Err(io::Error::other("the disk failed"));
        }
        Ok(())
    }
}

impl Disk {
    fn images(&self) -> MutexGuard<'_, [Image; 2]> {
        self.machine.disks.lock().unwrap()
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.images()[self.index].current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let images = self.images();
        let current = &images[self.index].current;
        let start = offset as usize;
        let found = current.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.machine.count()?;
        let image = &mut self.images()[self.index];
        // A file's length is kept here at once; what is in the new part is not.
        image.current.resize(len as usize, 0);
        image.durable.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.machine.count()?;
        // Others get a chance to be in the middle of something.
        std::thread::sleep(Duration::from_micros(200));
        let image = &mut self.images()[self.index];
        for (offset, data) in std::mem::take(&mut image.unsynced) {
            let start = offset as usize;
            if start + data.len() <= image.durable.len() {
                image.durable[start..start + data.len()].copy_from_slice(&data);
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.machine.count()?;
        let image = &mut self.images()[self.index];
        let start = offset as usize;
        image.current[start..start + data.len()].copy_from_slice(data);
        image.unsynced.push((offset, data.to_vec()));
        Ok(())
    }
}

fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

/// Which revision wrote which value under which name.
type Acknowledged = BTreeMap<Revision, (String, u64)>;

/// Writers that count upwards, each under its own key, until they fail.
fn start_writers(store: &Store, acknowledged: &Arc<Mutex<Acknowledged>>) -> Vec<JoinHandle<()>> {
    let writer = |name: String, store: Store, acknowledged: Arc<Mutex<Acknowledged>>| async move {
        let mut next = value(&store, &name).map_or(0, |value| value.parse::<u64>().unwrap()) + 1;
        while let Ok(committed) = store.commit(put(&name, &next.to_string())).await {
            acknowledged.lock().unwrap().insert(committed.revision, (name.clone(), next));
            next += 1;
        }
    };
    (0..8)
        .map(|index| tokio::spawn(writer(format!("w{index}"), store.clone(), acknowledged.clone())))
        .collect()
}

/// Every write that was acknowledged happened, at the revision that was told.
fn check(store: &Store, acknowledged: &Acknowledged, context: &str) {
    let mut newest = BTreeMap::new();
    for (name, value) in acknowledged.values() {
        newest.insert(name, *value);
    }
    for (name, acknowledged) in newest {
        let found = value(store, name).map_or(0, |value| value.parse::<u64>().unwrap());
        assert!(found >= acknowledged, "{context}: {name} is {found}, acknowledged was {acknowledged}");
    }
    let floor = store.watch("/", Revision(0)).unwrap_err().oldest;
    let mut watch = store.watch("/", floor).unwrap();
    let mut history = BTreeMap::new();
    while let Some(Event::Change(change)) = watch.try_next().unwrap() {
        history.insert(change.revision, change);
    }
    for (revision, (name, value)) in acknowledged.range(floor.next()..) {
        let change = history.get(revision).unwrap_or_else(|| panic!("{context}: {revision} is missing"));
        let found = change.new.as_ref().unwrap().labels().get("app").unwrap().to_owned();
        assert_eq!((change.key.name(), found), (name.as_str(), value.to_string()), "{context}: {revision}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut machine = Machine::new();
    let acknowledged = Arc::new(Mutex::new(BTreeMap::new()));
    for round in 0..12u64 {
        let store = machine.open(dir.path()).await.unwrap_or_else(|error| panic!("round {round}: {error}"));
        check(&store, &acknowledged.lock().unwrap(), &format!("round {round}"));
        let writers = start_writers(&store, &acknowledged);
        // Long enough in some rounds for the state to come to rest, too.
        tokio::time::sleep(Duration::from_millis(50 + round % 4 * 250)).await;
        // First what was acknowledged, then the cut: whatever is acknowledged in between does not count.
        let promised = acknowledged.lock().unwrap().clone();
        let mut random = random(round + 1);
        let after = machine.after_power_cut(|| match round % 3 {
            0 => false,
            1 => random().is_multiple_of(2),
            _ => true,
        });
        store.shutdown().await;
        for writer in writers {
            writer.await.unwrap();
        }
        assert!(!promised.is_empty());
        *acknowledged.lock().unwrap() = promised;
        machine = after;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_is_an_error_and_loses_nothing_acknowledged() {
    for round in 0..8u64 {
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine::new();
        let store = machine.open(dir.path()).await.unwrap();
        let acknowledged = Arc::new(Mutex::new(BTreeMap::new()));
        machine.until_failure.store(40 + round as i64 * 37, Ordering::SeqCst);
        for writer in start_writers(&store, &acknowledged) {
            writer.await.unwrap();
        }
        assert!(machine.failing.load(Ordering::SeqCst));
        let error = store.commit(put("late", "1")).await.unwrap_err();
        assert_ne!(error.kind(), ErrorKind::Rejected, "{error}");
        // What was acknowledged can still be read, and nothing else is told.
        check(&store, &acknowledged.lock().unwrap(), "while failing");
        store.shutdown().await;
        let machine = machine.after_power_cut(|| false);
        let store = machine.open(dir.path()).await.unwrap();
        check(&store, &acknowledged.lock().unwrap(), "afterwards");
        write(&store, "late", "2").await;
        store.shutdown().await;
    }
}

/// A byte in each part of each file, flipped in turn: the store refuses to open, or nothing that it says has changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_is_never_served() {
    let origin = tempfile::tempdir().unwrap();
    let store = Store::open(Config::new(origin.path())).await.unwrap();
    for index in 0..40 {
        write(&store, &format!("k{index}"), &format!("v{index}")).await;
    }
    let page = store.range("/", &Default::default()).unwrap();
    store.shutdown().await;
    let mut refused = 0;
    for file in ["state.redb", "log.redb"] {
        let bytes = std::fs::read(origin.path().join(file)).unwrap();
        let used: Vec<_> =
            bytes.chunks(1024).enumerate().filter(|(_, part)| part.iter().any(|byte| *byte != 0)).collect();
        for (part, content) in used {
            let at = part * 1024 + content.iter().position(|byte| *byte != 0).unwrap();
            let dir = tempfile::tempdir().unwrap();
            for other in ["state.redb", "log.redb"] {
                std::fs::copy(origin.path().join(other), dir.path().join(other)).unwrap();
            }
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            std::fs::write(dir.path().join(file), damaged).unwrap();
            match Store::open(Config::new(dir.path())).await {
                Err(_) => refused += 1,
                Ok(store) => {
                    assert_eq!(store.range("/", &Default::default()).unwrap(), page, "{file} at {at}");
                    assert_eq!(
                        store.get(&key("k7")).as_ref(),
                        page.items.iter().find(|(key, _)| key.name() == "k7").map(|(_, record)| record)
                    );
                    store.shutdown().await;
                }
            }
        }
    }
    assert!(refused > 10, "only {refused} damaged files were refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_two_members_are_refused() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&a, &b] {
        let store = Store::open(Config::new(dir.path())).await.unwrap();
        write(&store, "a", "1").await;
        store.shutdown().await;
    }
    std::fs::copy(b.path().join("log.redb"), a.path().join("log.redb")).unwrap();
    let error = Store::open(Config::new(a.path())).await.unwrap_err();
    assert!(matches!(&error, OpenError::Corrupt { .. }), "{error:?}");
    // A log that is gone takes the member's vote and identity with it.
    std::fs::remove_file(b.path().join("log.redb")).unwrap();
    let error = Store::open(Config::new(b.path())).await.unwrap_err();
    assert!(matches!(&error, OpenError::Corrupt { .. }), "{error:?}");
}
