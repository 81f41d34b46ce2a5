//! What is written is read back, and whatever else is read is refused without a panic.

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{draft, key};
use crate::types::{Command, Entry, LogId, Payload, decode_entry, encode_entry};
use crate::{Action, Change, DecodeError, Draft, Op, Precondition, Record, Revision, Term, Txn};

fn json_of(object: &Value, revision: u64, managed_fields: bool) -> Value {
    let none: [(&str, &str); 0] = [];
    let record = Draft::new(object, none).at(Revision(revision), Revision(1));
    let mut out = Vec::new();
    record.write_json(&mut out, managed_fields);
    serde_json::from_slice(&out).unwrap()
}

#[test]
fn resource_version_and_managed_fields_are_spliced_in() {
    let check = |object: Value, full: Value, bare: Value| {
        assert_eq!(json_of(&object, 7, true), full);
        assert_eq!(json_of(&object, 7, false), bare);
    };
    check(
        json!({ "kind": "A", "metadata": { "name": "n", "resourceVersion": "3" }, "spec": {} }),
        json!({ "kind": "A", "metadata": { "name": "n", "resourceVersion": "7" }, "spec": {} }),
        json!({ "kind": "A", "metadata": { "name": "n", "resourceVersion": "7" }, "spec": {} }),
    );
    check(
        json!({ "metadata": { "name": "n", "managedFields": [{ "manager": "m" }] } }),
        json!({ "metadata": { "name": "n", "managedFields": [{ "manager": "m" }], "resourceVersion": "7" } }),
        json!({ "metadata": { "name": "n", "resourceVersion": "7" } }),
    );
    check(
        json!({ "metadata": {} }),
        json!({ "metadata": { "resourceVersion": "7" } }),
        json!({ "metadata": { "resourceVersion": "7" } }),
    );
    check(
        json!({ "metadata": { "managedFields": [], "uid": "ü\"\\" } }),
        json!({ "metadata": { "resourceVersion": "7", "uid": "ü\"\\" } }),
        json!({ "metadata": { "resourceVersion": "7", "uid": "ü\"\\" } }),
    );
    // What is no object has no place for them.
    check(json!({ "spec": 1 }), json!({ "spec": 1 }), json!({ "spec": 1 }));
    check(json!([1, 2]), json!([1, 2]), json!([1, 2]));
}

#[test]
fn selectors_need_no_parsing() {
    let object = json!({ "metadata": { "uid": "u", "labels": { "a": "1", "b": "", "c": "é" } } });
    let draft = Draft::new(&object, [("spec.nodeName", "n1"), ("status.phase", "")]);
    assert_eq!(draft.uid(), "u");
    assert_eq!(draft.labels().collect::<Vec<_>>(), [("a", "1"), ("b", ""), ("c", "é")]);
    assert_eq!(draft.labels().get("c"), Some("é"));
    assert_eq!(draft.labels().get("d"), None);
    assert_eq!(draft.fields().collect::<Vec<_>>(), [("spec.nodeName", "n1"), ("status.phase", "")]);
    assert_eq!(Draft::opaque(b"\xff\x00").body(), b"\xff\x00");
}

#[test]
fn every_flipped_bit_of_a_record_is_found() {
    let encoded = draft("a", "1").at(Revision(9), Revision(4)).encode();
    assert_eq!(Record::decode(&encoded).unwrap().created(), Revision(4));
    for bit in 0..encoded.len() * 8 {
        let mut damaged = encoded.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(Record::decode(&damaged), Err(DecodeError::Checksum { .. })), "bit {bit}");
    }
    for len in 0..encoded.len() {
        assert!(Record::decode(&encoded[..len]).is_err(), "cut at {len}");
    }
}

