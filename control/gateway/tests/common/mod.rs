//! A gateway over a real registry and store, a bus in memory, and nodes that are played by the test with the agent's
//! side of the wire session.
#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use lichen_api::kinds;
use lichen_artifacts::{Artifacts, CompileCommand};
use lichen_gateway::bus::{Arrival, Bus, BusError, Message, Publish};
use lichen_gateway::{Config, Gateway, ORDER_ANNOTATION, Order, Purpose, create_token};
use lichen_pki::Authority;
use lichen_registry::{
    AllocationRanges, Identity, NODE_LEASE_NAMESPACE, Patch, Registry, Sources, WriteOptions,
};
use lichen_store::Store;
use lichen_wire::FRAME_BYTES_MAX;
use lichen_wire::body::SyncPoint;
use lichen_wire::join::{JOIN_BYTES_MAX, JoinError, Joiner, Token};
use lichen_wire::keys::NodeKey;
use lichen_wire::session::{self, AgentConfig, Event, Growable, Limits, Session, StreamId, Timing};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How long anything may take before the test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Stands for everything that is sent to the gateway.
const TAP: &str = "#";

type Subscribers = Arc<Mutex<Vec<(String, mpsc::UnboundedSender<Message>)>>>;

/// A bus in memory: what the gateway publishes goes to whoever subscribed to the very topic.
#[derive(Clone)]
pub(crate) struct MemoryBus {
    subscribers: Subscribers,
    gateway: Arc<Mutex<mpsc::UnboundedSender<Arrival>>>,
}

pub(crate) struct GatewayEnd {
    bus: MemoryBus,
    arrivals: mpsc::UnboundedReceiver<Arrival>,
}

impl MemoryBus {
    pub(crate) fn new() -> (MemoryBus, GatewayEnd) {
        let sender = mpsc::unbounded_channel().0;
        let bus = MemoryBus { subscribers: Subscribers::default(), gateway: Arc::new(Mutex::new(sender)) };
        (bus.clone(), bus.reopen())
    }

    /// A new gateway's end of the same bus.
    pub(crate) fn reopen(&self) -> GatewayEnd {
        let (sender, arrivals) = mpsc::unbounded_channel();
        sender.send(Arrival::Linked).unwrap();
        *self.gateway.lock().unwrap() = sender;
        GatewayEnd { bus: self.clone(), arrivals }
    }

    /// The gateway's link with the bus is there, or is lost.
    pub(crate) fn link(&self, linked: bool) {
        let arrival = if linked { Arrival::Linked } else { Arrival::Lost };
        let _ = self.gateway.lock().unwrap().send(arrival);
    }

    pub(crate) fn subscribe(&self, topic: &str) -> mpsc::UnboundedReceiver<Message> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.subscribers.lock().unwrap().push((topic.to_owned(), sender));
        receiver
    }

    /// Overhears what is published to the gateway.
    pub(crate) fn tap(&self) -> mpsc::UnboundedReceiver<Message> {
        self.subscribe(TAP)
    }

    /// Publishes to the gateway.
    pub(crate) fn send(&self, topic: &str, payload: &[u8]) {
        let message = Message { topic: topic.into(), payload: Bytes::copy_from_slice(payload) };
        for (_, tap) in self.subscribers.lock().unwrap().iter().filter(|(filter, _)| filter == TAP) {
            let _ = tap.send(message.clone());
        }
        let _ = self.gateway.lock().unwrap().send(Arrival::Message(message));
    }
}

impl Publish for MemoryBus {
    fn publish(&self, topic: &str, payload: Bytes) -> Result<(), BusError> {
        for (filter, subscriber) in self.subscribers.lock().unwrap().iter() {
            if filter == topic {
                let _ = subscriber.send(Message { topic: topic.into(), payload: payload.clone() });
            }
        }
        Ok(())
    }
}

impl Bus for GatewayEnd {
    fn publisher(&self) -> Arc<dyn Publish> {
        Arc::new(self.bus.clone())
    }

    fn recv(&mut self) -> BoxFuture<'_, Option<Arrival>> {
        Box::pin(self.arrivals.recv())
    }
}

pub(crate) struct World {
    dir: tempfile::TempDir,
    pub(crate) registry: Registry,
    pub(crate) artifacts: Artifacts,
    pub(crate) authority: Arc<Authority>,
    pub(crate) bus: MemoryBus,
    pub(crate) gateway: Option<Gateway>,
    pub(crate) admin: Identity,
}

