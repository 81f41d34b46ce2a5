//! The members' port: who asks is known by the certificate, and only members are answered.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::client::{
    PROTOCOL_HEADER, REFUSAL_HEADER, REFUSED_GONE, REFUSED_PROTOCOL, REFUSED_UNKNOWN, other_protocol, prepare,
};
use crate::{Body, PROTOCOL, Peers, StartError, calls, membership};

/// Connections at once: two from each member, with room for those that are about to be given up.
const CONNECTIONS_MAX: usize = 64;
/// Requests at once on one connection.
const STREAMS_MAX: u32 = 1024;
/// Requests that a peer gave up before they were taken in: all of those that waited while this member stood still.
const RESETS_MAX: usize = 1024;
/// Bytes that a request may be ahead of whoever reads it, and all requests of a connection together.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 64 * 1024 * 1024;
/// Bytes of a frame, so that most of raft's messages are one and need not be put together.
const FRAME_BYTES_MAX: u32 = 1024 * 1024;
/// How long a peer may take for its TLS handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// The pause after the system refused to accept, so that a lack of files does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The members' port, bound. Who calls waits until it is served.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds an address; port 0 takes a free one.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn bind(address: SocketAddr) -> Result<Self, StartError> {
        let failed = |source| StartError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Serves until it is dropped.
pub(crate) async fn run(peers: Peers, listener: Listener, tls: rustls::ServerConfig) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        // Never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        match listener.listener.accept().await {
            Ok((stream, from)) => {
                let (acceptor, peers) = (acceptor.clone(), peers.clone());
                connections.spawn(async move {
                    serve(stream, from, acceptor, peers).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a member's connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, from: SocketAddr, acceptor: TlsAcceptor, peers: Peers) {
    if let Err(error) = prepare(&stream) {
        tracing::debug!(%error, "a connection was gone at once");
        return;
    }
    let stream = match timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::info!(%from, %error, "who called on the members' port is no member of this cluster");
            return;
        }
        Err(_) => return,
    };
    let certificates = stream.get_ref().1.peer_certificates();
    let Some(member) = certificates.and_then(<[_]>::first).and_then(|leaf| lichen_pki::member_of(leaf))
    else {
        tracing::info!(%from, "who called on the members' port has a certificate of this cluster, but is no member");
        return;
    };
    let service = service_fn(|request| {
        let peers = peers.clone();
        async move { Ok::<_, Infallible>(answer(&peers, member, request).await) }
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(member = format!("{member:016x}"), %error, "a member's connection ended");
    }
}

async fn answer(peers: &Peers, member: u64, request: Request<Incoming>) -> Response<Body> {
    let mut response = route(peers, member, request).await;
    response.headers_mut().insert(PROTOCOL_HEADER, HeaderValue::from(PROTOCOL));
    response
}

async fn route(peers: &Peers, member: u64, request: Request<Incoming>) -> Response<Body> {
    let Ok(own) = peers.own() else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "this member is starting");
    };
    let protocol = request.headers().get(PROTOCOL_HEADER).and_then(|version| version.to_str().ok());
    let speaks = protocol.and_then(|version| version.parse().ok());
    if speaks != Some(PROTOCOL) {
        return refusal(REFUSED_PROTOCOL, &other_protocol(&format!("member {member:016x}"), speaks));
    }
    if peers.inner.is_gone(member) {
        return refusal(REFUSED_GONE, &gone(member));
    }
    let path = request.uri().path();
    // Raft itself judges who may say what: a member that lags may not know of a newer one whose vote counts.
    if path == calls::PATH {
        return calls::answer(&own.store, member, request).await;
    }
    if under(path, membership::PATH) {
        return membership::answer(peers, member, request).await;
    }
    if !own.store.members().is_ok_and(|members| members.iter().any(|known| known.id == member)) {
        return refusal(REFUSED_UNKNOWN, &format!("member {member:016x} does not belong to the cluster"));
    }
    let handler = {
        let mounts = peers.inner.mounts.read().unwrap_or_else(PoisonError::into_inner);
        mounts.iter().find(|(prefix, _)| under(path, prefix)).map(|(_, handler)| handler.clone())
    };
    match handler {
        Some(handler) => handler.handle(member, request).await,
        None => text(StatusCode::SERVICE_UNAVAILABLE, "this member does not serve that yet"),
    }
}

/// What a member is told that was removed.
pub(crate) fn gone(member: u64) -> String {
    format!(
        "member {member:016x} was removed from the cluster. To let the machine in again, stop it, delete its data \
         directory and join with a token: lichen server --join URL --token TOKEN"
    )
}

fn under(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix.trim_end_matches('/'))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn refusal(kind: HeaderValue, why: &str) -> Response<Body> {
    let mut response = text(StatusCode::FORBIDDEN, why);
    response.headers_mut().insert(REFUSAL_HEADER, kind);
    response
}

pub(crate) fn text(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(calls::whole(text.to_owned()));
    *response.status_mut() = status;
    response
}
