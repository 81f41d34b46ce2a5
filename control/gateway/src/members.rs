//! Which machines are nodes: what was agreed with each when it joined, who was told to leave, whose key pair counts no
//! more, and which Secrets each was ever sent.
//!
//! These keys lie outside every kind's prefix, so the API cannot serve them. A node's key is secret: it never appears in
//! a log, an error or an object.

use std::collections::BTreeSet;

use lichen_pki::Digest;
use lichen_registry::Registry;
use lichen_store::{
    CommitError, Draft, ErrorKind, Key, Precondition, RangeError, RangeOptions, Revision, Txn,
};
use lichen_wire::keys::NodeKey;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

const MEMBERS: &str = "/gateway/nodekeys/";
const REVOKED: &str = "/gateway/revoked/";
const REACH: &str = "/gateway/reach/";
const MEMBER_VERSION: u32 = 2;

/// Times that a write is tried again when another one came first.
const ATTEMPTS: usize = 20;

/// Why what is known of a node could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemberError {
    /// The store did not take the write.
    #[error("the store did not take {what}")]
    Commit {
        what: &'static str,
        #[source]
        source: CommitError,
    },
    /// The store could not be read.
    #[error("the nodes' keys can't be read: {0}")]
    Range(#[from] RangeError),
    /// What is stored is not what was written.
    #[error("{0} is not readable")]
    Damaged(String),
}

impl MemberError {
    /// Whether somebody else wrote in between: whoever wanted to write should look again.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, MemberError::Commit { source: CommitError::Conflict { .. }, .. })
    }

    /// Whether the same could succeed later.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, MemberError::Commit { source, .. } if source.kind() == ErrorKind::Retryable)
    }
}

/// What was agreed with a machine that joined.
#[derive(Clone)]
pub(crate) struct Member {
    /// The key of its sessions.
    pub(crate) key: NodeKey,
    /// Its certificate's key pair; none if it joined before these were noted.
    pub(crate) public_key: Option<Digest>,
    /// What it was given last and has not used yet.
    pub(crate) next: Option<Renewal>,
    /// The serial number of the last renewal that was granted.
    pub(crate) serial: u64,
    /// Hash of the certificate request that it joined with: it tells a repeated join from another machine's.
    pub(crate) request: [u8; 32],
    /// Hashes of the join messages that were accepted, newest first: one that is replayed must not bring another key.
    pub(crate) accepted: Vec<[u8; 32]>,
    /// The id of the token that it joined with.
    pub(crate) token: String,
    /// Set once it is to leave: until when, in Unix seconds, it is still told so.
    pub(crate) leaves_until: Option<i64>,
}

/// A key and a certificate that a node was given and has not used yet.
#[derive(Clone)]
pub(crate) struct Renewal {
    pub(crate) key: NodeKey,
    pub(crate) public_key: Digest,
}

impl Member {
    /// Whether a certificate of this key pair is the node's.
    fn has(&self, public_key: &Digest) -> bool {
        self.public_key.is_none_or(|own| own == *public_key)
            || self.next.as_ref().is_some_and(|next| next.public_key == *public_key)
    }

    /// The node has shown that it uses what it was given last.
    pub(crate) fn advance(&mut self) {
        if let Some(Renewal { key, public_key }) = self.next.take() {
            self.key = key;
            self.public_key = Some(public_key);
        }
    }
}

#[derive(Serialize, Deserialize)]
struct StoredMember {
    version: u32,
    key: [u8; 32],
    request: [u8; 32],
    accepted: Vec<[u8; 32]>,
    #[serde(default)]
    public_key: Option<Digest>,
    #[serde(default)]
    next: Option<([u8; 32], Digest)>,
    #[serde(default)]
    serial: u64,
    #[serde(default)]
    token: String,
    #[serde(default)]
    leaves_until: Option<i64>,
}

/// A key pair that counts no more.
#[derive(Serialize, Deserialize)]
pub(crate) struct Revoked {
    /// The node that it was of.
    pub(crate) node: String,
    /// The token that the node joined with.
    pub(crate) token: String,
}

