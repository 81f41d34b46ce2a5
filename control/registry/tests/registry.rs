//! The registry over a store in memory: what is written, what is refused, and what is never left behind.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use lichen_api::{Resource, Status, kinds};
use lichen_registry::{
    AllocationRanges, Binding, DeleteOptions, Identity, ListOptions, Patch, Propagation, Registry, Sources,
    WatchEvent, WatchOptions, WriteOptions, Written,
};
use lichen_store::{HistoryBounds, RangeOptions, Store, Term};
use serde_json::{Value, json};

const MAP: &Resource = &kinds::configmap::RESOURCE;
const POD: &Resource = &kinds::pod::RESOURCE;
const SERVICE: &Resource = &kinds::service::RESOURCE;
const NODE: &Resource = &kinds::node::RESOURCE;
const NAMESPACE: &Resource = &kinds::namespace::RESOURCE;

struct World {
    registry: Registry,
    me: Identity,
}

/// A registry whose time stands still and whose randomness is a counter, spread over all bits.
async fn world() -> World {
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let drawn = AtomicU64::new(0);
    let random = move || {
        let number = u128::from(drawn.fetch_add(1, Ordering::Relaxed) + 1);
        number.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)
    };
    let store = Store::memory(HistoryBounds::default());
    let registry = Registry::new(store, AllocationRanges::default(), Sources::new(move || now, random));
    registry.bootstrap(6443).await.unwrap();
    World { registry, me: Identity::component("system:controller:tester") }
}

/// A kind as the registry takes it: the table's own entry.
fn entry(resource: &Resource) -> &'static Resource {
    lichen_api::by_plural(resource.group, resource.version, resource.plural).unwrap()
}

fn home(resource: &Resource) -> Option<&'static str> {
    resource.namespaced.then_some("default")
}

impl World {
    async fn create(&self, resource: &Resource, object: Value) -> Result<Written, Status> {
        let resource = entry(resource);
        self.registry.create(&self.me, resource, home(resource), object, &WriteOptions::default()).await
    }

    async fn get(&self, resource: &Resource, name: &str) -> Result<Value, Status> {
        let resource = entry(resource);
        Ok(self.registry.get(resource, home(resource), name).await?.value().unwrap())
    }

    async fn merge(
        &self,
        resource: &Resource,
        name: &str,
        sub: Option<&str>,
        patch: Value,
    ) -> Result<Written, Status> {
        let (resource, patch) = (entry(resource), Patch::Merge(patch));
        let options = WriteOptions::default();
        self.registry.patch(&self.me, resource, home(resource), name, &patch, sub, &options).await
    }

    async fn delete(&self, resource: &Resource, name: &str, options: DeleteOptions) -> Result<bool, Status> {
        let resource = entry(resource);
        self.registry
            .delete(&self.me, resource, home(resource), name, &options)
            .await
            .map(|deleted| deleted.gone)
    }

    /// The keys of everything that is allocated.
    fn allocated(&self) -> BTreeSet<String> {
        let page = self.registry.store().range("/allocations/", &RangeOptions::default()).unwrap();
        page.items
            .iter()
            .map(|(key, _)| key.as_str().trim_start_matches("/allocations/").to_owned())
            .collect()
    }
}

fn map(name: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"k": "v"}})
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