#[test]
fn another_version_is_named() {
    let mut txn = Vec::new();
    Txn::new().encode(&mut txn);
    for found in [0, 2, 9] {
        let sealed = crate::codec::seal_bytes(b"whatever", found);
        let expected = DecodeError::Version { found, known: 1 };
        assert_eq!(Record::decode(&sealed), Err(expected.clone()));
        assert_eq!(Change::decode(&sealed), Err(expected.clone()));
        assert_eq!(decode_entry(&sealed), Err(expected.clone()));
        // A draft and a transaction lie within a seal, and have a version each all the same.
        let mut draft = draft("a", "1").encoded().to_vec();
        draft[0] = found;
        assert_eq!(Draft::decode(Bytes::from(draft)), Err(expected.clone()));
        txn[0] = found;
        assert_eq!(Txn::decode(&txn), Err(expected));
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(".{0,6}", inner, 0..4).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

fn any_object() -> impl Strategy<Value = Value> {
    let labels = prop::collection::btree_map("[a-z]{1,5}", ".{0,8}", 0..3);
    (any_json(), any_json(), labels, any::<bool>()).prop_map(|(spec, extra, labels, managed)| {
        let mut object = json!({ "kind": "K", "metadata": { "name": "n", "labels": labels }, "spec": spec });
        object["zeta"] = extra;
        if managed {
            object["metadata"]["managedFields"] = json!([{ "manager": "kubectl" }]);
        }
        object
    })
}

fn any_draft() -> impl Strategy<Value = Draft> {
    any_object().prop_map(|object| Draft::new(&object, [("metadata.name", "n")]))
}

fn any_txn() -> impl Strategy<Value = Txn> {
    let pre = prop_oneof![
        Just(Precondition::Any),
        Just(Precondition::Absent),
        Just(Precondition::Present),
        any::<u64>().prop_map(|revision| Precondition::Revision(Revision(revision))),
    ];
    let action = prop_oneof![any_draft().prop_map(Action::Put), Just(Action::Delete), Just(Action::Check)];
    let op = ("[a-z/]{0,12}", pre, action).prop_map(|(key, pre, action)| Op { key: key.into(), pre, action });
    (prop::collection::vec(op, 0..4), any::<Option<u64>>())
        .prop_map(|(ops, fence)| Txn { ops, fence: fence.map(Term) })
}

proptest! {
    #[test]
    fn an_object_comes_back_as_it_was(object in any_object(), revision in any::<u64>()) {
        let mut expected = object.clone();
        expected["metadata"]["resourceVersion"] = revision.to_string().into();
        prop_assert_eq!(json_of(&object, revision, true), expected);
    }

    #[test]
    fn records_and_changes_round_trip(new in any_draft(), old in any_draft(), revision in any::<u64>()) {
        let record = new.at(Revision(revision), Revision(3));
        prop_assert_eq!(&Record::decode(&record.encode()).unwrap(), &record);
        let old = old.at(Revision(2), Revision(2));
        for (new, old) in [(Some(record.clone()), None), (None, Some(old.clone())), (Some(record), Some(old))] {
            let change = Change { revision: Revision(revision), key: key("a"), new, old };
            prop_assert_eq!(&Change::decode(&change.encode()).unwrap(), &change);
        }
    }

    #[test]
    fn log_entries_round_trip(txn in any_txn(), term in any::<u64>(), index in any::<u64>()) {
        let log_id = LogId { leader_id: term.into(), index };
        let entry = Entry { log_id, payload: Payload::Normal(Command(txn.into())) };
        prop_assert_eq!(&decode_entry(&encode_entry(&entry).unwrap()).unwrap(), &entry);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256), kind in 0u8..3) {
        let _ = Record::decode(&bytes);
        let _ = Change::decode(&bytes);
        let _ = Txn::decode(&bytes);
        let _ = decode_entry(&bytes);
        let _ = crate::file::Position::decode(&bytes);
        let _ = crate::messages::Envelope::decode(&bytes);
        let _ = crate::messages::decode_reply::<u64>(&bytes);
        // Behind a valid seal, too, where the checksum no longer protects.
        let sealed = crate::codec::seal_bytes(&bytes, 1);
        if let Ok(record) = Record::decode(&sealed) {
            let _ = (record.json(), record.labels().count(), record.fields().count(), record.uid().len());
        }
        let _ = Change::decode(&sealed);
        let _ = decode_entry(&sealed);
        let _ = crate::messages::decode_reply::<u64>(&sealed);
        let mut request = vec![0; 16];
        request.extend_from_slice(&bytes);
        let _ = crate::messages::Envelope::decode(&crate::codec::seal_bytes(&request, 1));
        let mut entry = vec![0; 16];
        entry.push(kind);
        entry.extend_from_slice(&bytes);
        let _ = decode_entry(&crate::codec::seal_bytes(&entry, 1));
    }

    /// Bytes close to valid ones reach deeper than arbitrary ones.
    #[test]
    fn damaged_drafts_never_panic(draft in any_draft(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut bytes = draft.encoded().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Ok(draft) = Draft::decode(Bytes::from(bytes)) {
            let record = draft.at(Revision(1), Revision(1));
            let _ = (record.json(), record.labels().count(), record.fields().count(), record.uid().len());
        }
    }
}
