//! Nodes join, are sent what they should run, and report.

mod common;

use std::time::Duration;

use common::{Agent, Seen, World, is_item, join, node_object, ready};
use lichen_api::kinds;
use lichen_registry::DeleteOptions;
use lichen_wire::join::{JoinError, Refusal};
use serde_json::{Value, json};

const POD: &lichen_api::Resource = &kinds::pod::RESOURCE;
const NODE: &lichen_api::Resource = &kinds::node::RESOURCE;
const LEASE: &lichen_api::Resource = &kinds::lease::RESOURCE;
const NODE_LEASES: Option<&str> = Some(lichen_registry::NODE_LEASE_NAMESPACE);
const EVENT: &lichen_api::Resource = &kinds::event::RESOURCE;
const DEFAULT: Option<&str> = Some("default");

fn uid(object: &Value) -> String {
    object["metadata"]["uid"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_node_joins_runs_a_pod_and_lets_it_go() {
    let world = World::new().await;
    let config = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "config" }, "data": { "a": "b" } });
    world.create(&kinds::configmap::RESOURCE, DEFAULT, config).await;
    let mut agent = world.node("edge-1").await;
    let services = agent.seen.iter().filter(|seen| is_item(seen, "Service", "default/kubernetes")).count();
    assert_eq!(services, 1, "every node knows every Service");
    assert!(!agent.seen.iter().any(|seen| matches!(seen, Seen::Item(kind, ..) if kind != "Service")));

    agent.report("Node", "edge-1", "", &node_object("edge-1"));
    let node = agent.during(world.wait(NODE, None, "edge-1", |node| ready(node) == "True")).await;
    assert_eq!(node["status"]["allocatable"]["pods"], "110");
    assert!(node["spec"]["podCIDR"].as_str().unwrap().ends_with("/24"));
    let Seen::Item(_, _, own) = agent.until(|seen| is_item(seen, "Node", "edge-1")).await else { panic!() };
    assert_eq!(own["spec"]["podCIDR"], node["spec"]["podCIDR"], "the node learns its pods' addresses");
    let managers = node["metadata"]["managedFields"].to_string();
    assert!(managers.contains("edge-1"), "written under the node's own name: {managers}");

    let pod = world.pod("one", "edge-1").await;
    agent.until(|seen| is_item(seen, "ConfigMap", "default/config")).await;
    let Seen::Item(_, _, item) = agent.until(|seen| is_item(seen, "Pod", "default/one")).await else {
        panic!()
    };
    assert_eq!(
        (&item["metadata"]["uid"], &item["spec"]["nodeName"]),
        (&pod["metadata"]["uid"], &json!("edge-1"))
    );
    assert!(item["metadata"]["managedFields"].is_null());

    let running =
        json!({ "metadata": { "name": "one" }, "status": { "phase": "Running", "podIP": "10.64.1.2" } });
    agent.report("Pod", "default/one", &uid(&pod), &running);
    let is = |phase: &'static str| move |pod: &Value| pod["status"]["phase"] == phase;
    let pod = agent.during(world.wait(POD, DEFAULT, "one", is("Running"))).await;
    assert_eq!(pod["status"]["qosClass"], "BestEffort", "what the node does not decide stays");

    // Said again, all of it changes nothing. An event comes after them to show that they were taken.
    let before = world.registry.revision();
    agent.report("Node", "edge-1", "", &node_object("edge-1"));
    agent.report("Pod", "default/one", &uid(&pod), &running);
    let event = |count: u64| {
        json!({
            "metadata": { "name": "one.started", "namespace": "default" },
            "involvedObject": { "kind": "Pod", "namespace": "default", "name": "one", "uid": uid(&pod) },
            "reason": "Started", "message": "started", "type": "Normal", "count": count,
            "firstTimestamp": "2026-11-22T12:00:00Z", "lastTimestamp": "2026-11-22T12:00:00Z",
            "source": { "component": "lichen-agent" },
        })
    };
    agent.report("Event", "default/one.started", "", &event(1));
    agent.during(world.wait(EVENT, DEFAULT, "one.started", |event| event["count"] == 1)).await;
    assert_eq!(world.registry.revision().0, before.0 + 1, "the event is the only write");
    agent.report("Event", "default/one.started", "", &event(2));
    agent.during(world.wait(EVENT, DEFAULT, "one.started", |event| event["count"] == 2)).await;

    let options = DeleteOptions::default();
    let deleted = world.registry.delete(&world.admin, POD, DEFAULT, "one", &options).await.unwrap();
    assert!(!deleted.gone, "it waits for its node");
    let going = |seen: &Seen| matches!(seen, Seen::Item(kind, _, pod) if kind == "Pod" && !pod["metadata"]["deletionTimestamp"].is_null());
    agent.until(going).await;
    agent.report("PodGone", "default/one", &uid(&pod), &Value::Null);
    agent.until(|seen| *seen == Seen::Remove("Pod".to_owned(), "default/one".to_owned())).await;
    agent.until(|seen| *seen == Seen::Remove("ConfigMap".to_owned(), "default/config".to_owned())).await;
    assert_eq!(world.get(POD, DEFAULT, "one").await, None);
    world.gateway.unwrap().shutdown().await;
}

