//! What a server that wants to join is given by one that is a member: the cluster's authority, and where the members are.
//!
//! It happens on the API's port, over TLS that the joining server believes because the chain holds the authority which its
//! token pins. The token's secret is shown there and nowhere else. Whoever is given this can do everything, so tokens for
//! members are kinds of their own, short-lived, and best revoked once they have served.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use lichen_peers::PROTOCOL;
use lichen_pki::{ClientTrust, Handover};
use lichen_store::EncryptionKey;
use lichen_wire::join::Token;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Contact, JOIN_PATH};

/// The port of the API where a URL names none.
const API_PORT: u16 = 6443;
/// How long the whole exchange may take.
const FETCH_MAX: Duration = Duration::from_secs(20);
/// Bytes of a request and of a reply.
pub(super) const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// What a server that wants to join says.
#[derive(Serialize, Deserialize)]
pub(super) struct JoinRequest {
    /// The version of the members' protocol that it speaks.
    pub(super) protocol: u32,
    /// The id of its token.
    pub(super) id: String,
    /// The secret of its token.
    pub(super) secret: String,
}

/// What it is given.
#[derive(Serialize, Deserialize)]
pub(super) struct JoinReply {
    /// The version of the members' protocol that the cluster speaks.
    pub(super) protocol: u32,
    /// The authority's certificate, PEM.
    pub(super) ca: String,
    /// The authority's key, PEM.
    pub(super) ca_key: String,
    /// The key that encrypts what is secret in the members' files, as text.
    pub(super) encryption_key: String,
    /// Where the members are.
    pub(super) members: Vec<Contact>,
}

impl JoinRequest {
    /// Reads a request, which may be anything.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let said = |error: serde_json::Error| format!("no request to join: {error}");
        // The version comes first: of another one, nothing else need be understood.
        let Version { protocol } = serde_json::from_slice(bytes).map_err(said)?;
        if protocol != PROTOCOL {
            return Err(format!(
                "this cluster speaks version {PROTOCOL} of the members' protocol, and the server that wants to join \
                 version {protocol}: run the same version of lichen on all members"
            ));
        }
        serde_json::from_slice(bytes).map_err(said)
    }
}

#[derive(Deserialize)]
struct Version {
    #[serde(default)]
    protocol: Value,
}

impl JoinReply {
    /// Reads a reply, which may be anything, and believes it if it holds the authority that the token names.
    fn read(bytes: &[u8], ca_digest: &[u8; 32]) -> Result<Found, String> {
        let reply: JoinReply =
            serde_json::from_slice(bytes).map_err(|_| "its answer can't be read".to_owned())?;
        if lichen_pki::digest_of_pem(&reply.ca).ok().as_ref() != Some(ca_digest) {
            return Err("the authority it sent is not the one that the token names".into());
        }
        let handover = Handover { ca_pem: reply.ca, ca_key_pem: reply.ca_key };
        let encryption_key = EncryptionKey::parse(&reply.encryption_key).map_err(said)?;
        Ok(Found { handover, encryption_key, members: reply.members })
    }
}

/// What a server that joins was given.
pub(super) struct Found {
    pub(super) handover: Handover,
    pub(super) encryption_key: EncryptionKey,
    pub(super) members: Vec<Contact>,
}

/// Asks a member for what joining takes. An error is in words for a person.
pub(super) async fn fetch(server: &str, token: &Token) -> Result<Found, String> {
    let found = tokio::time::timeout(FETCH_MAX, exchange(server, token)).await;
    found.unwrap_or_else(|_| Err(format!("no answer within {} s", FETCH_MAX.as_secs())))
}

async fn exchange(server: &str, token: &Token) -> Result<Found, String> {
    let url: Uri = server.parse().map_err(|_| "it is no URL such as https://HOST:6443".to_owned())?;
    let host = match (url.scheme_str(), url.host()) {
        (Some("https"), Some(host)) => host.trim_matches(['[', ']']).to_owned(),
        _ => return Err("the URL must begin with https:// and name a host".into()),
    };
    let tls = lichen_pki::client_config(&ClientTrust::Pinned(*token.ca_digest()), None).map_err(said)?;
    let name = ServerName::try_from(host.clone()).map_err(said)?;
    let stream =
        TcpStream::connect((host.as_str(), url.port_u16().unwrap_or(API_PORT))).await.map_err(said)?;
    let stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await.map_err(said)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(said)?;
    let ask =
        JoinRequest { protocol: PROTOCOL, id: token.id().to_owned(), secret: token.secret().to_owned() };
    let request = Request::post(JOIN_PATH)
        .header(HOST, host)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(serde_json::to_vec(&ask).map_err(said)?)))
        .map_err(said)?;
    let answer = async {
        let reply = sender.send_request(request).await.map_err(said)?;
        let code = reply.status();
        let body = Limited::new(reply.into_body(), MESSAGE_BYTES_MAX).collect().await.map_err(said)?;
        Ok((code, body.to_bytes()))
    };
    let (code, body) = tokio::select! {
        answer = answer => answer,
        ended = connection => Err(ended.err().map_or("it broke off".into(), said)),
    }?;
    if !code.is_success() {
        let status: Value = serde_json::from_slice(&body).unwrap_or_default();
        let words = status["message"].as_str().map(str::to_owned);
        return Err(words.unwrap_or_else(|| format!("it answers {code}: is it a lichen server?")));
    }
    JoinReply::read(&body, token.ca_digest())
}

fn said(error: impl fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod fuzz;
