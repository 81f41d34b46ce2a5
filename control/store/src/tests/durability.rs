//! What survives, what is refused, and what it costs the disk.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{LOG, key, put, small_history, value, write};
use crate::{Config, Event, OpenError, Precondition, RangeOptions, Revision, Store, Txn};

async fn open(dir: &Path) -> Store {
    Store::open(Config::new(dir)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let start = store.revision();
    let a = write(&store, "a", "1").await;
    write(&store, "b", "1").await;
    store.commit(Txn::new().delete(key("b"), Precondition::Any)).await.unwrap();
    let term = store.leadership().borrow().term;
    let revision = store.revision();
    store.shutdown().await;
    let store = open(dir.path()).await;
    assert_eq!(store.revision(), revision);
    assert_eq!(store.get(&key("a")).unwrap().revision(), a);
    assert_eq!(store.get(&key("b")), None);
    assert!(store.leadership().borrow().term > term);
    // The history survives too: a watch goes on where it was.
    let mut watch = store.watch("/", start).unwrap();
    for expected in start.0 + 1..=revision.0 {
        let Event::Change(change) = watch.next().await.unwrap() else { panic!() };
        assert_eq!(change.revision, Revision(expected));
    }
    let next = write(&store, "c", "1").await;
    assert_eq!(next, revision.next());
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purged_log_leaves_nothing_out() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let store = open(dir.path()).await;
        for index in 0..20 {
            write(&store, &format!("k{round}-{index}"), "1").await;
        }
        store.compact().await;
        write(&store, "after", &round.to_string()).await;
        store.shutdown().await;
    }
    let store = open(dir.path()).await;
    assert_eq!(store.range("/", &RangeOptions::default()).unwrap().items.len(), 61);
    assert_eq!(value(&store, "after").as_deref(), Some("2"));
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_dropped_lets_go_of_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    write(&store, "a", "1").await;
    drop(store);
    // Its tasks and threads end by themselves, but not all at once.
    let reopened = loop {
        match Store::open(Config::new(dir.path())).await {
            Ok(store) => break store,
            Err(OpenError::InUse { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(value(&reopened, "a").as_deref(), Some("1"));
    reopened.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_history_stays_bounded_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { history: small_history(), ..Config::new(dir.path()) };
    let mut last = Revision::FIRST;
    for _ in 0..3 {
        let store = Store::open(config.clone()).await.unwrap();
        for _ in 0..6 {
            last = write(&store, "a", "1").await;
        }
        store.shutdown().await;
    }
    let store = Store::open(config).await.unwrap();
    assert_eq!(store.watch("/", Revision(last.0 - 9)).unwrap_err().oldest, Revision(last.0 - 8));
    let mut watch = store.watch("/", Revision(last.0 - 8)).unwrap();
    for expected in last.0 - 7..=last.0 {
        let Event::Change(change) = watch.next().await.unwrap() else { panic!() };
        assert_eq!(change.revision, Revision(expected));
    }
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_store_on_the_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let error = Store::open(Config::new(dir.path())).await.unwrap_err();
    assert!(matches!(&error, OpenError::InUse { dir: named } if named == dir.path()));
    assert!(error.to_string().contains(dir.path().to_str().unwrap()), "{error}");
    // The refused one has harmed nothing.
    write(&store, "a", "1").await;
    store.shutdown().await;
    open(dir.path()).await.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_cannot_be_made_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Store::open(Config::new(file.path().join("store"))).await.unwrap_err();
    assert!(matches!(error, OpenError::Io { .. }), "{error:?}");
}

/// Flips a byte within a stored value of the file, found by its text.
fn damage(path: &Path, text: &str) -> usize {
    let mut bytes = fs::read(path).unwrap();
    let found: Vec<_> = bytes
        .windows(text.len())
        .enumerate()
        .filter(|(_, part)| *part == text.as_bytes())
        .map(|(at, _)| at)
        .collect();
    for at in &found {
        bytes[*at] ^= 1;
    }
    fs::write(path, bytes).unwrap();
    found.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_detected_and_never_served() {
    for file in ["state.redb", LOG] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).await;
        write(&store, "a", "precious-value").await;
        store.shutdown().await;
        assert!(damage(&dir.path().join(file), "precious-value") > 0, "{file}");
        let error = Store::open(Config::new(dir.path())).await.unwrap_err();
        assert!(matches!(&error, OpenError::Corrupt { .. }), "{file}: {error:?}");
        assert!(error.to_string().contains(file), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_no_database_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("state.redb"), vec![7; 8192]).unwrap();
    let error = Store::open(Config::new(dir.path())).await.unwrap_err();
    assert!(matches!(&error, OpenError::Corrupt { .. }), "{error:?}");
}

/// Waits until the count of syncs stays as it is for longer than anything is put off.
async fn settle(store: &Store) -> u64 {
    let mut syncs = store.syncs();
    loop {
        tokio::time::sleep(Duration::from_millis(1200)).await;
        let now = store.syncs();
        if now == syncs {
            return now;
        }
        syncs = now;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_store_never_syncs() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    write(&store, "a", "1").await;
    let idle = settle(&store).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let _ = (store.get(&key("a")), store.barrier().await);
    assert_eq!(store.syncs(), idle);
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_commits_share_syncs() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let before = store.syncs();
    let writers: Vec<_> = (0..64)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for _ in 0..8 {
                    store.commit(put(&format!("k{writer}"), "1")).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let syncs = store.syncs() - before;
    assert!(syncs < 64 * 8 / 2, "{syncs} syncs for 512 commits");
    assert_eq!(value(&store, "k63").as_deref(), Some("1"));
    store.shutdown().await;
}
