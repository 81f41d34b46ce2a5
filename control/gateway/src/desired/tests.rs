use std::collections::BTreeMap;

use lichen_store::{Draft, Revision};
use serde_json::{Value, json};

use super::*;

/// A desired state, and what a node has made of what it was sent.
#[derive(Default)]
struct World {
    desired: Desired,
    version: u64,
    nodes: BTreeMap<String, BTreeMap<ItemKey, u64>>,
}

impl World {
    fn put(&mut self, kind: Kind, key: &str, mut object: Value) {
        self.version += 1;
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        object["metadata"]["namespace"] = json!(namespace);
        object["metadata"]["name"] = json!(name);
        let none: [(&str, &str); 0] = [];
        let record = Draft::new(&object, none).at(Revision(self.version), Revision(self.version));
        self.desired.change(kind, key, Some(record), self.version);
    }

    fn remove(&mut self, kind: Kind, key: &str) {
        self.version += 1;
        self.desired.change(kind, key, None, self.version);
    }

    fn attach(&mut self, node: &str, has: Option<u64>) -> bool {
        let (start, _) = self.desired.attach(node, has);
        let snapshot = matches!(start, Start::Snapshot { .. });
        if snapshot {
            self.nodes.insert(node.to_owned(), BTreeMap::new());
        }
        snapshot
    }

    /// Sends a node everything that waits, a few objects at a time; yields what it was sent, in order.
    fn sync(&mut self, node: &str) -> Vec<String> {
        let mut said = Vec::new();
        loop {
            let taken = self.desired.take(node, 2);
            let has = self.nodes.get_mut(node).unwrap();
            for delta in taken.deltas {
                match delta {
                    Delta::Put(item) => {
                        said.push(format!("+{} {}", item.kind.name(), item.key));
                        has.insert(item.id(), item.version);
                    }
                    Delta::Remove(id, _) => {
                        said.push(format!("-{} {}", id.0.name(), id.1));
                        has.remove(&id);
                    }
                }
            }
            if let Some(version) = taken.synced {
                assert_eq!(version, self.version);
                return said;
            }
        }
    }
}

fn pod(node: &str, config: &str) -> Value {
    json!({
        "metadata": {},
        "spec": { "nodeName": node, "containers": [{ "envFrom": [{ "configMapRef": { "name": config } }] }] },
        "status": { "phase": "Pending" },
    })
}

#[test]
fn a_node_gets_its_pods_with_what_they_name_and_no_more() {
    let mut world = World::default();
    for name in ["default/a", "default/b", "other/a"] {
        world.put(Kind::ConfigMap, name, json!({ "data": {} }));
    }
    world.put(Kind::Service, "default/web", json!({}));
    world.put(Kind::Pod, "default/one", pod("n1", "a"));
    world.put(Kind::Pod, "default/two", pod("n2", "b"));
    world.put(Kind::Pod, "default/none", pod("", "b"));
    assert!(world.attach("n1", None));
    assert_eq!(world.sync("n1"), ["+ConfigMap default/a", "+Service default/web", "+Pod default/one"]);
    assert!(world.attach("n3", None));
    assert_eq!(world.sync("n3"), ["+Service default/web"]);

    world.put(Kind::ConfigMap, "default/a", json!({ "data": { "x": "y" } }));
    assert_eq!(world.sync("n1"), ["+ConfigMap default/a"]);
    world.put(Kind::ConfigMap, "default/b", json!({ "data": { "x": "y" } }));
    assert_eq!(world.sync("n1"), Vec::<String>::new(), "it names no such thing");
    world.put(Kind::Pod, "default/none", pod("n1", "b"));
    assert_eq!(world.sync("n1"), ["+ConfigMap default/b", "+Pod default/none"], "bound: first what it needs");
    world.remove(Kind::Pod, "default/none");
    assert_eq!(world.sync("n1"), ["-Pod default/none", "-ConfigMap default/b"], "first who needs it");
}

#[test]
fn what_two_pods_name_stays_until_both_are_gone() {
    let mut world = World::default();
    world.put(Kind::ConfigMap, "default/a", json!({}));
    world.put(Kind::Pod, "default/one", pod("n1", "a"));
    world.put(Kind::Pod, "default/two", pod("n1", "a"));
    world.attach("n1", None);
    world.sync("n1");
    world.remove(Kind::Pod, "default/one");
    assert_eq!(world.sync("n1"), ["-Pod default/one"]);
    world.remove(Kind::Pod, "default/two");
    assert_eq!(world.sync("n1"), ["-Pod default/two", "-ConfigMap default/a"]);
}

