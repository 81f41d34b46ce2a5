//! Every decoder of what lies on disk or comes from another member, over the corpus in `tests/corpus`.
//!
//! A checksum stops nearly every mutation, so each input is tried behind a valid seal as well.

use std::collections::BTreeMap;

use bytes::Bytes;
use lichen_fuzz::Fuzz;
use openraft::BasicNode;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use serde_json::json;

use super::{draft, key};
use crate::codec::seal_bytes;
use crate::file::{Image, Position};
use crate::messages::{Envelope, Request, decode_reply, encode_reply};
use crate::snapshot::{SnapshotData, read_piece, write_piece};
use crate::types::{
    Command, Entry, LogId, Membership, Payload, SnapshotMeta, StoredMembership, Vote, decode_entry,
    encode_entry,
};
use crate::{
    Backup, Change, CommitError, Committed, DecodeError, Draft, Key, Precondition, Record, Rejection,
    Revision, Term, Txn,
};

fn fuzz(name: &str) -> Fuzz {
    Fuzz::new(env!("CARGO_MANIFEST_DIR"), name)
}

/// What lies behind a seal.
fn unsealed(sealed: &[u8]) -> Vec<u8> {
    sealed[crate::codec::SEAL_BYTES..].to_vec()
}

/// A draft with everything that a draft can have.
fn full() -> Draft {
    let object = json!({
        "kind": "Pod",
        "metadata": { "name": "a", "uid": "u", "labels": { "a": "1", "b": "" }, "managedFields": [{ "manager": "m" }] },
        "spec": { "nodeName": "n" },
    });
    Draft::new(&object, [("spec.nodeName", "n"), ("status.phase", "")])
}

fn look_at(record: &Record) {
    let mut out = Vec::new();
    record.write_json(&mut out, false);
    let _ = (record.json(), record.labels().count(), record.fields().count(), record.labels().get("a"));
    assert_eq!(Record::decode(&record.encode()).as_ref(), Ok(record));
}

#[test]
fn records_are_stable() {
    let at = |draft: Draft| unsealed(&draft.at(Revision(9), Revision(4)).encode());
    let examples = [
        ("full", at(full())),
        ("bare", at(draft("a", "1"))),
        ("opaque", at(Draft::opaque(b"\xff\x00"))),
        ("slot-first", at(Draft::new(&json!({ "metadata": {} }), [("", "")]))),
    ];
    fuzz("record").examples(examples).run(|bytes| {
        assert!(Draft::decode(Bytes::copy_from_slice(bytes)).is_err() || bytes.len() > 16);
        // Unsealed bytes are a record once in four billion times, and not with this seed.
        assert!(Record::decode(bytes).is_err());
        let record = Record::decode(&seal_bytes(bytes, 1));
        record.inspect(look_at).is_ok()
    });
}

#[test]
fn changes_are_stable() {
    let (new, old) = (full().at(Revision(9), Revision(4)), draft("a", "1").at(Revision(5), Revision(4)));
    let change = |new: Option<&Record>, old: Option<&Record>| {
        let change = Change { revision: Revision(9), key: key("a"), new: new.cloned(), old: old.cloned() };
        unsealed(&change.encode())
    };
    let examples = [
        ("created", change(Some(&new), None)),
        ("updated", change(Some(&new), Some(&old))),
        ("deleted", change(None, Some(&old))),
    ];
    fuzz("change").examples(examples).run(|bytes| {
        let Ok(change) = Change::decode(&seal_bytes(bytes, 1)) else { return false };
        change.new.iter().chain(&change.old).for_each(look_at);
        let _ = (change.told(), change.told_old(), change.kind());
        assert_eq!(Change::decode(&change.encode()).as_ref(), Ok(&change));
        true
    });
}

#[test]
fn log_entries_are_stable() {
    let log_id = LogId { leader_id: 3.into(), index: 17 };
    let entry = |payload| unsealed(&encode_entry(&Entry { log_id, payload }).unwrap());
    let txn = Txn::new()
        .put(key("a"), Precondition::Absent, full())
        .put(key("b"), Precondition::Revision(Revision(7)), draft("b", "2"))
        .delete(key("c"), Precondition::Present)
        .check(key("d"), Precondition::Any);
    let membership = Membership::new(
        vec![[1, 2].into()],
        [(1, BasicNode::new("one:1")), (2, BasicNode::new("two:2"))].into_iter().collect::<BTreeMap<_, _>>(),
    );
    let examples = [
        ("blank", entry(Payload::Blank)),
        ("txn", entry(Payload::Normal(Command(txn.clone().into())))),
        ("fenced", entry(Payload::Normal(Command(txn.fenced(Some(Term(3))).into())))),
        ("membership", entry(Payload::Membership(membership.unwrap()))),
    ];
    fuzz("log-entry").examples(examples).run(|bytes| {
        let Ok(entry) = decode_entry(&seal_bytes(bytes, 1)) else { return false };
        if let Payload::Normal(command) = &entry.payload {
            let _ = (command.0.size(), command.0.repeated());
        }
        assert_eq!(decode_entry(&encode_entry(&entry).unwrap()).as_ref(), Ok(&entry));
        true
    });
}

