//! What a transaction does to a state: pure and deterministic, so that every member gets the same.
//!
//! Deliberately absent: clocks, randomness, the environment. Whoever proposes stamps times and uids beforehand.

use serde::{Deserialize, Serialize};

use crate::{Action, Change, Key, Precondition, Record, Revision, Term, Txn};

/// The state that a transaction meets.
pub trait View {
    /// The revision of the last transaction that changed something.
    fn revision(&self) -> Revision;
    /// The record under a key.
    fn get(&self, key: &Key) -> Option<&Record>;
}

/// What a transaction did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The revision after it. The one before if it changed nothing.
    pub revision: Revision,
    /// What changed, in the order of the operations, all at `revision`.
    pub changes: Vec<Change>,
}

/// Why a transaction did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    /// A precondition does not hold.
    #[error("operation {index}: its precondition does not hold")]
    Conflict {
        /// The operation.
        index: usize,
        /// The revision that its key has; `None` if it does not exist.
        actual: Option<Revision>,
    },
    /// The fence names another term than that of the leader who proposed.
    #[error("fenced: proposed in term {term}")]
    Fenced {
        /// The term in which it was proposed.
        term: Term,
    },
    /// Two operations change the same key.
    #[error("operation {index} changes a key that an earlier one changes too")]
    Repeated {
        /// The second of them.
        index: usize,
    },
}

/// Decides what `txn` does to `view`, when it was proposed by the leader of `term`.
pub fn apply(view: &impl View, term: Term, txn: &Txn) -> Result<Applied, Rejection> {
    if txn.fence.is_some_and(|fence| fence != term) {
        return Err(Rejection::Fenced { term });
    }
    if let Some(index) = txn.repeated() {
        return Err(Rejection::Repeated { index });
    }
    for (index, op) in txn.ops.iter().enumerate() {
        let actual = view.get(&op.key).map(Record::revision);
        let holds = match op.pre {
            Precondition::Any => true,
            Precondition::Absent => actual.is_none(),
            Precondition::Present => actual.is_some(),
            Precondition::Revision(wanted) => actual == Some(wanted),
        };
        if !holds {
            return Err(Rejection::Conflict { index, actual });
        }
    }
    let revision = view.revision().next();
    let mut changes = Vec::new();
    for op in &txn.ops {
        let old = view.get(&op.key);
        let new = match (&op.action, old) {
            (Action::Put(draft), _) => Some(draft.at(revision, old.map_or(revision, Record::created))),
            (Action::Delete, Some(_)) => None,
            (Action::Delete, None) | (Action::Check, _) => continue,
        };
        changes.push(Change { revision, key: op.key.clone(), new, old: old.cloned() });
    }
    let revision = if changes.is_empty() { view.revision() } else { revision };
    Ok(Applied { revision, changes })
}