#[test]
fn a_status_is_not_told_back() {
    let mut world = World::default();
    world.put(Kind::Pod, "default/one", pod("n1", "a"));
    world.attach("n1", None);
    world.sync("n1");
    let mut running = pod("n1", "a");
    running["status"]["phase"] = json!("Running");
    running["metadata"]["managedFields"] = json!([{ "manager": "agent" }]);
    world.put(Kind::Pod, "default/one", running.clone());
    assert_eq!(world.sync("n1"), Vec::<String>::new());
    running["metadata"]["deletionTimestamp"] = json!("2026-11-22T12:00:00Z");
    world.put(Kind::Pod, "default/one", running);
    assert_eq!(world.sync("n1"), ["+Pod default/one"]);
}

#[test]
fn a_node_hears_of_its_own_node_and_not_of_its_status() {
    let mut world = World::default();
    world.attach("n1", None);
    world.sync("n1");
    world.put(Kind::Node, "n1", json!({ "metadata": {}, "spec": { "podCIDR": "10.64.1.0/24" } }));
    world.put(Kind::Node, "n2", json!({ "metadata": {}, "spec": { "podCIDR": "10.64.2.0/24" } }));
    assert_eq!(world.sync("n1"), ["+Node n1"]);
    let status = json!({ "capacity": {} });
    world.put(Kind::Node, "n1", json!({ "spec": { "podCIDR": "10.64.1.0/24" }, "status": status }));
    assert_eq!(world.sync("n1"), Vec::<String>::new());
    world.put(Kind::Pod, "default/one", pod("n1", "a"));
    world.attach("n1", None);
    assert_eq!(world.sync("n1"), ["+Node n1", "+Pod default/one"], "the node first: pods need its addresses");
    world.remove(Kind::Node, "n1");
    assert_eq!(world.sync("n1"), ["-Node n1"]);
}

#[test]
fn an_object_that_comes_after_the_pod_that_names_it_is_sent() {
    let mut world = World::default();
    world.put(Kind::Pod, "default/one", pod("n1", "late"));
    world.attach("n1", None);
    assert_eq!(world.sync("n1"), ["+Pod default/one"]);
    world.put(Kind::ConfigMap, "default/late", json!({}));
    assert_eq!(world.sync("n1"), ["+ConfigMap default/late"]);
}

#[test]
fn a_node_that_has_everything_gets_nothing_and_one_that_lags_a_snapshot() {
    let mut world = World::default();
    world.put(Kind::Pod, "default/one", pod("n1", "a"));
    world.attach("n1", None);
    world.sync("n1");
    let has = world.version;
    world.desired.detach("n1");
    world.put(Kind::Pod, "default/two", pod("n2", "a"));
    assert!(!world.attach("n1", Some(has)), "what changed meanwhile is not its business");
    world.put(Kind::Pod, "default/three", pod("n1", "a"));
    assert!(world.attach("n1", Some(has)));
    assert!(world.attach("n1", Some(world.version + 5)), "a version from the future is none");
}

#[test]
fn loading_again_tells_the_differences() {
    let mut world = World::default();
    world.put(Kind::ConfigMap, "default/a", json!({}));
    world.put(Kind::Pod, "default/one", pod("n1", "a"));
    world.put(Kind::Pod, "default/two", pod("n1", "a"));
    world.attach("n1", None);
    world.sync("n1");
    let none: [(&str, &str); 0] = [];
    let record = |object: &Value, at: u64| Draft::new(object, none).at(Revision(at), Revision(at));
    let mut two = pod("n1", "b");
    two["metadata"] = json!({ "namespace": "default", "name": "two" });
    let objects = vec![
        (Kind::ConfigMap, "default/a".to_owned(), record(&json!({}), 1)),
        (Kind::ConfigMap, "default/b".to_owned(), record(&json!({}), 8)),
        (Kind::Pod, "default/two".to_owned(), record(&two, 9)),
    ];
    world.version = 10;
    world.desired.load(objects, 10);
    let said = world.sync("n1");
    assert_eq!(
        said,
        ["+ConfigMap default/b", "+Pod default/two", "-Pod default/one", "-ConfigMap default/a"]
    );
}

#[test]
fn what_could_not_be_sent_is_sent_later_unless_it_is_old() {
    let mut world = World::default();
    world.put(Kind::Pod, "default/one", pod("n1", "a"));
    world.put(Kind::Pod, "default/two", pod("n1", "a"));
    world.attach("n1", None);
    let taken = world.desired.take("n1", 8).deltas;
    world.remove(Kind::Pod, "default/one");
    world.desired.give_back("n1", taken);
    assert_eq!(world.sync("n1"), ["+Pod default/two", "-Pod default/one"]);
}
