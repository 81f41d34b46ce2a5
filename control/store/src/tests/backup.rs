//! Backups: what they hold, what is restored of them, and what is refused.

use std::collections::BTreeMap;

use super::{key, value, write};
use crate::{Backup, BackupError, Compacted, Config, OpenError, Revision, Store};

fn stream(backup: Backup) -> Vec<u8> {
    backup.chunks().flatten().collect()
}

async fn example() -> (Revision, Vec<u8>) {
    let store = Store::memory(crate::HistoryBounds::default());
    for number in 0..300 {
        write(&store, &format!("object-{number}"), &format!("value {number}")).await;
    }
    let revision = write(&store, "object-7", "newer").await;
    let files =
        BTreeMap::from([("pki/ca.key".to_owned(), b"a key".to_vec()), ("empty".to_owned(), Vec::new())]);
    (revision, stream(store.backup(1_790_000_000, files)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_restored_is_what_was_there_under_revisions_that_were_not() {
    let (revision, bytes) = example().await;
    let backup = Backup::read(&mut bytes.as_slice()).unwrap();
    assert_eq!((backup.revision, backup.taken_unix_s, backup.records.len()), (revision, 1_790_000_000, 300));
    assert_eq!(backup.files["pki/ca.key"], b"a key");
    let dir = tempfile::tempdir().unwrap();
    let begins = backup.restore(Config::new(dir.path()), &["/core/configmaps/default/object-29"]).unwrap();
    assert!(begins.0 > revision.0 + 1_000_000_000);

    let store = Store::open(Config::new(dir.path())).await.unwrap();
    assert_eq!(value(&store, "object-7").as_deref(), Some("newer"));
    assert_eq!(store.get(&key("object-7")), backup.records.get(&key("object-7")).cloned());
    // Eleven begin with what was to be left out.
    assert_eq!(store.range("/", &Default::default()).unwrap().items.len(), 300 - 11);
    // Nothing that was watched before can be watched on, even if the old store had gone a little further.
    for from in [Revision(1), revision, Revision(revision.0 + 1_000_000)] {
        assert_eq!(store.watch("/", from).unwrap_err(), Compacted { wanted: from, oldest: begins });
    }
    assert_eq!(write(&store, "object-7", "newest").await, begins.next());
    let first = store.member_id();
    store.shutdown().await;

    // It is a store like any other: it opens again, and is whole.
    let store = Store::open(Config::new(dir.path())).await.unwrap();
    assert_eq!(value(&store, "object-7").as_deref(), Some("newest"));
    store.shutdown().await;
    assert_eq!(crate::check(dir.path(), None).unwrap().problems, Vec::<String>::new());
    let other = tempfile::tempdir().unwrap();
    backup.restore(Config::new(other.path()), &[]).unwrap();
    let store = Store::open(Config::new(other.path())).await.unwrap();
    assert_ne!(store.member_id(), first, "members of two restored stores must not be taken for each other");
    store.shutdown().await;
}

#[tokio::test]
async fn whatever_is_damaged_is_refused() {
    let (_, bytes) = example().await;
    let refused = |bytes: &[u8]| Backup::read(&mut &*bytes).err();
    for end in (0..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
        let error = refused(&bytes[..end]).expect("a backup that is cut short");
        assert!(matches!(error, BackupError::NotOne | BackupError::Truncated), "cut at {end}: {error}");
    }
    for at in (0..bytes.len()).step_by(61).chain(0..64).chain(bytes.len() - 16..bytes.len()) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x40;
        assert!(refused(&damaged).is_some(), "byte {at} was flipped");
    }
    let mut newer = bytes.clone();
    newer[8] = 2;
    assert!(matches!(refused(&newer), Some(BackupError::Version { found: 2 })));
    assert!(refused(&[&bytes[..], b"x"].concat()).is_some());
    assert!(matches!(refused(b"apiVersion: v1\n"), Some(BackupError::NotOne)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_is_never_restored_over_another() {
    let (_, bytes) = example().await;
    let backup = Backup::read(&mut bytes.as_slice()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(Config::new(dir.path())).await.unwrap();
    write(&store, "mine", "1").await;
    assert!(matches!(backup.restore(Config::new(dir.path()), &[]).unwrap_err(), OpenError::InUse { .. }));
    assert_eq!(value(&store, "mine").as_deref(), Some("1"));
    store.shutdown().await;
    let error = backup.restore(Config::new(dir.path()), &[]).unwrap_err().to_string();
    assert!(error.contains("a store is there already") && error.contains("another directory"), "{error}");
    let store = Store::open(Config::new(dir.path())).await.unwrap();
    assert_eq!(value(&store, "mine").as_deref(), Some("1"));
    store.shutdown().await;
}