impl World {
    pub(crate) async fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(lichen_store::Config::new(dir.path().join("store"))).await.unwrap();
        let mut leadership = store.leadership();
        leadership.wait_for(|leadership| leadership.leader).await.unwrap();
        let registry = Registry::new(store, AllocationRanges::default(), Sources::system());
        registry.bootstrap(6443).await.unwrap();
        let authority = Arc::new(Authority::open_or_create(&dir.path().join("pki")).unwrap());
        // The fake compiler refuses what names no profile of its own, and copies otherwise.
        let worker = r#"case "$2" in p*) cat;; *) cat >/dev/null; echo "no such profile" >&2; exit 1;; esac"#;
        let worker = CompileCommand::new(["/bin/sh", "-c", worker, "worker"].map(Into::into).to_vec());
        let artifacts = Artifacts::open(&dir.path().join("artifacts"), worker, authority.clone()).unwrap();
        let (bus, end) = MemoryBus::new();
        let admin = Identity::new("admin", ["system:masters"]);
        let mut world = World { dir, registry, artifacts, authority, bus, gateway: None, admin };
        world.start(end).await;
        world
    }

    async fn start(&mut self, end: GatewayEnd) {
        let mut config =
            Config::new(self.registry.clone(), self.artifacts.clone(), self.authority.clone(), Box::new(end));
        config.silence_grace = Duration::from_millis(300);
        config.timing.probe_ms = 200;
        self.gateway = Some(Gateway::start(config).await.unwrap());
    }

    pub(crate) async fn restart_gateway(&mut self) {
        self.stop_gateway().await;
        self.start_gateway().await;
    }

    pub(crate) async fn stop_gateway(&mut self) {
        self.gateway.take().unwrap().shutdown().await;
    }

    pub(crate) async fn start_gateway(&mut self) {
        let end = self.bus.reopen();
        self.start(end).await;
    }

    /// Says that a node is to go.
    pub(crate) async fn order(&self, node: &str, order: Order) {
        let patch = json!({ "metadata": { "annotations": { ORDER_ANNOTATION: order.name() } } });
        let (resource, options) = (&kinds::node::RESOURCE, WriteOptions::default());
        let patch = Patch::Merge(patch);
        self.registry.patch(&self.admin, resource, None, node, &patch, None, &options).await.unwrap();
    }

    /// Whether a certificate of this request would be let in by the embedded broker.
    pub(crate) fn admits(&self, node: &str, public_key: &lichen_pki::Digest) -> bool {
        lichen_gateway::admit_members(self.registry.clone()).admits(node, public_key)
    }

    pub(crate) async fn token(&self, ttl: Duration) -> Token {
        let digest = self.authority.ca_digest();
        create_token(&self.registry, &self.admin, digest, ttl, Purpose::Node).await.unwrap()
    }

    /// Joins as `node`, connects, and has the desired state: from then on both sides know that the session stands.
    pub(crate) async fn node(&self, node: &str) -> Agent {
        let token = self.token(Duration::from_secs(60)).await;
        let csr = lichen_pki::Request::new().unwrap();
        let key = join(&self.bus, &token, node, &csr.csr_der).await.unwrap();
        let mut agent = Agent::new(&self.bus, node, key, None);
        agent.until(|seen| matches!(seen, Seen::SnapshotEnd(_))).await;
        agent
    }

    pub(crate) async fn create(
        &self,
        resource: &'static lichen_api::Resource,
        namespace: Option<&str>,
        object: Value,
    ) -> Value {
        let written =
            self.registry.create(&self.admin, resource, namespace, object, &WriteOptions::default()).await;
        written.unwrap().record.value().unwrap()
    }

    pub(crate) async fn pod(&self, name: &str, node: &str) -> Value {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
            "spec": { "nodeName": node, "containers": [{
                "name": "main", "image": "hello:v1", "envFrom": [{ "configMapRef": { "name": "config" } }],
            }]},
        });
        self.create(&kinds::pod::RESOURCE, Some("default"), object).await
    }

    pub(crate) async fn get(
        &self,
        resource: &'static lichen_api::Resource,
        namespace: Option<&str>,
        name: &str,
    ) -> Option<Value> {
        self.registry.get(resource, namespace, name).await.ok().map(|record| record.value().unwrap())
    }

    /// An object as the API server shows it, with what the gateway knows of nodes.
    async fn shown(&self, resource: &'static lichen_api::Resource, namespace: Option<&str>) -> Value {
        let record = self.registry.get(resource, namespace, "edge-1").await.unwrap();
        let links = self.gateway.as_ref().unwrap().links();
        self.registry.present(resource, record, &links).value().unwrap()
    }

    /// When edge-1 renewed its Lease, as it is shown.
    pub(crate) async fn renewed(&self) -> String {
        let lease = self.shown(&kinds::lease::RESOURCE, Some(NODE_LEASE_NAMESPACE)).await;
        lease["spec"]["renewTime"].as_str().unwrap().to_owned()
    }

    /// The heartbeat of edge-1's Ready condition, as it is shown.
    pub(crate) async fn heartbeat(&self) -> String {
        let node = self.shown(&kinds::node::RESOURCE, None).await;
        let conditions = node["status"]["conditions"].as_array().unwrap();
        let ready = conditions.iter().find(|condition| condition["type"] == "Ready").unwrap();
        ready["lastHeartbeatTime"].as_str().unwrap().to_owned()
    }

    /// Asks until it holds: for what no watch tells.
    pub(crate) async fn until(&self, holds: impl AsyncFn() -> bool) {
        let ask = async {
            while !holds().await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ask).await.expect("it never held");
    }

    /// Waits until an object looks as wanted.
    pub(crate) async fn wait(
        &self,
        resource: &'static lichen_api::Resource,
        namespace: Option<&str>,
        name: &str,
        want: impl Fn(&Value) -> bool,
    ) -> Value {
        let mut watch = self.registry.store().watch("/", self.registry.revision()).unwrap();
        let look = async {
            loop {
                let object = self.get(resource, namespace, name).await.unwrap_or_default();
                if want(&object) {
                    return object;
                }
                watch.next().await.unwrap();
            }
        };
        match tokio::time::timeout(PATIENCE, look).await {
            Ok(object) => object,
            Err(_) => {
                panic!("{name} never became as wanted: {:?}", self.get(resource, namespace, name).await)
            }
        }
    }
}

