//! Who a node is, from its first certificate to its end: renewal of certificate and key, removal in good order, and
//! revocation, over a bus that may do as it likes.

mod common;

use std::time::Duration;

use common::*;
use lichen_api::kinds;
use lichen_gateway::{ORDER_ANNOTATION, Order, RESULT_ANNOTATION};
use lichen_pki::Digest;
use lichen_registry::{DeleteOptions, NODE_LEASE_NAMESPACE};
use lichen_wire::body::Blob;
use lichen_wire::join::{JOIN_BYTES_MAX, JoinError, Joiner, Refusal, Token};
use lichen_wire::keys::NodeKey;
use lichen_wire::stream::StreamRequest;
use serde_json::{Value, json};

const NODE: &lichen_api::Resource = &kinds::node::RESOURCE;
const POD: &lichen_api::Resource = &kinds::pod::RESOURCE;
const SECRET: &lichen_api::Resource = &kinds::secret::RESOURCE;
const LEASE: &lichen_api::Resource = &kinds::lease::RESOURCE;
const DEFAULT: Option<&str> = Some("default");

/// A machine that has joined.
struct Machine {
    agent: Agent,
    key: NodeKey,
    csr: Vec<u8>,
    public_key: Digest,
    token: Token,
}

fn public_key(world: &World, csr: &[u8]) -> Digest {
    world.authority.certify_node(csr, "any", Duration::from_secs(60)).unwrap().public_key
}

/// Joins, connects and registers.
async fn machine(world: &World, node: &str) -> Machine {
    let token = world.token(Duration::from_secs(60)).await;
    let csr = lichen_pki::Request::new().unwrap().csr_der;
    let key = join(&world.bus, &token, node, &csr).await.unwrap();
    let mut agent = Agent::new(&world.bus, node, key.clone(), None);
    agent.until(|seen| matches!(seen, Seen::SnapshotEnd(_))).await;
    agent.report("Node", node, "", &node_object(node));
    agent.during(world.wait(NODE, None, node, |node| ready(node) == "True")).await;
    let public_key = public_key(world, &csr);
    assert!(world.admits(node, &public_key));
    Machine { agent, key, csr, public_key, token }
}

/// A renewal that is yet to be sent.
struct Renewal<'a> {
    joiner: Joiner<'a>,
    message: Vec<u8>,
}

fn renewal<'a>(world: &World, key: &NodeKey, node: &'a str, csr: &'a [u8], serial: u64) -> Renewal<'a> {
    let digest = world.authority.ca_digest();
    let joiner = Joiner::renew(key, digest, node, csr, serial, rand::random(), rand::random()).unwrap();
    let mut message = vec![0; JOIN_BYTES_MAX];
    let len = joiner.write_request(&mut message).unwrap();
    message.truncate(len);
    Renewal { joiner, message }
}

impl Renewal<'_> {
    /// Asks over the join topics.
    async fn apart(&self, world: &World) -> Result<NodeKey, JoinError> {
        let mut replies = world.bus.subscribe("lichen/v1/join/zzzzzz/down");
        world.bus.send("lichen/v1/join/zzzzzz/up", &self.message);
        let reply = tokio::time::timeout(Duration::from_secs(60), replies.recv()).await.unwrap().unwrap();
        Ok(self.joiner.finish(&reply.payload)?.key)
    }

    /// Asks in the session.
    async fn within(&self, agent: &mut Agent) -> Result<NodeKey, JoinError> {
        let mut request = vec![0; 2048];
        let len = StreamRequest::Renew { request: Blob(&self.message) }.write(&mut request).unwrap();
        let stream = agent.session.stream_open(&request[..len]).unwrap();
        agent.session.stream_finish(stream).unwrap();
        agent.until(|seen| matches!(seen, Seen::Ended(id, None) if *id == stream)).await;
        let reply: Vec<u8> = agent
            .seen
            .iter()
            .filter_map(|seen| match seen {
                Seen::Data(id, data) if *id == stream => Some(data.clone()),
                _ => None,
            })
            .flatten()
            .collect();
        Ok(self.joiner.finish(&reply)?.key)
    }
}

fn refusal<T>(result: Result<T, JoinError>) -> Refusal {
    match result {
        Err(JoinError::Refused(refusal)) => refusal,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was not refused"),
    }
}

