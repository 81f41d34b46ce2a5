//! Frames as they travel: a header in the clear that the seal authenticates, and a sealed payload.
//!
//! ```text
//! handshake   version u8 | kind u8 | nonce [32]                        | ciphertext | tag [16]
//! data        version u8 | kind u8 | session id [4] | sequence u64 BE  | ciphertext | tag [16]
//! ```
//!
//! The seal is ChaCha20-Poly1305 with the header as associated data. A handshake frame has a key of its own,
//! derived from the fresh nonce in its header, and so an all-zero cipher nonce; a data frame's cipher nonce is
//! its sequence number under a key per session and direction. A receiver takes strictly increasing sequence
//! numbers only, so replayed and reordered frames are refused and the channel above sends what was lost again.

use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{AeadInOut, ChaCha20Poly1305, KeyInit};
use thiserror::Error;

use crate::FRAME_BYTES_MAX;

/// The protocol's version, the first byte of every frame.
pub const VERSION: u8 = 1;
/// Length of the seal's tag.
pub const TAG_BYTES: usize = 16;
/// Length of a handshake frame's header.
pub const HANDSHAKE_HEADER_BYTES: usize = 34;
/// Length of a data frame's header.
pub const DATA_HEADER_BYTES: usize = 14;

/// A fresh random value in a handshake frame.
pub type Nonce = [u8; 32];
/// A short public name for a session's keys, so that a receiver knows which to try.
pub type SessionId = [u8; 4];

/// Why a frame was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The frame is longer than the protocol allows.
    #[error("frame of {0} bytes is over the limit of {FRAME_BYTES_MAX}")]
    TooLong(usize),
    /// The frame ends before its header and seal do.
    #[error("truncated frame of {0} bytes")]
    Truncated(usize),
    /// The frame speaks another version of the protocol.
    #[error("protocol version {0} is not spoken here (this is version {VERSION})")]
    Version(u8),
    /// The frame's kind is unknown.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// The seal does not verify: forged, damaged, or meant for another node, direction or session.
    #[error("the frame's seal does not verify")]
    Seal,
    /// The sequence number was already passed: a replay, or reordering on the way.
    #[error("sequence {sequence} is replayed or late (expected {expected} or later)")]
    Replayed {
        /// The frame's number.
        sequence: u64,
        /// The lowest number that would be taken.
        expected: u64,
    },
    /// The frame belongs to a session that is not held here.
    #[error("frame of an unknown session")]
    UnknownSession,
    /// The sequence numbers of this session are used up.
    #[error("the session's sequence numbers are used up")]
    Exhausted,
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// An agent asks for a session.
    Hello(Nonce),
    /// A gateway grants one.
    Welcome(Nonce),
    /// A gateway asks for a hello.
    Solicit(Nonce),
    /// A message within a session.
    Data {
        /// Which session.
        session: SessionId,
        /// The frame's number in its direction.
        sequence: u64,
    },
}

impl Header {
    /// The header's length.
    pub fn len(&self) -> usize {
        match self {
            Header::Data { .. } => DATA_HEADER_BYTES,
            _ => HANDSHAKE_HEADER_BYTES,
        }
    }

    /// Never: every frame has a header.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Reads the header of a frame and checks the frame's length.
    pub fn read(frame: &[u8]) -> Result<Self, FrameError> {
        let truncated = FrameError::Truncated(frame.len());
        if frame.len() > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong(frame.len()));
        }
        let (&version, rest) = frame.split_first().ok_or(truncated)?;
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let (&kind, rest) = rest.split_first().ok_or(truncated)?;
        let header = match kind {
            0..=2 => {
                let nonce = *rest.first_chunk().ok_or(truncated)?;
                match kind {
                    0 => Header::Hello(nonce),
                    1 => Header::Welcome(nonce),
                    _ => Header::Solicit(nonce),
                }
            }
            3 => {
                let session = *rest.first_chunk().ok_or(truncated)?;
                let sequence = rest.get(4..).and_then(|r| r.first_chunk()).ok_or(truncated)?;
                Header::Data { session, sequence: u64::from_be_bytes(*sequence) }
            }
            other => return Err(FrameError::Kind(other)),
        };
        if frame.len() < header.len() + TAG_BYTES {
            return Err(truncated);
        }
        Ok(header)
    }

    fn write(&self, out: &mut [u8]) -> Option<()> {
        let (head, rest) = out.split_first_chunk_mut::<2>()?;
        let (kind, nonce) = match self {
            Header::Hello(nonce) => (0, nonce),
            Header::Welcome(nonce) => (1, nonce),
            Header::Solicit(nonce) => (2, nonce),
            Header::Data { session, sequence } => {
                *head = [VERSION, 3];
                rest.get_mut(..4)?.copy_from_slice(session);
                rest.get_mut(4..12)?.copy_from_slice(&sequence.to_be_bytes());
                return Some(());
            }
        };
        *head = [VERSION, kind];
        rest.get_mut(..32)?.copy_from_slice(nonce);
        Some(())
    }

    fn cipher_nonce(&self) -> [u8; 12] {
        let mut nonce = [0; 12];
        if let Header::Data { sequence, .. } = self {
            nonce[4..].copy_from_slice(&sequence.to_be_bytes());
        }
        nonce
    }
}

/// Seals a frame in place: `out` holds `payload` bytes of plaintext behind the space for the header, and room
/// for the tag after them. Returns the frame's length.
pub fn seal(key: &[u8; 32], header: &Header, out: &mut [u8], payload: usize) -> Result<usize, FrameError> {
    let at = header.len();
    let len = at + payload + TAG_BYTES;
    if len > FRAME_BYTES_MAX || len > out.len() {
        return Err(FrameError::TooLong(len));
    }
    let (head, rest) = out[..len].split_at_mut(at);
    header.write(head).ok_or(FrameError::Truncated(at))?;
    let (plain, tag) = rest.split_at_mut(payload);
    let sealed = ChaCha20Poly1305::new(key.into())
        .encrypt_inout_detached(&header.cipher_nonce().into(), head, InOutBuf::from(plain))
        .map_err(|_| FrameError::TooLong(len))?;
    tag.copy_from_slice(&sealed);
    Ok(len)
}

/// Opens a frame in place and returns its payload.
pub fn open<'a>(key: &[u8; 32], header: &Header, frame: &'a mut [u8]) -> Result<&'a [u8], FrameError> {
    let truncated = FrameError::Truncated(frame.len());
    let (head, rest) = frame.split_at_mut_checked(header.len()).ok_or(truncated)?;
    let at = rest.len().checked_sub(TAG_BYTES).ok_or(truncated)?;
    let (payload, tag) = rest.split_at_mut(at);
    let tag: [u8; TAG_BYTES] = (&*tag).try_into().map_err(|_| truncated)?;
    ChaCha20Poly1305::new(key.into())
        .decrypt_inout_detached(
            &header.cipher_nonce().into(),
            head,
            InOutBuf::from(&mut *payload),
            &tag.into(),
        )
        .map_err(|_| FrameError::Seal)?;
    Ok(payload)
}
