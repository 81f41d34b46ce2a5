//! A broker that is an enemy, between real nodes and a real gateway.
//!
//! It reads, drops, repeats, reorders, delays, forges and delivers to others what passes through it, lies about who is
//! there, and remembers everything to say it again. What it may achieve is delay: once it is honest, everything is as if it
//! always had been, and in between nothing was believed that nobody said.

#[path = "../common/mod.rs"]
mod common;
mod enemy;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use common::{World, node_object, ready};
use enemy::Enemy;
use lichen_api::kinds;
use lichen_gateway::external::{Config as ExternalConfig, ExternalBus};
use lichen_gateway::{Config, Gateway};
use lichen_link::{JoinConfig, JoinOutcome, Link, LinkEvent, LinkHandle, join};
use lichen_mqtt::Message;
use lichen_pki::{Credentials, Request};
use lichen_registry::DeleteOptions;
use lichen_store::Event;
use lichen_wire::join::{JOIN_BYTES_MAX, JoinRequest, Refusal};
use lichen_wire::session::{AgentConfig, Limits, Timing};
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(120);
const NODES: [&str; 2] = ["one", "two"];
/// What nobody but its node may read.
const SECRET: &str = "the-secret-of-the-test";
const POD: &lichen_api::Resource = &kinds::pod::RESOURCE;
const NODE: &lichen_api::Resource = &kinds::node::RESOURCE;
const DEFAULT: Option<&str> = Some("default");

/// What a node was told to have.
type Desired = BTreeMap<(String, String), Value>;

/// A node: keeps what it is told, and says of each pod that it runs.
struct Node {
    _link: Link,
    desired: Arc<Mutex<Desired>>,
    changed: Arc<Notify>,
}

impl Node {
    async fn start(enemy: &Enemy, name: &'static str, joined: JoinOutcome) -> Node {
        let session = AgentConfig {
            node: name.try_into().unwrap(),
            key: joined.key,
            boot_id: [7; 16],
            agent_version: "test".try_into().unwrap(),
            profile: "p1".try_into().unwrap(),
            epoch_seen: 0,
            synced: None,
            limits: Limits::SERVER,
            timing: Timing { hello_retry_max_ms: 2_000, ..Timing::DEFAULT },
        };
        let mut config = lichen_link::Config::new(enemy.access.address.clone(), enemy.tls(), session);
        config.retry_max = Duration::from_millis(500);
        let (link, events) = Link::spawn(config);
        let node = Node { desired: Arc::default(), changed: Arc::default(), _link: link };
        let keeper = Keeper {
            name,
            handle: node._link.handle(),
            desired: node.desired.clone(),
            changed: node.changed.clone(),
        };
        tokio::spawn(keeper.run(events));
        node
    }

    /// Waits until the node has what it should.
    async fn has(&self, want: impl Fn(&Desired) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if want(&self.desired.lock().unwrap()) {
                    return;
                }
                changed.await;
            }
        };
        if timeout(PATIENCE, wait).await.is_err() {
            panic!("the node has {:?}", self.desired.lock().unwrap());
        }
    }
}

struct Keeper {
    name: &'static str,
    handle: LinkHandle,
    desired: Arc<Mutex<Desired>>,
    changed: Arc<Notify>,
}

impl Keeper {
    async fn run(self, mut events: mpsc::Receiver<LinkEvent>) {
        let mut snapshot: Option<Desired> = None;
        while let Some(event) = events.recv().await {
            match event {
                LinkEvent::Connected { .. } => {
                    self.report("Node", self.name, "", &node_object(self.name)).await;
                    let pods: Vec<_> = self.desired.lock().unwrap().clone().into_iter().collect();
                    for ((kind, key), body) in pods {
                        self.runs(&kind, &key, &body).await;
                    }
                }
                LinkEvent::SnapshotBegin { .. } => snapshot = Some(Desired::new()),
                LinkEvent::SnapshotEnd { .. } => {
                    *self.desired.lock().unwrap() = snapshot.take().expect("a snapshot that began");
                }
                LinkEvent::Item { kind, key, body, .. } => {
                    let body: Value = serde_cbor::from_slice(&body).expect("what is believed can be read");
                    self.runs(&kind, &key, &body).await;
                    match &mut snapshot {
                        Some(snapshot) => snapshot.insert((kind, key), body),
                        None => self.desired.lock().unwrap().insert((kind, key), body),
                    };
                }
                LinkEvent::Remove { kind, key, .. } => {
                    match &mut snapshot {
                        Some(snapshot) => snapshot.remove(&(kind, key)),
                        None => self.desired.lock().unwrap().remove(&(kind, key)),
                    };
                }
                LinkEvent::Lost(_) => snapshot = None,
                _ => {}
            }
            self.changed.notify_waiters();
        }
    }

