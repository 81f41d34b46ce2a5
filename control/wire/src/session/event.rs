//! What a session tells its owner.

use crate::body::{Hello, Welcome};

/// Names a report so that the gateway can say when it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReportId(pub u64);

/// Names a stream within a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u32);

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostReason {
    /// The carrier said that the link is gone.
    LinkDown,
    /// Nothing was heard for too long.
    Silence,
    /// Another session of the same node took its place.
    Replaced,
    /// The other side said goodbye.
    Bye,
    /// This side closed it.
    Closed,
    /// The other side broke the protocol.
    Violation,
}

/// What happened in a session. It borrows from the frame that brought it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Gateway: the node has proved itself and the session stands. Desired state must be sent: deltas from
    /// `hello.synced` if they can be had, a snapshot otherwise.
    NodeConnected(Hello<'a>),
    /// Agent: the gateway has proved itself and the session stands. The agent should report its full state.
    GatewayConnected(Welcome),
    /// The session is over; its streams have ended without further events.
    Lost(LostReason),
    /// Agent: a gateway of an older epoch tried to take the node and was refused.
    EpochRefused {
        /// Its epoch.
        offered: u64,
        /// The epoch that the agent holds to.
        seen: u64,
    },
    /// Agent: a snapshot begins.
    SnapshotBegin {
        /// Its version.
        version: u64,
        /// About how many items it has.
        count: u32,
    },
    /// Agent: an object as it should be.
    Item {
        /// Its kind.
        kind: &'a str,
        /// Its key.
        key: &'a str,
        /// The version that it last changed at.
        version: u64,
        /// CBOR of its JSON value.
        body: &'a [u8],
    },
    /// Agent: an object should no longer be.
    Remove {
        /// Its kind.
        kind: &'a str,
        /// Its key.
        key: &'a str,
        /// The version at which it went.
        version: u64,
    },
    /// Agent: the snapshot is complete; objects not seen since it began no longer exist.
    SnapshotEnd {
        /// Its version.
        version: u64,
    },
    /// Agent: all deltas up to this version have arrived.
    Synced {
        /// The version.
        version: u64,
    },
    /// Agent: the node is no longer of the cluster.
    Leave,
    /// Gateway: a report, to be settled once it is durable.
    Report {
        /// What to settle.
        id: ReportId,
        /// The kind of report.
        kind: &'a str,
        /// The object's key.
        key: &'a str,
        /// The object's UID.
        uid: &'a str,
        /// CBOR of a JSON value.
        body: &'a [u8],
    },
    /// The outbox was full and has room again.
    Room,
    /// The other side opened a stream.
    StreamOpened {
        /// The stream.
        id: StreamId,
        /// What it asks for.
        request: &'a [u8],
    },
    /// Bytes arrived on a stream, in order.
    StreamData {
        /// The stream.
        id: StreamId,
        /// The bytes.
        data: &'a [u8],
    },
    /// A stream that could not take more can again.
    StreamWritable {
        /// The stream.
        id: StreamId,
    },
    /// The other side will send no more; with an error the stream is over in both directions.
    StreamEnded {
        /// The stream.
        id: StreamId,
        /// Why it ended early, if it did.
        error: Option<&'a str>,
    },
}