/// Whether an agent with this key gets a session.
async fn connects(world: &World, node: &str, key: &NodeKey) -> bool {
    let mut agent = Agent::new(&world.bus, node, key.clone(), None);
    let patience = tokio::time::sleep(Duration::from_millis(500));
    agent.during(patience).await;
    agent.seen.iter().any(|seen| matches!(seen, Seen::SnapshotEnd(_)))
}

/// Waits until a node that is gone is known to be. A frame that was on its way answers the first will.
async fn away(world: &World, node: &str) {
    world
        .until(async || {
            world.bus.send(&format!("lichen/v1/n/{node}/presence"), b"down");
            ready(&world.get(NODE, None, node).await.unwrap()) == "Unknown"
        })
        .await;
}

async fn gone(world: &World, node: &str) {
    world.wait(NODE, None, node, |node| node.is_null()).await;
    assert_eq!(world.get(LEASE, Some(NODE_LEASE_NAMESPACE), node).await, None);
}

async fn secret(world: &World, name: &str) {
    let object = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "stringData": { "k": "v" } });
    world.create(SECRET, DEFAULT, object).await;
}

async fn pod_with(world: &World, name: &str, node: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["nodeName"] = json!(node);
    spec["containers"] = spec["containers"].as_array().map_or(json!([{}]), |all| json!(all));
    spec["containers"][0]["name"] = json!("main");
    spec["containers"][0]["image"] = json!("hello:v1");
    let object = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name }, "spec": spec });
    world.create(POD, DEFAULT, object).await
}

