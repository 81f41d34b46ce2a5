//! Members in one process, on a network that can be cut.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tempfile::TempDir;

use crate::messages::{Envelope, Request};
use crate::{Config, HistoryBounds, Network, Pace, Peering, Role, Store};

/// How often a test looks whether something has come to be.
pub(super) const LOOK: Duration = Duration::from_millis(10);

/// Who reaches whom. Addresses are the members' names.
#[derive(Clone, Default)]
pub(super) struct Net {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    stores: BTreeMap<String, Store>,
    /// Whose messages do not arrive at whom.
    cut: BTreeSet<(String, String)>,
    /// Pieces of snapshots that arrived: of which transfer, and which.
    pieces: Vec<(u64, u64)>,
    /// After how many pieces a connection breaks, and how often in a row.
    breaks: Option<(usize, usize)>,
}

/// The network as one member has it.
struct Port {
    net: Net,
    name: String,
}

impl Net {
    pub(super) fn port(&self, name: &str) -> Arc<dyn Network> {
        Arc::new(Port { net: self.clone(), name: name.into() })
    }

    pub(super) fn add(&self, name: &str, store: &Store) {
        self.inner.lock().unwrap().stores.insert(name.into(), store.clone());
    }

    fn store(&self, from: &str, to: &str) -> Option<Store> {
        let inner = self.inner.lock().unwrap();
        let cut = inner.cut.contains(&(from.to_owned(), to.to_owned()));
        if cut { None } else { inner.stores.get(to).cloned() }
    }

    /// Lets connections break in the midst of a snapshot.
    pub(super) fn break_after(&self, pieces: usize, times: usize) {
        self.inner.lock().unwrap().breaks = Some((pieces, times));
    }

    /// The pieces of snapshots that arrived: of which transfer, and which.
    pub(super) fn pieces(&self) -> Vec<(u64, u64)> {
        self.inner.lock().unwrap().pieces.clone()
    }

    /// Notes a piece of a snapshot, unless the connection breaks there.
    fn passes(&self, request: &[u8]) -> bool {
        let Request::Piece { transfer, number, .. } = Envelope::decode(request).unwrap().request else {
            return true;
        };
        let mut inner = self.inner.lock().unwrap();
        let arrived = inner.pieces.len();
        match &mut inner.breaks {
            Some((after, times)) if arrived >= *after && *times > 0 => {
                *times -= 1;
                false
            }
            _ => {
                inner.pieces.push((transfer, number));
                true
            }
        }
    }

    fn cut(&self, from: &str, to: &str) {
        self.inner.lock().unwrap().cut.insert((from.into(), to.into()));
    }

    fn heal(&self) {
        self.inner.lock().unwrap().cut.clear();
    }
}

impl Network for Port {
    fn call<'a>(
        &'a self,
        _member: u64,
        address: &'a str,
        request: Bytes,
    ) -> BoxFuture<'a, io::Result<Bytes>> {
        async move {
            if !self.net.inner.lock().unwrap().stores.contains_key(address) {
                return Err(io::ErrorKind::NotConnected.into());
            }
            let own = self.net.store(&self.name, &self.name).and_then(|store| store.member_id());
            let (Some(own), Some(store)) = (own, self.net.store(&self.name, address)) else {
                // Nothing tells that a message was lost.
                std::future::pending::<()>().await;
                return Err(io::ErrorKind::TimedOut.into());
            };
            if !self.net.passes(&request) {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            let reply = store.serve(own, request).await;
            drop(store);
            if self.net.store(address, &self.name).is_none() {
                std::future::pending::<()>().await;
            }
            Ok(reply)
        }
        .boxed()
    }
}

/// A member and its disk.
pub(super) struct Node {
    pub(super) name: String,
    pub(super) store: Store,
    dir: TempDir,
    history: HistoryBounds,
}

/// A cluster of members `0`, `1`, ...
pub(super) struct Cluster {
    pub(super) net: Net,
    pub(super) nodes: Vec<Node>,
}

