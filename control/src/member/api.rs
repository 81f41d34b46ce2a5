//! The members on the API's port: administrators change them, and servers that hold a token for members join.

use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response};
use lichen_api::Status;
use lichen_apiserver::{Body, Mount};
use lichen_gateway::Purpose;
use lichen_peers::{PROTOCOL, Peers, PeersError};
use lichen_pki::Authority;
use lichen_registry::{Identity, Registry};
use lichen_store::{CommitError, EncryptionKey, MemberStatus, Role};
use serde_json::{Value, json};
use std::sync::Arc;

use super::Contact;
use super::join::{JoinReply, JoinRequest, MESSAGE_BYTES_MAX};

/// Where servers join.
pub(crate) const JOIN_PATH: &str = "/lichen/v1/join";
/// Where the members are shown and changed.
pub const MEMBERS_PATH: &str = "/lichen/v1/members";

/// Lets servers join that hold a token. Also served where there are no members, to say so.
pub(crate) struct JoinMount {
    pub(crate) registry: Registry,
    pub(crate) authority: Arc<Authority>,
    pub(crate) encryption_key: EncryptionKey,
    /// Where other members reach this one; none if it is no member.
    pub(crate) address: Option<String>,
}

impl Mount for JoinMount {
    fn is_open(&self) -> bool {
        true
    }

    fn handle(&self, _: Identity, request: Request<Incoming>) -> BoxFuture<'_, Response<Body>> {
        Box::pin(async move { respond(self.answer(request).await) })
    }
}

impl JoinMount {
    async fn answer(&self, request: Request<Incoming>) -> Result<Value, Status> {
        if request.method() != Method::POST {
            return Err(Status::method_not_allowed());
        }
        let body = Limited::new(request.into_body(), MESSAGE_BYTES_MAX).collect().await;
        let unreadable = |error| Status::bad_request(format!("no request to join: {error}"));
        let body = body.map_err(unreadable)?.to_bytes();
        let ask = JoinRequest::read(&body).map_err(Status::bad_request)?;
        let digest = self.authority.ca_digest();
        let found = lichen_gateway::find_token(&self.registry, &ask.id, digest, Purpose::Member).await?;
        let unauthorized = |why: &dyn std::fmt::Display| {
            Status::new(401, "Unauthorized", format!("the token is not accepted: {why}"))
        };
        let (token, _) = found.map_err(|error| unauthorized(&error))?;
        // Digests are compared, so that the time it takes tells nothing of the secret.
        let hash = |secret: &str| lichen_pki::digest_of_der(secret.as_bytes());
        if hash(token.secret()) != hash(&ask.secret) {
            return Err(unauthorized(&"its secret is wrong"));
        }
        let Some(address) = &self.address else {
            return Err(Status::new(
                409,
                "Conflict",
                "this server is alone and no member can reach it: start it again with --cluster-init, then join",
            ));
        };
        let store = self.registry.store();
        let members = store.members().map_err(|error| refused(&error))?;
        let handover = self.authority.handover();
        tracing::info!(token = ask.id, "a server was given the authority, to join as a member");
        let reply = JoinReply {
            protocol: PROTOCOL,
            ca: handover.ca_pem,
            ca_key: handover.ca_key_pem,
            encryption_key: self.encryption_key.text(),
            members: contacts(members, store.member_id(), address),
        };
        serde_json::to_value(reply).map_err(Status::internal)
    }
}

/// Where those are that a server may ask to be taken in. Of itself a member knows that before the cluster does: one that
/// was alone until now had no address, and one that was moved had another.
pub(super) fn contacts(members: Vec<MemberStatus>, own: Option<u64>, address: &str) -> Vec<Contact> {
    let voters = members.into_iter().filter(|member| member.role != Role::Learner);
    let contact = |member: MemberStatus| Contact {
        id: format!("{:016x}", member.id),
        address: if own == Some(member.id) { address.to_owned() } else { member.address },
    };
    voters.map(contact).collect()
}

/// Shows and changes the members.
pub(crate) struct MembersMount(pub(crate) Option<Peers>);

impl Mount for MembersMount {
    fn handle(&self, identity: Identity, request: Request<Incoming>) -> BoxFuture<'_, Response<Body>> {
        Box::pin(async move { respond(self.answer(&identity, &request).await) })
    }
}

impl MembersMount {
    async fn answer(&self, identity: &Identity, request: &Request<Incoming>) -> Result<Value, Status> {
        let peers = self.0.as_ref().ok_or_else(|| {
            Status::new(
                409,
                "Conflict",
                "this server is alone: start it again with --cluster-init to let others join",
            )
        })?;
        let rest = request.uri().path().strip_prefix(MEMBERS_PATH).unwrap_or_default();
        let parts: Vec<&str> = rest.split('/').filter(|part| !part.is_empty()).collect();
        let done = match (request.method(), parts.as_slice()) {
            (&Method::GET, []) => {
                let members = peers.list().await.map_err(|error| status(&error))?;
                return Ok(json!({ "items": members }));
            }
            (&Method::DELETE, [member]) => peers.remove(id(member)?).await,
            (&Method::POST, [member, "promote"]) => peers.promote(id(member)?).await,
            (&Method::POST, [member, "transfer-leader"]) => peers.transfer_leader(id(member)?).await,
            (_, [] | [_] | [_, "promote" | "transfer-leader"]) => return Err(Status::method_not_allowed()),
            _ => return Err(Status::unknown_path()),
        };
        done.map_err(|error| status(&error))?;
        tracing::info!(
            user = identity.user,
            method = %request.method(),
            path = request.uri().path(),
            "the members were changed"
        );
        Ok(json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" }))
    }
}

fn id(text: &str) -> Result<u64, Status> {
    let id = u64::from_str_radix(text, 16).ok().filter(|_| text.len() <= 16);
    id.ok_or_else(|| {
        Status::bad_request(format!("{text:?} is no member's id: `lichen member list` shows them"))
    })
}

fn status(error: &PeersError) -> Status {
    match error {
        PeersError::Request(error) => Status::service_unavailable(error.to_string()),
        PeersError::Commit(error) => refused(error),
    }
}

fn refused(error: &CommitError) -> Status {
    match error {
        CommitError::Membership(why) => Status::new(409, "Conflict", why.clone()),
        error => Status::service_unavailable(error.to_string()),
    }
}

/// A JSON object, or the status that says why there is none.
pub(crate) fn respond(answer: Result<Value, Status>) -> Response<Body> {
    let (code, body) = match answer {
        Ok(value) => (200, value),
        Err(status) => (status.code, status.to_json()),
    };
    let body = Full::new(body.to_string().into()).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() =
        hyper::StatusCode::from_u16(code).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
