//! Every decoder of what lies in a checkpoint, over the corpus in `tests/corpus`.

use lichen_fuzz::Fuzz;

use crate::checkpoint::{Checkpoint, decode, encode, place};
use crate::{Change, Identity, Object, SyncState};

fn fuzz(name: &str) -> Fuzz {
    Fuzz::new(env!("CARGO_MANIFEST_DIR"), name)
}

fn stable<T>(bytes: &[u8]) -> bool
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let Some(value) = decode::<T>(bytes) else { return false };
    assert_eq!(decode::<T>(&encode(&value).unwrap()), Some(value));
    true
}

#[test]
fn values_are_stable() {
    let identity = Identity {
        node_name: "edge-1".to_owned(),
        certificate_pem: "certificate".to_owned(),
        key_pem: "key".to_owned(),
        ca_pem: "ca".to_owned(),
        session_key: [7; 32],
        renewals: 2,
    };
    let examples = [
        ("identity", encode(&identity).unwrap()),
        ("sync", encode(&SyncState { epoch: 3, synced: Some((4, 5)) }).unwrap()),
        ("sync-first", encode(&SyncState::default()).unwrap()),
    ];
    fuzz("checkpoint")
        .examples(examples)
        .iterations(10_000)
        .run(|bytes| stable::<Identity>(bytes) | stable::<SyncState>(bytes));
}

#[test]
fn objects_are_what_was_put() {
    let dir = tempfile::tempdir().unwrap();
    let (checkpoint, _) = Checkpoint::open(dir.path()).unwrap();
    // A place, a line end, and the value there; a Secret's value is sealed for its place.
    let row = |kind: &str, value: &[u8]| [place(kind, "default/a").as_bytes(), b"\n", value].concat();
    let value = [&8u64.to_be_bytes()[..], b"\xa1\x61a\x01"].concat();
    let examples = [("pod", row("Pod", &value)), ("empty", row("ConfigMap", &value[..8]))];
    fuzz("object").examples(examples).run(|bytes| {
        let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
        let Ok(place) = std::str::from_utf8(&bytes[..end]) else { return false };
        let value = bytes.get(end + 1..).unwrap_or_default();
        // Nobody without the key can make a Secret up.
        assert_eq!(checkpoint.decode_object("Secret default/a", bytes), None);
        checkpoint.decode_object(place, value).is_some()
    });
}

#[test]
fn a_damaged_file_is_refused_or_read() {
    let dir = tempfile::tempdir().unwrap();
    let object =
        Object { kind: "Pod".to_owned(), key: "default/a".to_owned(), version: 8, body: vec![1; 40] };
    {
        let (checkpoint, _) = Checkpoint::open(dir.path()).unwrap();
        checkpoint.commit(&[Change::PutObject(object.clone())]).unwrap();
    }
    let path = dir.path().join("checkpoint.redb");
    let good = std::fs::read(&path).unwrap();
    // Where the file is damaged, and with what.
    let examples = [("header", [&0u32.to_be_bytes()[..], b"redb"].concat())];
    fuzz("damage").examples(examples).iterations(40).allocation_base(64 << 20).run(|bytes| {
        let Some((at, with)) = bytes.split_first_chunk::<4>() else { return false };
        let at = u32::from_be_bytes(*at) as usize % good.len();
        let mut damaged = good.clone();
        damaged[at..].iter_mut().zip(with).for_each(|(byte, with)| *byte = *with);
        std::fs::write(&path, &damaged).unwrap();
        let opened = Checkpoint::open(dir.path());
        damaged != good || opened.is_ok_and(|(_, contents)| contents.objects == std::slice::from_ref(&object))
    });
}
