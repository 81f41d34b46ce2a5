//! How raft's types are filled in.
//!
//! A leader is unique to its term (the standard leader id), so a transaction can be fenced by the term alone.

use std::fmt;
use std::io;
use std::sync::Arc;

use openraft::BasicNode;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::apply::Rejection;
use crate::codec::{self, DecodeError, Reader, put_u64};
use crate::encryption::Vault;
use crate::pack::{pack, unpack};
use crate::{Revision, Txn};

/// What raft and the store's tasks run on.
#[cfg(not(feature = "simulation"))]
pub(crate) use openraft_rt_tokio::TokioRuntime as Runtime;

#[cfg(feature = "simulation")]
pub(crate) use crate::simulation::Runtime;

openraft::declare_raft_types!(
    /// Raft, as the store uses it.
    pub(crate) Types:
        D = Command,
        R = Reply,
        NodeId = u64,
        Node = BasicNode,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = Runtime,
);

pub(crate) type CommittedLeaderId = openraft::vote::leader_id_std::CommittedLeaderId<u64>;
pub(crate) type LogId = openraft::LogId<CommittedLeaderId>;
pub(crate) type Vote = openraft::impls::Vote<openraft::impls::leader_id_std::LeaderId<u64, u64>>;
pub(crate) type Payload = openraft::EntryPayload<Command, u64, BasicNode>;
pub(crate) type Entry = openraft::Entry<CommittedLeaderId, Payload>;
pub(crate) type Membership = openraft::Membership<u64, BasicNode>;
pub(crate) type StoredMembership = openraft::StoredMembership<CommittedLeaderId, u64, BasicNode>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<CommittedLeaderId, u64, BasicNode>;

const ENTRY_VERSION: u8 = 1;

/// A transaction in the log. Shared by the log's cache, the replication and the state machine.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Command(pub(crate) Arc<Txn>);

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} operations", self.0.ops.len())
    }
}

impl Serialize for Command {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = Vec::with_capacity(self.0.size() + 64);
        self.0.encode(&mut out);
        serializer.serialize_bytes(&out)
    }
}

impl<'de> Deserialize<'de> for Command {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = bytes::Bytes::deserialize(deserializer)?;
        Txn::decode(&bytes).map(|txn| Self(Arc::new(txn))).map_err(de::Error::custom)
    }
}

/// What applying an entry says to whoever proposed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// The entry was no transaction.
    Nothing,
    /// The transaction was decided at this revision.
    Applied(Revision),
    /// The transaction did nothing.
    Rejected(Rejection),
}

const BLANK: u8 = 0;
const TRANSACTION: u8 = 1;
const MEMBERSHIP: u8 = 2;
/// A transaction that only its vault reads.
const ENCRYPTED: u8 = 3;

/// Bytes that an entry takes, closely enough for a bound.
pub(crate) fn entry_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        Payload::Normal(command) => command.0.size() + 64,
        Payload::Blank | Payload::Membership(_) => 64,
    }
}

/// Writes an entry, sealed, so that it is checked whenever it is read.
pub(crate) fn encode_entry(entry: &Entry) -> Result<Vec<u8>, serde_json::Error> {
    let mut out = codec::unsealed(entry_bytes(entry));
    put_log_id(&mut out, &entry.log_id);
    match &entry.payload {
        Payload::Blank => out.push(BLANK),
        Payload::Normal(command) => {
            out.push(TRANSACTION);
            command.0.encode(&mut out);
        }
        Payload::Membership(membership) => {
            out.push(MEMBERSHIP);
            serde_json::to_writer(&mut out, membership)?;
        }
    }
    Ok(codec::seal(out, ENTRY_VERSION))
}

/// Writes an entry as it lies in the log: encrypted or packed.
pub(crate) fn encode_entry_at_rest(entry: &Entry, vault: &Vault) -> io::Result<Vec<u8>> {
    let Payload::Normal(command) = &entry.payload else { return Ok(encode_entry(entry)?) };
    let mut txn = Vec::with_capacity(command.0.size() + 64);
    command.0.encode(&mut txn);
    let (kind, txn) = match vault.protects_txn(&command.0) {
        true => (ENCRYPTED, vault.encrypt(&entry_place(&entry.log_id), &txn)?),
        false => (TRANSACTION, pack(txn)),
    };
    let mut out = codec::unsealed(txn.len() + 32);
    put_log_id(&mut out, &entry.log_id);
    out.push(kind);
    out.extend_from_slice(&txn);
    Ok(codec::seal(out, ENTRY_VERSION))
}

/// Reads an entry from bytes that may come from anywhere.
pub(crate) fn decode_entry(input: &[u8]) -> Result<Entry, DecodeError> {
    decode_entry_at_rest(input, &Vault::default())
}

/// Reads an entry that may be encrypted.
pub(crate) fn decode_entry_at_rest(input: &[u8], vault: &Vault) -> Result<Entry, DecodeError> {
    let body = codec::open(input, ENTRY_VERSION)?;
    let mut reader = Reader::new(body);
    let log_id = read_log_id(&mut reader)?;
    let kind = reader.u8()?;
    let rest = &body[reader.at()..];
    let payload = match kind {
        BLANK if rest.is_empty() => Payload::Blank,
        TRANSACTION => Payload::Normal(Command(Arc::new(Txn::decode(&unpack(rest)?)?))),
        ENCRYPTED => {
            let txn = vault.reveal(&entry_place(&log_id), rest)?;
            Payload::Normal(Command(Arc::new(Txn::decode(&txn)?)))
        }
        MEMBERSHIP => Payload::Membership(
            serde_json::from_slice(rest).map_err(|_| DecodeError::Malformed("a membership"))?,
        ),
        _ => return Err(DecodeError::Malformed("the kind of a log entry")),
    };
    Ok(Entry { log_id, payload })
}

/// Checks an entry and tells which it is. What is encrypted in it stays so: the key to what is purged may be forgotten.
pub(crate) fn check_entry(input: &[u8]) -> Result<LogId, DecodeError> {
    match decode_entry(input) {
        Err(DecodeError::Encrypted) => read_log_id(&mut Reader::new(codec::open(input, ENTRY_VERSION)?)),
        decoded => decoded.map(|entry| entry.log_id),
    }
}

/// What binds the content of an entry to its place.
fn entry_place(id: &LogId) -> Vec<u8> {
    let mut place = Vec::with_capacity(16);
    put_log_id(&mut place, id);
    place
}

pub(crate) fn put_log_id(out: &mut Vec<u8>, id: &LogId) {
    put_u64(out, id.leader_id.term);
    put_u64(out, id.index);
}

pub(crate) fn read_log_id(reader: &mut Reader<'_>) -> Result<LogId, DecodeError> {
    let term = reader.u64()?;
    Ok(LogId { leader_id: CommittedLeaderId::new(term), index: reader.u64()? })
}