#[tokio::test]
async fn a_node_touches_nothing_that_is_not_its_own() {
    let world = World::new().await;
    let mut bad = world.node("bad").await;
    let mut good = world.node("good").await;
    bad.report("Node", "bad", "", &node_object("bad"));
    good.report("Node", "good", "", &node_object("good"));
    bad.during(world.wait(NODE, None, "bad", |node| ready(node) == "True")).await;
    good.during(world.wait(NODE, None, "good", |node| ready(node) == "True")).await;
    let theirs = world.pod("theirs", "good").await;
    let own = world.pod("own", "bad").await;
    let before = world.registry.revision();

    let failed = json!({ "status": { "phase": "Failed" } });
    bad.report("Pod", "default/theirs", &uid(&theirs), &failed);
    bad.report("Pod", "default/own", "an-earlier-uid", &failed);
    bad.report("PodGone", "default/theirs", &uid(&theirs), &Value::Null);
    bad.report("PodGone", "default/own", &uid(&own), &Value::Null);
    bad.report("Node", "good", "", &node_object("good"));
    bad.report("Node", "bad", "", &node_object("other"));
    let mut labelled = node_object("bad");
    for label in ["node-restriction.kubernetes.io/trusted", "node-role.kubernetes.io/control-plane"] {
        labelled["metadata"]["labels"][label] = json!("");
    }
    bad.report("Node", "bad", "", &labelled);
    bad.report("Secret", "default/x", "", &json!({ "data": {} }));
    bad.report("Pod", "no-namespace", &uid(&own), &failed);
    bad.session.report("Pod", "default/own", &uid(&own), b"\xff\xff").unwrap();
    let event = |pod: &Value| {
        json!({
            "metadata": { "name": "lie", "namespace": "default" },
            "involvedObject": { "kind": "Pod", "namespace": "default", "name": pod["metadata"]["name"], "uid": uid(pod) },
            "reason": "Lie", "message": "", "type": "Warning", "count": 1,
            "source": { "component": "lichen-agent" },
        })
    };
    bad.report("Event", "default/lie", "", &event(&theirs));
    // The last one is right, and shows that all before were judged.
    let mut truth = event(&own);
    truth["metadata"]["name"] = json!("truth");
    bad.report("Event", "default/truth", "", &truth);
    bad.during(world.wait(EVENT, DEFAULT, "truth", |event| event["count"] == 1)).await;
    assert_eq!(world.registry.revision().0, before.0 + 1, "nothing else was written");
    assert_eq!(world.get(EVENT, DEFAULT, "lie").await, None);

    // Another node's event of that name is not the good node's to count.
    let mut stolen = event(&theirs);
    stolen["metadata"]["name"] = json!("truth");
    stolen["count"] = json!(7);
    good.report("Event", "default/truth", "", &stolen);
    let mut done = event(&theirs);
    done["metadata"]["name"] = json!("done");
    good.report("Event", "default/done", "", &done);
    good.during(world.wait(EVENT, DEFAULT, "done", |event| event["count"] == 1)).await;
    assert_eq!(world.get(EVENT, DEFAULT, "truth").await.unwrap()["count"], 1);
}

