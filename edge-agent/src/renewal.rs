//! Keeps the node's certificate and key from growing old: both are renewed together, long before the certificate's end.
//!
//! A node that is connected asks in its session. One that was off for so long that its certificate has ended, or that the
//! broker refuses for another reason, asks over the join topics, where its present key proves who it is. What it is given
//! is durable before it is used, and the control plane takes what the node had until it uses what it was given: whenever
//! either side dies, one working identity is left.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use lichen_link::{JoinError, LinkError, LinkHandle, StreamError, Venue};
use lichen_mqtt::Access;
use lichen_pki::{PkiError, Request, Validity};
use lichen_state::{Change, Checkpoint, CommitError, Identity};
use lichen_wire::body::Blob;
use lichen_wire::join::{JOIN_BYTES_MAX, JoinError as Exchange, Joiner};
use lichen_wire::keys::NodeKey;
use lichen_wire::stream::{REQUEST_BYTES_MAX, StreamRequest};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::clock::now;
use crate::identity;
use crate::uplink::Uplink;

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(20);
/// The pause after an attempt that failed; it doubles from one to the next.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between attempts.
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// Renews what a node has for as long as it runs.
pub(crate) struct Renewal {
    pub(crate) identity: Identity,
    pub(crate) broker: Access,
    pub(crate) checkpoint: Arc<Checkpoint>,
    pub(crate) link: LinkHandle,
    /// Whether a session stands.
    pub(crate) connected: watch::Receiver<bool>,
}

/// Why what a node has was not renewed. It has what it had.
#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error("{0}")]
    Exchange(#[from] Exchange),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Commit(#[from] CommitError),
    #[error("the work on the disk did not end")]
    Panicked,
    #[error("the control plane did not answer in time")]
    Timeout,
}

/// What to do about the certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Nothing before this time, unless something changes.
    Wait(Timestamp),
    /// Ask in the session.
    Session,
    /// Ask over the join topics.
    Apart,
}

/// What is known at the moment.
#[derive(Clone, Copy, Debug)]
struct Now {
    now: Timestamp,
    renew_at: Timestamp,
    ends: Timestamp,
    connected: bool,
    /// Whether the broker refused the certificate when it was last shown.
    refused: bool,
}

fn way(at: Now) -> Way {
    let due = at.now >= at.renew_at;
    match at.connected {
        true if due => Way::Session,
        true => Way::Wait(at.renew_at),
        // The node's clock may be wrong: what the broker says counts as well.
        false if at.refused || at.now >= at.ends => Way::Apart,
        false => Way::Wait(at.ends),
    }
}

