//! Members in one process, over real TLS on loopback.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lichen_peers::{Listener, Peers, Serving};
use lichen_pki::{Authority, Rotating};
use lichen_store::{Config, Draft, HistoryBounds, Key, Pace, Peering, Precondition, Role, Store, Txn};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// How often a test looks whether something has come to be.
const LOOK: Duration = Duration::from_millis(20);

/// A member and its disk.
pub(crate) struct Member {
    pub(crate) store: Store,
    pub(crate) peers: Peers,
    pub(crate) address: String,
    dir: TempDir,
    serving: Option<Serving>,
}

impl Member {
    pub(crate) fn id(&self) -> u64 {
        self.store.member_id().unwrap()
    }

    /// Ends it as a machine ends that loses power: the others hear nothing more of it.
    pub(crate) async fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.shutdown().await;
            self.store.shutdown().await;
        }
    }

    /// Starts it again on its disk, at its address.
    pub(crate) async fn restart(&mut self, authority: &Arc<Authority>) {
        self.stop().await;
        let (store, peers, serving) = start(authority, self.dir.path(), &self.address, true).await;
        (self.store, self.peers, self.serving) = (store, peers, Some(serving));
    }
}

impl Member {
    /// Starts it again on an empty disk, at its address.
    pub(crate) async fn wipe(&mut self, authority: &Arc<Authority>) {
        self.stop().await;
        self.dir = tempfile::tempdir().unwrap();
        self.restart(authority).await;
    }
}

/// The members of a cluster, the first of which began it.
pub(crate) struct Cluster {
    pub(crate) authority: Arc<Authority>,
    pub(crate) members: Vec<Member>,
    _pki: TempDir,
}