    async fn runs(&self, kind: &str, key: &str, pod: &Value) {
        if kind != "Pod" {
            return;
        }
        if pod["metadata"]["deletionTimestamp"].is_null() {
            let status = json!({ "status": { "phase": "Running", "hostIP": self.name } });
            self.report("Pod", key, &uid(pod), &status).await;
        } else {
            self.report("PodGone", key, &uid(pod), &Value::Null).await;
        }
    }

    async fn report(&self, kind: &str, key: &str, uid: &str, body: &Value) {
        self.handle.report(kind, key, uid, serde_cbor::to_vec(body).unwrap()).await.unwrap();
    }
}

fn uid(object: &Value) -> String {
    object["metadata"]["uid"].as_str().unwrap().to_owned()
}

fn secret() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "keys" }, "stringData": { "key": SECRET },
    })
}

fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": { "nodeName": node, "containers": [{
            "name": "main", "image": "hello:v1", "envFrom": [{ "secretRef": { "name": "keys" } }],
        }]},
    })
}

async fn joined(world: &World, enemy: &Enemy, name: &str) -> JoinOutcome {
    let token = world.token(Duration::from_secs(600)).await;
    let attempt = JoinConfig {
        broker: enemy.access.address.clone(),
        server_name: None,
        tls: enemy.tls(),
        login: None,
        token,
        node: name.into(),
        csr: Request::new().unwrap().csr_der,
        own_broker: false,
        timeout: PATIENCE,
    };
    let joined = join(attempt).await.expect("joins, whatever the broker says");
    assert_eq!(joined.ca, world.authority.ca_der(), "the cluster's authority and no other");
    joined
}

