//! The join exchange: how a machine that holds a token becomes a node, without the token's secret ever
//! crossing the wire.
//!
//! The token names its id, a secret, and the digest of the cluster's CA. Both messages carry an X25519 public
//! key and an HMAC-SHA256 over everything said so far, keyed from the secret. The reply is refused unless its
//! MAC verifies and its CA has the digest that the token pins. Both sides end with the same [`NodeKey`].
//!
//! A node renews its certificate and its key by the same exchange: its present key stands in for the token's secret, and
//! the token's id is empty. A fresh exchange of keys each time means that a key which leaks opens nothing that was sealed
//! before it was agreed. The nonce of a renewal begins with a serial number that grows, so that one which a bus kept back
//! counts for nothing once a later one was granted.
//!
//! Deliberately absent: what a certificate request or a certificate is. Both are opaque bytes here.

mod token;

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;
use x25519_dalek::{PublicKey, StaticSecret};

use crate::body::{Blob, bytes32};
use crate::codec::{self, CodecError};
use crate::frame::{Nonce, VERSION};
use crate::keys::NodeKey;
use crate::topic::valid_node;
pub use token::{SECRET_BYTES_MAX, SECRET_BYTES_MIN, Token};

/// Largest join message.
pub const JOIN_BYTES_MAX: usize = 16 * 1024;
/// Length of the serial number that a renewal's nonce begins with.
const SERIAL_BYTES: usize = 8;

/// Why a join failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum JoinError {
    /// The text is not `<id>.<secret>.<sha256 of the CA in hex>`.
    #[error("not a join token: it should read <id>.<secret>.<sha256 of the CA in hex>")]
    Token,
    /// The node's name can't be used.
    #[error("not a node name: it must be a DNS subdomain in lower case")]
    Node,
    /// The message is longer than a join message may be.
    #[error("join message of {0} bytes is over the limit of {JOIN_BYTES_MAX}")]
    TooLong(usize),
    /// The message speaks another version of the protocol.
    #[error("join protocol version {0} is not spoken here")]
    Version(u8),
    /// The message can't be read.
    #[error("malformed join message: {0}")]
    Codec(#[from] CodecError),
    /// The message answers another attempt.
    #[error("the join message belongs to another attempt")]
    Mismatch,
    /// The MAC does not verify: the other side does not hold this token's secret.
    #[error("the join message's MAC does not verify")]
    Mac,
    /// The other side sent a public key of low order.
    #[error("the join message's public key is not usable")]
    PublicKey,
    /// The CA in the reply is not the one that the token pins.
    #[error("the cluster's CA is not the one that the token pins")]
    Ca,
    /// The control plane refused. The reason is not authenticated.
    #[error("the control plane refused: {0}")]
    Refused(Refusal),
}

/// Why a control plane refuses a join or a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum Refusal {
    /// No such token, or it has expired, or its secret does not match.
    #[error(
        "the token is unknown, has expired or was revoked; make a new one with `lichen token create` and start the \
         node with it"
    )]
    Token,
    /// The node name is taken by a node with another identity.
    #[error(
        "another machine has joined under this name; take another with --node-name, or remove that node first with \
         `lichen node remove NAME`"
    )]
    NameTaken,
    /// The certificate request can't be signed.
    #[error("the certificate request cannot be signed; use an agent of the control plane's version")]
    Request,
    /// The control plane can't sign at the moment.
    #[error("it cannot sign at the moment; try again")]
    Unavailable,
    /// The node was removed or revoked, and its identity counts no more.
    #[error(
        "the node was removed from the cluster; to let it in again, wipe its data directory and join with a token"
    )]
    Removed,
    /// The token is for members of the control plane.
    #[error(
        "the token is for members of the control plane, not for nodes; make one with `lichen token create` and start \
         the node with it"
    )]
    Purpose,
}

