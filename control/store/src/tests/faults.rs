//! Disks that lose what was not synced, that fail, and files that change under the store.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::disk::Machine;
use super::{LOG, key, put, value, write};
use crate::disk::{Disk, write_meta};
use crate::{Config, Event, OpenError, Revision, Store};

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
        let store = machine.start(dir.path()).await.unwrap_or_else(|error| panic!("round {round}: {error}"));
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
    for file in ["state.redb", LOG] {
        let bytes = std::fs::read(origin.path().join(file)).unwrap();
        let used: Vec<_> =
            bytes.chunks(1024).enumerate().filter(|(_, part)| part.iter().any(|byte| *byte != 0)).collect();
        for (part, content) in used {
            let at = part * 1024 + content.iter().position(|byte| *byte != 0).unwrap();
            let dir = tempfile::tempdir().unwrap();
            for other in ["state.redb", LOG] {
                std::fs::copy(origin.path().join(other), dir.path().join(other)).unwrap();
            }
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            std::fs::write(dir.path().join(file), damaged).unwrap();
            std::fs::write(dir.path().join("lock"), "").unwrap();
            let found = crate::check(dir.path(), None).unwrap().problems;
            match Store::open(Config::new(dir.path())).await {
                Err(_) => {
                    assert!(!found.is_empty(), "{file} at {at}");
                    refused += 1;
                }
                Ok(store) => {
                    assert!(found.is_empty(), "{file} at {at}: {found:?}");
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
    std::fs::copy(b.path().join(LOG), a.path().join(LOG)).unwrap();
    let error = Store::open(Config::new(a.path())).await.unwrap_err();
    assert!(matches!(&error, OpenError::Corrupt { .. }), "{error:?}");
    let report = crate::check(a.path(), None).unwrap();
    assert_eq!(report.problems, ["the state is another member's than the log"], "{report}");
    // A log that is gone takes the member's vote and identity with it.
    std::fs::remove_file(b.path().join(LOG)).unwrap();
    let error = Store::open(Config::new(b.path())).await.unwrap_err();
    assert!(matches!(&error, OpenError::Corrupt { .. }), "{error:?}");
}

/// Files of one member that are not of one time: a log from before, put back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_older_than_its_state_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (log, before) = (dir.path().join(LOG), dir.path().join("before"));
    for value in ["1", "2"] {
        let store = Store::open(Config::new(dir.path())).await.unwrap();
        write(&store, "a", value).await;
        store.shutdown().await;
        if value == "1" {
            std::fs::copy(&log, &before).unwrap();
        }
    }
    std::fs::rename(&before, &log).unwrap();
    let error = Store::open(Config::new(dir.path())).await.unwrap_err();
    assert!(matches!(&error, OpenError::Corrupt { .. }), "{error:?}");
    assert!(error.to_string().contains("the log is older than the state beside it"), "{error}");
    let report = crate::check(dir.path(), None).unwrap();
    assert_eq!(report.problems, ["the log is older than the state beside it"], "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_reads_everything_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let error = crate::check(dir.path(), None).unwrap_err();
    assert!(matches!(error, OpenError::Io { .. }), "{error:?}");
    let store = Store::open(Config::new(dir.path())).await.unwrap();
    for index in 0..30 {
        write(&store, &format!("k{index}"), "1").await;
    }
    let error = crate::check(dir.path(), None).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error:?}");
    // As after kill -9, with the state behind the log.
    let killed = tempfile::tempdir().unwrap();
    for file in ["lock", LOG, "state.redb"] {
        std::fs::copy(dir.path().join(file), killed.path().join(file)).unwrap();
    }
    let revision = store.revision();
    store.shutdown().await;
    for dir in [dir.path(), killed.path()] {
        let files = [LOG, "state.redb"].map(|file| dir.join(file));
        let before = files.each_ref().map(|file| std::fs::read(file).unwrap());
        let report = crate::check(dir, None).unwrap();
        assert_eq!(report.problems, Vec::<String>::new(), "{report}");
        assert!(report.entries > 30 && report.member.is_some(), "{report}");
        assert!(report.to_string().ends_with("no problem found"), "{report}");
        assert_eq!(files.map(|file| std::fs::read(file).unwrap()), before);
    }
    let report = crate::check(dir.path(), None).unwrap();
    assert_eq!((report.records, report.revision), (30, revision));
}

/// Every format at rest says which version it is, and one that this build does not know is named.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_another_version_is_refused_and_named() {
    for (file, found, known) in
        [(LOG, 0u32, 3), (LOG, 1, 3), (LOG, 4, 3), ("state.redb", 0, 2), ("state.redb", 3, 2)]
    {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Config::new(dir.path())).await.unwrap();
        write(&store, "a", "1").await;
        store.shutdown().await;
        if file == LOG {
            let mut bytes = std::fs::read(dir.path().join(file)).unwrap();
            crate::log::set_format(&mut bytes, found);
            std::fs::write(dir.path().join(file), bytes).unwrap();
        } else {
            set_database_format(dir.path(), file, found);
        }
        let error = Store::open(Config::new(dir.path())).await.unwrap_err();
        assert!(matches!(&error, OpenError::Version { .. }), "{error:?}");
        let told = format!("{file}: format {found}, while this build reads {known}");
        assert!(error.to_string().contains(&told), "{error}");
        let report = crate::check(dir.path(), None).unwrap();
        assert_eq!(report.problems, [told], "{report}");
    }
}

fn set_database_format(dir: &Path, file: &'static str, format: u32) {
    let volume: Arc<dyn crate::Volume> = Arc::new(crate::volume::Dir::new(dir));
    let disk = Disk::existing(volume, file, &|_| Ok(())).unwrap();
    let set = |transaction: &redb::WriteTransaction| write_meta(transaction, "format", &format.to_le_bytes());
    disk.write(redb::Durability::Immediate, set).unwrap();
    disk.close();
}