#[test]
fn positions_are_stable() {
    let applied = LogId { leader_id: 3.into(), index: 17 };
    let position =
        Position { applied: Some(applied), revision: Revision(9), records: 4, ..Position::first() };
    let examples = [("first", Position::first().encode().unwrap()), ("later", position.encode().unwrap())];
    fuzz("position").examples(examples).run(|bytes| {
        let Ok(position) = Position::decode(bytes) else { return false };
        let again = Position::decode(&position.encode().unwrap()).unwrap();
        assert_eq!(again.encode().unwrap(), position.encode().unwrap());
        true
    });
}

/// Streams of pieces, as a mutation reaches them: each a length, a kind and a body, before their seals.
fn pieces(stream: &[u8], mut head: Vec<u8>) -> Vec<u8> {
    let mut rest = stream;
    while let Some((len, after)) = rest.split_first_chunk() {
        let len = usize::from(u16::from_le_bytes(*len)).min(after.len());
        let (piece, after) = after.split_at(len);
        let (kind, body) = piece.split_first().unwrap_or((&0, &[]));
        write_piece(&mut head, *kind, body).unwrap();
        rest = after;
    }
    head
}

/// The way back from a stream that begins after `head` bytes.
fn unsealed_pieces(stream: &[u8], head: usize) -> Vec<u8> {
    let (mut input, mut out) = (&stream[head..], Vec::new());
    while !input.is_empty() {
        let (kind, body) = read_piece(&mut input).unwrap();
        out.extend_from_slice(&u16::try_from(body.len() + 1).unwrap().to_le_bytes());
        out.push(kind);
        out.extend_from_slice(&body);
    }
    out
}

fn records() -> BTreeMap<Key, Record> {
    let record = |draft: Draft, revision| draft.at(Revision(revision), Revision(4));
    BTreeMap::from([(key("a"), record(full(), 9)), (key("b"), record(Draft::opaque(b"\xff"), 7))])
}

#[test]
fn backups_are_stable() {
    const HEAD: &[u8] = b"LICHENBK\x01";
    let bytes = |backup: Backup| backup.chunks().flatten().collect::<Vec<u8>>();
    let files = BTreeMap::from([("ca.crt".to_owned(), b"pem".to_vec()), ("empty".to_owned(), Vec::new())]);
    let full = Backup { revision: Revision(9), taken_unix_s: 1, files, records: records() };
    let examples = [("full", full), ("empty", Backup::default())];
    let examples = examples.map(|(name, backup)| (name, unsealed_pieces(&bytes(backup), HEAD.len())));
    fuzz("backup").examples(examples).run(|input| {
        // What is no backup is told from what is damaged, wherever it goes wrong.
        assert!(Backup::read(&mut &*input).is_err());
        let sealed = pieces(input, HEAD.to_vec());
        let Ok(backup) = Backup::read(&mut &*sealed) else { return false };
        backup.records.values().for_each(look_at);
        let again = bytes(backup);
        assert_eq!(bytes(Backup::read(&mut &*again).unwrap()), again);
        true
    });
}

#[test]
fn snapshots_are_stable() {
    let bytes = |snapshot: &SnapshotData| {
        let mut out = Vec::new();
        snapshot.write_to(&mut out).unwrap();
        out
    };
    let read = |bytes: &[u8]| SnapshotData::read_from(&mut &*bytes);
    let (new, old) = (full().at(Revision(9), Revision(4)), draft("a", "1").at(Revision(5), Revision(4)));
    let change = Change { revision: Revision(9), key: key("a"), new: Some(new), old: Some(old) };
    let position = Position { revision: Revision(9), floor: Revision(8), records: 2, ..Position::default() };
    let full = Image { position, records: records(), history: vec![change] };
    let empty = Image { position: Position::first(), records: BTreeMap::new(), history: Vec::new() };
    let examples = [("full", full), ("empty", empty)]
        .map(|(name, image)| (name, unsealed_pieces(&bytes(&SnapshotData::Image(Box::new(image))), 0)));
    fuzz("snapshot").examples(examples).run(|input| {
        assert!(read(input).is_err());
        let Ok(snapshot) = read(&pieces(input, Vec::new())) else { return false };
        let again = bytes(&snapshot);
        assert_eq!(bytes(&read(&again).unwrap()), again);
        true
    });
}