/// Asks to join and waits for the answer.
pub(crate) async fn join(
    bus: &MemoryBus,
    token: &Token,
    node: &str,
    csr: &[u8],
) -> Result<NodeKey, JoinError> {
    let joiner = Joiner::new(token, node, csr, rand::random(), rand::random()).unwrap();
    let mut replies = bus.subscribe(&format!("lichen/v1/join/{}/down", token.id()));
    let mut out = vec![0; JOIN_BYTES_MAX];
    let len = joiner.write_request(&mut out).unwrap();
    let topic = format!("lichen/v1/join/{}/up", token.id());
    bus.send(&topic, &out[..len]);
    // Said twice, as a machine does that has not heard in time: both answers are one.
    bus.send(&topic, &out[..len]);
    let first = tokio::time::timeout(PATIENCE, replies.recv()).await.unwrap().unwrap();
    let second = tokio::time::timeout(PATIENCE, replies.recv()).await.unwrap().unwrap();
    assert_eq!(first.payload, second.payload);
    Ok(joiner.finish(&first.payload)?.key)
}

/// What a node saw.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Seen {
    Connected(u64),
    Lost,
    SnapshotBegin,
    SnapshotEnd(u64),
    Synced(u64),
    Leave,
    Item(String, String, Value),
    Remove(String, String),
    Opened(StreamId, Vec<u8>),
    Data(StreamId, Vec<u8>),
    Ended(StreamId, Option<String>),
    Other,
}

/// A node, played by the test.
pub(crate) struct Agent {
    pub(crate) node: String,
    pub(crate) session: Session<Growable>,
    bus: MemoryBus,
    frames: mpsc::UnboundedReceiver<Message>,
    start: Instant,
    /// Every frame that the node sent.
    pub(crate) sent: Vec<Vec<u8>>,
    pub(crate) seen: Vec<Seen>,
    at: usize,
}

