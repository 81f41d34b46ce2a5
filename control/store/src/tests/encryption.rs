//! What is encrypted where it lies: in no file of a store, and for nobody without the key.

use std::sync::Arc;

use serde_json::json;

use crate::encryption::{NAME, Vault};
use crate::volume::{Dir, Volume};
use crate::{
    Config, DecodeError, Draft, Encryption, EncryptionKey, Key, OpenError, Precondition, Store, Txn,
};

fn volume(dir: &tempfile::TempDir) -> Arc<dyn Volume> {
    Arc::new(Dir::new(dir.path()))
}

fn encryption(key: &EncryptionKey) -> Encryption {
    Encryption { key: key.clone(), prefixes: vec!["/secrets/".into()] }
}

#[test]
fn a_key_is_read_as_it_is_written() {
    let key = EncryptionKey::random().unwrap();
    assert_eq!(EncryptionKey::parse(&format!("{}\n", key.text())), Ok(key.clone()));
    assert_eq!(format!("{key:?}"), "EncryptionKey(..)");
    for text in ["", "00", &key.text()[1..], &format!("{}00", key.text()), &"zz".repeat(32), &"é".repeat(32)]
    {
        assert!(EncryptionKey::parse(text).is_err(), "{text:?}");
    }
}

#[test]
fn a_value_is_read_at_its_place_only() {
    let dir = tempfile::tempdir().unwrap();
    let key = EncryptionKey::random().unwrap();
    let vault = Vault::open(&volume(&dir), Some(&encryption(&key))).unwrap();
    let (secret, plain) = (Key::new("/secrets/a"), Key::new("/pods/a"));
    let value = b"swordfish".to_vec();
    assert_eq!(vault.protect(&plain, b"here", value.clone()).unwrap(), value);
    let hidden = vault.protect(&secret, b"here", value.clone()).unwrap();
    assert!(!hidden.windows(value.len()).any(|window| window == value));
    assert_eq!(vault.reveal(b"here", &hidden).unwrap(), value);
    assert_eq!(vault.reveal(b"here", &value).unwrap(), value, "what was never encrypted");
    assert!(vault.reveal(b"there", &hidden).is_err(), "moved");
    for at in 0..hidden.len() {
        let mut flipped = hidden.clone();
        flipped[at] ^= 1;
        // A value that does not say any more that it is encrypted is checked by whoever decodes it.
        if at > 0 {
            assert!(vault.reveal(b"here", &flipped).is_err(), "byte {at}");
        }
    }
    assert_eq!(Vault::default().reveal(b"here", &hidden), Err(DecodeError::Encrypted));
}

#[test]
fn keys_outlive_their_process_and_are_forgotten_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let key = EncryptionKey::random().unwrap();
    let open = || Vault::open(&volume(&dir), Some(&encryption(&key))).unwrap();
    let secret = Key::new("/secrets/a");
    let first = open().protect(&secret, b"p", b"one".to_vec()).unwrap();
    let vault = open();
    assert!(vault.is_pending(), "a state that may be plain");
    assert_eq!(vault.retired_until(), Some(u64::MAX), "a log that may be plain");
    vault.bound(5).unwrap();
    vault.settle().unwrap();
    vault.forget(5).unwrap();
    assert_eq!((vault.retired_until(), vault.generation()), (None, Some(0)));
    vault.rotate(1).unwrap();
    vault.bound(7).unwrap();
    assert_eq!((vault.is_pending(), vault.retired_until(), vault.generation()), (true, Some(7), Some(1)));
    let second = vault.protect(&secret, b"p", b"two".to_vec()).unwrap();
    let vault = open();
    vault.settle().unwrap();
    vault.forget(6).unwrap();
    assert_eq!(vault.reveal(b"p", &first).unwrap(), b"one".as_slice(), "the log may need it");
    vault.forget(7).unwrap();
    assert_eq!(vault.reveal(b"p", &first), Err(DecodeError::Encrypted));
    assert_eq!(open().reveal(b"p", &second).unwrap(), b"two".as_slice());
}

#[test]
fn another_key_opens_nothing_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (key, other) = (EncryptionKey::random().unwrap(), EncryptionKey::random().unwrap());
    let hidden = {
        let vault = Vault::open(&volume(&dir), Some(&encryption(&key))).unwrap();
        vault.protect(&Key::new("/secrets/a"), b"p", b"one".to_vec()).unwrap()
    };
    let file = std::fs::read(dir.path().join(NAME)).unwrap();
    for (given, error) in [
        (Some(encryption(&other)), "the store was encrypted with another encryption key than this one"),
        (None, "the store is encrypted: give the encryption key with which it was"),
    ] {
        let refused = Vault::open(&volume(&dir), given.as_ref()).unwrap_err();
        assert_eq!(refused.to_string(), error);
    }
    let refused = Vault::rewrap(&*volume(&dir), &other, &key).unwrap_err();
    assert_eq!(refused.to_string(), "the store was encrypted with another encryption key than this one");
    assert_eq!(std::fs::read(dir.path().join(NAME)).unwrap(), file);
    for at in 0..file.len() {
        let mut flipped = file.clone();
        flipped[at] ^= 1;
        std::fs::write(dir.path().join(NAME), &flipped).unwrap();
        assert!(Vault::open(&volume(&dir), Some(&encryption(&key))).is_err(), "byte {at}");
    }
    std::fs::write(dir.path().join(NAME), &file).unwrap();

    Vault::rewrap(&*volume(&dir), &key, &other).unwrap();
    let vault = Arc::new(Vault::open(&volume(&dir), Some(&encryption(&other))).unwrap());
    assert_eq!(vault.reveal(b"p", &hidden).unwrap(), b"one".as_slice());
    assert!(Vault::open(&volume(&dir), Some(&encryption(&key))).is_err());
}

