//! A transaction: several keys changed at one revision, or none.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::codec::{self, DecodeError, Reader, put_bytes, put_u32, put_u64};
use crate::{Draft, Key, Revision, Term};

/// Most operations in a transaction.
pub const TXN_OPS_MAX: usize = 1024;
/// Most bytes of a transaction. Larger than the 3 MiB that the API server reads of a request.
pub const TXN_BYTES_MAX: usize = 4 * 1024 * 1024;

const TXN_VERSION: u8 = 1;

/// What must hold of a key for the whole transaction to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// Nothing.
    Any,
    /// The key does not exist.
    Absent,
    /// The key exists.
    Present,
    /// The key exists at exactly this revision.
    Revision(Revision),
}

/// What happens to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The key is written.
    Put(Draft),
    /// The key goes away; no change if it does not exist.
    Delete,
    /// Nothing: only the precondition counts.
    Check,
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// The key it is about.
    pub key: Key,
    /// What must hold.
    pub pre: Precondition,
    /// What happens.
    pub action: Action,
}

/// Operations that happen together or not at all. All preconditions are about the state before the transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// The operations. At most one Put or Delete a key.
    pub ops: Vec<Op>,
    /// If set, the transaction happens only under the leader of this term.
    pub fence: Option<Term>,
}

impl Txn {
    /// An empty transaction.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an operation.
    #[must_use]
    pub fn op(mut self, key: Key, pre: Precondition, action: Action) -> Self {
        self.ops.push(Op { key, pre, action });
        self
    }

    /// Adds a put.
    #[must_use]
    pub fn put(self, key: Key, pre: Precondition, draft: Draft) -> Self {
        self.op(key, pre, Action::Put(draft))
    }

    /// Adds a deletion.
    #[must_use]
    pub fn delete(self, key: Key, pre: Precondition) -> Self {
        self.op(key, pre, Action::Delete)
    }

    /// Adds a precondition about a key that is not changed.
    #[must_use]
    pub fn check(self, key: Key, pre: Precondition) -> Self {
        self.op(key, pre, Action::Check)
    }

    /// Fences the transaction by a leader's term.
    #[must_use]
    pub fn fenced(mut self, fence: Option<Term>) -> Self {
        self.fence = fence;
        self
    }

    /// Bytes that the transaction takes, closely enough for a bound.
    #[must_use]
    pub fn size(&self) -> usize {
        let op = |op: &Op| match &op.action {
            Action::Put(draft) => draft.size(),
            Action::Delete | Action::Check => 0,
        };
        self.ops.iter().map(|each| 32 + each.key.as_str().len() + op(each)).sum()
    }

    /// The index of the first operation that changes a key which an earlier one changes too.
    pub(crate) fn repeated(&self) -> Option<usize> {
        if self.ops.len() < 2 {
            return None;
        }
        let mut seen = BTreeSet::new();
        self.ops.iter().position(|op| !matches!(op.action, Action::Check) && !seen.insert(op.key.as_str()))
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.push(TXN_VERSION);
        match self.fence {
            None => out.push(0),
            Some(term) => {
                out.push(1);
                put_u64(out, term.0);
            }
        }
        put_u32(out, codec::len32(self.ops.len()));
        for op in &self.ops {
            put_bytes(out, op.key.as_str().as_bytes());
            match op.pre {
                Precondition::Any => out.push(0),
                Precondition::Absent => out.push(1),
                Precondition::Present => out.push(2),
                Precondition::Revision(revision) => {
                    out.push(3);
                    put_u64(out, revision.0);
                }
            }
            match &op.action {
                Action::Put(draft) => {
                    out.push(0);
                    put_bytes(out, draft.encoded());
                }
                Action::Delete => out.push(1),
                Action::Check => out.push(2),
            }
        }
    }

    pub(crate) fn decode(input: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(input);
        let found = reader.u8()?;
        if found != TXN_VERSION {
            return Err(DecodeError::Version { found, known: TXN_VERSION });
        }
        let fence = match reader.u8()? {
            0 => None,
            1 => Some(Term(reader.u64()?)),
            _ => return Err(DecodeError::Malformed("the fence of a transaction")),
        };
        let mut ops = Vec::new();
        for _ in 0..reader.u32()? {
            let key = Key::new(reader.str()?);
            let pre = match reader.u8()? {
                0 => Precondition::Any,
                1 => Precondition::Absent,
                2 => Precondition::Present,
                3 => Precondition::Revision(Revision(reader.u64()?)),
                _ => return Err(DecodeError::Malformed("a precondition")),
            };
            let action = match reader.u8()? {
                // Copied, so that a record in memory does not pin the whole batch that it came in.
                0 => Action::Put(Draft::decode(Bytes::copy_from_slice(reader.bytes()?))?),
                1 => Action::Delete,
                2 => Action::Check,
                _ => return Err(DecodeError::Malformed("an action")),
            };
            ops.push(Op { key, pre, action });
        }
        reader.end()?;
        Ok(Self { ops, fence })
    }
}
