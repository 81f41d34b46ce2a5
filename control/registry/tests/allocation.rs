//! Addresses, ports and ranges: each has one owner, and is free again when that goes.

mod common;

use std::collections::BTreeSet;

use lichen_registry::{
    AllocationRanges, DeleteOptions, Identity, ListOptions, Registry, Sources, WriteOptions,
};
use lichen_store::Store;
use serde_json::json;

use self::common::{NODE, SERVICE, entry, service, world};

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
