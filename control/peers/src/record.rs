//! What the cluster keeps of each member, beside what raft knows: where clients and nodes reach it, and whether it was
//! removed.

use lichen_store::{CommitError, Draft, Key, Precondition, RangeOptions, Revision, Store, Txn};
use serde::{Deserialize, Serialize};

/// The prefix of the members' records, outside every kind's.
pub const MEMBERS_PREFIX: &str = "/members/";
/// How often a record is written again that somebody else changed meanwhile.
const TRIES_MAX: usize = 8;

/// What the cluster keeps of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MemberRecord {
    /// The URL of its API.
    pub api_url: String,
    /// Where its embedded broker is reached, HOST:PORT; empty if it has none.
    pub mqtt_address: String,
    /// The further names that clients and nodes reach it by.
    pub names: Vec<String>,
    /// The version of Lichen that it runs.
    pub version: String,
    /// Whether it was removed. Its id never comes back.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub removed: bool,
}

impl MemberRecord {
    /// The records of all members that were not removed, by their ids, from local state.
    #[must_use]
    pub fn all(store: &Store) -> Vec<(u64, MemberRecord)> {
        let all = every(store).into_iter();
        all.filter(|(_, record, _)| !record.removed).map(|(id, record, _)| (id, record)).collect()
    }
}

/// Every record, those of removed members too.
pub(crate) fn every(store: &Store) -> Vec<(u64, MemberRecord, Revision)> {
    // Without a revision that could be compacted, a range is always there.
    let page = store.range(MEMBERS_PREFIX, &RangeOptions::default());
    let items = page.map(|page| page.items).unwrap_or_default();
    let parsed = items.into_iter().filter_map(|(key, record)| {
        Some((id_of(&key)?, record.parse::<MemberRecord>().ok()?, record.revision()))
    });
    parsed.collect()
}

fn key(id: u64) -> Key {
    Key::from(format!("{MEMBERS_PREFIX}{id:016x}"))
}

fn id_of(key: &Key) -> Option<u64> {
    u64::from_str_radix(key.name(), 16).ok()
}

/// Changes a member's record, unless it is what it is to be already, or the member was removed.
pub(crate) async fn change(
    store: &Store,
    id: u64,
    edit: impl Fn(&mut MemberRecord),
) -> Result<(), CommitError> {
    let mut last = CommitError::Unknown;
    for _ in 0..TRIES_MAX {
        let found = store.get(&key(id));
        let old: Option<MemberRecord> = found.as_ref().and_then(|record| record.parse().ok());
        let mut new = old.clone().unwrap_or_default();
        edit(&mut new);
        if old.as_ref().is_some_and(|old| old.removed || *old == new) {
            return Ok(());
        }
        let pre = found.map_or(Precondition::Absent, |record| Precondition::Revision(record.revision()));
        // A plain struct of texts always has a JSON form.
        let body = serde_json::to_vec(&new).unwrap_or_default();
        match store.commit(Txn::new().put(key(id), pre, Draft::opaque(&body))).await {
            Err(error @ CommitError::Conflict { .. }) => last = error,
            outcome => return outcome.map(drop),
        }
        store.barrier().await?;
    }
    Err(last)
}