/// The member of that name, with the revision that a write of it builds on.
pub(crate) fn find(registry: &Registry, node: &str) -> Result<Option<(Member, Revision)>, MemberError> {
    let Some(record) = registry.store().get(&member_key(node)) else { return Ok(None) };
    let stored: StoredMember = read(record.body(), || format!("the key of node {node}"))?;
    if stored.version > MEMBER_VERSION {
        return Err(MemberError::Damaged(format!("the key of node {node}, written by a newer version,")));
    }
    // Whoever was told to leave for long enough is forgotten.
    if stored.leaves_until.is_some_and(|until| until <= registry.now().as_second()) {
        return Ok(None);
    }
    let next = stored.next.map(|(key, public_key)| Renewal { key: NodeKey::from_bytes(key), public_key });
    let member = Member {
        key: NodeKey::from_bytes(stored.key),
        public_key: stored.public_key,
        next,
        serial: stored.serial,
        request: stored.request,
        accepted: stored.accepted,
        token: stored.token,
        leaves_until: stored.leaves_until,
    };
    Ok(Some((member, record.revision())))
}

/// Whether a certificate of this key pair lets its holder in as that node.
pub(crate) fn admits(registry: &Registry, node: &str, public_key: &Digest) -> bool {
    match find(registry, node) {
        Ok(member) => member.is_some_and(|(member, _)| member.has(public_key)),
        Err(error) => {
            tracing::error!(node, %error, "a node can't be let in");
            false
        }
    }
}

/// Whether a key pair counts no more.
pub(crate) fn is_revoked(registry: &Registry, public_key: &Digest) -> bool {
    registry.store().get(&revoked_key(public_key)).is_some()
}

/// What a write of a member depends on beside the member itself.
#[derive(Default)]
pub(crate) struct Depends {
    /// The Secret of the token that lets it in, as it was read.
    pub(crate) token: Option<(Key, Revision)>,
    /// The key pair that must not be revoked.
    pub(crate) public_key: Option<Digest>,
}

/// Keeps what is known of a member that was at `before`; durable when it returns.
pub(crate) async fn keep(
    registry: &Registry,
    node: &str,
    member: &Member,
    before: Option<Revision>,
    depends: Depends,
) -> Result<(), MemberError> {
    let stored = StoredMember {
        version: MEMBER_VERSION,
        key: *member.key.as_bytes(),
        public_key: member.public_key,
        next: member.next.as_ref().map(|next| (*next.key.as_bytes(), next.public_key)),
        serial: member.serial,
        request: member.request,
        accepted: member.accepted.clone(),
        token: member.token.clone(),
        leaves_until: member.leaves_until,
    };
    // One that was told to leave for long enough is still there, and is not read any more.
    let forgotten = || registry.store().get(&member_key(node)).map(|record| record.revision());
    let before = before.or_else(forgotten);
    let mut txn = Txn::new().put(member_key(node), precondition(before), draft(&stored));
    if let Some((key, revision)) = depends.token {
        txn = txn.check(key, Precondition::Revision(revision));
    }
    if let Some(public_key) = depends.public_key {
        txn = txn.check(revoked_key(&public_key), Precondition::Absent);
    }
    commit(registry, txn, "a node's key").await
}

/// Forgets a member and what it was sent.
pub(crate) async fn forget(registry: &Registry, node: &str, at: Revision) -> Result<(), MemberError> {
    let txn = Txn::new().delete(member_key(node), Precondition::Revision(at));
    commit(registry, txn, "the removal of a node's key").await
}

/// Forgets a member whose device is in the wrong hands: neither of its key pairs counts any more, whatever happens.
pub(crate) async fn revoke(
    registry: &Registry,
    node: &str,
    member: &Member,
    at: Revision,
) -> Result<(), MemberError> {
    let mut txn = Txn::new().delete(member_key(node), Precondition::Revision(at));
    let revoked = Revoked { node: node.to_owned(), token: member.token.clone() };
    let keys: BTreeSet<Digest> =
        member.public_key.into_iter().chain(member.next.as_ref().map(|next| next.public_key)).collect();
    for public_key in keys {
        txn = txn.put(revoked_key(&public_key), Precondition::Any, draft(&revoked));
    }
    commit(registry, txn, "the revocation of a node's key").await
}

