//! How a session comes to be: hello, welcome, and the keys of both.
//!
//! The agent draws a nonce for each hello and takes one welcome for it; the gateway draws one for each welcome.
//! A session's keys come from the node key and both nonces, so that neither side's restart can repeat a key,
//! and a replayed handshake leads to keys that only a holder of the node key could use. The gateway keeps the
//! session it has until the node has proved itself under the new keys. Where the node key itself was renewed, hellos
//! under the old one and the new are taken, until the node has proved itself under the new.

use sha2::{Digest, Sha256};

use crate::body::Capacity;
use crate::frame::{self, FrameError, HANDSHAKE_HEADER_BYTES, Header, Nonce, SessionId};
use crate::keys::{NodeKey, Purpose, derive};

/// Draws nonces from a seed.
pub(super) struct Nonces {
    seed: [u8; 32],
    drawn: u64,
}

impl Nonces {
    pub(super) fn new(seed: [u8; 32]) -> Self {
        Self { seed, drawn: 0 }
    }

    pub(super) fn draw(&mut self) -> Nonce {
        self.drawn += 1;
        let mut hash = Sha256::new_with_prefix(b"lichen/v1 nonce");
        hash.update(self.seed);
        hash.update(self.drawn.to_be_bytes());
        hash.finalize().into()
    }

    /// A number below `bound`, for jitter.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        let drawn = self.draw();
        let number = drawn.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        if bound == 0 { 0 } else { number % bound }
    }
}

/// The keys of one session, as one side uses them.
pub(super) struct Keys {
    pub(super) id: SessionId,
    send: [u8; 32],
    receive: [u8; 32],
    send_sequence: u64,
    receive_sequence: u64,
}

impl Keys {
    pub(super) fn new(agent: bool, key: &NodeKey, node: &str, hello: &Nonce, welcome: &Nonce) -> Self {
        let salt = both(hello, welcome);
        let (up, down) = (derive(key, &salt, Purpose::Up, node), derive(key, &salt, Purpose::Down, node));
        let (send, receive) = if agent { (up, down) } else { (down, up) };
        let id = derive(key, &salt, Purpose::SessionId, node);
        Self { id, send, receive, send_sequence: 0, receive_sequence: 0 }
    }

    /// Seals the payload that stands behind the space for a data header.
    pub(super) fn seal(&mut self, out: &mut [u8], payload: usize) -> Result<usize, FrameError> {
        let sequence = self.send_sequence;
        self.send_sequence = sequence.checked_add(1).ok_or(FrameError::Exhausted)?;
        frame::seal(&self.send, &Header::Data { session: self.id, sequence }, out, payload)
    }

    /// Opens a data frame; a sequence number that was passed is refused, and one is passed only if the seal
    /// verifies.
    pub(super) fn open<'a>(&mut self, sequence: u64, frame: &'a mut [u8]) -> Result<&'a [u8], FrameError> {
        if sequence < self.receive_sequence {
            return Err(FrameError::Replayed { sequence, expected: self.receive_sequence });
        }
        let header = Header::Data { session: self.id, sequence };
        let payload = frame::open(&self.receive, &header, frame)?;
        self.receive_sequence = sequence.checked_add(1).ok_or(FrameError::Exhausted)?;
        Ok(payload)
    }
}

fn both(hello: &Nonce, welcome: &Nonce) -> [u8; 64] {
    let mut salt = [0; 64];
    salt[..32].copy_from_slice(hello);
    salt[32..].copy_from_slice(welcome);
    salt
}

/// The key of the one hello with this nonce.
pub(super) fn hello_key(key: &NodeKey, node: &str, nonce: &Nonce) -> [u8; 32] {
    derive(key, nonce, Purpose::Hello, node)
}

/// The key of the one welcome with this nonce, which answers the hello with that one.
pub(super) fn welcome_key(key: &NodeKey, node: &str, hello: &Nonce, nonce: &Nonce) -> [u8; 32] {
    derive(key, &both(hello, nonce), Purpose::Welcome, node)
}

/// The key of the one solicitation with this nonce.
pub(super) fn solicit_key(key: &NodeKey, node: &str, nonce: &Nonce) -> [u8; 32] {
    derive(key, nonce, Purpose::Solicit, node)
}

/// Writes a handshake frame.
pub(super) fn write<T: serde::Serialize>(
    key: &[u8; 32],
    header: &Header,
    body: &T,
    out: &mut [u8],
) -> Option<usize> {
    let len = crate::codec::encode(body, out.get_mut(HANDSHAKE_HEADER_BYTES..)?).ok()?;
    frame::seal(key, header, out, len).ok()
}

/// What an agent remembers of the hello it has sent or will send.
#[derive(Default)]
pub(super) struct Asking {
    /// The nonce of the last hello, until a welcome has answered it.
    pub(super) nonce: Option<Nonce>,
    /// When to say hello.
    pub(super) due: Option<u64>,
    /// How long to wait for the answer to the next one.
    pub(super) wait_ms: u64,
}

/// A session that the node has asked for and not yet confirmed.
pub(super) struct Pending<B> {
    /// The node key that the hello was sealed under.
    pub(super) key: NodeKey,
    pub(super) hello_nonce: Nonce,
    pub(super) welcome_nonce: Nonce,
    pub(super) keys: Keys,
    /// The hello's payload, to be handed out once confirmed.
    pub(super) hello: B,
    pub(super) capacity: Capacity,
    pub(super) welcome_due: bool,
}