fn requests() -> Vec<(&'static str, Request)> {
    let last = LogId { leader_id: 3.into(), index: 17 };
    let vote = Vote::new_committed(3, 1);
    let txn = Txn::new().put(key("a"), Precondition::Absent, full());
    let entries = vec![
        Entry { log_id: LogId { leader_id: 3.into(), index: 18 }, payload: Payload::Blank },
        Entry {
            log_id: LogId { leader_id: 3.into(), index: 19 },
            payload: Payload::Normal(Command(txn.clone().into())),
        },
    ];
    let append = |entries, prev_log_id| {
        Request::Append(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit: prev_log_id })
    };
    let meta = SnapshotMeta {
        last_log_id: Some(last),
        last_membership: StoredMembership::new(Some(last), Membership::default()),
    };
    vec![
        ("append", append(entries, Some(last))),
        ("heartbeat", append(Vec::new(), None)),
        ("vote", Request::Vote(VoteRequest::new(vote, Some(last)))),
        ("pre-vote", Request::PreVote(VoteRequest::new(vote, None))),
        ("transfer", Request::Transfer(TransferLeaderRequest::new(vote, 2, Some(last)))),
        ("commit", Request::Commit { term: 3, number: 4, txn: txn.into() }),
        ("read-index", Request::ReadIndex),
        ("piece", Request::Piece { transfer: 5, number: 6, bytes: Bytes::from_static(b"part") }),
        ("install", Request::Install { transfer: 5, pieces: 7, vote, meta }),
    ]
}

#[test]
fn messages_are_stable() {
    let encode = |request| Envelope { from: 1, to: 2, request }.encode().unwrap();
    let examples = requests().into_iter().map(|(name, request)| (name, unsealed(&encode(request))));
    fuzz("message").examples(examples).run(|bytes| {
        let Ok(envelope) = Envelope::decode(&seal_bytes(bytes, 1)) else { return false };
        let told = format!("{envelope:?}");
        let again = Envelope::decode(&envelope.encode().unwrap()).unwrap();
        assert_eq!(format!("{again:?}"), told);
        true
    });
}

#[test]
fn messages_arrive_as_they_were_sent_or_not_at_all() {
    for (name, request) in requests() {
        let told = format!("{request:?}");
        let sent = Envelope { from: 1, to: 2, request }.encode().unwrap();
        let arrived = Envelope::decode(&sent).unwrap();
        assert_eq!((arrived.from, arrived.to, format!("{:?}", arrived.request)), (1, 2, told), "{name}");
        for cut in 0..sent.len() {
            assert!(Envelope::decode(&sent[..cut]).is_err(), "{name} cut at {cut}");
        }
        for at in 0..sent.len() {
            let mut damaged = sent.to_vec();
            damaged[at] ^= 0x10;
            assert!(Envelope::decode(&damaged).is_err(), "{name} damaged at {at}");
        }
        // A newer member's, whole: its version is named.
        let newer = seal_bytes(&unsealed(&sent), 2);
        let error = Envelope::decode(&newer).unwrap_err();
        assert_eq!(error, DecodeError::Version { found: 2, known: 1 }, "{name}");
    }
}

#[test]
fn replies_arrive_as_they_were_sent_or_not_at_all() {
    let replies: [Result<Committed, CommitError>; 5] = [
        Ok(Committed { revision: Revision(9) }),
        Err(CommitError::Unknown),
        Err(CommitError::NotLeader { leader: Some(7) }),
        Err(CommitError::Unavailable("why".into())),
        Err(Rejection::Fenced { term: Term(4) }.into()),
    ];
    for reply in replies {
        let sent = encode_reply(&reply);
        assert_eq!(decode_reply::<Committed>(&sent).unwrap(), reply);
        for at in 0..sent.len() {
            let mut damaged = sent.to_vec();
            damaged[at] ^= 0x10;
            assert!(decode_reply::<Committed>(&damaged).is_err(), "{reply:?} damaged at {at}");
        }
        let newer = seal_bytes(&unsealed(&sent), 2);
        let error = decode_reply::<Committed>(&newer).unwrap_err();
        assert_eq!(error, DecodeError::Version { found: 2, known: 1 });
    }
}
