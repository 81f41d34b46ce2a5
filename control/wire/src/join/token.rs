//! The token that a machine joins with.

use core::fmt;
use core::str::FromStr;

use heapless::String;

use super::JoinError;
use crate::topic::valid_token_id;

/// Shortest secret that a token may have; it holds about 82 bits.
pub const SECRET_BYTES_MIN: usize = 16;
/// Longest secret that a token may have.
pub const SECRET_BYTES_MAX: usize = 64;

/// A join token: `<id>.<secret>.<sha256 of the CA's DER in hex>`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    id: String<6>,
    secret: String<SECRET_BYTES_MAX>,
    ca_digest: [u8; 32],
}

impl Token {
    /// Puts a token together; `None` if its id or secret is not of lower-case letters and digits and of proper length.
    pub fn new(id: &str, secret: &str, ca_digest: [u8; 32]) -> Option<Self> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        if !valid_token_id(id) || secret.len() < SECRET_BYTES_MIN || !secret.bytes().all(plain) {
            return None;
        }
        Some(Self { id: id.try_into().ok()?, secret: secret.try_into().ok()?, ca_digest })
    }

    /// The public part that names the token.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The secret part.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// SHA-256 of the DER of the CA that the token pins.
    pub fn ca_digest(&self) -> &[u8; 32] {
        &self.ca_digest
    }
}

impl FromStr for Token {
    type Err = JoinError;

    fn from_str(text: &str) -> Result<Self, JoinError> {
        let mut parts = text.trim().split('.');
        let (Some(id), Some(secret), Some(hex), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(JoinError::Token);
        };
        let mut ca_digest = [0; 32];
        if hex.len() != 64 {
            return Err(JoinError::Token);
        }
        for (byte, pair) in ca_digest.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let digit = |b: u8| char::from(b).to_digit(16).ok_or(JoinError::Token);
            // Two hexadecimal digits always fit a byte.
            *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
        }
        Token::new(id, secret, ca_digest).ok_or(JoinError::Token)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.", self.id, self.secret)?;
        self.ca_digest.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}..)", self.id)
    }
}