const VALUE: &str = "correct-horse-battery-staple";

fn config(dir: &tempfile::TempDir, key: Option<&EncryptionKey>) -> Config {
    Config { encryption: key.map(encryption), ..Config::new(dir.path()) }
}

fn put(name: &str) -> Txn {
    let object = json!({ "metadata": { "name": name, "uid": name }, "data": { "value": VALUE } });
    Txn::new().put(Key::from(format!("/secrets/{name}")), Precondition::Any, Draft::new(&object, NOTHING))
}

const NOTHING: [(&str, &str); 0] = [];

/// The files in which the value stands.
fn found_in(dir: &tempfile::TempDir) -> Vec<String> {
    let files = std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().path());
    let tells = |path: &std::path::PathBuf| {
        let bytes = std::fs::read(path).unwrap();
        bytes.windows(VALUE.len()).any(|window| window == VALUE.as_bytes())
    };
    files.filter(tells).map(|path| path.display().to_string()).collect()
}

fn value(store: &Store, name: &str) -> String {
    let record = store.get(&Key::from(format!("/secrets/{name}"))).unwrap();
    record.value().unwrap()["data"]["value"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn no_file_tells_a_secret() {
    let dir = tempfile::tempdir().unwrap();
    let key = EncryptionKey::random().unwrap();
    let store = Store::open(config(&dir, Some(&key))).await.unwrap();
    store.commit(put("a")).await.unwrap();
    assert_eq!(found_in(&dir), [""; 0], "in the log alone");
    store.flush().await;
    store.commit(put("a")).await.unwrap();
    store.flush().await;
    assert_eq!(found_in(&dir), [""; 0], "at rest, with its history");
    store.rotate_key(1).await.unwrap();
    assert_eq!(store.key_generation(), Some(1));
    store.commit(put("b")).await.unwrap();
    assert_eq!((value(&store, "a"), value(&store, "b")), (VALUE.into(), VALUE.into()));
    store.shutdown().await;
    assert_eq!(found_in(&dir), [""; 0], "after a rotation");
    let vault = Vault::open(&volume(&dir), Some(&encryption(&key))).unwrap();
    assert_eq!((vault.is_pending(), vault.retired_until()), (false, None), "one key is left");

    let report = crate::check(dir.path(), Some(&key)).unwrap();
    assert_eq!(report.problems, [""; 0]);
    let other = EncryptionKey::random().unwrap();
    for wrong in [Some(&other), None] {
        assert!(matches!(crate::check(dir.path(), wrong), Err(OpenError::Key { .. })));
        assert!(matches!(Store::open(config(&dir, wrong)).await, Err(OpenError::Key { .. })));
    }
    crate::rekey(dir.path(), &key, &other).unwrap();
    let store = Store::open(config(&dir, Some(&other))).await.unwrap();
    assert_eq!((value(&store, "a"), value(&store, "b")), (VALUE.into(), VALUE.into()));
    store.shutdown().await;
}

#[tokio::test]
async fn a_store_that_was_plain_is_encrypted_when_it_opens() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(&dir, None)).await.unwrap();
    store.commit(put("rest")).await.unwrap();
    store.flush().await;
    store.commit(put("log")).await.unwrap();
    store.shutdown().await;
    assert_ne!(found_in(&dir), [""; 0], "else the test shows nothing");
    let key = EncryptionKey::random().unwrap();
    let store = Store::open(config(&dir, Some(&key))).await.unwrap();
    store.rotate_key(0).await.unwrap();
    assert_eq!((value(&store, "rest"), value(&store, "log")), (VALUE.into(), VALUE.into()));
    store.shutdown().await;
    let vault = Vault::open(&volume(&dir), Some(&encryption(&key))).unwrap();
    assert_eq!((vault.is_pending(), vault.retired_until()), (false, None), "nothing plain counts any more");
    let store = Store::open(config(&dir, Some(&key))).await.unwrap();
    assert_eq!((value(&store, "rest"), value(&store, "log")), (VALUE.into(), VALUE.into()));
    store.shutdown().await;
}
