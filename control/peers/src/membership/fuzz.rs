//! What members say to each other about the members, over the corpus in `tests/corpus`. What raft says is the store's.

use std::fmt::Debug;

use lichen_fuzz::Fuzz;
use lichen_store::{CommitError, Rejection, Term};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Ask, Member, Status, read};
use crate::MemberRecord;

fn fuzz(name: &str) -> Fuzz {
    Fuzz::new(env!("CARGO_MANIFEST_DIR"), name)
}

/// Whether the bytes are a message, which then is the same when it is sent on.
fn stable<T: Serialize + DeserializeOwned + Debug>(bytes: &[u8]) -> bool {
    let Ok(message) = read::<T>(bytes) else { return false };
    let again: T = read(&serde_json::to_vec(&message).unwrap()).unwrap();
    assert_eq!(format!("{again:?}"), format!("{message:?}"));
    true
}

fn examples<T: Serialize>(all: Vec<(&'static str, T)>) -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    all.into_iter().map(|(name, message)| (name, serde_json::to_vec(&message).unwrap()))
}

fn record() -> MemberRecord {
    MemberRecord {
        api_url: "https://10.0.0.7:6443".into(),
        mqtt_address: "10.0.0.7:8883".into(),
        names: vec!["a.example".into()],
        version: "0.1.0".into(),
        removed: true,
    }
}

#[test]
fn questions_are_stable() {
    let (id, address) = (7, "10.0.0.7:6444".to_owned());
    let all = vec![
        ("hello", Ask::Hello),
        ("gone", Ask::Gone),
        ("list", Ask::List),
        ("join", Ask::Join { id, address: address.clone() }),
        ("move", Ask::Move { id, address }),
        ("promote", Ask::Promote { id }),
        ("remove", Ask::Remove { id }),
        ("transfer", Ask::Transfer { id }),
    ];
    fuzz("question").examples(examples(all)).run(stable::<Ask>);
}

#[test]
fn answers_are_stable() {
    let member = Member {
        id: "0000000000000007".into(),
        role: "leader".into(),
        status: Status::Ready,
        peer_address: "10.0.0.7:6444".into(),
        record: record(),
    };
    let all: Vec<(_, Result<Vec<Member>, CommitError>)> = vec![
        ("members", Ok(vec![member.clone(), Member { status: Status::NotReady, ..member }])),
        ("none", Ok(Vec::new())),
        ("refused", Err(CommitError::Membership("why".into()))),
        ("not-leader", Err(CommitError::NotLeader { leader: Some(7) })),
        ("fenced", Err(Rejection::Fenced { term: Term(4) }.into())),
    ];
    let done: Result<(), CommitError> = Ok(());
    let done = ("done", serde_json::to_vec(&done).unwrap());
    fuzz("answer").examples(examples(all).chain([done])).run(|bytes| {
        let members = stable::<Result<Vec<Member>, CommitError>>(bytes);
        stable::<Result<(), CommitError>>(bytes) || members
    });
}

#[test]
fn records_are_stable() {
    let all = vec![("full", record()), ("bare", MemberRecord::default())];
    fuzz("member").examples(examples(all)).run(stable::<MemberRecord>);
}
