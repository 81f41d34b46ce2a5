//! The schema of everything that travels inside a sealed frame, as CBOR in `serde_cbor`'s packed form:
//! fields and variants are numbered by their order here, so a new one goes last and none is ever removed
//! within a protocol version. Unknown fields are skipped; an unknown variant is an error.
//!
//! Every type borrows from the bytes it was decoded from, so that decoding never allocates.

use core::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::frame::{DATA_HEADER_BYTES, TAG_BYTES};

/// Bytes that are written as one CBOR byte string. (Serde alone would write a list of numbers.)
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Blob<'a>(pub &'a [u8]);

impl fmt::Debug for Blob<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Blob<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Blob<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Borrowed;
        impl<'de> Visitor<'de> for Borrowed {
            type Value = Blob<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a byte string of known length")
            }
            fn visit_borrowed_bytes<E: de::Error>(self, bytes: &'de [u8]) -> Result<Blob<'de>, E> {
                Ok(Blob(bytes))
            }
        }
        deserializer.deserialize_bytes(Borrowed)
    }
}

/// Writes 32 bytes as one CBOR byte string.
pub(crate) mod bytes32 {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use super::Blob;

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let Blob(bytes) = Blob::deserialize(deserializer)?;
        bytes.try_into().map_err(|_| de::Error::invalid_length(bytes.len(), &"32 bytes"))
    }
}

/// Most bytes that a data frame has beside those of messages.
pub const FRAME_OVERHEAD_BYTES: usize = DATA_HEADER_BYTES + HEAD_BYTES_MAX + TAG_BYTES;
/// Most bytes that a head and the framing of fragments take: each of those takes up to ten.
pub(crate) const HEAD_BYTES_MAX: usize = 48 + FRAGMENTS_MAX * 10;
/// Most fragments in one frame.
pub(crate) const FRAGMENTS_MAX: usize = 16;

/// How far a node has seen the desired state: a version of one incarnation of the control plane's store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SyncPoint {
    /// Which store the version counts in; another one means that versions can't be compared.
    pub incarnation: u64,
    /// The version up to which everything was received.
    pub version: u64,
}

/// What one side can take from the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Most bytes of messages in one frame; what stands around them takes at most [`FRAME_OVERHEAD_BYTES`] more.
    pub fragment_bytes: u32,
    /// Most fragments under way that are not acknowledged.
    pub window_fragments: u32,
    /// Largest message put together from fragments.
    pub message_bytes: u32,
}

/// The agent's first word: who it is and what it already has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello<'a> {
    /// The node's name; it must be the one that the key belongs to.
    #[serde(borrow)]
    pub node: &'a str,
    /// Fresh at every start of the agent, so that the gateway can tell a restart from a reconnect.
    #[serde(borrow)]
    pub boot_id: Blob<'a>,
    /// The agent's version.
    #[serde(borrow)]
    pub agent_version: &'a str,
    /// The engine profile that artifacts must be compiled for; empty if the node runs no components.
    #[serde(borrow)]
    pub profile: &'a str,
    /// The highest owner epoch that the agent has accepted.
    pub epoch_seen: u64,
    /// How far the agent has the desired state, if at all.
    pub synced: Option<SyncPoint>,
    /// What the agent can take.
    pub capacity: Capacity,
}

/// The gateway's answer to a [`Hello`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The owner epoch of the gateway that answers; agents refuse one lower than they have seen.
    pub epoch: u64,
    /// The incarnation that versions of the desired state count in.
    pub incarnation: u64,
    /// How often a silent agent should make itself heard.
    pub keepalive_ms: u32,
    /// What the gateway can take.
    pub capacity: Capacity,
}

/// The gateway asks for a [`Hello`], because it holds no session with this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Solicit {
    /// The owner epoch of the gateway that asks.
    pub epoch: u64,
}

/// A message of an established session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body<'a> {
    /// Desired state starts anew: what is not sent before the matching end no longer exists.
    SnapshotBegin {
        /// The version that the snapshot shows.
        version: u64,
        /// About how many items follow, for progress.
        count: u32,
    },
    /// An object as it should be.
    Item {
        /// The object's kind.
        #[serde(borrow)]
        kind: &'a str,
        /// `namespace/name`, or the name alone.
        #[serde(borrow)]
        key: &'a str,
        /// The version that the object last changed at.
        version: u64,
        /// The object: CBOR of its JSON value.
        #[serde(borrow)]
        body: Blob<'a>,
    },
    /// An object should no longer be.
    Remove {
        /// The object's kind.
        #[serde(borrow)]
        kind: &'a str,
        /// `namespace/name`, or the name alone.
        #[serde(borrow)]
        key: &'a str,
        /// The version at which it went.
        version: u64,
    },
    /// The snapshot is complete.
    SnapshotEnd {
        /// The version that the snapshot shows.
        version: u64,
    },
    /// Everything up to this version has been sent as deltas.
    Synced {
        /// The version.
        version: u64,
    },
    /// What the node has to say about an object.
    Report {
        /// The kind of report.
        #[serde(borrow)]
        kind: &'a str,
        /// The object's key.
        #[serde(borrow)]
        key: &'a str,
        /// The object's UID, empty if it has none.
        #[serde(borrow)]
        uid: &'a str,
        /// The report: CBOR of a JSON value.
        #[serde(borrow)]
        body: Blob<'a>,
    },
    /// A stream begins.
    StreamOpen {
        /// Odd if the agent opened it, even if the gateway did; never used twice in a session.
        id: u32,
        /// How many bytes the opener is ready to receive.
        credit: u64,
        /// What is asked for.
        #[serde(borrow)]
        request: Blob<'a>,
    },
    /// Bytes of a stream.
    StreamData {
        /// The stream.
        id: u32,
        /// Where these bytes belong.
        offset: u64,
        /// The bytes.
        #[serde(borrow)]
        data: Blob<'a>,
    },
    /// The sender of this is ready to receive a stream's bytes up to an offset.
    StreamCredit {
        /// The stream.
        id: u32,
        /// The offset up to which the other side may send.
        limit: u64,
    },
    /// The sender of this will send no more on a stream; with an error, neither may the other side.
    StreamEnd {
        /// The stream.
        id: u32,
        /// Why it ended early, if it did.
        #[serde(borrow)]
        error: Option<&'a str>,
    },
    /// The node is no longer of the cluster: it should end its pods, forget who it was and say that it did.
    Leave,
}

/// What stands before the fragments in a sealed data frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The next fragment that the sender of this expects: all before it have arrived.
    pub ack: u64,
    /// Reports up to this id are durable with the sender of this and need not be kept any longer.
    pub settled: u64,
    /// Whether an answer is wanted even though nothing else may be due.
    pub answer: bool,
    /// Whether the sender of this ends the session on purpose.
    pub bye: bool,
    /// The number of the first fragment in this frame.
    pub first: u64,
    /// How many fragments follow.
    pub fragments: u8,
}

/// A piece of a message, itself a CBOR-encoded [`Body`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fragment<'a> {
    /// Whether the message continues in the next fragment.
    pub more: bool,
    /// The piece.
    #[serde(borrow)]
    pub data: Blob<'a>,
}