fn uid(object: &Value) -> String {
    object["metadata"]["uid"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_node_renews_in_its_session_and_what_it_had_counts_until_it_uses_what_it_got() {
    let mut world = World::new().await;
    let mut machine = machine(&world, "edge-1").await;
    let csr = lichen_pki::Request::new().unwrap().csr_der;
    let key = renewal(&world, &machine.key, "edge-1", &csr, 1).within(&mut machine.agent).await.unwrap();
    assert!(key != machine.key);
    // Killed before it kept the answer, the node comes with what it had; and so it does after the gateway was killed.
    world.restart_gateway().await;
    assert!(connects(&world, "edge-1", &machine.key).await);
    for public_key in [&machine.public_key, &public_key(&world, &csr)] {
        assert!(world.admits("edge-1", public_key));
    }
    assert!(connects(&world, "edge-1", &key).await);
    // Now that it was used, the old key and the old certificate count no more; over a restart too.
    world.until(async || !world.admits("edge-1", &machine.public_key)).await;
    world.restart_gateway().await;
    assert!(!connects(&world, "edge-1", &machine.key).await);
    assert!(connects(&world, "edge-1", &key).await);
    assert!(world.admits("edge-1", &public_key(&world, &csr)));
    assert!(!world.admits("edge-2", &public_key(&world, &csr)), "another name is another node");
}

#[tokio::test]
async fn a_node_that_no_broker_takes_any_more_renews_over_the_join_topics() {
    let world = World::new().await;
    let machine = machine(&world, "edge-1").await;
    let csr = lichen_pki::Request::new().unwrap().csr_der;
    let late = renewal(&world, &machine.key, "edge-1", &csr, 1);
    let second = renewal(&world, &machine.key, "edge-1", &csr, 2).apart(&world).await.unwrap();
    // A bus that kept an earlier request back gets nothing for it, and takes nothing away.
    let mut replies = world.bus.subscribe("lichen/v1/join/zzzzzz/down");
    world.bus.send("lichen/v1/join/zzzzzz/up", &late.message);
    // Asked after it, this one is answered after it: for what was given and never used counts to renew, too.
    let third = renewal(&world, &second, "edge-1", &csr, 3);
    let third_key = third.apart(&world).await.unwrap();
    let answers: Vec<_> = std::iter::from_fn(|| replies.try_recv().ok()).collect();
    assert_eq!(answers.len(), 1, "the late one was not answered");
    assert!(connects(&world, "edge-1", &third_key).await);
    assert!(!connects(&world, "edge-1", &machine.key).await);

    // Who has no key of the node gets nothing, be it another node; nor does a renewal under another name in a session.
    let mut other = self::machine(&world, "edge-2").await;
    for (key, node) in
        [(NodeKey::from_bytes([7; 32]), "edge-1"), (other.key.clone(), "edge-1"), (third_key, "nobody")]
    {
        assert_eq!(refusal(renewal(&world, &key, node, &csr, 9).apart(&world).await), Refusal::Removed);
    }
    let foreign = renewal(&world, &other.key, "edge-1", &csr, 9);
    let mut request = vec![0; 2048];
    let len = StreamRequest::Renew { request: Blob(&foreign.message) }.write(&mut request).unwrap();
    let stream = other.agent.session.stream_open(&request[..len]).unwrap();
    other.agent.until(|seen| matches!(seen, Seen::Ended(id, Some(_)) if *id == stream)).await;
    let junk = renewal(&world, &other.key, "edge-2", b"no request", 9);
    assert_eq!(refusal(junk.apart(&world).await), Refusal::Request);
}

#[tokio::test]
async fn a_token_that_was_taken_back_lets_nobody_in() {
    let world = World::new().await;
    let token = world.token(Duration::from_secs(60)).await;
    let csr = lichen_pki::Request::new().unwrap().csr_der;
    let name = lichen_gateway::token_secret_name(token.id());
    let namespace = Some(lichen_gateway::TOKEN_NAMESPACE);
    world.registry.delete(&world.admin, SECRET, namespace, &name, &DeleteOptions::default()).await.unwrap();
    assert_eq!(refusal(join(&world.bus, &token, "edge-1", &csr).await), Refusal::Token);
}

#[tokio::test]
async fn a_revoked_device_is_out_at_once_and_for_good() {
    let mut world = World::new().await;
    let mut thief = machine(&world, "edge-1").await;
    let bystander = machine(&world, "edge-2").await;
    for name in ["past", "present", "pull", "never"] {
        secret(&world, name).await;
    }
    // A pod that has come and gone, one that is there, and one that the device was never sent the Secret of.
    let env = json!({ "containers": [{ "envFrom": [{ "secretRef": { "name": "past" } }] }] });
    pod_with(&world, "past", "edge-1", env).await;
    thief.agent.until(|seen| is_item(seen, "Secret", "default/past")).await;
    let now = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
    world.registry.delete(&world.admin, POD, DEFAULT, "past", &now).await.unwrap();
    let volume = json!({
        "volumes": [{ "name": "v", "secret": { "secretName": "present" } }],
        "imagePullSecrets": [{ "name": "pull" }],
    });
    let pod = pod_with(&world, "present", "edge-1", volume).await;
    thief.agent.until(|seen| is_item(seen, "Pod", "default/present")).await;
    let other = json!({ "containers": [{ "envFrom": [{ "secretRef": { "name": "never" } }] }] });
    pod_with(&world, "other", "edge-2", other).await;

    // The removal is held up halfway, and the gateway dies there.
    let hold = json!({ "metadata": { "finalizers": ["test/hold"] } });
    patch(&world, POD, DEFAULT, "present", hold).await;
    world.order("edge-1", Order::Revoke).await;
    thief.agent.until(|seen| *seen == Seen::Lost).await;
    let told = world
        .wait(NODE, None, "edge-1", |node| node["metadata"]["annotations"][RESULT_ANNOTATION].is_string())
        .await;
    assert_eq!(told["spec"]["unschedulable"], true);
    world.restart_gateway().await;
    // By now the device has no way back: with its key, its certificate, a renewal, or the token that it joined with.
    assert!(!connects(&world, "edge-1", &thief.key).await);
    assert!(!world.admits("edge-1", &thief.public_key));
    let fresh = lichen_pki::Request::new().unwrap().csr_der;
    let renewing = renewal(&world, &thief.key, "edge-1", &fresh, 1).apart(&world).await;
    assert_eq!(refusal(renewing), Refusal::Removed);
    for node in ["edge-1", "edge-9"] {
        assert_eq!(refusal(join(&world.bus, &thief.token, node, &fresh).await), Refusal::Token);
        // Even with another token its key pair counts no more, whatever name it takes.
        let token = world.token(Duration::from_secs(60)).await;
        assert_eq!(refusal(join(&world.bus, &token, node, &thief.csr).await), Refusal::Removed);
    }
    let token = world.token(Duration::from_secs(60)).await;
    assert_eq!(refusal(join(&world.bus, &token, "edge-1", &fresh).await), Refusal::NameTaken);

    let mut last = world.registry.store().watch("/core/nodes//edge-1", world.registry.revision()).unwrap();
    patch(&world, POD, DEFAULT, "present", json!({ "metadata": { "finalizers": null } })).await;
    gone(&world, "edge-1").await;
    assert_eq!(world.get(POD, DEFAULT, "present").await.map(|pod| uid(&pod)), None, "{pod}");
    assert!(world.get(POD, DEFAULT, "other").await.is_some());
    let result = loop {
        if let lichen_store::Event::Change(change) = last.next().await.unwrap()
            && change.new.is_none()
        {
            break change.old.as_ref().unwrap().value().unwrap()["metadata"]["annotations"]
                [RESULT_ANNOTATION]
                .clone();
        }
    };
    let result: Value = serde_json::from_str(result.as_str().unwrap()).unwrap();
    assert_eq!(
        result,
        json!({
            "joined": true,
            "tokens": [thief.token.id()],
            "secrets": ["default/past", "default/present", "default/pull"],
        })
    );
    assert!(connects(&world, "edge-2", &bystander.key).await, "nobody else is touched");

    // Another device may have the name, with a key pair and a token of its own.
    let key = join(&world.bus, &token, "edge-1", &fresh).await.unwrap();
    assert!(connects(&world, "edge-1", &key).await);
    assert!(!world.admits("edge-1", &thief.public_key));
}

#[tokio::test]
async fn a_revocation_can_be_asked_for_again_and_of_a_node_that_was_deleted() {
    let world = World::new().await;
    let thief = machine(&world, "edge-1").await;
    // Deleted while it was away: the machine is still trusted, and the order makes a Node to stand on.
    drop(thief.agent);
    away(&world, "edge-1").await;
    world.registry.delete(&world.admin, NODE, None, "edge-1", &DeleteOptions::default()).await.unwrap();
    assert!(world.admits("edge-1", &thief.public_key));
    let order = |node: &str| {
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": node, "annotations": { ORDER_ANNOTATION: Order::Revoke.name() } },
        })
    };
    for (node, joined) in [("edge-1", true), ("edge-1", true), ("never-there", false)] {
        let mut watch = world.registry.store().watch("/core/nodes//", world.registry.revision()).unwrap();
        world.create(NODE, None, order(node)).await;
        gone(&world, node).await;
        let mut told = Vec::new();
        while let Ok(Some(event)) = watch.try_next() {
            if let lichen_store::Event::Change(change) = event
                && let Some(record) = &change.new
            {
                let node = record.value().unwrap();
                told.extend(node["metadata"]["annotations"][RESULT_ANNOTATION].as_str().map(str::to_owned));
            }
        }
        let result: Value = serde_json::from_str(told.last().unwrap()).unwrap();
        assert_eq!(result["joined"], joined, "{node}");
    }
    assert!(!world.admits("edge-1", &thief.public_key));
}