/// What a machine says to join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest<'a> {
    /// The token's id; empty if a node renews what it has.
    #[serde(borrow)]
    pub token_id: &'a str,
    /// The name that the node wants.
    #[serde(borrow)]
    pub node: &'a str,
    /// The request for its certificate (PKCS #10, DER).
    #[serde(borrow)]
    pub csr: Blob<'a>,
    /// Its X25519 public key.
    #[serde(with = "bytes32")]
    pub public: [u8; 32],
    /// Fresh random bytes.
    #[serde(with = "bytes32")]
    pub nonce: Nonce,
    /// Over all of the above and the pinned CA digest.
    #[serde(with = "bytes32")]
    pub mac: [u8; 32],
}

/// What the control plane answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinReply<'a> {
    /// The machine is a node now.
    Accepted {
        /// The nonce of the request that this answers.
        #[serde(with = "bytes32")]
        nonce: Nonce,
        /// The node's certificate, in whatever form both sides agree on (PEM).
        #[serde(borrow)]
        certificate: Blob<'a>,
        /// The cluster's CA (DER).
        #[serde(borrow)]
        ca: Blob<'a>,
        /// The control plane's X25519 public key.
        #[serde(with = "bytes32")]
        public: [u8; 32],
        /// Over the request and all of the above.
        #[serde(with = "bytes32")]
        mac: [u8; 32],
    },
    /// It is not.
    Refused {
        /// The nonce of the request that this answers.
        #[serde(with = "bytes32")]
        nonce: Nonce,
        /// Why.
        reason: Refusal,
    },
}

/// A machine's side of one attempt to join.
pub struct Joiner<'a> {
    token_id: &'a str,
    mac_key: MacKey,
    ca_digest: [u8; 32],
    node: &'a str,
    csr: &'a [u8],
    secret: StaticSecret,
    nonce: Nonce,
}

/// What a machine has once it is a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined<'a> {
    /// The node's certificate, in whatever form both sides agree on (PEM).
    pub certificate: &'a [u8],
    /// The cluster's CA (DER), with the digest that the token pinned.
    pub ca: &'a [u8],
    /// The key for its sessions.
    pub key: NodeKey,
}

impl<'a> Joiner<'a> {
    /// Begins an attempt. `private` and `nonce` are fresh random bytes, never used before.
    pub fn new(
        token: &'a Token,
        node: &'a str,
        csr: &'a [u8],
        private: [u8; 32],
        nonce: Nonce,
    ) -> Result<Self, JoinError> {
        let mac_key = MacKey::of_token(token);
        Self::with(token.id(), mac_key, *token.ca_digest(), node, csr, private, nonce)
    }

    /// Begins to renew the certificate and the key of a node. `serial` is higher than any used before under this key;
    /// `private` and `random` are fresh random bytes, never used before.
    pub fn renew(
        key: &NodeKey,
        ca_digest: [u8; 32],
        node: &'a str,
        csr: &'a [u8],
        serial: u64,
        private: [u8; 32],
        random: [u8; 32],
    ) -> Result<Self, JoinError> {
        let mut nonce = random;
        nonce[..SERIAL_BYTES].copy_from_slice(&serial.to_be_bytes());
        Self::with("", MacKey::of_node(key), ca_digest, node, csr, private, nonce)
    }

    fn with(
        token_id: &'a str,
        mac_key: MacKey,
        ca_digest: [u8; 32],
        node: &'a str,
        csr: &'a [u8],
        private: [u8; 32],
        nonce: Nonce,
    ) -> Result<Self, JoinError> {
        if !valid_node(node) {
            return Err(JoinError::Node);
        }
        Ok(Self { token_id, mac_key, ca_digest, node, csr, secret: StaticSecret::from(private), nonce })
    }