/// What is known of the revoked key pairs that were of a node.
pub(crate) fn revoked_of(registry: &Registry, node: &str) -> Result<Vec<Revoked>, MemberError> {
    let page = registry.store().range(REVOKED, &RangeOptions::default())?;
    let all = page.items.iter().map(|(key, record)| read(record.body(), || key.as_str().to_owned()));
    Ok(all.collect::<Result<Vec<Revoked>, _>>()?.into_iter().filter(|one| one.node == node).collect())
}

/// The node has used what it was given last: what it had before counts no more.
pub(crate) async fn confirm(registry: &Registry, node: &str, key: &NodeKey) -> Result<(), MemberError> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let Some((mut member, at)) = find(registry, node)? else { return Ok(()) };
        if member.next.as_ref().is_none_or(|next| next.key != *key) {
            return Ok(());
        }
        member.advance();
        match keep(registry, node, &member, Some(at), Depends::default()).await {
            Err(error) if error.is_conflict() && attempt < ATTEMPTS => {}
            other => return other,
        }
    }
}

/// The names of all members.
pub(crate) fn all(registry: &Registry) -> Result<Vec<String>, MemberError> {
    let page = registry.store().range(MEMBERS, &RangeOptions::default())?;
    let names = page.items.iter().filter_map(|(key, _)| key.as_str().strip_prefix(MEMBERS));
    Ok(names.map(str::to_owned).collect())
}

/// Where the store keeps a member, for whoever waits for a change.
pub(crate) fn member_key(node: &str) -> Key {
    Key::from(format!("{MEMBERS}{node}"))
}

/// The Secrets that a node was ever sent, as `namespace/name`.
pub(crate) fn reach(registry: &Registry, node: &str) -> Result<BTreeSet<String>, MemberError> {
    match registry.store().get(&reach_key(node)) {
        Some(record) => read(record.body(), || format!("the reach of node {node}")),
        None => Ok(BTreeSet::new()),
    }
}

/// Notes all Secrets that a node was ever sent, or is about to be; durable when it returns.
pub(crate) async fn keep_reach(
    registry: &Registry,
    node: &str,
    secrets: &BTreeSet<String>,
) -> Result<(), MemberError> {
    let txn = Txn::new().put(reach_key(node), Precondition::Any, draft(secrets));
    commit(registry, txn, "a node's reach").await
}

/// Forgets what a node was sent.
pub(crate) async fn forget_reach(registry: &Registry, node: &str) -> Result<(), MemberError> {
    let txn = Txn::new().delete(reach_key(node), Precondition::Any);
    commit(registry, txn, "the removal of a node's reach").await
}

async fn commit(registry: &Registry, txn: Txn, what: &'static str) -> Result<(), MemberError> {
    let done = registry.commit(txn).await;
    done.map(drop).map_err(|source| MemberError::Commit { what, source })
}

fn precondition(at: Option<Revision>) -> Precondition {
    at.map_or(Precondition::Absent, Precondition::Revision)
}

fn draft<T: Serialize>(value: &T) -> Draft {
    // Numbers, strings and lists of them always serialise.
    Draft::opaque(&serde_json::to_vec(value).unwrap_or_default())
}

fn read<T: DeserializeOwned>(body: &[u8], what: impl Fn() -> String) -> Result<T, MemberError> {
    // The parser's error is dropped, since it could quote a key.
    let value =
        serde_json::from_slice::<Value>(body).ok().and_then(|value| serde_json::from_value(value).ok());
    value.ok_or_else(|| MemberError::Damaged(what()))
}

fn revoked_key(public_key: &Digest) -> Key {
    let mut key = REVOKED.to_owned();
    for byte in public_key {
        // Writing to a String cannot fail.
        let _ = std::fmt::Write::write_fmt(&mut key, format_args!("{byte:02x}"));
    }
    Key::from(key)
}

fn reach_key(node: &str) -> Key {
    Key::from(format!("{REACH}{node}"))
}
