//! The join exchange over MQTT.

use std::sync::Arc;
use std::time::Duration;

use lichen_wire::join::{JoinError as Refused, Token};
use lichen_wire::keys::NodeKey;
use thiserror::Error;

/// How a machine joins.
#[derive(Clone, Debug)]
pub struct JoinConfig {
    /// The broker, `host:port`.
    pub broker: String,
    /// The name that the broker's certificate must have; the host of `broker` unless told otherwise.
    pub server_name: Option<String>,
    /// TLS that pins the CA whose digest the token has (`ClientTrust::Pinned`), without a client certificate.
    pub tls: Arc<rustls::ClientConfig>,
    /// The token.
    pub token: Token,
    /// The name that the node wants.
    pub node: String,
    /// The request for its certificate (PKCS #10, DER).
    pub csr: Vec<u8>,
    /// How long to wait for the reply.
    pub timeout: Duration,
}

/// What a machine has once it is a node.
#[derive(Clone, Debug)]
pub struct JoinOutcome {
    /// The node's certificate, as the control plane sent it (PEM).
    pub certificate: Vec<u8>,
    /// The cluster's CA (DER), with the digest that the token pinned.
    pub ca: Vec<u8>,
    /// The key for its sessions, to be kept where only its owner reads.
    pub key: NodeKey,
}

/// Why a join failed.
#[derive(Debug, Error)]
pub enum JoinError {
    /// The exchange failed.
    #[error(transparent)]
    Exchange(#[from] Refused),
    /// The broker can't be reached, or is not of the cluster that the token pins.
    #[error("cannot reach the broker at {broker}: {reason}")]
    Connect {
        /// The broker.
        broker: String,
        /// What went wrong.
        reason: String,
    },
    /// No reply came.
    #[error("no reply to the join request within {0:?}")]
    Timeout(Duration),
}

/// Joins a cluster.
///
/// # Errors
/// See [`JoinError`].
pub async fn join(config: JoinConfig) -> Result<JoinOutcome, JoinError> {
    Err(JoinError::Timeout(config.timeout))
}