#[tokio::test]
async fn a_hostile_bus_changes_nothing() {
    let world = World::new().await;
    let mut one = world.node("one").await;
    one.report("Node", "one", "", &node_object("one"));
    one.during(world.wait(NODE, None, "one", |node| ready(node) == "True")).await;
    let two = world.node("two").await;
    let before = world.registry.revision();
    for frame in &one.sent {
        // Replayed, sent under another name, cut short, and with a flipped bit.
        world.bus.send("lichen/v1/n/one/up", frame);
        world.bus.send("lichen/v1/n/two/up", frame);
        world.bus.send("lichen/v1/n/unknown/up", frame);
        world.bus.send("lichen/v1/n/one/up", &frame[..frame.len() / 2]);
        let mut flipped = frame.clone();
        *flipped.last_mut().unwrap() ^= 1;
        world.bus.send("lichen/v1/n/one/up", &flipped);
        world.bus.send("lichen/v1/join/abcdef/up", frame);
        world.bus.send("lichen/v1/n/one/down", frame);
        world.bus.send("else/where", frame);
    }
    let pod = world.pod("own", "one").await;
    one.until(|seen| is_item(seen, "Pod", "default/own")).await;
    one.report("Pod", "default/own", &uid(&pod), &json!({ "status": { "phase": "Running" } }));
    one.during(world.wait(POD, DEFAULT, "own", |pod| pod["status"]["phase"] == "Running")).await;
    assert_eq!(world.registry.revision().0, before.0 + 2, "the pod and its status are the only writes");
    assert!(one.session.is_up() && two.session.is_up());
    assert!(!one.seen.contains(&Seen::Lost));
}

#[tokio::test]
async fn only_a_valid_token_lets_a_machine_join() {
    let world = World::new().await;
    let csr = || lichen_pki::Request::new().unwrap().csr_der;
    let token = world.token(Duration::from_secs(60)).await;
    let own = csr();
    join(&world.bus, &token, "edge-1", &own).await.unwrap();

    let refused = |result: Result<_, JoinError>| match result {
        Err(JoinError::Refused(refusal)) => refusal,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("joined"),
    };
    let guessed = lichen_wire::join::Token::new(token.id(), "0123456789abcdef", *token.ca_digest()).unwrap();
    assert_eq!(refused(join(&world.bus, &guessed, "edge-2", &csr()).await), Refusal::Token);
    let unknown = lichen_wire::join::Token::new("nobody", "0123456789abcdef", *token.ca_digest()).unwrap();
    assert_eq!(refused(join(&world.bus, &unknown, "edge-2", &csr()).await), Refusal::Token);
    let pinned = lichen_wire::join::Token::new(token.id(), token.secret(), [9; 32]).unwrap();
    assert_eq!(refused(join(&world.bus, &pinned, "edge-2", &csr()).await), Refusal::Token);
    let expired = world.token(Duration::ZERO).await;
    assert_eq!(refused(join(&world.bus, &expired, "edge-2", &csr()).await), Refusal::Token);
    assert_eq!(refused(join(&world.bus, &token, "edge-2", b"no request").await), Refusal::Request);

    // The machine itself may ask again, another one may not once the Node is there.
    let mut agent =
        Agent::new(&world.bus, "edge-1", join(&world.bus, &token, "edge-1", &own).await.unwrap(), None);
    agent.until(|seen| matches!(seen, Seen::Connected(_))).await;
    agent.report("Node", "edge-1", "", &node_object("edge-1"));
    agent.during(world.wait(NODE, None, "edge-1", |node| ready(node) == "True")).await;
    assert_eq!(refused(join(&world.bus, &token, "edge-1", &csr()).await), Refusal::NameTaken);
    join(&world.bus, &token, "edge-1", &own).await.unwrap();
}