    fn request(&self) -> JoinRequest<'a> {
        let mut request = JoinRequest {
            token_id: self.token_id,
            node: self.node,
            csr: Blob(self.csr),
            public: PublicKey::from(&self.secret).to_bytes(),
            nonce: self.nonce,
            mac: [0; 32],
        };
        let mac = self.mac_key.over(&request.transcript(&self.ca_digest));
        request.mac = mac.finalize().into_bytes().into();
        request
    }

    /// Writes the request and returns its length.
    pub fn write_request(&self, out: &mut [u8]) -> Result<usize, JoinError> {
        write(&self.request(), out)
    }

    /// Takes the reply. Anything that is not from a holder of the token's secret, or of the node's present key, is an
    /// error.
    pub fn finish<'r>(&self, reply: &'r [u8]) -> Result<Joined<'r>, JoinError> {
        match read::<JoinReply<'r>>(reply)? {
            JoinReply::Refused { nonce, reason } if nonce == self.nonce => Err(JoinError::Refused(reason)),
            JoinReply::Accepted { nonce, certificate, ca, public, mac: tag } if nonce == self.nonce => {
                let request = self.request().transcript(&self.ca_digest);
                let transcript = reply_transcript(&request, certificate.0, ca.0, &public);
                self.mac_key.over(&transcript).verify_slice(&tag).map_err(|_| JoinError::Mac)?;
                if Sha256::digest(ca.0).as_slice() != self.ca_digest {
                    return Err(JoinError::Ca);
                }
                let key = agree(&self.secret, &public, &transcript, self.node)?;
                Ok(Joined { certificate: certificate.0, ca: ca.0, key })
            }
            _ => Err(JoinError::Mismatch),
        }
    }
}

impl<'a> JoinRequest<'a> {
    /// Reads a request. Its MAC is not checked yet: look up the token first, then call [`JoinRequest::verify`].
    pub fn read(message: &'a [u8]) -> Result<Self, JoinError> {
        let request: Self = read(message)?;
        if !valid_node(request.node) {
            return Err(JoinError::Node);
        }
        Ok(request)
    }

    /// Whether a node renews what it has, rather than a machine wanting to become one.
    pub fn is_renewal(&self) -> bool {
        self.token_id.is_empty()
    }

    /// The serial number of a renewal.
    pub fn serial(&self) -> u64 {
        self.nonce.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
    }

    /// Checks that the sender holds the token's secret and pins this CA.
    pub fn verify(&self, token: &Token) -> Result<Verified<'a>, JoinError> {
        if self.token_id != token.id() {
            return Err(JoinError::Mismatch);
        }
        self.verify_under(MacKey::of_token(token), token.ca_digest())
    }

    /// Checks that a node that renews holds this key and pins this CA.
    pub fn verify_renewal(&self, key: &NodeKey, ca_digest: &[u8; 32]) -> Result<Verified<'a>, JoinError> {
        if !self.is_renewal() {
            return Err(JoinError::Mismatch);
        }
        self.verify_under(MacKey::of_node(key), ca_digest)
    }

    fn verify_under(&self, mac_key: MacKey, ca_digest: &[u8; 32]) -> Result<Verified<'a>, JoinError> {
        let transcript = self.transcript(ca_digest);
        mac_key.over(&transcript).verify_slice(&self.mac).map_err(|_| JoinError::Mac)?;
        Ok(Verified { request: *self, mac_key, transcript })
    }

    /// Writes a refusal of this request and returns its length.
    pub fn refuse(&self, reason: Refusal, out: &mut [u8]) -> Result<usize, JoinError> {
        write(&JoinReply::Refused { nonce: self.nonce, reason }, out)
    }

    fn transcript(&self, ca_digest: &[u8; 32]) -> [u8; 32] {
        digest(
            b"lichen/v1 join request",
            &[
                self.token_id.as_bytes(),
                self.node.as_bytes(),
                self.csr.0,
                &self.public,
                &self.nonce,
                ca_digest,
            ],
        )
    }
}

/// A request whose sender has proved that it may make it.
pub struct Verified<'a> {
    request: JoinRequest<'a>,
    mac_key: MacKey,
    transcript: [u8; 32],
}