#[tokio::test]
async fn a_node_is_decommissioned_in_good_order() {
    let world = World::new().await;
    let mut machine = machine(&world, "edge-1").await;
    let pod = pod_with(&world, "one", "edge-1", json!({})).await;
    machine.agent.until(|seen| is_item(seen, "Pod", "default/one")).await;
    // A node has no say in this.
    let mut own = node_object("edge-1");
    own["metadata"]["annotations"] = json!({ ORDER_ANNOTATION: "revoke", "own": "1" });
    machine.agent.report("Node", "edge-1", "", &own);
    let node = machine
        .agent
        .during(world.wait(NODE, None, "edge-1", |node| node["metadata"]["annotations"]["own"] == "1"))
        .await;
    assert!(node["metadata"]["annotations"][ORDER_ANNOTATION].is_null());

    world.order("edge-1", Order::Decommission).await;
    let ending = |seen: &Seen| matches!(seen, Seen::Item(kind, _, pod) if kind == "Pod" && !pod["metadata"]["deletionTimestamp"].is_null());
    let Seen::Item(_, _, item) = machine.agent.until(ending).await else { panic!() };
    assert_eq!(item["metadata"]["deletionGracePeriodSeconds"], 30, "it ends with its grace");
    assert_eq!(world.get(NODE, None, "edge-1").await.unwrap()["spec"]["unschedulable"], true);
    assert!(!machine.agent.seen.contains(&Seen::Leave), "first its pods end");
    machine.agent.report("PodGone", "default/one", &uid(&pod), &Value::Null);
    machine.agent.until(|seen| *seen == Seen::Leave).await;
    assert!(world.get(NODE, None, "edge-1").await.is_some(), "the node has not left yet");
    // A machine of the same key pair does not slip in again meanwhile.
    let token = world.token(Duration::from_secs(60)).await;
    assert_eq!(refusal(join(&world.bus, &token, "edge-1", &machine.csr).await), Refusal::Removed);
    machine.agent.report("Left", "edge-1", "", &Value::Null);
    machine.agent.until(|seen| *seen == Seen::Lost).await;
    gone(&world, "edge-1").await;
    assert!(!world.admits("edge-1", &machine.public_key));
    assert!(!connects(&world, "edge-1", &machine.key).await);
    // The name is free, and the machine, which wiped its keys, may join again.
    let fresh = lichen_pki::Request::new().unwrap().csr_der;
    let key = join(&world.bus, &token, "edge-1", &fresh).await.unwrap();
    assert!(connects(&world, "edge-1", &key).await);
}