#[tokio::test]
async fn a_replayed_join_takes_no_key_away() {
    let mut world = World::new().await;
    let token = world.token(Duration::from_secs(60)).await;
    let csr = lichen_pki::Request::new().unwrap().csr_der;
    let mut said = world.bus.tap();
    let key = join(&world.bus, &token, "edge-1", &csr).await.unwrap();
    let message = said.recv().await.unwrap();
    // A gateway that has forgotten its replies gets the same message from the bus.
    world.restart_gateway().await;
    world.bus.send(&message.topic, &message.payload);
    let other = world.token(Duration::from_secs(60)).await;
    let csr = lichen_pki::Request::new().unwrap().csr_der;
    join(&world.bus, &other, "edge-2", &csr).await.unwrap();
    let mut agent = Agent::new(&world.bus, "edge-1", key, None);
    agent.until(|seen| matches!(seen, Seen::SnapshotEnd(_))).await;
}

#[tokio::test]
async fn a_silent_node_becomes_unknown_and_comes_back() {
    let world = World::new().await;
    let mut agent = world.node("edge-1").await;
    agent.report("Node", "edge-1", "", &node_object("edge-1"));
    agent.during(world.wait(NODE, None, "edge-1", |node| ready(node) == "True")).await;
    // A will that somebody made up: the node answers the probe and stays.
    world.bus.send("lichen/v1/n/edge-1/presence", b"down");
    agent.during(tokio::time::sleep(Duration::from_millis(600))).await;
    assert_eq!(ready(&world.get(NODE, None, "edge-1").await.unwrap()), "True");
    // The will again, and the node is really gone.
    world.bus.send("lichen/v1/n/edge-1/presence", b"down");
    let node = world.wait(NODE, None, "edge-1", |node| ready(node) == "Unknown").await;
    for condition in node["status"]["conditions"].as_array().unwrap() {
        let reason = match condition["type"].as_str() {
            Some("Ready" | "MemoryPressure") => "NodeStatusUnknown",
            _ => "NodeStatusNeverUpdated",
        };
        assert_eq!(condition["reason"], reason, "{condition}");
    }
    // It has something to say before it would have made itself heard, and hears that it is not known.
    agent.report("Node", "edge-1", "", &node_object("edge-1"));
    agent.until(|seen| matches!(seen, Seen::Connected(_))).await;
    let node = agent
        .during(world.wait(NODE, None, "edge-1", |node| {
            ready(node) == "True" && !node["status"]["conditions"].to_string().contains("NodeStatusUnknown")
        }))
        .await;
    assert_eq!(ready(&node), "True");
}

#[tokio::test]
async fn a_connected_node_is_shown_as_heard_without_a_write_and_a_lost_one_as_it_was_last() {
    let mut world = World::new().await;
    let mut agent = world.node("edge-1").await;
    agent.report("Node", "edge-1", "", &node_object("edge-1"));
    agent.during(world.wait(LEASE, NODE_LEASES, "edge-1", |lease| lease.is_object())).await;
    let node = world.get(NODE, None, "edge-1").await.unwrap();
    let lease = world.get(LEASE, NODE_LEASES, "edge-1").await.unwrap();
    assert_eq!(
        lease["metadata"]["ownerReferences"][0]["uid"], node["metadata"]["uid"],
        "it goes with the Node"
    );
    assert_eq!(lease["spec"]["holderIdentity"], "edge-1");

    // Each time that the node makes itself heard, the shown times go on, and nothing is written.
    let before = world.registry.revision();
    for _ in 0..3 {
        let (shown, beat) = (world.renewed().await, world.heartbeat().await);
        agent.during(tokio::time::sleep(Duration::from_millis(1100))).await;
        world.bus.send("lichen/v1/n/edge-1/presence", b"down");
        agent
            .during(world.until(async || world.renewed().await > shown && world.heartbeat().await > beat))
            .await;
    }
    assert_eq!(world.registry.revision(), before, "presence is memory");
    assert_eq!(world.get(LEASE, NODE_LEASES, "edge-1").await.unwrap(), lease);

    // What a bus sends again is no sign of life.
    let shown = world.renewed().await;
    for frame in &agent.sent {
        world.bus.send("lichen/v1/n/edge-1/up", frame);
    }
    world.bus.send("lichen/v1/n/edge-1/presence", b"down");
    let node = world.wait(NODE, None, "edge-1", |node| ready(node) == "Unknown").await;
    assert_eq!(world.renewed().await, shown, "a lost node's lease is as old as the node's last word");
    let ready = node["status"]["conditions"].as_array().unwrap().iter().find(|one| one["type"] == "Ready");
    assert_eq!(world.heartbeat().await, ready.unwrap()["lastHeartbeatTime"], "and so is what is written");

    // Another gateway knows it from there.
    world.restart_gateway().await;
    assert_eq!(world.heartbeat().await, ready.unwrap()["lastHeartbeatTime"]);
    assert_eq!(world.renewed().await[..19], shown[..19]);
}

