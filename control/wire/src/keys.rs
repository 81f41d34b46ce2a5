//! The key that a node and its control plane share, and the keys derived from it.
//!
//! The node key is agreed once, at join, and kept by both sides. Nothing is ever sealed under it directly:
//! each handshake message and each session gets keys of its own through HKDF-SHA256, with fresh nonces of both
//! sides in the salt, so that no key and nonce pair repeats across restarts of either side.

use core::fmt;

use hkdf::Hkdf;
use sha2::Sha256;

/// The key that a node and its control plane agreed on when it joined.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeKey([u8; 32]);

impl NodeKey {
    /// Takes up a key that was kept.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key's bytes, to be kept where only its owner reads.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKey(..)")
    }
}

/// What a derived key is for. Its label keeps the derivations apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Hello,
    Welcome,
    Solicit,
    Up,
    Down,
    SessionId,
}

impl Purpose {
    fn label(self) -> &'static [u8] {
        match self {
            Purpose::Hello => b"lichen/v1 hello",
            Purpose::Welcome => b"lichen/v1 welcome",
            Purpose::Solicit => b"lichen/v1 solicit",
            Purpose::Up => b"lichen/v1 session up",
            Purpose::Down => b"lichen/v1 session down",
            Purpose::SessionId => b"lichen/v1 session id",
        }
    }
}

/// Derives key material for one purpose of one node under a salt that never repeats.
pub(crate) fn derive<const N: usize>(key: &NodeKey, salt: &[u8], purpose: Purpose, node: &str) -> [u8; N] {
    let mut out = [0; N];
    let hkdf = Hkdf::<Sha256>::new(Some(salt), &key.0);
    // Only lengths over 8,160 bytes are refused, and N is at most 32.
    let _ = hkdf.expand_multi_info(&[purpose.label(), b" ", node.as_bytes()], &mut out);
    out
}
