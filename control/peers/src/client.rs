//! The ways to other members: for each a connection for raft and one for everything else, made when they are needed and
//! kept.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::header::{HeaderName, HeaderValue};
use hyper::http::uri::{Authority, Scheme};
use hyper::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use crate::{Body, Inner, PROTOCOL, RequestError};

/// Says which version of the protocol a request or a reply speaks.
pub(crate) const PROTOCOL_HEADER: HeaderName = HeaderName::from_static("lichen-protocol");
/// Says that a member does not talk to the other one, and why.
pub(crate) const REFUSAL_HEADER: HeaderName = HeaderName::from_static("lichen-refusal");
/// The refusal of a member that was removed.
pub(crate) const REFUSED_GONE: HeaderValue = HeaderValue::from_static("removed");
/// The refusal of a member of another version.
pub(crate) const REFUSED_PROTOCOL: HeaderValue = HeaderValue::from_static("protocol");
/// The refusal of whoever is no member.
pub(crate) const REFUSED_UNKNOWN: HeaderValue = HeaderValue::from_static("unknown");

/// How long connecting may take, the handshake included.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// The pause after a connection that failed; it doubles with each, up to a bound.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_DOUBLINGS_MAX: u32 = 5;
/// How long the kernel waits for a peer to confirm what was sent, before it calls the connection broken.
const UNCONFIRMED_MAX: Duration = Duration::from_secs(5);
/// How long a connection is silent before the kernel asks whether its peer is still there, and how often then.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Bytes that a reply may be ahead of whoever reads it, and all replies of a connection together.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 32 * 1024 * 1024;
/// Bytes of a refusal that are passed on.
const REFUSAL_BYTES_MAX: usize = 4096;

/// Which connection a request takes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lane {
    /// Raft's own.
    Calls,
    /// That of everything which may be slow.
    Requests,
}

/// The connections to a member.
#[derive(Default)]
pub(crate) struct Remote {
    calls: Arc<Link>,
    requests: Arc<Link>,
}

/// A connection, or what there is of it.
#[derive(Default)]
struct Link {
    state: Mutex<State>,
}

enum State {
    /// There is none, and none is tried before a time.
    Down {
        retry_at: Option<Instant>,
        failures: u32,
        why: String,
    },
    /// Somebody connects; the channel closes when that has ended, in one way or the other.
    Connecting(watch::Receiver<()>),
    Up(SendRequest<Body>),
}

impl Default for State {
    fn default() -> Self {
        Self::Down { retry_at: None, failures: 0, why: String::new() }
    }
}

/// Sends a request to a member. `address` is where it is if the store does not know.
pub(crate) async fn send(
    inner: &Inner,
    member: u64,
    lane: Lane,
    address: Option<&str>,
    mut request: Request<Body>,
) -> Result<Response<Incoming>, RequestError> {
    complete_head(&mut request);
    let mut sender = sender(inner, member, lane, address).await?;
    let ready = sender.ready().await;
    ready.map_err(|error| RequestError::Unreachable { member, why: chain(&error) })?;
    let reply = sender.send_request(request).await;
    let reply = reply.map_err(|error| RequestError::Broken { member, why: chain(&error) })?;
    accepted(inner, member, reply).await
}

/// Passes a reply on, unless the member said instead that it does not talk to this one.
async fn accepted(
    inner: &Inner,
    member: u64,
    reply: Response<Incoming>,
) -> Result<Response<Incoming>, RequestError> {
    let refusal = reply.headers().get(REFUSAL_HEADER).cloned();
    let protocol = reply.headers().get(PROTOCOL_HEADER);
    let speaks = protocol.and_then(|version| version.to_str().ok()).and_then(|version| version.parse().ok());
    if refusal.is_none() && speaks == Some(PROTOCOL) {
        return Ok(reply);
    }
    let why = if refusal.is_some() {
        let text = http_body_util::Limited::new(reply.into_body(), REFUSAL_BYTES_MAX).collect().await;
        text.map(|text| String::from_utf8_lossy(&text.to_bytes()).into_owned()).unwrap_or_default()
    } else {
        other_protocol("it", speaks)
    };
    if refusal == Some(REFUSED_GONE) {
        inner.note_removed(&why);
    }
    Err(RequestError::Refused { member, why })
}

/// The words for a member that speaks another version.
pub(crate) fn other_protocol(who: &str, speaks: Option<u32>) -> String {
    let speaks = speaks.map_or("none that is known".to_owned(), |version| version.to_string());
    format!(
        "{who} speaks version {speaks} of the members' protocol, and the other member version {PROTOCOL}: run the same \
         version of lichen on all members"
    )
}

