//! A store in one thread, on a disk and a clock that are made up.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::disk::{Fault, Machine, NO_SPACE};
use super::net::{LOOK, Net};
use super::{put, value, write};
use crate::{ErrorKind, HistoryBounds, Pace, Peering, Simulated, Store, Volume, VolumeFile};

/// How long each of its syncs takes, on the clock that is made up.
const SYNC: Duration = Duration::from_secs(7);

/// A machine whose disk can be very slow.
#[derive(Clone, Debug)]
struct Slow {
    machine: Machine,
    slow: Arc<AtomicBool>,
    /// Syncs that nobody has asked the time of yet.
    syncs: Arc<AtomicU32>,
}

#[derive(Debug)]
struct SlowFile {
    file: Box<dyn VolumeFile>,
    syncs: Arc<AtomicU32>,
}

impl Slow {
    fn new(machine: &Machine, slow: bool) -> Self {
        Self { machine: machine.clone(), slow: Arc::new(slow.into()), syncs: Arc::default() }
    }

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
        let syncs = self.syncs.swap(0, Ordering::Relaxed);
        if self.slow.load(Ordering::Relaxed) { SYNC * syncs } else { Duration::ZERO }
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
    let volume = Arc::new(Slow::new(machine, true));
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

/// Three members that vote, the first of which leads.
async fn three(disks: &[Slow; 3]) -> Vec<Store> {
    let net = Net::default();
    let mut stores: Vec<Store> = Vec::new();
    for (at, disk) in disks.iter().enumerate() {
        let name = at.to_string();
        let volume = Arc::new(disk.clone());
        let ground = Simulated { volume, fresh_id: at as u64 + 1, history: HistoryBounds::default() };
        let peering =
            Peering { address: name.clone(), joins: at > 0, pace: Pace::default(), network: net.port(&name) };
        let store = Store::simulate(ground, Some(peering)).await.unwrap();
        net.add(&name, &store);
        stores.push(store);
    }
    for id in [2, 3] {
        stores[0].add_learner(id, &(id - 1).to_string()).await.unwrap();
        while stores[0].promote(id).await.is_err() {
            tokio::time::sleep(LOOK).await;
        }
    }
    assert!(stores[0].leadership().borrow().leader);
    stores
}

fn disks() -> [Slow; 3] {
    std::array::from_fn(|_| Slow::new(&Machine::new(), false))
}

async fn agree(stores: &[Store]) {
    let all = |store: &Store| store.range("/", &Default::default()).unwrap();
    while stores.windows(2).any(|pair| all(&pair[0]) != all(&pair[1])) {
        tokio::time::sleep(LOOK).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_disk_is_full_hands_over_and_comes_back() {
    let disks = disks();
    let stores = three(&disks).await;
    write(&stores[1], "a", "1").await;
    disks[0].machine.fail(0, u64::MAX, Fault::Refused(NO_SPACE));
    // What the one with the full disk is asked for is done by another one, or refused in words that say why.
    if let Err(error) = stores[0].commit(put("b", "1")).await {
        assert_eq!(error.kind(), ErrorKind::Retryable, "{error}");
    }
    while let Err(error) = stores[1].commit(put("a", "2")).await {
        assert_eq!(error.kind(), ErrorKind::Retryable, "{error}");
        tokio::time::sleep(LOOK).await;
    }
    let led = |store: &Store| store.leadership().borrow().leader;
    assert!(stores[1..].iter().any(led), "nobody else leads");
    let fault = stores[0].fault().unwrap();
    assert!(fault.contains("free some space"), "{fault}");
    disks[0].machine.heal();
    while stores[0].fault().is_some() {
        tokio::time::sleep(LOOK).await;
    }
    write(&stores[0], "a", "3").await;
    agree(&stores).await;
    assert_eq!(value(&stores[0], "a").as_deref(), Some("3"));
    for store in &stores {
        store.shutdown().await;
    }
}

#[tokio::test(start_paused = true)]
async fn syncs_of_seven_seconds_end_no_member() {
    let disks = disks();
    let stores = three(&disks).await;
    for (turn, slow) in disks.iter().enumerate() {
        slow.slow.store(true, Ordering::Relaxed);
        let begin = Instant::now();
        for (at, store) in stores.iter().enumerate() {
            while let Err(error) = store.commit(put("a", &format!("{turn}-{at}"))).await {
                assert_eq!(error.kind(), ErrorKind::Retryable, "{error}");
                tokio::time::sleep(LOOK).await;
            }
        }
        assert!(begin.elapsed() < SYNC * 20, "{:?}", begin.elapsed());
        slow.slow.store(false, Ordering::Relaxed);
        write(&stores[turn], "b", &turn.to_string()).await;
        agree(&stores).await;
        assert_eq!(value(&stores[turn], "a"), Some(format!("{turn}-2")));
    }
    assert!(stores.iter().all(|store| store.fault().is_none()));
    for store in &stores {
        store.shutdown().await;
    }
}
