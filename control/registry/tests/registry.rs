//! The registry over a store in memory: what is written, what is refused, and what is never left behind.

mod common;

use lichen_api::kinds;
use lichen_registry::{Binding, DeleteOptions, Patch, Propagation, WatchEvent, WatchOptions, WriteOptions};
use lichen_store::Term;
use serde_json::{Value, json};

use self::common::{MAP, NAMESPACE, POD, SERVICE, World, entry, map, pod, service, world};

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
