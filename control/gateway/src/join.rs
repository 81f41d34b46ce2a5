//! Machines that hold a token become nodes, and nodes renew what they were given then.
//!
//! A request to join is believed when its MAC proves that the sender holds the secret of a token that is valid now; a
//! renewal, when it proves that the sender holds the node's key, and it comes through the node's session or over the join
//! topics alike. The node's key is durable before the reply that lets the machine use it is sent; if that reply is lost,
//! the same request can be made again. A name that another machine joined under stays its own for as long as its Node
//! exists. After a renewal what the node had before counts on until it uses what it was given.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lichen_api::kinds;
use lichen_pki::{Authority, NodeCertificate};
use lichen_registry::Registry;
use lichen_wire::join::{JOIN_BYTES_MAX, JoinRequest, Refusal, Verified};
use lichen_wire::keys::NodeKey;
use lichen_wire::topic::Topic;
use rand::RngExt;
use ring::digest::{SHA256, digest};
use tokio::sync::{mpsc, oneshot};

use crate::bus::Publish;
use crate::hub::Event;
use crate::members::{self, Depends, Member, MemberError, Renewal};
use crate::removal::Order;
use crate::token::{Purpose, TokenError, find_token};

/// How many join requests wait. One that finds no room is dropped; the machine asks again.
pub(crate) const JOINS_QUEUED_MAX: usize = 64;
/// How many accepted join messages of a node are remembered, so that a hostile bus can't make one count again. Tokens
/// expire long before a machine has joined so often.
const ACCEPTED_KEPT_MAX: usize = 64;
/// How many replies are kept for requests that arrive a second time: another answer would bring another key.
const REPLIES_KEPT_MAX: usize = 64;

/// Times that an answer is worked out again because something that it builds on changed meanwhile.
const ATTEMPTS: usize = 8;

/// A request to join or to renew, and whom to answer.
pub(crate) struct Request {
    pub(crate) from: From,
    pub(crate) payload: Bytes,
}

/// Whom to answer.
pub(crate) enum From {
    /// Whoever listens to the topic of this token or attempt.
    Topic(String),
    /// A node, in its session.
    Session { node: String, reply: oneshot::Sender<Bytes> },
}

/// What answers joins and renewals.
pub(crate) struct Joiner {
    pub(crate) registry: Registry,
    pub(crate) authority: Arc<Authority>,
    pub(crate) publisher: Arc<dyn Publish>,
    /// How long a node's certificate holds.
    pub(crate) certificate_ttl: Duration,
    /// Told of each node that has just joined or renewed.
    pub(crate) hub: mpsc::Sender<Event>,
}

/// Why a request gets no acceptance.
enum Denied {
    /// It is refused, for a reason that the machine is told and one that is logged.
    Refused(Refusal, String),
    /// It was accepted before, or is older than one that was, and is replayed: it deserves no answer.
    Replayed,
    /// What it builds on changed meanwhile.
    Conflict,
}

impl std::convert::From<MemberError> for Denied {
    fn from(error: MemberError) -> Denied {
        if error.is_conflict() { Denied::Conflict } else { unavailable(&error) }
    }
}

fn unavailable(why: &dyn std::fmt::Display) -> Denied {
    Denied::Refused(Refusal::Unavailable, why.to_string())
}

fn refused(refusal: Refusal, why: impl std::fmt::Display) -> Denied {
    Denied::Refused(refusal, why.to_string())
}

impl Joiner {
    /// Answers requests one after the other until their sender is gone.
    pub(crate) async fn run(self, mut requests: mpsc::Receiver<Request>) {
        let mut replies: VecDeque<(Bytes, Bytes)> = VecDeque::new();
        while let Some(Request { from, payload }) = requests.recv().await {
            let known = replies.iter().find(|(asked, _)| *asked == payload).map(|(_, reply)| reply.clone());
            let reply = match known {
                Some(reply) => reply,
                None => {
                    let Some(reply) = self.answer(&from, &payload).await else { continue };
                    replies.truncate(REPLIES_KEPT_MAX - 1);
                    replies.push_front((payload, reply.clone()));
                    reply
                }
            };
            match from {
                From::Topic(id) => {
                    let Some(topic) = (Topic::JoinDown { token_id: &id }).name() else { continue };
                    if let Err(error) = self.publisher.publish(&topic, reply) {
                        tracing::warn!(%error, "a join reply was not sent");
                    }
                }
                // A session that ended meanwhile asks again.
                From::Session { reply: to, .. } => drop(to.send(reply)),
            }
        }
    }

    /// The reply to a request; none if it deserves none.
    async fn answer(&self, from: &From, payload: &[u8]) -> Option<Bytes> {
        let request = match JoinRequest::read(payload) {
            Ok(request) => request,
            Err(error) => {
                tracing::warn!(%error, "a join request can't be read");
                return None;
            }
        };
        let of_its_own = match from {
            From::Topic(id) => request.is_renewal() || request.token_id == id,
            From::Session { node, .. } => request.is_renewal() && request.node == node,
        };
        if !of_its_own {
            return None;
        }
        let mut out = vec![0; JOIN_BYTES_MAX];
        let mut attempt = 0;
        let len = loop {
            attempt += 1;
            let admitted = match request.is_renewal() {
                true => self.renew(&request, &mut out).await,
                false => self.admit(&request, sha256(payload), &mut out).await,
            };
            let (refusal, why) = match admitted {
                Ok(len) => break len,
                Err(Denied::Conflict) if attempt < ATTEMPTS => continue,
                Err(Denied::Conflict) => (Refusal::Unavailable, "it changes too often".to_owned()),
                Err(Denied::Replayed) => {
                    tracing::warn!(node = request.node, "a join message was replayed");
                    return None;
                }
                Err(Denied::Refused(refusal, why)) => (refusal, why),
            };
            let (node, token) = (request.node, request.token_id);
            tracing::warn!(node, token, ?refusal, why, "a join or a renewal was refused");
            break request.refuse(refusal, &mut out).ok()?;
        };
        out.truncate(len);
        Some(out.into())
    }