/// A gateway that reaches its nodes through the enemy only.
async fn gateway(world: &mut World, enemy: &Enemy) -> Gateway {
    world.gateway.take().unwrap().shutdown().await;
    let (broker, tls) = (enemy.access.address.clone(), enemy.tls());
    let bus = Box::new(ExternalBus::spawn(ExternalConfig { broker, tls, login: None }));
    let parts = (world.registry.clone(), world.artifacts.clone(), world.authority.clone());
    Gateway::start(Config::new(parts.0, parts.1, parts.2, bus)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_broker_learns_and_changes_nothing() {
    let mut world = World::new().await;
    let enemy = Enemy::start(0x1ec).await;
    let gateway = gateway(&mut world, &enemy).await;
    let mut watch = world.registry.store().watch("/", world.registry.revision()).unwrap();
    enemy.set_hostile(true);

    // Joins, pods, reports and deletions, all of it under fire.
    let mut nodes = BTreeMap::new();
    for name in NODES {
        let outcome = joined(&world, &enemy, name).await;
        nodes.insert(name, Node::start(&enemy, name, outcome).await);
    }
    for name in NODES {
        world.wait(NODE, None, name, |node| ready(node) == "True").await;
    }
    world.create(&kinds::secret::RESOURCE, DEFAULT, secret()).await;
    for index in 0..12 {
        let name = format!("p{index}");
        let node = NODES[index % 2];
        world.create(POD, DEFAULT, pod(&name, node)).await;
        if index % 4 == 3 {
            // Old sessions are among what is replayed from now on.
            enemy.cut();
        }
    }
    for index in 0..12 {
        let running = |pod: &Value| pod["status"]["phase"] == "Running";
        world.wait(POD, DEFAULT, &format!("p{index}"), running).await;
    }
    for index in 0..4 {
        let options = DeleteOptions { grace_seconds: Some(1), ..DeleteOptions::default() };
        let name = format!("p{index}");
        world.registry.delete(&world.admin, POD, DEFAULT, &name, &options).await.unwrap();
        world.wait(POD, DEFAULT, &name, Value::is_null).await;
    }
    let deeds = enemy.state.lock().unwrap().deeds.clone();
    println!("{deeds:?}");
    assert_eq!(deeds.len(), 9, "it did everything that it can: {deeds:?}");

    // Honest again, everybody has what they should.
    enemy.set_hostile(false);
    for (index, name) in NODES.into_iter().enumerate() {
        let want: BTreeSet<String> =
            (4..12).filter(|pod| pod % 2 == index).map(|pod| format!("default/p{pod}")).collect();
        let node = &nodes[name];
        node.has(|desired| {
            let pods = desired.keys().filter(|(kind, _)| kind == "Pod").map(|(_, key)| key.clone());
            pods.collect::<BTreeSet<String>>() == want
        })
        .await;
        let desired = node.desired.lock().unwrap().clone();
        let secret = &desired[&("Secret".to_owned(), "default/keys".to_owned())];
        assert!(secret["data"]["key"].is_string(), "{secret}");
    }

    // Nobody was believed but the nodes: a pod runs where its node says so, and no node was called silent.
    while watch_has_more(&mut watch, world.registry.revision().0).await {}
    for index in 4..12 {
        let pod = world.get(POD, DEFAULT, &format!("p{index}")).await.unwrap();
        assert_eq!(pod["status"]["hostIP"], NODES[index % 2], "{pod}");
    }

    // All that was ever said, said again, changes nothing: joins, sessions that are over, and those that stand.
    let marker = |world: &World, name: &str| {
        let object = pod(name, "one");
        let registry = world.registry.clone();
        let admin = world.admin.clone();
        async move {
            let options = lichen_registry::WriteOptions::default();
            registry.create(&admin, POD, DEFAULT, object, &options).await.unwrap();
        }
    };
    let before = world.registry.revision().0;
    assert!(enemy.replay_all() > 100);
    marker(&world, "last").await;
    world.wait(POD, DEFAULT, "last", |pod| pod["status"]["phase"] == "Running").await;
    let after = world.registry.revision().0;
    assert_eq!(after - before, 2, "the last pod and its status are the only writes");

    // It has read everything, and knows nothing.
    gateway.shutdown().await;
    let state = enemy.state.lock().unwrap();
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, SECRET);
    for said in [SECRET, &encoded, "default/p5", "hello:v1", "secretRef", "Running", "podCIDR"] {
        let found = state.log.iter().any(|message| contains(&message.payload, said.as_bytes()));
        assert!(!found, "{said:?} passed the broker in the clear");
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Looks at the next change of the store, if there is one up to that revision.
async fn watch_has_more(watch: &mut lichen_store::Watch, revision: u64) -> bool {
    match timeout(PATIENCE, watch.next()).await.unwrap().unwrap() {
        Event::Change(change) => {
            if change.key.as_str().starts_with("/core/nodes/") {
                let node = change.new.as_ref().expect("no node is deleted").value().unwrap();
                assert_ne!(ready(&node), "Unknown", "a node was called silent: {node}");
            }
            change.revision.0 < revision
        }
        Event::Progress(progress) => progress.0 < revision,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_reply_neither_makes_nor_ends_a_join() {
    let mut world = World::new().await;
    let enemy = Enemy::start(1).await;
    let gateway = gateway(&mut world, &enemy).await;
    let earlier = joined(&world, &enemy, "one").await;
    // To each request it answers by itself before the gateway does, with what it knows: garbage, refusals, which it can
    // make as well as anyone, and earlier replies as they were and changed.
    let replies: Vec<Bytes> = {
        let state = enemy.state.lock().unwrap();
        let replies = state.log.iter().filter(|message| message.topic.ends_with("/down"));
        replies.map(|message| message.payload.clone()).collect()
    };
    assert!(!replies.is_empty());
    let state = enemy.state.clone();
    let forging = tokio::spawn(async move {
        let mut answered = 0;
        loop {
            {
                let state = state.lock().unwrap();
                for request in
                    state.log.iter().skip(answered).filter(|m| m.topic.starts_with("lichen/v1/join/"))
                {
                    let Some(topic) = request.topic.strip_suffix("/up") else { continue };
                    let topic: Arc<str> = format!("{topic}/down").into();
                    let mut forged =
                        vec![Bytes::new(), Bytes::from_static(b"garbage"), request.payload.clone()];
                    if let Ok(asked) = JoinRequest::read(&request.payload) {
                        for reason in [Refusal::Token, Refusal::NameTaken, Refusal::Unavailable] {
                            let mut refusal = vec![0; JOIN_BYTES_MAX];
                            let len = asked.refuse(reason, &mut refusal).unwrap();
                            refusal.truncate(len);
                            forged.push(refusal.into());
                        }
                    }
                    for reply in &replies {
                        forged.extend([reply.clone(), reply.slice(..reply.len() / 2)]);
                        for at in [0, 1, reply.len() / 2, reply.len() - 1] {
                            let mut changed = reply.to_vec();
                            changed[at] ^= 1;
                            forged.push(changed.into());
                        }
                    }
                    for payload in forged {
                        state.deliver(&Message { topic: topic.clone(), payload });
                    }
                }
                answered = state.log.len();
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    // It learns the reply that is meant for the second machine, and changes it on its way.
    enemy.set_hostile(true);
    let two = joined(&world, &enemy, "two").await;
    assert_ne!(two.certificate, earlier.certificate);
    let own = Credentials { chain_pem: String::from_utf8(two.certificate).unwrap(), key_pem: String::new() };
    assert!(own.chain_pem.contains("BEGIN CERTIFICATE"));
    forging.abort();
    gateway.shutdown().await;
}
