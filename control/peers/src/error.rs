//! Why members do not come together.

use std::io;
use std::net::SocketAddr;

use lichen_pki::PkiError;
use lichen_store::CommitError;

/// Why a member cannot serve the others.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store is not one that has members.
    #[error("the store has no members")]
    NoMember,
    /// It was started before.
    #[error("the members' port is served already")]
    Twice,
    /// The address cannot be listened on.
    #[error("{address} cannot be listened on for other members")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The member's certificate cannot be made.
    #[error("cannot make the member's certificate")]
    Certificate(#[from] PkiError),
}

/// Why a member was not asked, or did not answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RequestError {
    /// This member's own store is not open yet.
    #[error("this member is starting")]
    Starting,
    /// Nobody leads, as far as this member knows.
    #[error("no member leads at present: fewer than a majority may be running")]
    NoLeader,
    /// No address of the member is known.
    #[error("there is no member {member:016x}")]
    NoMember {
        /// The member.
        member: u64,
    },
    /// The member cannot be reached.
    #[error("member {member:016x} cannot be reached: {why}")]
    Unreachable {
        /// The member.
        member: u64,
        /// What went wrong.
        why: String,
    },
    /// It was reached, and does not talk to this one.
    #[error("member {member:016x} refuses: {why}")]
    Refused {
        /// The member.
        member: u64,
        /// Its words.
        why: String,
    },
    /// The connection broke before the answer came: it is not known whether the request was carried out.
    #[error("member {member:016x} did not answer: {why}")]
    Broken {
        /// The member.
        member: u64,
        /// What went wrong.
        why: String,
    },
}

impl RequestError {
    /// Whether the member may have heard of the request, and carried it out.
    pub(crate) fn was_sent(&self) -> bool {
        matches!(self, Self::Broken { .. })
    }
}

/// Why the members are not what somebody wants.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PeersError {
    /// The leader could not be asked.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The leader refuses, or cannot do it.
    #[error(transparent)]
    Commit(#[from] CommitError),
}