/// Adds to a request what HTTP/2 wants of it, and the protocol's version.
fn complete_head(request: &mut Request<Body>) {
    if request.uri().authority().is_none() {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(Scheme::HTTPS);
        parts.authority = Some(Authority::from_static("members.lichen"));
        // A scheme and an authority are all that a path lacks to be whole.
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    }
    request.headers_mut().insert(PROTOCOL_HEADER, HeaderValue::from(PROTOCOL));
}

async fn sender(
    inner: &Inner,
    member: u64,
    lane: Lane,
    address: Option<&str>,
) -> Result<SendRequest<Body>, RequestError> {
    let link = {
        let mut remotes = inner.remotes.lock().unwrap_or_else(PoisonError::into_inner);
        let remote = remotes.entry(member).or_default();
        match lane {
            Lane::Calls => remote.calls.clone(),
            Lane::Requests => remote.requests.clone(),
        }
    };
    let mut tried = false;
    loop {
        let mut connected = {
            let mut state = link.state.lock().unwrap_or_else(PoisonError::into_inner);
            match &*state {
                State::Up(sender) if !sender.is_closed() => return Ok(sender.clone()),
                State::Connecting(connected) => connected.clone(),
                State::Down { retry_at: Some(at), why, .. } if tried || Instant::now() < *at => {
                    return Err(RequestError::Unreachable { member, why: why.clone() });
                }
                State::Up(_) | State::Down { .. } => {
                    let failures = match &*state {
                        State::Down { failures, .. } => *failures,
                        _ => 0,
                    };
                    let connected = begin(inner, member, address, link.clone(), failures)?;
                    *state = State::Connecting(connected.clone());
                    connected
                }
            }
        };
        tried = true;
        // An error says that it has ended, which is what is waited for.
        let _ = connected.changed().await;
    }
}

/// Connects in a task of its own, so that whoever loses patience does not undo it.
fn begin(
    inner: &Inner,
    member: u64,
    address: Option<&str>,
    link: Arc<Link>,
    failures: u32,
) -> Result<watch::Receiver<()>, RequestError> {
    let own = inner.own()?;
    let known = own.store.members().ok().into_iter().flatten().find(|known| known.id == member);
    let known =
        known.map(|known| inner.found_at(member, known.address)).or_else(|| address.map(str::to_owned));
    let address = known.ok_or(RequestError::NoMember { member })?;
    let (ended, connected) = watch::channel(());
    let connector = own.connector.clone();
    let mut links = inner.links.lock().unwrap_or_else(PoisonError::into_inner);
    while links.try_join_next().is_some() {}
    links.spawn(async move {
        let attempt = timeout(CONNECT_MAX, connect(member, &address, connector)).await;
        let attempt = attempt.unwrap_or_else(|_| Err("it takes too long".into()));
        let set = |new| *link.state.lock().unwrap_or_else(PoisonError::into_inner) = new;
        match attempt {
            Ok((sender, connection)) => {
                if failures > 0 {
                    tracing::info!(member = format!("{member:016x}"), address, "a member is reached again");
                }
                set(State::Up(sender));
                drop(ended);
                connection.await;
            }
            Err(why) => {
                // Once, and not whenever it is tried again.
                if failures == 0 {
                    tracing::warn!(
                        member = format!("{member:016x}"),
                        address,
                        why,
                        "a member can't be reached"
                    );
                }
                let pause = BACKOFF_MIN * 2_u32.pow(failures.min(BACKOFF_DOUBLINGS_MAX));
                let retry_at = Some(Instant::now() + pause);
                let why = format!("{address}: {why}");
                set(State::Down { retry_at, failures: failures.saturating_add(1), why });
                drop(ended);
            }
        }
    });
    Ok(connected)
}

type Connection = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

async fn connect(
    member: u64,
    address: &str,
    connector: TlsConnector,
) -> Result<(SendRequest<Body>, Connection), String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    prepare(&stream).map_err(|error| error.to_string())?;
    let name = ServerName::try_from(lichen_pki::member_name(member)).map_err(|error| error.to_string())?;
    let stream = connector.connect(name, stream).await.map_err(|error| chain(&error))?;
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    let (sender, connection) =
        builder.handshake(TokioIo::new(stream)).await.map_err(|error| chain(&error))?;
    let connection = async move {
        if let Err(error) = connection.await {
            tracing::debug!(member = format!("{member:016x}"), %error, "a connection to a member ended");
        }
    };
    Ok((sender, Box::pin(connection)))
}

/// Small messages are not held back to fill packets, and the kernel finds out about peers that are gone.
pub(crate) fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(UNCONFIRMED_MAX))?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive)
}

/// An error with its causes, each said once.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}
