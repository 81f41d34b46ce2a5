//! The listener, its connections, and their end.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use lichen_registry::{NodePresence, NodeStreams, Registry};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::auth;
use crate::documents::Documents;
use crate::forward::{Forward, Forwarded};
use crate::router::{App, Mount, answer};

/// Connections at once. More wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4096;
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;
/// How long a peer may take for its TLS handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// How long a peer may take for a request's head.
const HEAD_MAX: Duration = Duration::from_secs(30);
/// How long a connection is silent before the kernel asks whether its peer is still there, and how often then.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// How long requests may take when the server drains.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// The pause after the system refused to accept, so that a lack of files does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a server is made of.
pub struct Config {
    /// The registry that it serves.
    pub registry: Registry,
    /// The way to the nodes, for logs; without one they are unavailable.
    pub streams: Option<Arc<dyn NodeStreams>>,
    /// Which nodes are there; without it, heartbeats are shown as they are stored.
    pub presence: Option<Arc<dyn NodePresence>>,
    /// The way to the member that leads; without it, this server answers everything by itself.
    pub forward: Option<Arc<dyn Forward>>,
    /// TLS, with client certificates verified but not demanded (`lichen_pki::server_config`), and the protocols
    /// `h2` and `http/1.1` offered.
    pub tls: Arc<rustls::ServerConfig>,
    /// Where to listen. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// What else is served on the port, by the prefix of its paths.
    pub mounts: Vec<(String, Arc<dyn Mount>)>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("listen", &self.listen).finish_non_exhaustive()
    }
}

/// Why a server could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The address cannot be listened on.
    #[error("{address} cannot be listened on")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// A server that listens. Connections wait until [`Bound::run`].
pub struct Bound {
    address: SocketAddr,
    listener: TcpListener,
    acceptor: TlsAcceptor,
    app: Arc<App>,
    drain: watch::Sender<bool>,
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bound").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Binds a server.
pub async fn build(config: Config) -> Result<Bound, BuildError> {
    let failed = |source| BuildError::Listen { address: config.listen, source };
    let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let (drain, draining) = watch::channel(false);
    let app = App {
        registry: config.registry,
        streams: config.streams,
        presence: config.presence,
        forward: config.forward,
        mounts: config.mounts,
        documents: Documents::default(),
        in_flight: App::permits(),
        draining,
    };
    Ok(Bound { address, listener, acceptor: TlsAcceptor::from(config.tls), app: Arc::new(app), drain })
}

impl Bound {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What answers requests that other members pass on.
    #[must_use]
    pub fn forwarded(&self) -> Forwarded {
        Forwarded(Arc::downgrade(&self.app))
    }

    /// Serves until `shutdown` completes, then lets requests end; watches and logs end at once.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut shutdown => break,
                Some(_) = connections.join_next() => continue,
                accepted = accept(&self.listener, &slots) => accepted,
            };
            let Some((stream, slot)) = accepted else { continue };
            let (acceptor, app) = (self.acceptor.clone(), self.app.clone());
            connections.spawn(async move {
                serve(stream, acceptor, app).await;
                drop(slot);
            });
        }
        drop(self.listener);
        self.drain.send_replace(true);
        let drained = async { while connections.join_next().await.is_some() {} };
        if timeout(DRAIN_MAX, drained).await.is_err() {
            tracing::warn!(open = connections.len(), "connections were cut off");
            connections.shutdown().await;
        }
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, slot)),
        Err(error) => {
            tracing::warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, app: Arc<App>) {
    // Small replies and watch events are not held back to fill packets. The kernel finds out about peers that are gone,
    // so that their watches end without anything here waking up for it.
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    let set = stream.set_nodelay(true).and_then(|()| SockRef::from(&stream).set_tcp_keepalive(&keepalive));
    if let Err(error) = set {
        tracing::debug!(%error, "a connection was gone at once");
        return;
    }
    let stream = match timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let identity = auth::identify(stream.get_ref().1.peer_certificates());
    let mut draining = app.draining.clone();
    let service = service_fn(move |request| {
        let (app, identity) = (app.clone(), identity.clone());
        async move { Ok::<_, std::convert::Infallible>(answer(app, identity, request, true).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_MAX);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(STREAMS_MAX);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let drain = async {
        // An error means that the server is gone, which ends the connection as well.
        let _ = draining.wait_for(|draining| *draining).await;
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = drain => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
}