impl<'a> Verified<'a> {
    /// The request.
    pub fn request(&self) -> &JoinRequest<'a> {
        &self.request
    }

    /// Writes the acceptance; returns its length and the key for the node's sessions, which must be kept before
    /// the reply is sent. `private` is fresh random bytes, never used before.
    pub fn accept(
        &self,
        certificate: &[u8],
        ca: &[u8],
        private: [u8; 32],
        out: &mut [u8],
    ) -> Result<(usize, NodeKey), JoinError> {
        let secret = StaticSecret::from(private);
        let public = PublicKey::from(&secret).to_bytes();
        let transcript = reply_transcript(&self.transcript, certificate, ca, &public);
        let key = agree(&secret, &self.request.public, &transcript, self.request.node)?;
        let reply = JoinReply::Accepted {
            nonce: self.request.nonce,
            certificate: Blob(certificate),
            ca: Blob(ca),
            public,
            mac: self.mac_key.over(&transcript).finalize().into_bytes().into(),
        };
        Ok((write(&reply, out)?, key))
    }
}

fn write<T: Serialize>(message: &T, out: &mut [u8]) -> Result<usize, JoinError> {
    let space = out.len();
    let (version, rest) = out.split_first_mut().ok_or(CodecError::Space(space))?;
    *version = VERSION;
    let len = 1 + codec::encode(message, rest)?;
    if len > JOIN_BYTES_MAX { Err(JoinError::TooLong(len)) } else { Ok(len) }
}

fn read<'a, T: Deserialize<'a>>(message: &'a [u8]) -> Result<T, JoinError> {
    if message.len() > JOIN_BYTES_MAX {
        return Err(JoinError::TooLong(message.len()));
    }
    match message.split_first() {
        Some((&VERSION, rest)) => Ok(codec::decode(rest)?),
        Some((&other, _)) => Err(JoinError::Version(other)),
        None => Err(CodecError::Malformed(0).into()),
    }
}

/// What the MACs of an exchange are keyed with.
struct MacKey([u8; 64]);

impl MacKey {
    fn of_token(token: &Token) -> Self {
        Self::derive(b"lichen/v1 join", token.secret().as_bytes())
    }

    fn of_node(key: &NodeKey) -> Self {
        Self::derive(b"lichen/v1 renew", key.as_bytes())
    }

    fn derive(label: &[u8], secret: &[u8]) -> Self {
        let mut key = [0; 64];
        // Only lengths over 8,160 bytes are refused.
        let _ = Hkdf::<Sha256>::new(Some(label), secret).expand(b"mac", &mut key);
        Self(key)
    }

    fn over(&self, transcript: &[u8; 32]) -> Hmac<Sha256> {
        let mut mac = <Hmac<Sha256> as KeyInit>::new(&self.0.into());
        mac.update(transcript);
        mac
    }
}

fn reply_transcript(request: &[u8; 32], certificate: &[u8], ca: &[u8], public: &[u8; 32]) -> [u8; 32] {
    digest(b"lichen/v1 join reply", &[request, certificate, ca, public])
}

/// Hashes parts under a label, each with its length, so that no two lists of parts look alike.
fn digest(label: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new_with_prefix(label);
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

fn agree(
    own: &StaticSecret,
    other: &[u8; 32],
    transcript: &[u8; 32],
    node: &str,
) -> Result<NodeKey, JoinError> {
    let shared = own.diffie_hellman(&PublicKey::from(*other));
    if !shared.was_contributory() {
        return Err(JoinError::PublicKey);
    }
    let mut key = [0; 32];
    // Only lengths over 8,160 bytes are refused.
    let _ = Hkdf::<Sha256>::new(Some(transcript), shared.as_bytes())
        .expand_multi_info(&[b"lichen/v1 node key ", node.as_bytes()], &mut key);
    Ok(NodeKey::from_bytes(key))
}
