//! The name of a piece of content: the SHA-256 of its bytes, in the OCI form `sha256:<64 hex digits>`.
//!
//! A [`Digest`] can only be made by hashing or by parsing the full form, so one in hand is always well formed and safe
//! to use as a file name. Other algorithms are deliberately absent: one is enough, and two would mean that the same
//! content has two names.

use std::fmt;
use std::str::FromStr;

use ring::digest::{Context, SHA256, digest};

const PREFIX: &str = "sha256:";

/// The SHA-256 of some content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// Text that is not `sha256:` followed by 64 lower-case hex digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a digest: want sha256: and 64 lower-case hex digits")]
pub struct DigestError(pub String);

impl Digest {
    /// The digest of `content`.
    pub fn of(content: &[u8]) -> Digest {
        Digest::from_ring(&digest(&SHA256, content))
    }

    /// The digest whose 32 raw bytes these are.
    pub fn from_bytes(raw: [u8; 32]) -> Digest {
        Digest(raw)
    }

    /// The 32 raw bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hex digits, without the algorithm.
    pub fn hex(&self) -> String {
        let mut text = String::with_capacity(64);
        for byte in self.0 {
            text.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
            text.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
        }
        text
    }

    /// Reads 64 lower-case hex digits.
    pub fn from_hex(text: &str) -> Result<Digest, DigestError> {
        let wrong = || DigestError(text.to_owned());
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(wrong());
        }
        let mut raw = [0u8; 32];
        for (byte, pair) in raw.iter_mut().zip(digits.chunks_exact(2)) {
            let high = nibble(pair[0]).ok_or_else(wrong)?;
            let low = nibble(pair[1]).ok_or_else(wrong)?;
            *byte = high << 4 | low;
        }
        Ok(Digest(raw))
    }

    fn from_ring(digest: &ring::digest::Digest) -> Digest {
        let mut raw = [0u8; 32];
        raw.copy_from_slice(digest.as_ref());
        Digest(raw)
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Digest, DigestError> {
        let hex = text.strip_prefix(PREFIX).ok_or_else(|| DigestError(text.to_owned()))?;
        Digest::from_hex(hex).map_err(|_| DigestError(text.to_owned()))
    }
}

/// A digest in the making, for content that arrives in pieces.
#[derive(Clone)]
pub struct Hasher(Context);

impl Hasher {
    /// A hasher that has seen nothing.
    pub fn new() -> Hasher {
        Hasher(Context::new(&SHA256))
    }

    /// Takes in the next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The digest of everything that was taken in.
    pub fn finish(self) -> Digest {
        Digest::from_ring(&self.0.finish())
    }
}

impl Default for Hasher {
    fn default() -> Hasher {
        Hasher::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_digest_reads_back_what_it_prints() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>(), Ok(Digest::of(b"")));
        let mut hasher = Hasher::new();
        hasher.update(b"ab");
        hasher.update(b"c");
        assert_eq!(hasher.finish(), Digest::of(b"abc"));
    }

    #[test]
    fn only_the_full_canonical_form_is_a_digest() {
        for text in
            ["", "sha256:", &EMPTY[..70], &EMPTY.to_uppercase(), &EMPTY[7..], "sha512:ab", "sha256:../../etc"]
        {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
