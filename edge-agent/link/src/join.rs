//! The join exchange over MQTT.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lichen_mqtt::{Connection, Endpoint, Login, MqttError};
use lichen_wire::join::{JOIN_BYTES_MAX, JoinError as Refused, Joined, Joiner, Token};
use lichen_wire::keys::NodeKey;
use lichen_wire::topic::Topic;
use thiserror::Error;
use tokio::time::{sleep, timeout};

use crate::PACKET_BYTES_MAX;

/// MQTT keepalive while joining.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// How long to wait before the same request is made again.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// How a machine joins.
#[derive(Clone, Debug)]
pub struct JoinConfig {
    /// The broker, `host:port`.
    pub broker: String,
    /// The name that the broker's certificate must have; the host of `broker` unless told otherwise.
    pub server_name: Option<String>,
    /// TLS that pins the CA whose digest the token has (`ClientTrust::Pinned`), without a client certificate; or, for a
    /// broker that is another's, that broker's own. Whichever it is, the reply is believed for its MAC alone.
    pub tls: Arc<rustls::ClientConfig>,
    /// User and password, for a broker that wants them.
    pub login: Option<Login>,
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
    let (private, nonce): ([u8; 32], [u8; 32]) = (rand::random(), rand::random());
    let joiner = Joiner::new(&config.token, &config.node, &config.csr, private, nonce)?;
    let mut request = vec![0; JOIN_BYTES_MAX];
    let len = joiner.write_request(&mut request)?;
    request.truncate(len);
    timeout(config.timeout, exchange(&config, &joiner, request.into()))
        .await
        .map_err(|_| JoinError::Timeout(config.timeout))?
}

async fn exchange(
    config: &JoinConfig,
    joiner: &Joiner<'_>,
    request: Bytes,
) -> Result<JoinOutcome, JoinError> {
    let connect =
        |error: MqttError| JoinError::Connect { broker: config.broker.clone(), reason: error.to_string() };
    let token_id = config.token.id();
    // A token that was parsed or made has a valid id, so that its topics exist.
    let topic = |topic: Topic<'_>| topic.name().map(|name| name.to_string()).ok_or(Refused::Token);
    let up: Arc<str> = topic(Topic::JoinUp { token_id })?.into();
    let endpoint = Endpoint {
        broker: config.broker.clone(),
        server_name: config.server_name.clone(),
        tls: Arc::clone(&config.tls),
        login: config.login.clone(),
        client_id: format!("join-{token_id}-{:016x}", rand::random::<u64>()),
        keepalive: KEEPALIVE,
        timeout: config.timeout,
        will: None,
        subscribe: vec![topic(Topic::JoinDown { token_id })?],
        packet_bytes_max: PACKET_BYTES_MAX,
    };
    let Connection { mut sender, mut receiver } = Connection::open(&endpoint).await.map_err(connect)?;
    // The control plane may not listen yet; asked the same again, it answers the same.
    let ask = async {
        loop {
            if let Err(error) = sender.publish(&up, request.clone()).await {
                return connect(error);
            }
            sleep(ASK_AGAIN).await;
        }
    };
    let answer = async {
        loop {
            let reply = receiver.next().await.map_err(connect)?;
            match joiner.finish(&reply.payload) {
                Ok(joined) => return Ok::<_, JoinError>(outcome(joined)),
                Err(refused @ Refused::Refused(_)) => return Err(refused.into()),
                // It answers somebody else who joins with the same token, or an earlier attempt.
                Err(Refused::Mismatch) => {}
                // Anyone on the way can have made this up: the true reply may still come.
                Err(error) => tracing::warn!(%error, "a reply to the join request can't be believed"),
            }
        }
    };
    let joined = tokio::select! {
        joined = answer => joined,
        failed = ask => Err(failed),
    }?;
    sender.close().await;
    Ok(joined)
}

fn outcome(joined: Joined<'_>) -> JoinOutcome {
    JoinOutcome { certificate: joined.certificate.to_vec(), ca: joined.ca.to_vec(), key: joined.key }
}
