//! A store in one thread, on a disk and a clock that are made up.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::disk::Machine;
use super::{value, write};
use crate::{HistoryBounds, Simulated, Store, Volume, VolumeFile};

/// How long each of its syncs takes, on the clock that is made up.
const SYNC: Duration = Duration::from_secs(7);

/// A machine whose disk is very slow.
#[derive(Clone, Debug)]
struct Slow {
    machine: Machine,
    /// Syncs that nobody has asked the time of yet.
    syncs: Arc<AtomicU32>,
}

#[derive(Debug)]
struct SlowFile {
    file: Box<dyn VolumeFile>,
    syncs: Arc<AtomicU32>,
}

impl Slow {
    fn file(&self, file: Box<dyn VolumeFile>) -> Box<dyn VolumeFile> {
        Box::new(SlowFile { file, syncs: self.syncs.clone() })
    }
}

impl Volume for Slow {
    fn list(&self) -> io::Result<Vec<String>> {
        self.machine.list()
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn VolumeFile>> {
        Ok(self.file(self.machine.open(name)?))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn VolumeFile>> {
        Ok(self.file(self.machine.create(name)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.machine.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.machine.remove(name)
    }

    fn sync(&self) -> io::Result<()> {
        self.machine.sync()
    }

    fn took(&self) -> Duration {
        SYNC * self.syncs.swap(0, Ordering::Relaxed)
    }
}

impl VolumeFile for SlowFile {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.file.set_size(size)
    }

    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(at, out)
    }

    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(at, data)
    }

    fn sync(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.file.sync()
    }
}

async fn open(machine: &Machine) -> Store {
    let volume = Arc::new(Slow { machine: machine.clone(), syncs: Arc::default() });
    let ground = Simulated { volume, fresh_id: 7, history: HistoryBounds::default() };
    Store::simulate(ground, None).await.unwrap()
}

/// The disk is never waited for but on the clock of the runtime, whose only thread would not get on otherwise.
#[tokio::test(start_paused = true)]
async fn a_simulated_store_lives_on_a_clock_that_is_made_up() {
    let begin = Instant::now();
    let machine = Machine::new();
    let store = open(&machine).await;
    assert_eq!(store.member_id(), Some(7));
    let opened = begin.elapsed();
    write(&store, "a", "1").await;
    assert!(begin.elapsed() >= opened + SYNC, "acknowledged before the disk had it");
    // Others go on meanwhile, and what queues behind one sync is in the next.
    let (begin, done) = (Instant::now(), Mutex::new(Vec::new()));
    tokio::join!(
        async {
            write(&store, "a", "2").await;
            done.lock().unwrap().push("one");
        },
        async {
            tokio::time::sleep(SYNC / 2).await;
            done.lock().unwrap().push("rest");
            tokio::join!(write(&store, "b", "1"), write(&store, "c", "1"));
            done.lock().unwrap().push("two");
        },
    );
    assert_eq!(*done.lock().unwrap(), ["rest", "one", "two"]);
    assert!(begin.elapsed() < SYNC * 3, "{:?}", begin.elapsed());
    store.compact().await;
    store.shutdown().await;
    let store = open(&machine.after_power_cut(|| false)).await;
    assert_eq!(value(&store, "a").as_deref(), Some("2"));
    assert_eq!(value(&store, "c").as_deref(), Some("1"));
    store.shutdown().await;
}
