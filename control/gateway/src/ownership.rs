//! What a gateway keeps of itself in the store: the owner epoch and the incarnation.
//!
//! These keys lie outside every kind's prefix, so the API cannot serve them.

use std::time::Duration;

use lichen_registry::Registry;
use lichen_store::{Change, CommitError, Draft, ErrorKind, Key, Precondition, Txn};

const EPOCH: &str = "/gateway/epoch";
/// The incarnation of the store. A store that is restored must not have it.
pub const INCARNATION: &str = "/gateway/incarnation";

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
    /// What is stored is not what was written.
    #[error("{0} is not readable")]
    Damaged(String),
}

/// Takes over: grants itself an owner epoch higher than any granted before. The registry that it returns writes only
/// until another gateway takes over in turn.
pub(crate) async fn take_over(registry: &Registry) -> Result<(u64, Registry), OwnershipError> {
    let what = "the owner epoch";
    let key = Key::new(EPOCH);
    let mut attempt = 0;
    loop {
        let (last, pre) = match registry.store().get(&key) {
            Some(record) => (read_number(record.body(), EPOCH)?, Precondition::Revision(record.revision())),
            None => (0, Precondition::Absent),
        };
        // Beyond the revision, too: a store that was restored has forgotten epochs, but its revisions have moved on.
        let epoch = last.max(registry.store().revision().0) + 1;
        let txn = Txn::new().put(key.clone(), pre, Draft::opaque(epoch.to_string().as_bytes()));
        match registry.commit(txn).await {
            Ok(committed) => return Ok((epoch, registry.guarded(key, committed.revision))),
            Err(source) => retry_or_fail(what, source, &mut attempt).await?,
        }
    }
}

/// Whether no other gateway has taken over since, as far as this member has seen.
pub(crate) fn is_current(registry: &Registry, epoch: u64) -> bool {
    let last = registry.store().get(&Key::new(EPOCH));
    last.and_then(|record| read_number(record.body(), EPOCH).ok()) == Some(epoch)
}

/// Whether a change is that a gateway has taken over with a higher epoch.
pub(crate) fn is_take_over(change: &Change, epoch: u64) -> bool {
    let granted = change.new.as_ref().filter(|_| change.key.as_str() == EPOCH);
    granted.and_then(|record| read_number(record.body(), EPOCH).ok()).is_some_and(|granted| granted > epoch)
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
        match registry.commit(Txn::new().put(key.clone(), Precondition::Absent, draft)).await {
            Ok(_) => return Ok(fresh),
            Err(source) => retry_or_fail("the incarnation", source, &mut attempt).await?,
        }
    }
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

fn read_number(body: &[u8], what: &str) -> Result<u64, OwnershipError> {
    let text = std::str::from_utf8(body).ok().and_then(|text| text.parse().ok());
    text.ok_or_else(|| OwnershipError::Damaged(what.to_owned()))
}
