//! Why a session refuses a frame or a message.

use thiserror::Error;

use crate::codec::CodecError;
use crate::frame::FrameError;

/// Why a frame did nothing. The session stands as it was, except after [`ReceiveError::Codec`] and
/// [`ReceiveError::Violation`].
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
    /// The outbox, or the table of streams, is full. [`super::Event::Room`] tells when to try again.
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
