//! A store on a file system of its own that is too small, full, or mounted read-only.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lichen_firmware_tests::mounts;
use lichen_store::{CommitError, Config, Draft, ErrorKind, Event, Key, OpenError, Precondition, Store, Txn};
use serde_json::json;

/// How often a store is asked whether the disk works again.
const LOOK: Duration = Duration::from_millis(10);
const FREE: &str = "free some space on its disk";

#[test]
fn a_file_system_that_is_full_or_read_only_is_survived() {
    mounts::in_own("a_file_system_that_is_full_or_read_only_is_survived", |dir| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.unwrap().block_on(live(&Disk { root: dir.into() }));
    });
}

/// A file system in memory.
struct Disk {
    root: PathBuf,
}

impl Disk {
    fn mount(&self, options: &str) {
        mounts::mount(&["-t", "tmpfs", "-o", options, "none"], &self.root);
    }

    fn store(&self) -> PathBuf {
        self.root.join("store")
    }

    async fn open(&self) -> Result<Store, OpenError> {
        Store::open(Config::new(self.store())).await
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut file = File::create(self.root.join("filler")).unwrap();
        for size in [1 << 16, 1 << 12, 1] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(self.root.join("filler")).unwrap();
    }
}

fn put(name: &str, value: &str) -> Txn {
    let none: [(&str, &str); 0] = [];
    let draft = Draft::new(&json!({ "metadata": { "name": name }, "value": value }), none);
    Txn::new().put(Key::from(format!("/{name}")), Precondition::Any, draft)
}

fn value(store: &Store, name: &str) -> Option<String> {
    let record = store.get(&Key::from(format!("/{name}")))?;
    Some(record.value().unwrap()["value"].as_str().unwrap().to_owned())
}

fn names(told: &str, dir: &Path, advice: &str) {
    assert!(told.contains(dir.to_str().unwrap()) && told.contains(advice), "{told}");
}

/// Writes until the disk is full, and tells what was acknowledged last.
async fn write_until_refused(store: &Store, dir: &Path) -> usize {
    let large = "x".repeat(8 * 1024);
    let mut acknowledged = 0;
    loop {
        let next = acknowledged + 1;
        match store.commit(put("count", &format!("{next} {large}"))).await {
            Ok(_) => acknowledged = next,
            Err(error @ CommitError::Stalled(_)) => {
                assert_eq!(error.kind(), ErrorKind::Retryable);
                names(&error.to_string(), dir, FREE);
                return acknowledged;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

async fn live(disk: &Disk) {
    let dir = disk.store();
    disk.mount("size=16k");
    // However little room there is at the first start, what it leaves behind does no harm to the next one.
    let mut kib = 16;
    let mut refused = 0;
    let store = loop {
        match disk.open().await {
            Ok(store) => break store,
            Err(error) => names(&error.to_string(), &dir, FREE),
        }
        refused += 1;
        kib += 16;
        disk.mount(&format!("remount,size={kib}k"));
    };
    assert!(refused > 3, "{refused}");
    disk.mount("remount,size=24m");
    while store.fault().is_some() {
        tokio::time::sleep(LOOK).await;
    }
    store.commit(put("first", "1")).await.unwrap();
    let mut watch = store.watch("/", store.revision()).unwrap();

    disk.fill();
    let acknowledged = write_until_refused(&store, &dir).await;
    for _ in 0..3 {
        let error = store.commit(put("refused", "1")).await.unwrap_err();
        assert!(matches!(error, CommitError::Unavailable(_)), "{error:?}");
        names(&error.to_string(), &dir, FREE);
    }
    store.barrier().await.unwrap();
    assert_eq!(value(&store, "first").as_deref(), Some("1"));
    for _ in 0..acknowledged {
        assert!(matches!(watch.next().await.unwrap(), Event::Change(_)));
    }

    // As if somebody cleaned up: it goes on by itself, and has done nothing that it refused.
    disk.free();
    while store.fault().is_some() {
        tokio::time::sleep(LOOK).await;
    }
    store.commit(put("second", "1")).await.unwrap();
    assert_eq!(value(&store, "refused"), None);
    let count = value(&store, "count").map_or(0, |value| value.split(' ').next().unwrap().parse().unwrap());
    assert!(count == acknowledged || count == acknowledged + 1, "{count}, acknowledged {acknowledged}");
    store.shutdown().await;

    // A start on a disk that has become read-only.
    disk.mount("remount,ro");
    names(&disk.open().await.unwrap_err().to_string(), &dir, "mount its file system for writing");
    disk.mount("remount,rw");

    // A start on a full one: it says so, or does what it can.
    disk.fill();
    match disk.open().await {
        Err(error) => names(&error.to_string(), &dir, FREE),
        Ok(store) => {
            assert_eq!(value(&store, "second").as_deref(), Some("1"));
            write_until_refused(&store, &dir).await;
            store.shutdown().await;
        }
    }
    disk.free();
    let store = disk.open().await.unwrap();
    assert_eq!(value(&store, "second").as_deref(), Some("1"));
    store.commit(put("third", "1")).await.unwrap();
    store.shutdown().await;
}
