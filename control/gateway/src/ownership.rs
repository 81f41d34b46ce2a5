//! What the gateway keeps in the store beside objects: the owner epoch, the incarnation, and the nodes' keys.
//!
//! These keys lie outside every kind's prefix, so the API cannot serve them. A node's key is secret: it never appears in
//! a log, an error or an object.

use std::time::Duration;

use lichen_registry::Registry;
use lichen_store::{CommitError, Draft, ErrorKind, Key, Precondition, RangeError, RangeOptions, Txn};
use lichen_wire::keys::NodeKey;
use serde::{Deserialize, Serialize};
use serde_json::Value;

const EPOCH: &str = "/gateway/epoch";
const INCARNATION: &str = "/gateway/incarnation";
const NODE_KEYS: &str = "/gateway/nodekeys/";

/// Times that a write is tried again when another one came first or the store had no leader.
const ATTEMPTS: usize = 20;
/// The pause before that.
const RETRY: Duration = Duration::from_millis(100);

/// Why the gateway's own keys could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum OwnershipError {
    /// The store did not take the write.
    #[error("the store did not take {what}")]
    Commit {
        /// What was written.
        what: &'static str,
        /// Why not.
        #[source]
        source: CommitError,
    },
    /// The store could not be read.
    #[error("the nodes' keys can't be read: {0}")]
    Range(RangeError),
    /// What is stored is not what was written.
    #[error("{0} is not readable")]
    Damaged(String),
}

/// A node's key, and what tells a repeated join from another machine's.
#[derive(Clone)]
pub(crate) struct KeyEntry {
    pub(crate) key: NodeKey,
    /// Hash of the certificate request that the key was agreed for.
    pub(crate) request: [u8; 32],
    /// Hashes of the join messages that were accepted, newest first: one that is replayed must not bring another key.
    pub(crate) accepted: Vec<[u8; 32]>,
}

#[derive(Serialize, Deserialize)]
struct StoredKey {
    version: u32,
    key: [u8; 32],
    request: [u8; 32],
    accepted: Vec<[u8; 32]>,
}

const STORED_KEY_VERSION: u32 = 1;

/// Takes over: grants itself an owner epoch higher than any granted before.
pub(crate) async fn take_over(registry: &Registry) -> Result<u64, OwnershipError> {
    let what = "the owner epoch";
    let key = Key::new(EPOCH);
    let mut attempt = 0;
    loop {
        let (last, pre) = match registry.store().get(&key) {
            Some(record) => (read_number(record.body(), EPOCH)?, Precondition::Revision(record.revision())),
            None => (0, Precondition::Absent),
        };
        let epoch = last + 1;
        let txn = Txn::new().put(key.clone(), pre, Draft::opaque(epoch.to_string().as_bytes()));
        match registry.store().commit(txn).await {
            Ok(_) => return Ok(epoch),
            Err(source) => retry_or_fail(what, source, &mut attempt).await?,
        }
    }
}

/// Whether no other gateway has taken over since, as far as this member has seen.
pub(crate) fn is_current(registry: &Registry, epoch: u64) -> bool {
    let last = registry.store().get(&Key::new(EPOCH));
    last.and_then(|record| read_number(record.body(), EPOCH).ok()) == Some(epoch)
}

/// The incarnation of the store, made on its first use. `fresh` is random.
pub(crate) async fn incarnation(registry: &Registry, fresh: u64) -> Result<u64, OwnershipError> {
    let key = Key::new(INCARNATION);
    let mut attempt = 0;
    loop {
        if let Some(record) = registry.store().get(&key) {
            return read_number(record.body(), INCARNATION);
        }
        let draft = Draft::opaque(fresh.to_string().as_bytes());
        match registry.store().commit(Txn::new().put(key.clone(), Precondition::Absent, draft)).await {
            Ok(_) => return Ok(fresh),
            Err(source) => retry_or_fail("the incarnation", source, &mut attempt).await?,
        }
    }
}

/// The key of a node, if it has joined.
pub(crate) fn node_key(registry: &Registry, node: &str) -> Result<Option<KeyEntry>, OwnershipError> {
    let record = registry.store().get(&node_key_key(node));
    record.map(|record| read_key(record.body(), node)).transpose()
}

/// Keeps the key of a node that joins. Durable when it returns.
pub(crate) async fn keep_node_key(
    registry: &Registry,
    node: &str,
    entry: &KeyEntry,
) -> Result<(), OwnershipError> {
    let stored = StoredKey {
        version: STORED_KEY_VERSION,
        key: *entry.key.as_bytes(),
        request: entry.request,
        accepted: entry.accepted.clone(),
    };
    // A struct of numbers always serialises.
    let body = serde_json::to_vec(&stored).unwrap_or_default();
    let txn = Txn::new().put(node_key_key(node), Precondition::Any, Draft::opaque(&body));
    let what = "a node's key";
    registry.store().commit(txn).await.map(drop).map_err(|source| OwnershipError::Commit { what, source })
}

/// The names of all nodes that have joined.
pub(crate) fn joined_nodes(registry: &Registry) -> Result<Vec<String>, OwnershipError> {
    let page = registry.store().range(NODE_KEYS, &RangeOptions::default()).map_err(OwnershipError::Range)?;
    let names = page.items.iter().filter_map(|(key, _)| key.as_str().strip_prefix(NODE_KEYS));
    Ok(names.map(str::to_owned).collect())
}

async fn retry_or_fail(
    what: &'static str,
    source: CommitError,
    attempt: &mut usize,
) -> Result<(), OwnershipError> {
    *attempt += 1;
    let again = matches!(source, CommitError::Conflict { .. }) || source.kind() == ErrorKind::Retryable;
    if !again || *attempt >= ATTEMPTS {
        return Err(OwnershipError::Commit { what, source });
    }
    tokio::time::sleep(RETRY).await;
    Ok(())
}

fn node_key_key(node: &str) -> Key {
    Key::from(format!("{NODE_KEYS}{node}"))
}

fn read_number(body: &[u8], what: &str) -> Result<u64, OwnershipError> {
    let text = std::str::from_utf8(body).ok().and_then(|text| text.parse().ok());
    text.ok_or_else(|| OwnershipError::Damaged(what.to_owned()))
}

fn read_key(body: &[u8], node: &str) -> Result<KeyEntry, OwnershipError> {
    // The parser's error is dropped, since it could quote the key.
    let stored: Option<StoredKey> =
        serde_json::from_slice::<Value>(body).ok().and_then(|v| serde_json::from_value(v).ok());
    match stored {
        Some(stored) if stored.version == STORED_KEY_VERSION => {
            let key = NodeKey::from_bytes(stored.key);
            Ok(KeyEntry { key, request: stored.request, accepted: stored.accepted })
        }
        _ => Err(OwnershipError::Damaged(format!("the key of node {node}"))),
    }
}
