//! What members say to each other, as bytes.
//!
//! A request says who asks whom, so that a member which was made anew does not answer for the one that was at its
//! address before. Everything is sealed like what lies in a file; replies and all that is small are JSON within.

use std::sync::Arc;

use bytes::Bytes;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::{self, DecodeError, Reader, put_bytes, put_u32, put_u64};
use crate::file::{put_optional, read_optional};
use crate::types::{SnapshotMeta, Types, Vote, decode_entry, encode_entry};
use crate::{CommitError, Txn};

const VERSION: u8 = 1;

const APPEND: u8 = 0;
const VOTE: u8 = 1;
const PRE_VOTE: u8 = 2;
const TRANSFER: u8 = 3;
const COMMIT: u8 = 4;
const READ_INDEX: u8 = 5;
const PIECE: u8 = 6;
const INSTALL: u8 = 7;

/// What a member asks another one for.
#[derive(Debug)]
pub(crate) enum Request {
    Append(AppendEntriesRequest<Types>),
    Vote(VoteRequest<Types>),
    PreVote(VoteRequest<Types>),
    Transfer(TransferLeaderRequest<Types>),
    /// To propose a transaction, once, however often this arrives.
    Commit {
        /// The term under which the member is believed to lead.
        term: u64,
        /// Which proposal of that term it is.
        number: u64,
        txn: Arc<Txn>,
    },
    /// For the entry that a read has to wait for.
    ReadIndex,
    /// To take in the next part of a snapshot.
    Piece {
        transfer: u64,
        number: u64,
        bytes: Bytes,
    },
    /// To install what the parts make together.
    Install {
        transfer: u64,
        pieces: u64,
        vote: Vote,
        meta: SnapshotMeta,
    },
}

/// A request on its way.
#[derive(Debug)]
pub(crate) struct Envelope {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) request: Request,
}

impl Envelope {
    pub(crate) fn encode(&self) -> Result<Bytes, serde_json::Error> {
        let mut out = codec::unsealed(256);
        put_u64(&mut out, self.from);
        put_u64(&mut out, self.to);
        let mut small = |kind: u8, json: Vec<u8>| {
            out.push(kind);
            put_bytes(&mut out, &json);
        };
        match &self.request {
            Request::Append(rpc) => {
                small(APPEND, serde_json::to_vec(&rpc.vote)?);
                put_optional(&mut out, rpc.prev_log_id.as_ref());
                put_optional(&mut out, rpc.leader_commit.as_ref());
                put_u32(&mut out, codec::len32(rpc.entries.len()));
                for entry in &rpc.entries {
                    put_bytes(&mut out, &encode_entry(entry)?);
                }
            }
            Request::Vote(rpc) => small(VOTE, serde_json::to_vec(rpc)?),
            Request::PreVote(rpc) => small(PRE_VOTE, serde_json::to_vec(rpc)?),
            Request::Transfer(rpc) => small(TRANSFER, serde_json::to_vec(rpc)?),
            Request::Commit { term, number, txn } => {
                out.push(COMMIT);
                put_u64(&mut out, *term);
                put_u64(&mut out, *number);
                txn.encode(&mut out);
            }
            Request::ReadIndex => out.push(READ_INDEX),
            Request::Piece { transfer, number, bytes } => {
                out.push(PIECE);
                put_u64(&mut out, *transfer);
                put_u64(&mut out, *number);
                put_bytes(&mut out, bytes);
            }
            Request::Install { transfer, pieces, vote, meta } => {
                small(INSTALL, serde_json::to_vec(&(vote, meta))?);
                put_u64(&mut out, *transfer);
                put_u64(&mut out, *pieces);
            }
        }
        Ok(codec::seal(out, VERSION).into())
    }

    /// Reads a request from bytes that may come from anywhere.
    pub(crate) fn decode(input: &[u8]) -> Result<Self, DecodeError> {
        let body = codec::open(input, VERSION)?;
        let mut reader = Reader::new(body);
        let (from, to) = (reader.u64()?, reader.u64()?);
        let request = match reader.u8()? {
            APPEND => {
                let vote = json(reader.bytes()?)?;
                let prev_log_id = read_optional(&mut reader)?;
                let leader_commit = read_optional(&mut reader)?;
                let mut entries = Vec::new();
                for _ in 0..reader.u32()? {
                    entries.push(decode_entry(reader.bytes()?)?);
                }
                Request::Append(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
            }
            VOTE => Request::Vote(json(reader.bytes()?)?),
            PRE_VOTE => Request::PreVote(json(reader.bytes()?)?),
            TRANSFER => Request::Transfer(json(reader.bytes()?)?),
            COMMIT => {
                let (term, number) = (reader.u64()?, reader.u64()?);
                let rest = reader.take(body.len() - reader.at())?;
                Request::Commit { term, number, txn: Arc::new(Txn::decode(rest)?) }
            }
            READ_INDEX => Request::ReadIndex,
            PIECE => {
                let (transfer, number) = (reader.u64()?, reader.u64()?);
                Request::Piece { transfer, number, bytes: Bytes::copy_from_slice(reader.bytes()?) }
            }
            INSTALL => {
                let (vote, meta) = json(reader.bytes()?)?;
                Request::Install { vote, meta, transfer: reader.u64()?, pieces: reader.u64()? }
            }
            _ => return Err(DecodeError::Malformed("the kind of a request")),
        };
        reader.end()?;
        Ok(Self { from, to, request })
    }
}

fn json<T: DeserializeOwned>(input: &[u8]) -> Result<T, DecodeError> {
    serde_json::from_slice(input).map_err(|_| DecodeError::Malformed("a message"))
}

/// A reply on its way.
pub(crate) fn encode_reply<T: Serialize>(reply: &Result<T, CommitError>) -> Bytes {
    let body = serde_json::to_vec(reply).unwrap_or_default();
    codec::seal_bytes(&body, VERSION).into()
}

/// Reads a reply from bytes that may come from anywhere.
pub(crate) fn decode_reply<T: DeserializeOwned>(input: &[u8]) -> Result<Result<T, CommitError>, DecodeError> {
    json(codec::open(input, VERSION)?)
}