fn service(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    if spec.get("ports").is_none() {
        spec["ports"] = json!([{"port": 80}]);
    }
    json!({"metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn what_the_server_sets_on_a_new_object() {
    let world = world().await;
    let mut object = map("a");
    object["metadata"]["uid"] = json!("mine");
    object["metadata"]["deletionTimestamp"] = json!("2020-01-01T00:00:00Z");
    let written = world.create(MAP, object).await.unwrap();
    assert!(written.created && written.changed);
    let value = written.record.value().unwrap();
    assert_ne!(value["metadata"]["uid"], "mine");
    assert_eq!(value["metadata"]["creationTimestamp"], "2026-01-01T00:00:00Z");
    assert!(value["metadata"].get("deletionTimestamp").is_none());
    assert_eq!(value["metadata"]["managedFields"][0]["manager"], "tester");
    assert_eq!(world.get(MAP, "a").await.unwrap(), value);
    let again = world.create(MAP, map("a")).await.unwrap_err();
    assert_eq!((again.code, again.reason), (409, "AlreadyExists"));
    let first = world.create(MAP, json!({"metadata": {"generateName": "g-"}})).await.unwrap();
    let second = world.create(MAP, json!({"metadata": {"generateName": "g-"}})).await.unwrap();
    assert_ne!(lichen_registry::name_of(&first.record), lichen_registry::name_of(&second.record));
}

#[tokio::test]
async fn what_changes_nothing_is_not_written() {
    let world = world().await;
    world.create(MAP, map("a")).await.unwrap();
    let before = world.registry.revision();
    let same = world.merge(MAP, "a", None, json!({"data": {"k": "v"}})).await.unwrap();
    assert!(!same.changed);
    let dry = WriteOptions { dry_run: true, ..WriteOptions::default() };
    let other = Patch::Merge(json!({"data": {"k": "w"}}));
    let shown =
        world.registry.patch(&world.me, entry(MAP), Some("default"), "a", &other, None, &dry).await.unwrap();
    assert_eq!(shown.record.value().unwrap()["data"]["k"], "w");
    let seen = world
        .registry
        .create(&world.me, entry(SERVICE), Some("default"), service("d", json!({})), &dry)
        .await;
    assert!(seen.unwrap().record.value().unwrap()["spec"]["clusterIP"].is_string());
    let gone = DeleteOptions { dry_run: true, ..DeleteOptions::default() };
    assert!(world.delete(MAP, "a", gone).await.unwrap());
    assert_eq!(world.registry.revision(), before);
    assert_eq!(world.get(MAP, "a").await.unwrap()["data"]["k"], "v");
}

#[tokio::test]
async fn a_writer_that_no_longer_leads_writes_nothing() {
    let world = world().await;
    let late = WriteOptions { fence: Some(Term(99)), ..WriteOptions::default() };
    let refused =
        world.registry.create(&world.me, entry(MAP), Some("default"), map("a"), &late).await.unwrap_err();
    assert_eq!(refused.code, 409);
    assert_eq!(world.get(MAP, "a").await.unwrap_err().code, 404);
    let term = world.registry.store().leadership().borrow().term;
    let now = WriteOptions { fence: Some(term), ..WriteOptions::default() };
    world.registry.create(&world.me, entry(MAP), Some("default"), map("a"), &now).await.unwrap();
}

#[tokio::test]
async fn versions_and_uids_are_checked() {
    let world = world().await;
    let first = world.create(MAP, map("a")).await.unwrap().record.value().unwrap();
    world.merge(MAP, "a", None, json!({"data": {"k": "w"}})).await.unwrap();
    let put = async |object: Value| {
        let options = WriteOptions::default();
        world.registry.update(&world.me, entry(MAP), Some("default"), "a", object, None, &options).await
    };
    assert_eq!(put(first.clone()).await.unwrap_err().reason, "Conflict");
    let mut unversioned = first.clone();
    unversioned["metadata"]["resourceVersion"] = Value::Null;
    assert!(put(unversioned.clone()).await.unwrap().changed);
    unversioned["metadata"]["uid"] = json!("other");
    assert_eq!(put(unversioned).await.unwrap_err().reason, "Conflict");
    let patch =
        json!({"metadata": {"resourceVersion": first["metadata"]["resourceVersion"]}, "data": {"k": "x"}});
    assert_eq!(world.merge(MAP, "a", None, patch).await.unwrap_err().reason, "Conflict");
    let wrong = DeleteOptions { uid: Some("other".into()), ..DeleteOptions::default() };
    assert_eq!(world.delete(MAP, "a", wrong).await.unwrap_err().code, 409);
    let right = DeleteOptions {
        uid: first["metadata"]["uid"].as_str().map(str::to_owned),
        ..DeleteOptions::default()
    };
    assert!(world.delete(MAP, "a", right).await.unwrap());
}

#[tokio::test]
async fn finalizers_hold_an_object_back() {
    let world = world().await;
    let mut object = map("a");
    object["metadata"]["finalizers"] = json!(["x.y/z"]);
    world.create(MAP, object).await.unwrap();
    assert!(!world.delete(MAP, "a", DeleteOptions::default()).await.unwrap());
    let before = world.registry.revision();
    assert!(!world.delete(MAP, "a", DeleteOptions::default()).await.unwrap());
    assert_eq!(world.registry.revision(), before, "a second deletion changes nothing");
    let more = json!({"metadata": {"finalizers": ["x.y/z", "x.y/w"]}});
    assert_eq!(world.merge(MAP, "a", None, more).await.unwrap_err().code, 422);
    let undo = json!({"metadata": {"deletionTimestamp": null}});
    assert!(!world.merge(MAP, "a", None, undo).await.unwrap().changed);
    world.merge(MAP, "a", None, json!({"metadata": {"finalizers": null}})).await.unwrap();
    assert_eq!(world.get(MAP, "a").await.unwrap_err().code, 404);

    world.create(MAP, map("b")).await.unwrap();
    let first = DeleteOptions { propagation: Some(Propagation::Foreground), ..DeleteOptions::default() };
    assert!(!world.delete(MAP, "b", first).await.unwrap());
    assert_eq!(world.get(MAP, "b").await.unwrap()["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    let now = DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
    assert!(world.delete(MAP, "b", now).await.unwrap());
}

#[tokio::test]
async fn a_pod_ends_when_its_node_says_so() {
    let world = world().await;
    for name in ["a", "b", "c"] {
        world.create(POD, pod(name)).await.unwrap();
    }
    assert!(world.delete(POD, "a", DeleteOptions::default()).await.unwrap(), "nothing runs yet");
    let binding = |node: &str| Binding { node: node.to_owned(), ..Binding::default() };
    let options = WriteOptions::default();
    let bind = async |name: &str, binding: Binding| {
        world.registry.bind(&world.me, "default", name, &binding, &options).await
    };
    let old = world.registry.get(entry(POD), Some("default"), "b").await.unwrap();
    let wrong = Binding { uid: Some("other".into()), ..binding("n1") };
    assert_eq!(bind("b", wrong).await.unwrap_err().code, 409);
    let bound = bind("b", Binding { revision: Some(old.revision()), ..binding("n1") }).await.unwrap();
    let value = bound.record.value().unwrap();
    assert_eq!(value["spec"]["nodeName"], "n1");
    assert_eq!(value["status"]["conditions"][0]["type"], "PodScheduled");
    let again = bind("b", binding("n2")).await.unwrap_err();
    assert_eq!((again.code, again.message.contains("already assigned to node \"n1\"")), (409, true));
    let stale = Binding { revision: Some(old.revision()), ..binding("n1") };
    assert_eq!(bind("b", stale).await.unwrap_err().code, 409);

    assert!(!world.delete(POD, "b", DeleteOptions::default()).await.unwrap());
    let marked = world.get(POD, "b").await.unwrap();
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(marked["metadata"]["deletionTimestamp"], "2026-01-01T00:00:30Z");
    let grace = |seconds| DeleteOptions { grace_seconds: Some(seconds), ..DeleteOptions::default() };
    assert!(!world.delete(POD, "b", grace(60)).await.unwrap());
    assert_eq!(world.get(POD, "b").await.unwrap(), marked, "a longer time is not granted");
    assert!(!world.delete(POD, "b", grace(5)).await.unwrap());
    assert_eq!(world.get(POD, "b").await.unwrap()["metadata"]["deletionTimestamp"], "2026-01-01T00:00:05Z");
    world.merge(POD, "b", Some("status"), json!({"status": {"phase": "Running"}})).await.unwrap();
    assert!(world.delete(POD, "b", grace(0)).await.unwrap(), "the node's confirmation");

    bind("c", binding("n1")).await.unwrap();
    world.merge(POD, "c", Some("status"), json!({"status": {"phase": "Succeeded"}})).await.unwrap();
    assert!(world.delete(POD, "c", DeleteOptions::default()).await.unwrap(), "it is over already");
}

#[tokio::test]
async fn status_and_spec_have_writers_of_their_own() {
    let world = world().await;
    world.create(POD, pod("a")).await.unwrap();
    let both = json!({"metadata": {"labels": {"x": "y"}}, "spec": {"activeDeadlineSeconds": 5}, "status": {"phase": "Running"}});
    let value = world.merge(POD, "a", Some("status"), both.clone()).await.unwrap().record.value().unwrap();
    assert_eq!(
        (&value["status"]["phase"], value["spec"].get("activeDeadlineSeconds")),
        (&json!("Running"), None)
    );
    let value = world.merge(POD, "a", None, both).await.unwrap().record.value().unwrap();
    assert_eq!(
        (&value["spec"]["activeDeadlineSeconds"], &value["metadata"]["generation"]),
        (&json!(5), &json!(2))
    );
    let value = world.merge(POD, "a", None, json!({"status": {"phase": "Failed"}})).await.unwrap();
    assert!(!value.changed);
}

#[tokio::test]
async fn a_namespace_goes_when_it_is_empty() {
    let world = world().await;
    world.create(NAMESPACE, json!({"metadata": {"name": "t"}})).await.unwrap();
    let inside = |name: &str| {
        let (registry, me, object) = (world.registry.clone(), world.me.clone(), map(name));
        async move { registry.create(&me, entry(MAP), Some("t"), object, &WriteOptions::default()).await }
    };
    inside("a").await.unwrap();
    assert!(!world.delete(NAMESPACE, "t", DeleteOptions::default()).await.unwrap());
    let value = world.get(NAMESPACE, "t").await.unwrap();
    assert_eq!(value["status"]["phase"], "Terminating");
    let refused = inside("b").await.unwrap_err();
    assert_eq!(
        (refused.code, refused.details.unwrap().causes[0].reason.as_str()),
        (403, "NamespaceTerminating")
    );
    let options = WriteOptions::default();
    let missing = world.registry.create(&world.me, entry(MAP), Some("nope"), map("a"), &options);
    assert_eq!(missing.await.unwrap_err().message, "namespaces \"nope\" not found");
    let mut done = value;
    done["spec"]["finalizers"] = json!([]);
    world
        .registry
        .update(&world.me, entry(NAMESPACE), None, "t", done, Some("finalize"), &options)
        .await
        .unwrap();
    assert_eq!(world.get(NAMESPACE, "t").await.unwrap_err().code, 404);
    for name in ["default", "kube-system"] {
        assert_eq!(world.delete(NAMESPACE, name, DeleteOptions::default()).await.unwrap_err().code, 403);
    }
}

#[tokio::test]
async fn services_have_addresses_of_their_own() {
    let world = world().await;
    let bare = world.allocated();
    assert_eq!(bare, BTreeSet::from(["serviceips/10.96.0.1".to_owned()]));
    world.create(SERVICE, service("a", json!({"clusterIP": "10.96.7.7"}))).await.unwrap();
    for (name, spec) in [
        ("taken", json!({"clusterIP": "10.96.7.7"})),
        ("api", json!({"clusterIP": "10.96.0.1"})),
        ("network", json!({"clusterIP": "10.96.0.0"})),
        ("broadcast", json!({"clusterIP": "10.96.255.255"})),
        ("outside", json!({"clusterIP": "10.97.0.1"})),
    ] {
        let refused = world.create(SERVICE, service(name, spec)).await.unwrap_err();
        assert_eq!(
            (refused.code, refused.message.contains("spec.clusterIPs")),
            (422, true),
            "{name}: {refused}"
        );
    }
    world.create(SERVICE, service("headless", json!({"clusterIP": "None"}))).await.unwrap();
    assert_eq!(world.get(SERVICE, "headless").await.unwrap()["spec"]["clusterIP"], "None");
    let ports = json!({"type": "NodePort", "ports": [{"name": "x", "port": 80}, {"name": "y", "port": 81, "nodePort": 30001}]});
    world.create(SERVICE, service("np", ports)).await.unwrap();
    let np = world.get(SERVICE, "np").await.unwrap();
    assert!((30000..=32767).contains(&np["spec"]["ports"][0]["nodePort"].as_i64().unwrap()));
    assert_eq!(world.allocated().len(), 5);
    // A client that writes back what it once applied loses nothing that was allocated.
    let mut applied = service("a", json!({}));
    applied["metadata"]["labels"] = json!({"x": "y"});
    let options = WriteOptions::default();
    world
        .registry
        .update(&world.me, entry(SERVICE), Some("default"), "a", applied, None, &options)
        .await
        .unwrap();
    assert_eq!(world.get(SERVICE, "a").await.unwrap()["spec"]["clusterIP"], "10.96.7.7");
    let external = json!({"spec": {"type": "ExternalName", "externalName": "example.com", "clusterIP": null, "clusterIPs": null}});
    world.merge(SERVICE, "a", None, external).await.unwrap();
    assert!(!world.allocated().contains("serviceips/10.96.7.7"));
    for name in ["a", "headless", "np"] {
        assert!(world.delete(SERVICE, name, DeleteOptions::default()).await.unwrap());
    }
    assert_eq!(world.allocated(), bare);
    world.create(SERVICE, service("b", json!({"clusterIP": "10.96.7.7"}))).await.unwrap();
}

#[tokio::test]
async fn whatever_happens_each_address_has_one_owner() {
    let world = world().await;
    let mut draw = 12345u64;
    for step in 0..400 {
        draw = draw.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let number = (draw >> 33) % 12;
        let name = format!("s{number}");
        match (draw >> 40) % 4 {
            0 | 1 => {
                // Few addresses, so that they are wanted again and again.
                let spec = json!({"clusterIP": format!("10.96.1.{}", 1 + (draw >> 50) % 6)});
                let _ = world.create(SERVICE, service(&name, spec)).await;
            }
            2 => drop(world.create(SERVICE, service(&name, json!({}))).await),
            _ => drop(world.delete(SERVICE, &name, DeleteOptions::default()).await),
        }
        let list = world.registry.list(entry(SERVICE), None, &ListOptions::default()).await.unwrap();
        let held: Vec<String> = list
            .items
            .iter()
            .map(|record| {
                format!("serviceips/{}", record.value().unwrap()["spec"]["clusterIP"].as_str().unwrap())
            })
            .collect();
        let unique: BTreeSet<String> = held.iter().cloned().collect();
        assert_eq!(unique.len(), held.len(), "step {step}");
        assert_eq!(unique, world.allocated(), "step {step}");
    }
}

#[tokio::test]
async fn writers_at_once_get_different_addresses() {
    let world = world().await;
    let many = (0..40).map(|number| {
        let (registry, me) = (world.registry.clone(), world.me.clone());
        let object = service(&format!("s{number}"), json!({}));
        tokio::spawn(async move {
            registry
                .create(&me, entry(SERVICE), Some("default"), object, &WriteOptions::default())
                .await
                .unwrap()
        })
    });
    for task in many.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(world.allocated().len(), 41);
}

#[tokio::test]
async fn nodes_have_ranges_of_their_own() {
    let world = world().await;
    for name in ["a", "b"] {
        world.create(NODE, json!({"metadata": {"name": name}})).await.unwrap();
    }
    let range = async |name: &str| world.get(NODE, name).await.unwrap()["spec"]["podCIDR"].clone();
    assert_eq!((range("a").await, range("b").await), (json!("10.64.1.0/24"), json!("10.64.2.0/24")));
    assert!(world.delete(NODE, "a", DeleteOptions::default()).await.unwrap());
    world.create(NODE, json!({"metadata": {"name": "c"}})).await.unwrap();
    assert_eq!(range("c").await, "10.64.1.0/24");
    let taken = json!({"metadata": {"name": "d"}, "spec": {"podCIDR": "10.64.2.0/24"}});
    assert_eq!(world.create(NODE, taken).await.unwrap_err().code, 422);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_come_at_once_are_all_taken() {
    // A store that syncs: others come while one waits.
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(lichen_store::Config::new(dir.path())).await.unwrap();
    store.leadership().wait_for(|leadership| leadership.leader).await.unwrap();
    let registry = Registry::new(store, AllocationRanges::default(), Sources::system());
    registry.bootstrap(6443).await.unwrap();
    let create = |index: usize| {
        let registry = registry.clone();
        tokio::spawn(async move {
            let (me, options) = (Identity::component("system:controller:tester"), WriteOptions::default());
            let node = json!({"metadata": {"name": format!("n{index}")}});
            let written = registry.create(&me, NODE, None, node, &options).await;
            written.unwrap().record.value().unwrap()["spec"]["podCIDR"].to_string()
        })
    };
    let all: Vec<_> = (0..60).map(create).collect();
    let mut ranges = BTreeSet::new();
    for made in all {
        ranges.insert(made.await.unwrap());
    }
    assert_eq!(ranges.len(), 60);
}

#[tokio::test]
async fn a_second_start_changes_only_the_port() {
    let world = world().await;
    let before = world.registry.revision();
    world.registry.bootstrap(6443).await.unwrap();
    assert_eq!(world.registry.revision(), before);
    world.registry.bootstrap(7443).await.unwrap();
    assert_eq!(world.get(SERVICE, "kubernetes").await.unwrap()["spec"]["ports"][0]["targetPort"], 7443);
}

#[tokio::test]
async fn scale_is_a_view_of_the_object() {
    let world = world().await;
    let resource = entry(&kinds::deployment::RESOURCE);
    let object = json!({"metadata": {"name": "d"}, "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    world.create(resource, object).await.unwrap();
    let scale = world.registry.scale(resource, Some("default"), "d").await.unwrap();
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["selector"]), (&json!(2), &json!("a=b")));
    let (registry, me, options) = (&world.registry, &world.me, WriteOptions::default());
    let patch = Patch::Merge(json!({"spec": {"replicas": 5}}));
    registry.patch_scale(me, resource, Some("default"), "d", &patch, &options).await.unwrap();
    assert_eq!(world.get(resource, "d").await.unwrap()["spec"]["replicas"], 5);
    let stale = registry.update_scale(me, resource, Some("default"), "d", &scale, &options).await;
    assert_eq!(stale.unwrap_err().code, 409);
    let negative = Patch::Merge(json!({"spec": {"replicas": -1}}));
    let refused = registry.patch_scale(me, resource, Some("default"), "d", &negative, &options).await;
    assert_eq!(refused.unwrap_err().code, 422);
}

#[tokio::test]
async fn a_watch_tells_everything_once() {
    let world = world().await;
    world.create(MAP, map("a")).await.unwrap();
    let mut watch = world.registry.watch(entry(MAP), Some("default"), &WatchOptions::default()).unwrap();
    let brief = |event: WatchEvent| match event {
        WatchEvent::Added(record) => format!("+{}", lichen_registry::name_of(&record)),
        WatchEvent::Modified(record) => format!("~{}", lichen_registry::name_of(&record)),
        WatchEvent::Deleted(record) => format!("-{}", lichen_registry::name_of(&record)),
        WatchEvent::Bookmark { initial_end, .. } => format!("|{initial_end}"),
    };
    assert_eq!(watch.progress().unwrap(), None);
    world.create(MAP, map("b")).await.unwrap();
    world.merge(MAP, "a", None, json!({"data": {"k": "w"}})).await.unwrap();
    world.delete(MAP, "b", DeleteOptions::default()).await.unwrap();
    world.create(POD, pod("unseen")).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(brief(watch.next().await.unwrap()));
    }
    assert_eq!(seen, ["+a", "|true", "+b", "~a", "-b"]);
    assert_eq!(watch.progress().unwrap(), Some(world.registry.revision()));
    world.registry.store().shutdown().await;
    assert_eq!(watch.next().await.unwrap_err().code, 503);
}

#[tokio::test]
async fn what_was_decided_by_another_object_is_written_only_while_that_is_as_it_was() {
    let world = world().await;
    let map = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    let reason = world.create(MAP, map("reason")).await.unwrap().record;
    world.create(MAP, map("target")).await.unwrap();
    let given = (lichen_registry::key_of(MAP, Some("default"), "reason"), reason.revision());
    let write = async |value: &str| {
        let options = WriteOptions { only_while: Some(given.clone()), ..WriteOptions::default() };
        let patch = Patch::Merge(json!({"data": {"k": value}}));
        let resource = entry(MAP);
        world.registry.patch(&world.me, resource, Some("default"), "target", &patch, None, &options).await
    };
    assert!(write("1").await.unwrap().changed);
    world.merge(MAP, "reason", None, json!({"data": {"k": "other"}})).await.unwrap();
    assert_eq!(write("2").await.unwrap_err().reason, "Conflict");
    world.delete(MAP, "reason", DeleteOptions::default()).await.unwrap();
    assert_eq!(write("3").await.unwrap_err().reason, "Conflict");
    assert_eq!(world.get(MAP, "target").await.unwrap()["data"]["k"], "1");
}

#[tokio::test]
async fn a_guarded_writer_writes_only_while_it_holds_what_guards_it() {
    let world = world().await;
    let map = |name: &str| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name } });
    let guard = world.create(MAP, map("guard")).await.unwrap().record;
    let key = lichen_registry::key_of(MAP, Some("default"), "guard");
    let guarded = World { registry: world.registry.guarded(key, guard.revision()), me: world.me.clone() };
    guarded.create(MAP, map("a")).await.unwrap();
    guarded.merge(MAP, "a", None, json!({ "data": { "k": "1" } })).await.unwrap();
    // A conflict of its own is not taken for a loss of the guard.
    assert_eq!(guarded.create(MAP, map("a")).await.unwrap_err().reason, "AlreadyExists");

    world.merge(MAP, "guard", None, json!({ "data": { "holder": "another" } })).await.unwrap();
    let revision = world.registry.revision();
    for refused in [
        guarded.create(MAP, map("b")).await.unwrap_err(),
        guarded.merge(MAP, "a", None, json!({ "data": { "k": "2" } })).await.unwrap_err(),
        guarded
            .registry
            .delete(&guarded.me, entry(MAP), Some("default"), "a", &DeleteOptions::default())
            .await
            .unwrap_err(),
    ] {
        assert_eq!(refused.code, 503, "{refused}");
    }
    assert_eq!(world.registry.revision(), revision);
}
