//! Machines that hold a token become nodes.
//!
//! A request is believed when its MAC proves that the sender holds the secret of a token that is valid now. The node's
//! key is durable before the reply that lets the machine use it is sent; if that reply is lost, the same request can be
//! made again. A name that another machine joined under stays its own for as long as its Node exists.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use lichen_api::kinds;
use lichen_pki::Authority;
use lichen_registry::Registry;
use lichen_wire::join::{JOIN_BYTES_MAX, JoinRequest, Refusal};
use lichen_wire::topic::Topic;
use rand::RngExt;
use ring::digest::{SHA256, digest};
use tokio::sync::mpsc;

use crate::bus::Publish;
use crate::ownership::{self, KeyEntry};
use crate::token;

/// How many join requests wait. One that finds no room is dropped; the machine asks again.
pub(crate) const JOINS_QUEUED_MAX: usize = 64;
/// How many accepted join messages of a node are remembered, so that a hostile bus can't make one count again. Tokens
/// expire long before a machine has joined so often.
const ACCEPTED_KEPT_MAX: usize = 64;
/// How many replies are kept for requests that arrive a second time: another answer would bring another key.
const REPLIES_KEPT_MAX: usize = 64;

/// A join request as it came off the bus.
pub(crate) struct Request {
    pub(crate) token_id: String,
    pub(crate) payload: Bytes,
}

/// What answers joins.
pub(crate) struct Joiner {
    pub(crate) registry: Registry,
    pub(crate) authority: Arc<Authority>,
    pub(crate) publisher: Arc<dyn Publish>,
    /// Told of each node that has just joined.
    pub(crate) joined: mpsc::Sender<String>,
}

impl Joiner {
    /// Answers requests one after the other until their sender is gone.
    pub(crate) async fn run(self, mut requests: mpsc::Receiver<Request>) {
        let mut replies: VecDeque<(Bytes, Bytes)> = VecDeque::new();
        while let Some(request) = requests.recv().await {
            let known = replies.iter().find(|(asked, _)| *asked == request.payload);
            let reply = match known {
                Some((_, reply)) => reply.clone(),
                None => {
                    let mut out = vec![0; JOIN_BYTES_MAX];
                    let Some(len) = self.answer(&request, &mut out).await else { continue };
                    out.truncate(len);
                    let reply = Bytes::from(out);
                    replies.truncate(REPLIES_KEPT_MAX - 1);
                    replies.push_front((request.payload.clone(), reply.clone()));
                    reply
                }
            };
            let Some(topic) = (Topic::JoinDown { token_id: &request.token_id }).name() else { continue };
            if let Err(error) = self.publisher.publish(&topic, reply) {
                tracing::warn!(%error, "a join reply was not sent");
            }
        }
    }

    /// Writes the reply to a request; none if it deserves none.
    async fn answer(&self, message: &Request, out: &mut [u8]) -> Option<usize> {
        let request = match JoinRequest::read(&message.payload) {
            Ok(request) if request.token_id == message.token_id => request,
            Ok(_) => return None,
            Err(error) => {
                tracing::warn!(token = message.token_id, %error, "a join request can't be read");
                return None;
            }
        };
        match self.admit(&request, sha256(&message.payload), out).await {
            Ok(len) => len,
            Err((refusal, why)) => {
                tracing::warn!(node = request.node, token = request.token_id, ?refusal, why, "join refused");
                request.refuse(refusal, out).ok()
            }
        }
    }

    /// Writes the acceptance of a request; none if it was accepted before and is replayed.
    async fn admit(
        &self,
        request: &JoinRequest<'_>,
        message: [u8; 32],
        out: &mut [u8],
    ) -> Result<Option<usize>, (Refusal, String)> {
        let unavailable = |why: String| (Refusal::Unavailable, why);
        let token = token::find(&self.registry, request.token_id, self.authority.ca_digest()).await;
        let token = token.map_err(|status| unavailable(status.to_string()))?;
        let token = token.ok_or_else(|| (Refusal::Token, "no such token, or it has expired".to_owned()))?;
        let verified = request.verify(&token).map_err(|error| (Refusal::Token, error.to_string()))?;
        let fingerprint = sha256(request.csr.0);
        let known = ownership::node_key(&self.registry, request.node);
        let mut accepted = vec![message];
        if let Some(known) = known.map_err(|error| unavailable(error.to_string()))? {
            if known.accepted.contains(&message) {
                tracing::warn!(node = request.node, "a join message was replayed");
                return Ok(None);
            }
            if known.request != fingerprint
                && self.registry.get(&kinds::node::RESOURCE, None, request.node).await.is_ok()
            {
                return Err((Refusal::NameTaken, "a Node of this name exists; delete it first".to_owned()));
            }
            accepted.extend(known.accepted);
            accepted.truncate(ACCEPTED_KEPT_MAX);
        }
        let chain = self.authority.certify_node(request.csr.0, request.node);
        let chain = chain.map_err(|error| (Refusal::Request, error.to_string()))?;
        let reply = verified.accept(chain.as_bytes(), self.authority.ca_der(), rand::rng().random(), out);
        let (len, key) = reply.map_err(|error| (Refusal::Request, error.to_string()))?;
        let entry = KeyEntry { key, request: fingerprint, accepted };
        let kept = ownership::keep_node_key(&self.registry, request.node, &entry).await;
        kept.map_err(|error| unavailable(error.to_string()))?;
        tracing::info!(node = request.node, token = request.token_id, "a node has joined");
        // The hub also learns of the node from its first frame, should this not arrive.
        let _ = self.joined.send(request.node.to_owned()).await;
        Ok(Some(len))
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}