impl Renewal {
    /// Runs until the node's core has ended, or this is dropped.
    pub(crate) async fn run(mut self) {
        let mut pause = PAUSE;
        let mut refused = self.link.refused();
        let mut renew_at = self.renew_at();
        // Once nobody can say any more whether a session stands, the node has left or stops.
        while self.connected.has_changed().is_ok() {
            let at = Now {
                now: now(),
                renew_at: renew_at.0,
                ends: renew_at.1,
                connected: *self.connected.borrow_and_update(),
                refused: *refused.borrow_and_update(),
            };
            let way = way(at);
            if let Way::Wait(until) = way {
                tokio::select! {
                    // Suspended machines wake late; their session is lost then, which is a change.
                    () = sleep_until(until) => {}
                    _ = self.connected.changed() => {}
                    Ok(()) = refused.changed() => {}
                }
                continue;
            }
            let attempt = tokio::time::timeout(ATTEMPT, self.renew(way)).await;
            match attempt.unwrap_or(Err(RenewalError::Timeout)) {
                Ok(()) => {
                    info!(node = self.identity.node_name, "the node's certificate and key were renewed");
                    renew_at = self.renew_at();
                    pause = PAUSE;
                }
                Err(error) => {
                    warn!(%error, "the node's certificate could not be renewed; it is tried again");
                    let patience = tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0)));
                    pause = (pause * 2).min(PAUSE_MAX);
                    tokio::select! {
                        () = patience => {}
                        _ = self.connected.changed() => {}
                    }
                }
            }
        }
    }

    /// When to renew, and when the certificate ends.
    fn renew_at(&self) -> (Timestamp, Timestamp) {
        match Validity::of_pem(&self.identity.certificate_pem) {
            Ok(validity) => {
                let time = |at| Timestamp::try_from(at).unwrap_or(Timestamp::MAX);
                (time(validity.renew_at(rand::random())), time(validity.not_after))
            }
            Err(error) => {
                error!(%error, "the node's certificate cannot be read; it is renewed");
                (Timestamp::MIN, Timestamp::MAX)
            }
        }
    }

    async fn renew(&mut self, way: Way) -> Result<(), RenewalError> {
        // A request that was on its way when the agent died must not come after one that is made now.
        self.identity.renewals += 1;
        self.commit().await?;
        let request = Request::new()?;
        let ca_digest = lichen_pki::digest_of_pem(&self.identity.ca_pem)?;
        let key = NodeKey::from_bytes(self.identity.session_key);
        let (private, random) = (rand::random(), rand::random());
        let (node, serial) = (self.identity.node_name.clone(), self.identity.renewals);
        let joiner = Joiner::renew(&key, ca_digest, &node, &request.csr_der, serial, private, random)?;
        let (certificate, key) = match way {
            Way::Apart => {
                let venue = Venue {
                    broker: self.broker.address.clone(),
                    server_name: None,
                    tls: identity::bare_tls(&self.broker, &self.identity)?,
                    login: self.broker.login.clone(),
                    own_broker: identity::is_own(&self.broker),
                    timeout: ATTEMPT,
                };
                let renewed = lichen_link::renew(&venue, &joiner).await?;
                (renewed.certificate, renewed.key)
            }
            Way::Session | Way::Wait(_) => {
                let reply = ask(&self.link, &joiner).await?;
                let renewed = joiner.finish(&reply)?;
                (renewed.certificate.to_vec(), renewed.key)
            }
        };
        let renewed = Identity {
            certificate_pem: String::from_utf8_lossy(&certificate).into_owned(),
            key_pem: request.key_pem,
            session_key: *key.as_bytes(),
            ..self.identity.clone()
        };
        // What cannot be used must not take the place of what can.
        let tls = identity::tls(&self.broker, &renewed)?;
        let before = std::mem::replace(&mut self.identity, renewed);
        if let Err(error) = self.commit().await {
            self.identity = before;
            return Err(error);
        }
        Ok(self.link.replace(key, Some(tls)).await?)
    }

    async fn commit(&self) -> Result<(), RenewalError> {
        let (checkpoint, change) = (self.checkpoint.clone(), Change::Identity(self.identity.clone()));
        let committed = tokio::task::spawn_blocking(move || checkpoint.commit(&[change])).await;
        Ok(committed.map_err(|_| RenewalError::Panicked)??)
    }
}

/// Asks in the session.
async fn ask(uplink: &dyn Uplink, joiner: &Joiner<'_>) -> Result<Vec<u8>, RenewalError> {
    let mut message = vec![0; REQUEST_BYTES_MAX];
    let len = joiner.write_request(&mut message)?;
    let mut request = vec![0; REQUEST_BYTES_MAX];
    let request_len = StreamRequest::Renew { request: Blob(&message[..len]) }
        .write(&mut request)
        .map_err(|error| RenewalError::Exchange(error.into()))?;
    request.truncate(request_len);
    let mut stream = uplink.open(request).await?;
    stream.finish().await?;
    let mut reply = Vec::new();
    while let Some(bytes) = stream.read().await? {
        if reply.len() + bytes.len() > JOIN_BYTES_MAX {
            return Err(Exchange::TooLong(reply.len() + bytes.len()).into());
        }
        reply.extend_from_slice(&bytes);
    }
    Ok(reply)
}

async fn sleep_until(at: Timestamp) {
    tokio::time::sleep(Duration::try_from(at.duration_since(now())).unwrap_or_default()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_way_a_certificate_is_renewed() {
        let at = |second| Timestamp::constant(second, 0);
        let check = |second, connected, refused, expect| {
            let at = Now { now: at(second), renew_at: at(70), ends: at(100), connected, refused };
            assert_eq!(way(at), expect, "{at:?}");
        };
        check(0, true, false, Way::Wait(at(70)));
        check(70, true, false, Way::Session);
        check(200, true, false, Way::Session);
        check(0, false, false, Way::Wait(at(100)));
        check(70, false, false, Way::Wait(at(100)));
        check(100, false, false, Way::Apart);
        check(0, false, true, Way::Apart);
    }
}