    /// Writes the acceptance of a machine that wants to be a node.
    async fn admit(
        &self,
        request: &JoinRequest<'_>,
        message: [u8; 32],
        out: &mut [u8],
    ) -> Result<usize, Denied> {
        let digest = self.authority.ca_digest();
        let found = find_token(&self.registry, request.token_id, digest, Purpose::Node).await;
        let (token, secret) = found.map_err(|status| unavailable(&status))?.map_err(|error| match error {
            TokenError::Other(_) => refused(Refusal::Purpose, error),
            error => refused(Refusal::Token, error),
        })?;
        let verified = request.verify(&token).map_err(|error| refused(Refusal::Token, error))?;
        let certificate = self.certify(request)?;
        let fingerprint = sha256(request.csr.0);
        let known = members::find(&self.registry, request.node)?;
        let mut accepted = vec![message];
        if let Some((known, _)) = &known {
            if known.accepted.contains(&message) {
                return Err(Denied::Replayed);
            }
            if known.leaves_until.is_some() && known.public_key == Some(certificate.public_key) {
                return Err(refused(Refusal::Removed, "the node was told to leave"));
            }
            accepted.extend(&known.accepted);
            accepted.truncate(ACCEPTED_KEPT_MAX);
        }
        let same = known.as_ref().is_some_and(|(known, _)| known.request == fingerprint);
        if let Ok(node) = self.registry.get(&kinds::node::RESOURCE, None, request.node).await {
            let going = node.value().is_ok_and(|node| Order::of(&node).is_some());
            if going || (known.is_some() && !same) {
                return Err(refused(Refusal::NameTaken, "a Node of this name exists"));
            }
        }
        let (len, key) = self.accept(&verified, &certificate, out)?;
        let member = Member {
            key,
            public_key: Some(certificate.public_key),
            next: None,
            serial: 0,
            request: fingerprint,
            accepted,
            token: request.token_id.to_owned(),
            leaves_until: None,
        };
        // A token that is taken back, or a device that is revoked, at this very moment lets nobody in.
        let depends = Depends { token: Some(secret), public_key: Some(certificate.public_key) };
        let before = known.map(|(_, at)| at);
        members::keep(&self.registry, request.node, &member, before, depends).await?;
        if !same {
            // What another machine of that name has seen is not this one's.
            members::forget_reach(&self.registry, request.node).await?;
        }
        tracing::info!(node = request.node, token = request.token_id, "a node has joined");
        // The hub also learns of the node from its first frame, should this not arrive.
        let _ = self.hub.send(Event::Joined(request.node.to_owned())).await;
        Ok(len)
    }

    /// Writes the acceptance of a node that wants another certificate and another key.
    async fn renew(&self, request: &JoinRequest<'_>, out: &mut [u8]) -> Result<usize, Denied> {
        let removed = || refused(Refusal::Removed, "no node of this name has that key");
        let (mut member, at) = members::find(&self.registry, request.node)?.ok_or_else(removed)?;
        let ca_digest = self.authority.ca_digest();
        let mut advanced = false;
        let verified = match request.verify_renewal(&member.key, &ca_digest) {
            Ok(verified) => verified,
            // It may renew what it was given before it has used it.
            Err(_) => {
                let next = member.next.as_ref().ok_or_else(removed)?;
                let verified = request.verify_renewal(&next.key, &ca_digest).map_err(|_| removed())?;
                member.advance();
                advanced = true;
                verified
            }
        };
        if request.serial() <= member.serial {
            return Err(Denied::Replayed);
        }
        let certificate = self.certify(request)?;
        let (len, key) = self.accept(&verified, &certificate, out)?;
        member.serial = request.serial();
        member.next = Some(Renewal { key: key.clone(), public_key: certificate.public_key });
        let depends = Depends { token: None, public_key: Some(certificate.public_key) };
        members::keep(&self.registry, request.node, &member, Some(at), depends).await?;
        tracing::info!(
            node = request.node,
            serial = member.serial,
            "a node's certificate and key are renewed"
        );
        let node = request.node.to_owned();
        let event = if advanced { Event::Joined(node) } else { Event::Renewed(node, key) };
        let _ = self.hub.send(event).await;
        Ok(len)
    }

    fn certify(&self, request: &JoinRequest<'_>) -> Result<NodeCertificate, Denied> {
        let certificate = self.authority.certify_node(request.csr.0, request.node, self.certificate_ttl);
        let certificate = certificate.map_err(|error| refused(Refusal::Request, error))?;
        match members::is_revoked(&self.registry, &certificate.public_key) {
            true => Err(refused(Refusal::Removed, "its key pair was revoked")),
            false => Ok(certificate),
        }
    }

    fn accept(
        &self,
        verified: &Verified<'_>,
        certificate: &NodeCertificate,
        out: &mut [u8],
    ) -> Result<(usize, NodeKey), Denied> {
        let (chain, ca) = (certificate.chain_pem.as_bytes(), self.authority.ca_der());
        let reply = verified.accept(chain, ca, rand::rng().random(), out);
        reply.map_err(|error| refused(Refusal::Request, error))
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}
