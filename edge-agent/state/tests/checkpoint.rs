//! The checkpoint on a real disk.

use std::error::Error as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use lichen_state::{Change, Checkpoint, Contents, FORMAT, Identity, Object, OpenError, Space, SyncState};

fn identity() -> Identity {
    Identity {
        node_name: "edge-1".into(),
        certificate_pem: "certificate".into(),
        key_pem: "a private key in words".into(),
        ca_pem: "ca".into(),
        session_key: [7; 32],
        renewals: 3,
    }
}

fn secret(body: &[u8]) -> Object {
    Object { kind: "Secret".into(), key: "ns/s".into(), version: 4, body: body.to_owned() }
}

fn pod() -> Object {
    Object { kind: "Pod".into(), key: "ns/p".into(), version: 3, body: b"pod".to_vec() }
}

fn all() -> Vec<Change> {
    vec![
        Change::Identity(identity()),
        Change::Sync(SyncState { epoch: 2, synced: Some((9, 4)) }),
        Change::PutObject(pod()),
        Change::PutObject(secret(b"very secret body")),
        Change::Put(Space::Pod, "uid".into(), vec![1, 2]),
        Change::Put(Space::Address, "uid".into(), vec![3]),
    ]
}

#[test]
fn everything_comes_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let (checkpoint, contents) = Checkpoint::open(dir.path()).expect("opens");
    assert_eq!(contents, Contents::default());
    checkpoint.commit(&all()).expect("commits");
    drop(checkpoint);
    let (checkpoint, contents) = Checkpoint::open(dir.path()).expect("opens");
    assert_eq!(contents.identity, Some(identity()));
    assert_eq!(contents.sync, SyncState { epoch: 2, synced: Some((9, 4)) });
    assert_eq!(contents.objects, [pod(), secret(b"very secret body")]);
    assert_eq!(contents.space(Space::Pod).collect::<Vec<_>>(), [("uid", [1, 2].as_slice())]);
    checkpoint
        .commit(&[
            Change::RemoveObject { kind: "Pod".into(), key: "ns/p".into() },
            Change::Remove(Space::Pod, "uid".into()),
            Change::Remove(Space::Gone, "never there".into()),
        ])
        .expect("commits");
    drop(checkpoint);
    let (_, contents) = Checkpoint::open(dir.path()).expect("opens");
    assert_eq!(contents.objects, [secret(b"very secret body")]);
    assert_eq!(contents.space(Space::Pod).count(), 0);
}

#[test]
fn secrets_are_not_in_the_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let (checkpoint, _) = Checkpoint::open(dir.path()).expect("opens");
    checkpoint.commit(&all()).expect("commits");
    drop(checkpoint);
    let file = fs::read(dir.path().join("checkpoint.redb")).expect("reads");
    let holds = |text: &[u8]| file.windows(text.len()).any(|window| window == text);
    assert!(holds(b"pod"));
    assert!(!holds(b"very secret body"));
    assert!(!holds(b"a private key in words"));
    let mode = fs::metadata(dir.path().join("checkpoint.key")).expect("exists").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn the_same_again_writes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let (checkpoint, _) = Checkpoint::open(dir.path()).expect("opens");
    checkpoint.commit(&all()).expect("commits");
    let file = dir.path().join("checkpoint.redb");
    let before = fs::read(&file).expect("reads");
    checkpoint.commit(&all()).expect("commits");
    checkpoint.commit(&[]).expect("commits");
    assert!(before == fs::read(&file).expect("reads"));
    checkpoint.commit(&[Change::PutObject(secret(b"another"))]).expect("commits");
    assert!(before != fs::read(&file).expect("reads"));
}

#[test]
fn a_second_agent_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_checkpoint, _) = Checkpoint::open(dir.path()).expect("opens");
    let error = Checkpoint::open(dir.path()).expect_err("is in use");
    assert!(matches!(error, OpenError::InUse(_)), "{error}");
    assert!(error.to_string().starts_with("another agent is running on "));
}

#[test]
fn damage_is_told_and_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("checkpoint.redb");
    fs::write(&file, b"this is no checkpoint at all").expect("writes");
    let error = Checkpoint::open(dir.path()).expect_err("is damaged");
    assert!(matches!(error, OpenError::Corrupt { .. } | OpenError::Key { .. }), "{error:?}");
    assert_eq!(fs::read(&file).expect("reads"), b"this is no checkpoint at all");
}

#[test]
fn a_newer_format_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(Checkpoint::open(dir.path()).expect("opens"));
    let database = redb::Database::create(dir.path().join("checkpoint.redb")).expect("opens");
    let write = database.begin_write().expect("begins");
    let format = (FORMAT + 1).to_be_bytes();
    write
        .open_table(redb::TableDefinition::<&str, &[u8]>::new("meta"))
        .expect("opens")
        .insert("format", format.as_slice())
        .expect("inserts");
    write.commit().expect("commits");
    drop(database);
    let error = Checkpoint::open(dir.path()).expect_err("is newer");
    assert!(matches!(error, OpenError::Newer { found, .. } if found == FORMAT + 1), "{error}");
}

#[test]
fn the_key_matters() {
    let dir = tempfile::tempdir().expect("a directory");
    let (checkpoint, _) = Checkpoint::open(dir.path()).expect("opens");
    checkpoint.commit(&all()).expect("commits");
    drop(checkpoint);
    let key = dir.path().join("checkpoint.key");
    let good = fs::read(&key).expect("reads");
    let check = |expect: &str| {
        let error = Checkpoint::open(dir.path()).expect_err("the key is wrong");
        let causes = error.source().map(ToString::to_string).unwrap_or_default();
        let error = format!("{error}: {causes}");
        assert!(error.contains(expect), "{error}");
    };
    fs::write(&key, [0; 32]).expect("writes");
    check("was not sealed under this key");
    fs::write(&key, [0; 3]).expect("writes");
    check("does not hold 32 bytes");
    fs::write(&key, &good).expect("writes");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("sets");
    check("lets others read it");
    fs::remove_file(&key).expect("removes");
    check("checkpoint.key");
    fs::write(&key, &good).expect("writes");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("sets");
    Checkpoint::open(dir.path()).expect("opens again");
}

#[test]
fn a_wiped_checkpoint_is_gone_with_its_key_and_the_node_begins_anew() {
    let dir = tempfile::tempdir().expect("a directory");
    let (checkpoint, _) = Checkpoint::open(dir.path()).expect("opens");
    checkpoint.commit(&all()).expect("commits");
    lichen_state::wipe(dir.path()).expect("wipes");
    // What its holder still writes lands nowhere.
    checkpoint.commit(&[Change::Sync(SyncState { epoch: 9, synced: None })]).expect("commits");
    drop(checkpoint);
    assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 0);
    lichen_state::wipe(dir.path()).expect("nothing is left to wipe");
    let (_, contents) = Checkpoint::open(dir.path()).expect("opens");
    assert_eq!(contents, Contents::default());
}

#[test]
fn an_identity_of_an_agent_that_did_not_renew_is_read() {
    #[derive(serde::Serialize)]
    struct Before {
        node_name: String,
        certificate_pem: String,
        key_pem: String,
        ca_pem: String,
        session_key: [u8; 32],
    }
    let Identity { node_name, certificate_pem, key_pem, ca_pem, session_key, .. } = identity();
    let before = Before { node_name, certificate_pem, key_pem, ca_pem, session_key };
    let read: Identity =
        serde_cbor::from_slice(&serde_cbor::to_vec(&before).expect("encodes")).expect("reads");
    assert_eq!(read, Identity { renewals: 0, ..identity() });
}
