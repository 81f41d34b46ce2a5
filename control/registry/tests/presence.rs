//! What is known of nodes is shown to who reads, and written nowhere.

use std::collections::BTreeMap;

use jiff::Timestamp;
use lichen_api::{Resource, kinds};
use lichen_registry::{
    AllocationRanges, Identity, NODE_LEASE_NAMESPACE, NodePresence, Patch, Registry, Sources, WriteOptions,
};
use lichen_store::{HistoryBounds, Record, Store};
use serde_json::{Value, json};

const NODE: &Resource = &kinds::node::RESOURCE;
const LEASE: &Resource = &kinds::lease::RESOURCE;
const STORED: &str = "2026-01-01T00:00:00Z";
const STORED_MICRO: &str = "2026-01-01T00:00:00.000000Z";
const HEARD: &str = "2026-01-01T00:05:00Z";
const HEARD_MICRO: &str = "2026-01-01T00:05:00.250000Z";

struct Heard(BTreeMap<&'static str, Timestamp>);

impl NodePresence for Heard {
    fn last_heard(&self, node: &str) -> Option<Timestamp> {
        self.0.get(node).copied()
    }
}

struct World {
    registry: Registry,
    me: Identity,
    heard: Heard,
}

/// A registry with a node that is there, one that is not, and what could be taken for theirs.
async fn world() -> World {
    let now: Timestamp = STORED.parse().unwrap();
    let store = Store::memory(HistoryBounds::default());
    let registry = Registry::new(store, AllocationRanges::default(), Sources::new(move || now, || 7));
    registry.bootstrap(6443).await.unwrap();
    let heard = Heard(BTreeMap::from([("here", HEARD_MICRO.parse().unwrap())]));
    let world = World { registry, me: Identity::component("system:test"), heard };
    for name in ["here", "gone"] {
        let condition = |kind: &str| json!({ "type": kind, "status": "True", "lastHeartbeatTime": STORED, "lastTransitionTime": STORED });
        world
            .create(
                NODE,
                None,
                json!({
                    "apiVersion": "v1", "kind": "Node",
                    // Names and texts like those that are looked for, in every other place.
                    "metadata": { "name": name, "annotations": {
                        "lastHeartbeatTime": STORED, "note": format!("\"lastHeartbeatTime\":\"{STORED}\""),
                    }},
                    "status": { "conditions": [
                        condition("Ready"), condition("Watchdog"), condition("DiskPressure"),
                        { "type": "PIDPressure", "status": "False", "message": format!("\"lastHeartbeatTime\":\"{STORED}\"") },
                    ]},
                }),
            )
            .await;
    }
    for (namespace, name, holder) in [
        (NODE_LEASE_NAMESPACE, "here", "here"),
        (NODE_LEASE_NAMESPACE, "gone", "gone"),
        (NODE_LEASE_NAMESPACE, "stolen", "here"),
        ("default", "here", "here"),
    ] {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": name },
            "spec": { "holderIdentity": holder, "leaseDurationSeconds": 40, "acquireTime": STORED_MICRO, "renewTime": STORED_MICRO },
        });
        world.create(LEASE, Some(namespace), lease).await;
    }
    world
}

impl World {
    async fn create(&self, resource: &'static Resource, namespace: Option<&str>, object: Value) {
        let options = WriteOptions::default();
        self.registry.create(&self.me, resource, namespace, object, &options).await.unwrap();
    }

    async fn patch(&self, name: &str, sub: Option<&str>, patch: Value) {
        let options = WriteOptions::default();
        let patch = Patch::Merge(patch);
        self.registry.patch(&self.me, NODE, None, name, &patch, sub, &options).await.unwrap();
    }

    async fn stored(&self, resource: &'static Resource, namespace: Option<&str>, name: &str) -> Record {
        self.registry.get(resource, namespace, name).await.unwrap()
    }

    async fn shown(&self, resource: &'static Resource, namespace: Option<&str>, name: &str) -> Value {
        let record = self.stored(resource, namespace, name).await;
        let revision = record.revision();
        let shown = self.registry.present(resource, record, &self.heard);
        assert_eq!(shown.revision(), revision);
        shown.value().unwrap()
    }
}

#[tokio::test]
async fn a_nodes_heartbeats_are_when_it_was_heard_and_nothing_else_is_touched() {
    let world = world().await;
    let before = world.registry.revision();
    for (name, time) in [("here", HEARD), ("gone", STORED)] {
        let mut expect = world.stored(NODE, None, name).await.value().unwrap();
        for at in [0, 2] {
            expect["status"]["conditions"][at]["lastHeartbeatTime"] = json!(time);
        }
        assert_eq!(world.shown(NODE, None, name).await, expect, "{name}");
    }
    assert_eq!(world.registry.revision(), before, "reading writes nothing");
}

#[tokio::test]
async fn a_nodes_own_lease_is_renewed_when_it_was_heard() {
    let world = world().await;
    for (namespace, name, time) in [
        (NODE_LEASE_NAMESPACE, "here", HEARD_MICRO),
        (NODE_LEASE_NAMESPACE, "gone", STORED_MICRO),
        (NODE_LEASE_NAMESPACE, "stolen", STORED_MICRO),
        ("default", "here", STORED_MICRO),
    ] {
        let mut expect = world.stored(LEASE, Some(namespace), name).await.value().unwrap();
        expect["spec"]["renewTime"] = json!(time);
        assert_eq!(world.shown(LEASE, Some(namespace), name).await, expect, "{namespace}/{name}");
    }
}

#[tokio::test]
async fn what_was_is_shown_as_it_was_and_no_time_goes_back() {
    let world = world().await;
    let old = world.stored(NODE, None, "here").await;
    let later = "2026-01-01T00:09:00Z";
    let ready = json!({ "type": "Ready", "status": "Unknown", "lastHeartbeatTime": later });
    world.patch("here", Some("status"), json!({ "status": { "conditions": [ready] } })).await;
    let shown = world.registry.present(NODE, old.clone(), &world.heard);
    assert_eq!(shown, old, "an object's past is not what is known today");
    let shown = world.shown(NODE, None, "here").await;
    assert_eq!(shown["status"]["conditions"][0]["lastHeartbeatTime"], later);
}
