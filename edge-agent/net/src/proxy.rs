//! The socket shell: one listener a route, bytes copied in both directions.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::address::AddressMode;
use crate::rotation::Rotation;
use crate::table::{Frontend, Routes};

/// How many connections may wait in a listener's queue.
const BACKLOG: i32 = 1024;
/// The buffer of each direction of a connection.
const COPY_BYTES: usize = 16 * 1024;
/// How long a listener rests after an accept failed, for instance for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How a proxy is set up.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// How cluster addresses are served.
    pub mode: AddressMode,
    /// Most connections at a time, over all routes; further ones wait to be accepted.
    pub connections_max: usize,
    /// How long connecting to one backend may take.
    pub connect_timeout: Duration,
    /// Where rotations begin; random.
    pub seed: usize,
}

impl ProxyConfig {
    /// The usual bounds.
    pub fn new(mode: AddressMode, seed: usize) -> Self {
        Self { mode, connections_max: 4096, connect_timeout: Duration::from_secs(2), seed }
    }
}

/// A route that can't be served.
#[derive(Debug, thiserror::Error)]
#[error("service {namespace}/{service}: cannot listen on {address} (for {}:{}): {source}", frontend.ip, frontend.port)]
pub struct BindError {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub service: String,
    /// The route.
    pub frontend: Frontend,
    /// The address that was tried.
    pub address: SocketAddr,
    /// Why not; `AddrInUse` if somebody else listens there.
    #[source]
    pub source: io::Error,
}

/// The running proxy.
#[derive(Debug)]
pub struct Proxy {
    config: ProxyConfig,
    permits: Arc<Semaphore>,
    routes: BTreeMap<Frontend, Listening>,
    draining: JoinSet<()>,
}

#[derive(Debug)]
struct Listening {
    backends: Arc<Mutex<Arc<[SocketAddr]>>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<JoinSet<()>>,
}

impl Proxy {
    /// A proxy that serves nothing yet.
    pub fn new(config: ProxyConfig) -> Self {
        let permits = Arc::new(Semaphore::new(config.connections_max));
        Self { config, permits, routes: BTreeMap::new(), draining: JoinSet::new() }
    }

    /// Makes the listeners and their backends what the routes say; what did not change is not touched.
    /// Routes that can't be served are returned, and tried again with the next call.
    pub fn apply(&mut self, routes: &Routes) -> Vec<BindError> {
        let gone: Vec<Frontend> = self.routes.keys().filter(|f| !routes.contains_key(f)).copied().collect();
        for frontend in gone {
            if let Some(listening) = self.routes.remove(&frontend) {
                self.drain(listening);
            }
        }
        while self.draining.try_join_next().is_some() {}
        let mut errors = Vec::new();
        for (frontend, route) in routes {
            let map = |ip| self.config.mode.map(ip);
            let backends: Arc<[SocketAddr]> =
                route.backends.iter().map(|b| SocketAddr::from((map(b.ip), b.port))).collect();
            if let Some(listening) = self.routes.get(frontend) {
                *listening.backends.lock().unwrap_or_else(PoisonError::into_inner) = backends;
                continue;
            }
            let address = SocketAddr::from((map(frontend.ip), frontend.port));
            match listen(address) {
                Ok(listener) => {
                    self.routes.insert(*frontend, self.serve(listener, backends));
                }
                Err(source) => errors.push(BindError {
                    namespace: route.namespace.clone(),
                    service: route.service.clone(),
                    frontend: *frontend,
                    address,
                    source,
                }),
            }
        }
        errors
    }

    fn serve(&self, listener: TcpListener, backends: Arc<[SocketAddr]>) -> Listening {
        let backends = Arc::new(Mutex::new(backends));
        let (stop, stopped) = oneshot::channel();
        let server = Server {
            listener,
            backends: backends.clone(),
            permits: self.permits.clone(),
            rotation: Rotation::new(self.config.seed),
            connect_timeout: self.config.connect_timeout,
        };
        Listening { backends, stop, task: tokio::spawn(server.run(stopped)) }
    }

    /// Stops listening; open connections go on until they end.
    fn drain(&mut self, listening: Listening) {
        let Listening { stop, task, .. } = listening;
        let _ = stop.send(());
        self.draining.spawn(async move {
            if let Ok(connections) = task.await {
                connections.join_all().await;
            }
        });
    }

    /// Stops listening, gives open connections a grace and then cuts them.
    pub async fn shutdown(mut self, grace: Duration) {
        for (_, listening) in std::mem::take(&mut self.routes) {
            self.drain(listening);
        }
        let all = async { while self.draining.join_next().await.is_some() {} };
        if timeout(grace, all).await.is_err() {
            self.draining.shutdown().await;
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// One listener.
struct Server {
    listener: TcpListener,
    backends: Arc<Mutex<Arc<[SocketAddr]>>>,
    permits: Arc<Semaphore>,
    rotation: Rotation,
    connect_timeout: Duration,
}

impl Server {
    /// Accepts until it is stopped; returns the connections that are still open.
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) -> JoinSet<()> {
        let mut connections = JoinSet::new();
        loop {
            let accepted = async {
                // A permit comes first, so that beyond the bound clients wait in the kernel's queue. The
                // semaphore is never closed.
                let permit = self.permits.clone().acquire_owned().await.ok();
                (permit, self.listener.accept().await)
            };
            let (permit, client) = tokio::select! {
                _ = &mut stopped => return connections,
                Some(_) = connections.join_next() => continue,
                accepted = accepted => accepted,
            };
            let client = match client {
                Ok((client, _)) => client,
                Err(error) => {
                    warn!(%error, "a service listener cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let order: Vec<SocketAddr> =
                self.rotation.order(backends.len()).filter_map(|i| backends.get(i).copied()).collect();
            let connect_timeout = self.connect_timeout;
            connections.spawn(async move {
                carry(client, &order, connect_timeout).await;
                drop(permit);
            });
        }
    }
}

/// Carries one connection to the first backend that takes it.
async fn carry(mut client: TcpStream, backends: &[SocketAddr], connect_timeout: Duration) {
    for backend in backends {
        match timeout(connect_timeout, TcpStream::connect(backend)).await {
            Ok(Ok(mut server)) => {
                let _ = client.set_nodelay(true);
                let _ = server.set_nodelay(true);
                // A half-close is passed on; an error on either side ends both.
                let copied = tokio::io::copy_bidirectional_with_sizes(
                    &mut client,
                    &mut server,
                    COPY_BYTES,
                    COPY_BYTES,
                )
                .await;
                if let Err(error) = copied {
                    debug!(%backend, %error, "a service connection broke");
                    reset(&client);
                }
                return;
            }
            Ok(Err(error)) => debug!(%backend, %error, "a backend refused"),
            Err(_) => debug!(%backend, "a backend did not answer in time"),
        }
    }
    reset(&client);
}

/// Makes the close that follows a reset: the client is to see a failure, not an empty answer.
fn reset(client: &TcpStream) {
    let _ = SockRef::from(client).set_linger(Some(Duration::ZERO));
}