#[tokio::test]
async fn a_node_that_is_away_is_decommissioned_without_it_and_told_when_it_comes_back() {
    let mut world = World::new().await;
    let mut machine = machine(&world, "edge-1").await;
    pod_with(&world, "one", "edge-1", json!({})).await;
    machine.agent.until(|seen| is_item(seen, "Pod", "default/one")).await;
    let Machine { agent, key, public_key, .. } = machine;
    drop(agent);
    away(&world, "edge-1").await;
    world.stop_gateway().await;
    world.order("edge-1", Order::Decommission).await;
    world.start_gateway().await;
    gone(&world, "edge-1").await;
    assert_eq!(world.get(POD, DEFAULT, "one").await, None);

    world.restart_gateway().await;
    assert!(world.admits("edge-1", &public_key), "or it could not be told");
    let mut back = Agent::new(&world.bus, "edge-1", key.clone(), None);
    back.until(|seen| *seen == Seen::Leave).await;
    back.report("Node", "edge-1", "", &node_object("edge-1"));
    back.report("Left", "edge-1", "", &Value::Null);
    back.until(|seen| *seen == Seen::Lost).await;
    assert_eq!(world.get(NODE, None, "edge-1").await, None, "it does not register again");
    assert!(!world.admits("edge-1", &public_key));
    assert!(!connects(&world, "edge-1", &key).await);
}

#[tokio::test]
async fn a_node_that_is_deleted_and_trusted_registers_again() {
    let world = World::new().await;
    let mut machine = machine(&world, "edge-1").await;
    machine.agent.until(|seen| is_item(seen, "Node", "edge-1")).await;
    let before = world.get(NODE, None, "edge-1").await.unwrap();
    world.registry.delete(&world.admin, NODE, None, "edge-1", &DeleteOptions::default()).await.unwrap();
    machine.agent.until(|seen| *seen == Seen::Remove("Node".to_owned(), "edge-1".to_owned())).await;
    assert_eq!(world.get(NODE, None, "edge-1").await, None);
    machine.agent.report("Node", "edge-1", "", &node_object("edge-1"));
    let after = machine.agent.during(world.wait(NODE, None, "edge-1", |node| ready(node) == "True")).await;
    assert_ne!(uid(&before), uid(&after));
    assert!(machine.agent.session.is_up() && !machine.agent.seen.contains(&Seen::Lost));
    // To leave without having been told is nothing that a node can do.
    machine.agent.report("Left", "edge-1", "", &Value::Null);
    machine.agent.report("Node", "edge-1", "", &node_object("edge-1"));
    assert!(world.admits("edge-1", &machine.public_key));
}

async fn patch(
    world: &World,
    resource: &'static lichen_api::Resource,
    namespace: Option<&str>,
    name: &str,
    patch: Value,
) {
    let (patch, options) = (lichen_registry::Patch::Merge(patch), lichen_registry::WriteOptions::default());
    world.registry.patch(&world.admin, resource, namespace, name, &patch, None, &options).await.unwrap();
}