impl Agent {
    pub(crate) fn new(bus: &MemoryBus, node: &str, key: NodeKey, synced: Option<SyncPoint>) -> Agent {
        let config = AgentConfig {
            node: node.try_into().unwrap(),
            key,
            boot_id: rand::random(),
            agent_version: "test".try_into().unwrap(),
            profile: "p1".try_into().unwrap(),
            epoch_seen: 0,
            synced,
            limits: Limits::SERVER,
            timing: Timing { hello_retry_ms: 100, solicit_jitter_ms: 10, ..Timing::DEFAULT },
        };
        let mut session = Session::new(session::Config::Agent(config), rand::random());
        session.link_up(0);
        Agent {
            node: node.to_owned(),
            session,
            bus: bus.clone(),
            frames: bus.subscribe(&format!("lichen/v1/n/{node}/down")),
            start: Instant::now(),
            sent: Vec::new(),
            seen: Vec::new(),
            at: 0,
        }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    pub(crate) fn transmit(&mut self) {
        let mut out = vec![0; FRAME_BYTES_MAX];
        while let Some(len) = self.session.transmit(self.now_ms(), &mut out) {
            self.bus.send(&format!("lichen/v1/n/{}/up", self.node), &out[..len]);
            self.sent.push(out[..len].to_vec());
        }
    }

    pub(crate) fn report(&mut self, kind: &str, key: &str, uid: &str, body: &Value) {
        self.session.report(kind, key, uid, &serde_cbor::to_vec(body).unwrap()).unwrap();
        self.transmit();
    }

    /// Runs until something is seen that was not waited for before.
    pub(crate) async fn until(&mut self, want: impl Fn(&Seen) -> bool) -> Seen {
        let deadline = Instant::now() + PATIENCE;
        loop {
            while self.at < self.seen.len() {
                self.at += 1;
                if want(&self.seen[self.at - 1]) {
                    return self.seen[self.at - 1].clone();
                }
            }
            assert!(Instant::now() < deadline, "never saw what was wanted; saw {:?}", self.seen);
            self.step().await;
        }
    }

    /// Runs for as long as `other` takes.
    pub(crate) async fn during<T>(&mut self, other: impl Future<Output = T>) -> T {
        let mut other = std::pin::pin!(other);
        loop {
            tokio::select! {
                result = &mut other => return result,
                () = self.step() => {}
            }
        }
    }

    async fn step(&mut self) {
        self.transmit();
        let now = self.now_ms();
        let wait = self.session.next_timeout().map_or(1000, |at| at.saturating_sub(now).min(1000));
        let frame = tokio::time::timeout(Duration::from_millis(wait), self.frames.recv()).await;
        let now = self.now_ms();
        let mut seen = Vec::new();
        let mut sink = |event: Event<'_>| seen.push(see(event));
        match frame {
            Ok(Some(message)) => {
                let mut frame = message.payload.to_vec();
                let _ = self.session.receive(now, &mut frame, &mut sink);
            }
            _ => self.session.tick(now, &mut sink),
        }
        for seen in &seen {
            // A reader that takes everything at once.
            if let Seen::Data(id, data) = seen {
                self.session.stream_grant(*id, data.len() as u64).unwrap();
            }
        }
        self.seen.extend(seen);
        self.transmit();
    }
}

fn see(event: Event<'_>) -> Seen {
    match event {
        Event::GatewayConnected(welcome) => Seen::Connected(welcome.epoch),
        Event::Lost(_) => Seen::Lost,
        Event::SnapshotBegin { .. } => Seen::SnapshotBegin,
        Event::SnapshotEnd { version } => Seen::SnapshotEnd(version),
        Event::Synced { version } => Seen::Synced(version),
        Event::Leave => Seen::Leave,
        Event::Item { kind, key, body, .. } => {
            Seen::Item(kind.to_owned(), key.to_owned(), serde_cbor::from_slice(body).unwrap())
        }
        Event::Remove { kind, key, .. } => Seen::Remove(kind.to_owned(), key.to_owned()),
        Event::StreamOpened { id, request } => Seen::Opened(id, request.to_vec()),
        Event::StreamData { id, data } => Seen::Data(id, data.to_vec()),
        Event::StreamEnded { id, error } => Seen::Ended(id, error.map(str::to_owned)),
        _ => Seen::Other,
    }
}

pub(crate) fn is_item(seen: &Seen, kind: &str, key: &str) -> bool {
    matches!(seen, Seen::Item(k, n, _) if k == kind && n == key)
}

pub(crate) fn ready(node: &Value) -> &str {
    let conditions = node["status"]["conditions"].as_array();
    let ready = conditions.and_then(|all| all.iter().find(|condition| condition["type"] == "Ready"));
    ready.and_then(|ready| ready["status"].as_str()).unwrap_or("none")
}

/// A Node as an agent reports it.
pub(crate) fn node_object(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "status": {
            "capacity": { "cpu": "2", "memory": "1Gi", "pods": "110" },
            "allocatable": { "cpu": "2", "memory": "1Gi", "pods": "110" },
            "addresses": [{ "type": "Hostname", "address": name }],
            "conditions": [{ "type": "MemoryPressure", "status": "False", "reason": "Enough", "message": "" }],
        },
    })
}