impl Cluster {
    /// All of them vote, and all know the same.
    pub(super) async fn new(count: usize, history: HistoryBounds) -> Self {
        let mut cluster = Self { net: Net::default(), nodes: Vec::new() };
        for _ in 0..count {
            cluster.add(history).await;
        }
        for node in &cluster.nodes[1..] {
            let (id, leader) = (node.store.member_id().unwrap(), &cluster.nodes[0].store);
            leader.add_learner(id, &node.name).await.unwrap();
            cluster.promote(id).await;
        }
        cluster
    }

    /// A new member, which nobody knows yet.
    pub(super) async fn add(&mut self, history: HistoryBounds) {
        let name = self.nodes.len().to_string();
        let dir = tempfile::tempdir().unwrap();
        let store = open(&self.net, &name, &dir, history, !self.nodes.is_empty()).await;
        self.nodes.push(Node { name, store, dir, history });
    }

    /// Lets a learner vote as soon as it has caught up.
    pub(super) async fn promote(&self, id: u64) {
        while let Err(error) = self.leader().await.store.promote(id).await {
            assert!(error.to_string().contains("caught up"), "{error}");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The member that leads, once one of those that can be reached does.
    pub(super) async fn leader(&self) -> &Node {
        loop {
            let mut leaders: Vec<_> =
                self.nodes.iter().filter(|node| node.store.leadership().borrow().leader).collect();
            leaders.sort_by_key(|node| node.store.leadership().borrow().term);
            if let Some(leader) = leaders.pop()
                && leader.store.barrier().await.is_ok()
                && leader.store.leadership().borrow().leader
            {
                return leader;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    pub(super) async fn followers(&self) -> Vec<&Node> {
        let leader = self.leader().await;
        self.nodes.iter().filter(|node| node.name != leader.name).collect()
    }

    /// Cuts a member off, both ways.
    pub(super) fn isolate(&self, name: &str) {
        for other in &self.nodes {
            if other.name != name {
                self.net.cut(name, &other.name);
                self.net.cut(&other.name, name);
            }
        }
    }

    /// A member's messages do not arrive any more, though it gets those of the others.
    pub(super) fn mute(&self, name: &str) {
        for other in self.nodes.iter().filter(|other| other.name != name) {
            self.net.cut(name, &other.name);
        }
    }

    pub(super) fn heal(&self) {
        self.net.heal();
    }

    /// Ends a member without a word to the others.
    pub(super) async fn kill(&self, name: &str) {
        self.isolate(name);
        self.net.inner.lock().unwrap().stores.remove(name);
        self.node(name).store.shutdown().await;
    }

    /// Starts a member again from its disk.
    pub(super) async fn restart(&mut self, name: &str) {
        let at = self.nodes.iter().position(|node| node.name == name).unwrap();
        let node = &mut self.nodes[at];
        node.store = open(&self.net, name, &node.dir, node.history, true).await;
    }

    /// Starts a member again from an empty disk.
    pub(super) async fn restart_wiped(&mut self, name: &str) {
        let at = self.nodes.iter().position(|node| node.name == name).unwrap();
        self.nodes[at].dir = tempfile::tempdir().unwrap();
        self.restart(name).await;
    }

    pub(super) fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|node| node.name == name).unwrap()
    }

    /// Waits until all members have the same state.
    pub(super) async fn agree(&self) {
        loop {
            let states: Vec<_> =
                self.nodes.iter().map(|node| node.store.range("/", &Default::default()).unwrap()).collect();
            if states.windows(2).all(|pair| pair[0] == pair[1]) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    pub(super) fn roles(&self) -> Vec<Role> {
        self.nodes[0].store.members().unwrap().into_iter().map(|member| member.role).collect()
    }

    pub(super) async fn shutdown(&self) {
        self.net.inner.lock().unwrap().stores.clear();
        for node in &self.nodes {
            node.store.shutdown().await;
        }
    }
}

async fn open(net: &Net, name: &str, dir: &TempDir, history: HistoryBounds, joins: bool) -> Store {
    let config = Config { history, ..Config::new(dir.path()) };
    let peering = Peering { address: name.to_owned(), joins, pace: Pace::default(), network: net.port(name) };
    let store = Store::open_member(config, peering).await.unwrap();
    net.inner.lock().unwrap().stores.insert(name.into(), store.clone());
    store
}
