//! The join exchange over MQTT, and renewals over the same topics.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lichen_mqtt::{Connection, Endpoint, Login, MqttError};
use lichen_wire::join::{JOIN_BYTES_MAX, JoinError as Refused, Joined, Joiner, Refusal, Token};
use lichen_wire::keys::NodeKey;
use lichen_wire::topic::Topic;
use thiserror::Error;
use tokio::time::{sleep, timeout};

use crate::PACKET_BYTES_MAX;

/// MQTT keepalive while joining.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// How long to wait before the same request is made again.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// Length of the id of an attempt to renew: that of a token's.
const ATTEMPT_ID_CHARS: usize = 6;

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
    /// Whether the broker is the cluster's own; see [`Venue::own_broker`].
    pub own_broker: bool,
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

/// Where an exchange takes place.
#[derive(Clone, Debug)]
pub struct Venue {
    /// The broker, `host:port`.
    pub broker: String,
    /// The name that the broker's certificate must have; the host of `broker` unless told otherwise.
    pub server_name: Option<String>,
    /// TLS without a client certificate; see [`JoinConfig::tls`].
    pub tls: Arc<rustls::ClientConfig>,
    /// User and password, for a broker that wants them.
    pub login: Option<Login>,
    /// Whether the broker is the cluster's own, so that what it passes on as the control plane's refusal is one. A refusal
    /// cannot be authenticated: from another's broker it is believed only when the time is over and no reply came.
    pub own_broker: bool,
    /// How long to wait for the reply.
    pub timeout: Duration,
}

/// Joins a cluster.
///
/// # Errors
/// See [`JoinError`].
pub async fn join(config: JoinConfig) -> Result<JoinOutcome, JoinError> {
    let (private, nonce): ([u8; 32], [u8; 32]) = (rand::random(), rand::random());
    let joiner = Joiner::new(&config.token, &config.node, &config.csr, private, nonce)?;
    let JoinConfig { broker, server_name, tls, login, own_broker, timeout, .. } = config;
    let venue = Venue { broker, server_name, tls, login, own_broker, timeout };
    converse(&venue, config.token.id(), &joiner).await
}

/// Renews what a node has over the join topics, since no broker takes its certificate any more.
///
/// # Errors
/// See [`JoinError`].
pub async fn renew(venue: &Venue, joiner: &Joiner<'_>) -> Result<JoinOutcome, JoinError> {
    let letter = || char::from(rand::random_range(b'a'..=b'z'));
    let id: String = std::iter::repeat_with(letter).take(ATTEMPT_ID_CHARS).collect();
    converse(venue, &id, joiner).await
}

async fn converse(venue: &Venue, id: &str, joiner: &Joiner<'_>) -> Result<JoinOutcome, JoinError> {
    let mut request = vec![0; JOIN_BYTES_MAX];
    let len = joiner.write_request(&mut request)?;
    request.truncate(len);
    let mut claimed = None;
    match timeout(venue.timeout, exchange(venue, id, joiner, request.into(), &mut claimed)).await {
        Ok(exchanged) => exchanged,
        Err(_) => {
            Err(claimed.map_or(JoinError::Timeout(venue.timeout), |claimed| Refused::Refused(claimed).into()))
        }
    }
}

async fn exchange(
    venue: &Venue,
    token_id: &str,
    joiner: &Joiner<'_>,
    request: Bytes,
    claimed: &mut Option<Refusal>,
) -> Result<JoinOutcome, JoinError> {
    let connect =
        |error: MqttError| JoinError::Connect { broker: venue.broker.clone(), reason: error.to_string() };
    // The id of a token that was parsed or made, and of an attempt, is valid, so that its topics exist.
    let topic = |topic: Topic<'_>| topic.name().map(|name| name.to_string()).ok_or(Refused::Token);
    let up: Arc<str> = topic(Topic::JoinUp { token_id })?.into();
    let endpoint = Endpoint {
        broker: venue.broker.clone(),
        server_name: venue.server_name.clone(),
        tls: Arc::clone(&venue.tls),
        login: venue.login.clone(),
        client_id: format!("join-{token_id}-{:016x}", rand::random::<u64>()),
        keepalive: KEEPALIVE,
        timeout: venue.timeout,
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
                Err(refused @ Refused::Refused(_)) if venue.own_broker => return Err(refused.into()),
                Err(Refused::Refused(reason)) => {
                    if claimed.replace(reason) != Some(reason) {
                        tracing::warn!(%reason, "the request is said to be refused; a true reply is waited for");
                    }
                }
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