impl Cluster {
    /// A cluster of one.
    pub(crate) async fn new() -> Self {
        let pki = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::open_or_create(pki.path()).unwrap());
        let mut cluster = Self { authority, members: Vec::new(), _pki: pki };
        cluster.begin(false).await;
        cluster
    }

    /// A cluster whose members all vote.
    pub(crate) async fn of(count: usize) -> Self {
        let mut cluster = Self::new().await;
        while cluster.members.len() < count {
            cluster.add().await;
        }
        cluster.voters(count).await;
        cluster.settle().await;
        cluster
    }

    /// Waits until what the members are is settled: they count as voters from the moment on in which the leader begins to
    /// make them such, when the old majority is needed as well as the new one.
    async fn settle(&self) {
        for member in &self.members {
            until(async || self.members[0].peers.promote(member.id()).await.is_ok()).await;
        }
    }

    /// Starts a member that belongs to nothing yet, or begins the cluster.
    pub(crate) async fn begin(&mut self, joins: bool) -> &mut Member {
        let dir = tempfile::tempdir().unwrap();
        let address = free_address();
        let (store, peers, serving) = start(&self.authority, dir.path(), &address, joins).await;
        self.members.push(Member { store, peers, address, dir, serving: Some(serving) });
        self.members.last_mut().unwrap()
    }

    /// Starts a member and lets it join.
    pub(crate) async fn add(&mut self) {
        let known = self.known();
        let member = self.begin(true).await;
        member.peers.join(&known, &member.address).await.unwrap();
    }

    /// Where the members are.
    pub(crate) fn known(&self) -> Vec<(u64, String)> {
        self.members.iter().map(|member| (member.id(), member.address.clone())).collect()
    }

    /// Waits until so many members vote, as the first one sees it.
    pub(crate) async fn voters(&self, count: usize) {
        self.voters_at(0, count).await;
    }

    /// The same as another one sees it.
    pub(crate) async fn voters_at(&self, at: usize, count: usize) {
        until(async || {
            let members = self.members[at].store.members().unwrap();
            members.iter().filter(|member| member.role != Role::Learner).count() == count
        })
        .await;
    }

    /// The place of the member that leads, once all running members agree.
    pub(crate) async fn leader(&self) -> usize {
        loop {
            let leads = |member: &Member| member.store.leadership().borrow().leader;
            if let Some(at) = self.members.iter().position(leads) {
                let id = self.members[at].id();
                let running = self.members.iter().filter(|member| member.serving.is_some());
                if running.clone().all(|member| member.peers.leader() == Some(id)) {
                    return at;
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The place of a member that does not lead.
    pub(crate) async fn follower(&self) -> usize {
        let leader = self.leader().await;
        (0..self.members.len()).find(|at| *at != leader).unwrap()
    }

    pub(crate) async fn shutdown(&mut self) {
        for member in &mut self.members {
            member.stop().await;
        }
    }
}

/// Sends a request for `/` as a member that speaks some version, and tells what comes back.
pub(crate) async fn raw(
    authority: &Arc<Authority>,
    from: u64,
    to: u64,
    address: &str,
    version: &str,
) -> (u16, Option<String>, String) {
    let certificate = Rotating::member(authority.clone(), from).unwrap();
    let tls = TlsConnector::from(Arc::new(certificate.mutual_client_config(&[b"h2"]).unwrap()));
    let stream = TcpStream::connect(address).await.unwrap();
    let name = lichen_pki::member_name(to).try_into().unwrap();
    let stream = tls.connect(name, stream).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::get("https://members.lichen/").header("lichen-protocol", version);
    let reply = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    let refusal = reply.headers().get("lichen-refusal").map(|kind| kind.to_str().unwrap().to_owned());
    let code = reply.status().as_u16();
    let text = reply.into_body().collect().await.unwrap().to_bytes();
    connection.abort();
    (code, refusal, String::from_utf8(text.to_vec()).unwrap())
}

/// Listens as a member that answers one connection in some version; tells where.
pub(crate) async fn answers(authority: &Arc<Authority>, id: u64, version: &'static str) -> String {
    let certificate = Rotating::member(authority.clone(), id).unwrap();
    let tls = TlsAcceptor::from(Arc::new(certificate.mutual_server_config(&[b"h2"]).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let stream = tls.accept(listener.accept().await.unwrap().0).await.unwrap();
        let service = hyper::service::service_fn(move |_| async move {
            let reply = Response::builder().header("lichen-protocol", version);
            reply.body(Empty::<Bytes>::new())
        });
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder.serve_connection(TokioIo::new(stream), service).await.ok();
    });
    address
}

async fn start(
    authority: &Arc<Authority>,
    dir: &Path,
    address: &str,
    joins: bool,
) -> (Store, Peers, Serving) {
    let listener = Listener::bind(address.parse().unwrap()).await.unwrap();
    let peers = Peers::new(authority.clone());
    let config = Config { history: HistoryBounds::default(), ..Config::new(dir) };
    let peering =
        Peering { address: address.to_owned(), joins, pace: Pace::default(), network: peers.network() };
    let store = Store::open_member(config, peering).await.unwrap();
    let serving = peers.start(store.clone(), listener).unwrap();
    (store, peers, serving)
}

/// An address that was free a moment ago. Its member keeps it through restarts.
pub(crate) fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Waits until something has come to be.
pub(crate) async fn until(mut is: impl AsyncFnMut() -> bool) {
    while !is().await {
        tokio::time::sleep(LOOK).await;
    }
}

pub(crate) async fn write(store: &Store, name: &str, value: &str) {
    let txn = Txn::new().put(key(name), Precondition::Any, Draft::opaque(value.as_bytes()));
    store.commit(txn).await.unwrap();
}

/// What a member says that a key holds, after asking the leader.
pub(crate) async fn read(store: &Store, name: &str) -> Option<String> {
    store.barrier().await.unwrap();
    store.get(&key(name)).map(|record| String::from_utf8_lossy(record.body()).into_owned())
}

fn key(name: &str) -> Key {
    Key::from(format!("/test/{name}"))
}