#[tokio::test]
async fn a_lease_that_was_deleted_comes_back_and_one_of_an_earlier_node_is_taken_over() {
    let world = World::new().await;
    let mut agent = world.node("edge-1").await;
    let owned = |uid: String| move |lease: &Value| lease["metadata"]["ownerReferences"][0]["uid"] == uid;
    agent.report("Node", "edge-1", "", &node_object("edge-1"));
    let node = agent.during(world.wait(NODE, None, "edge-1", |node| ready(node) == "True")).await;
    agent.during(world.wait(LEASE, NODE_LEASES, "edge-1", owned(uid(&node)))).await;

    let options = DeleteOptions::default();
    world.registry.delete(&world.admin, LEASE, NODE_LEASES, "edge-1", &options).await.unwrap();
    agent.report("Node", "edge-1", "", &node_object("edge-1"));
    agent.during(world.wait(LEASE, NODE_LEASES, "edge-1", owned(uid(&node)))).await;

    world.registry.delete(&world.admin, NODE, None, "edge-1", &options).await.unwrap();
    agent.report("Node", "edge-1", "", &node_object("edge-1"));
    let again = agent.during(world.wait(NODE, None, "edge-1", |node| ready(node) == "True")).await;
    assert_ne!(uid(&again), uid(&node));
    agent.during(world.wait(LEASE, NODE_LEASES, "edge-1", owned(uid(&again)))).await;
}

#[tokio::test]
async fn a_node_that_is_back_is_ready_before_its_pods_are() {
    let world = World::new().await;
    let mut agent = world.node("edge-1").await;
    agent.report("Node", "edge-1", "", &node_object("edge-1"));
    agent.during(world.wait(NODE, None, "edge-1", |node| ready(node) == "True")).await;
    let pod = world.pod("own", "edge-1").await;
    world.bus.send("lichen/v1/n/edge-1/presence", b"down");
    world.wait(NODE, None, "edge-1", |node| ready(node) == "Unknown").await;

    let start = world.registry.revision();
    let running =
        json!({ "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] } });
    agent.report("Pod", "default/own", &uid(&pod), &running);
    agent.during(world.wait(POD, DEFAULT, "own", |pod| ready(pod) == "True")).await;
    let mut watch = world.registry.store().watch("/core/", start).unwrap();
    let mut kinds = Vec::new();
    while let Some(event) = watch.try_next().unwrap() {
        if let lichen_store::Event::Change(change) = event {
            let object = change.new.as_ref().unwrap().value().unwrap();
            assert_eq!(ready(&object), "True");
            kinds.push(object["kind"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(kinds, ["Node", "Pod"]);
}

#[tokio::test]
async fn a_new_gateway_takes_over_with_a_higher_epoch() {
    let mut world = World::new().await;
    let mut agent = world.node("edge-1").await;
    let Some(Seen::Connected(first)) = agent.seen.first().cloned() else { panic!("{:?}", agent.seen) };
    world.restart_gateway().await;
    let Seen::Connected(second) = agent.until(|seen| matches!(seen, Seen::Connected(_))).await else {
        panic!()
    };
    assert!(second > first);
    agent.until(|seen| matches!(seen, Seen::SnapshotEnd(_) | Seen::Synced(_))).await;
    world.pod("one", "edge-1").await;
    agent.until(|seen| is_item(seen, "Pod", "default/one")).await;
}
