//! The session between a node and the gateway that owns it: sans-IO, for both roles.
//!
//! The owner feeds it frames and time and takes frames and events from it. It never blocks and never calls
//! back except with events. See [`Session`] for the contract.

mod config;
mod event;
mod storage;

pub use config::{AgentConfig, Config, GatewayConfig, Limits, Timing};
pub use event::{Event, LostReason, ReportId, StreamId};
#[cfg(any(feature = "alloc", test))]
pub use storage::Growable;
pub use storage::{Bytes, Fixed, List, Storage};

use thiserror::Error;

use crate::body::SyncPoint;
use crate::codec::CodecError;
use crate::frame::FrameError;

/// Why a frame did nothing. The session stands as it was, except after a [`ReceiveError::Violation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReceiveError {
    /// The frame was refused before anything in it was believed.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The seal verifies and yet the content can't be read: the other side is broken. The session is lost.
    #[error("a sealed frame can't be read: {0}")]
    Codec(#[from] CodecError),
    /// The gateway's epoch is lower than one that was seen.
    #[error("owner epoch {offered} is lower than {seen}, which was seen")]
    Epoch {
        /// The epoch offered.
        offered: u64,
        /// The epoch seen.
        seen: u64,
    },
    /// The hello is of another node than the key.
    #[error("the hello names another node")]
    OtherNode,
    /// The frame is out of place: a handshake not asked for, or repeated.
    #[error("a handshake frame that was not asked for")]
    Unexpected,
    /// The other side broke the protocol and the session is lost.
    #[error("the other side broke the protocol: {0}")]
    Violation(&'static str),
}

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SendError {
    /// The outbox, or the table of streams, is full. [`Event::Room`] tells when to try again.
    #[error("no room")]
    Full,
    /// The message is larger than either side can take.
    #[error("message of {0} bytes is too large")]
    TooLarge(usize),
    /// There is no session at the moment.
    #[error("not connected")]
    NotConnected,
    /// The stream does not exist or has ended.
    #[error("no such stream")]
    NoStream,
    /// This role does not send this.
    #[error("not for this role")]
    Role,
}

/// One side of the session between a node and its gateway.
pub struct Session<S: Storage> {
    config: Config,
    _outbox: S::List<S::Bytes>,
    _seed: [u8; 32],
}

impl<S: Storage> Session<S> {
    /// Makes one side of a session. `seed` must be fresh random bytes: nonces are drawn from it.
    pub fn new(config: Config, seed: [u8; 32]) -> Self {
        Self { config, _outbox: Default::default(), _seed: seed }
    }

    /// How the session was set up.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The carrier is connected and subscribed. An agent says hello.
    pub fn link_up(&mut self, _now_ms: u64) {}

    /// The carrier lost its connection. Streams end; reports are kept.
    pub fn link_down(&mut self, _now_ms: u64, _sink: &mut dyn FnMut(Event<'_>)) {}

    /// Takes a frame, which is decrypted in place, and hands out what it brings.
    pub fn receive(
        &mut self,
        _now_ms: u64,
        frame: &mut [u8],
        _sink: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), ReceiveError> {
        Err(FrameError::Truncated(frame.len()).into())
    }

    /// Does what is due by time; call it when [`Session::next_timeout`] has passed.
    pub fn tick(&mut self, _now_ms: u64, _sink: &mut dyn FnMut(Event<'_>)) {}

    /// Writes the next frame that is due and returns its length; `None` if there is none now. Call it until
    /// then, after any other call. `out` should hold [`crate::FRAME_BYTES_MAX`] or what the limits need.
    pub fn transmit(&mut self, _now_ms: u64, _out: &mut [u8]) -> Option<usize> {
        None
    }

    /// When [`Session::tick`] should be called next, if nothing else happens.
    pub fn next_timeout(&self) -> Option<u64> {
        None
    }

    /// Whether the session stands: both sides have proved themselves.
    pub fn is_up(&self) -> bool {
        false
    }

    /// Agent: how far the desired state has arrived.
    pub fn synced(&self) -> Option<SyncPoint> {
        None
    }

    /// The owner epoch: the gateway's own, or the highest that the agent has accepted.
    pub fn epoch(&self) -> u64 {
        0
    }

    /// Agent: queues a report until the gateway says that it is durable. A queued report of the same kind, key
    /// and UID that is not under way yet is replaced.
    pub fn report(&mut self, _kind: &str, _key: &str, _uid: &str, _body: &[u8]) -> Result<(), SendError> {
        Err(SendError::Full)
    }

    /// Gateway: reports up to this one are durable.
    pub fn settle(&mut self, _report: ReportId) {}

    /// Gateway: begins a snapshot; desired state that still waits to be sent is dropped.
    pub fn snapshot_begin(&mut self, _version: u64, _count: u32) -> Result<(), SendError> {
        Err(SendError::Full)
    }

    /// Gateway: an object as it should be. One of the same kind and key that still waits is replaced.
    pub fn item(&mut self, _kind: &str, _key: &str, _version: u64, _body: &[u8]) -> Result<(), SendError> {
        Err(SendError::Full)
    }

    /// Gateway: an object that should no longer be. An item of the same kind and key that still waits is replaced.
    pub fn remove(&mut self, _kind: &str, _key: &str, _version: u64) -> Result<(), SendError> {
        Err(SendError::Full)
    }

    /// Gateway: the snapshot is complete.
    pub fn snapshot_end(&mut self, _version: u64) -> Result<(), SendError> {
        Err(SendError::Full)
    }

    /// Gateway: all deltas up to this version were given.
    pub fn mark_synced(&mut self, _version: u64) -> Result<(), SendError> {
        Err(SendError::Full)
    }

    /// How many more messages the outbox takes.
    pub fn outbox_room(&self) -> usize {
        0
    }

    /// Opens a stream.
    pub fn stream_open(&mut self, _request: &[u8]) -> Result<StreamId, SendError> {
        Err(SendError::NotConnected)
    }

    /// Takes as many of the bytes as the stream's buffer has room for and returns how many.
    /// [`Event::StreamWritable`] tells when there is room again.
    pub fn stream_write(&mut self, _id: StreamId, _data: &[u8]) -> Result<usize, SendError> {
        Err(SendError::NoStream)
    }

    /// Ends this side's direction of a stream after what was written.
    pub fn stream_finish(&mut self, _id: StreamId) -> Result<(), SendError> {
        Err(SendError::NoStream)
    }

    /// Ends a stream at once, in both directions, for a reason that the other side is told.
    pub fn stream_reset(&mut self, _id: StreamId, _error: &str) -> Result<(), SendError> {
        Err(SendError::NoStream)
    }

    /// Says that this many bytes of a stream were used up, so that the other side may send as many more.
    pub fn stream_grant(&mut self, _id: StreamId, _bytes: u64) -> Result<(), SendError> {
        Err(SendError::NoStream)
    }

    /// Gateway: asks the node for a hello. A gateway that has just become the owner does so for each node.
    pub fn solicit(&mut self, _now_ms: u64) {}

    /// Gateway: checks whether the node is still there, for instance because its last will appeared.
    pub fn probe(&mut self, _now_ms: u64) {}

    /// Ends the session on purpose. The goodbye goes out with the next [`Session::transmit`].
    pub fn close(&mut self, _reason: &str, _sink: &mut dyn FnMut(Event<'_>)) {}
}
