//! The cluster's certificate authority, the identities in its certificates, and TLS settings made from them.
//!
//! Every certificate of a cluster is issued by one ECDSA P-256 authority whose key lies in the server's data
//! directory, readable by its owner alone. Who somebody is, is read from a verified client certificate the way
//! Kubernetes does it: the common name is the user, the organisations are the groups.
//!
//! Certificates have an end, and whoever holds one renews it before ([`Validity`]); the control plane's own renew
//! themselves when they are used ([`Rotating`]). Each member of the control plane holds the authority and issues its own
//! certificate, which carries the member's id as a DNS name ([`member_name`]).
//!
//! Deliberately absent: revocation (a node's certificate counts only while the gateway knows its key), sockets, and any
//! decision about what an identity may do.
//!
//! Source of the identity rule: Kubernetes, "Authenticating", section on X.509 client certificates.

mod authority;
mod files;
mod identity;
mod rotating;
mod tls;
mod validity;

pub use authority::{Authority, Credentials, Handover, NodeCertificate, Request, public_key_digest, verify};
pub use identity::{
    ADMIN_USER, GATEWAY_USER, Identity, MASTERS_GROUP, NODE_USER_PREFIX, NODES_GROUP, member_name, member_of,
};
pub use rotating::Rotating;
pub use tls::{ClientTrust, client_config, server_config};
pub use validity::Validity;

/// SHA-256 of a certificate's DER bytes: what a join token pins.
pub type Digest = [u8; 32];

/// Why key material could not be made, read, stored or used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A certificate or key could not be made.
    #[error("cannot make a certificate: {0}")]
    Issue(#[from] rcgen::Error),
    /// PEM text did not hold what it should.
    #[error("{what} is not valid PEM: {reason}")]
    Pem {
        /// What was being read, for example "CA certificate".
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate could not be parsed.
    #[error("not an X.509 certificate: {0}")]
    Certificate(String),
    /// A signature does not verify.
    #[error("the signature was not made by this cluster's authority")]
    Signature,
    /// TLS refused the certificate, the key or the roots.
    #[error("TLS settings: {0}")]
    Tls(#[from] rustls::Error),
    /// The verifier could not be built from the roots given.
    #[error("TLS verifier: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// SHA-256 of a certificate in PEM form.
///
/// # Errors
/// [`PkiError::Pem`] when the text holds no certificate.
pub fn digest_of_pem(pem: &str) -> Result<Digest, PkiError> {
    Ok(digest_of_der(&tls::certificates(pem, "certificate")?[0]))
}

/// SHA-256 of a certificate in DER form.
pub fn digest_of_der(der: &[u8]) -> Digest {
    let mut out = [0; 32];
    out.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, der).as_ref());
    out
}
