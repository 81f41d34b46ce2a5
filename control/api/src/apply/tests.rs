use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{by_kind, by_plural};

fn by(manager: &str, force: bool) -> Applier<'_> {
    Applier { manager, force, subresource: "", now: Timestamp::from_second(60).unwrap() }
}

fn pod(fields: Value) -> Value {
    let mut object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}});
    json_patch::merge(&mut object, &fields);
    object
}

fn read(config: Value) -> Config {
    let resource = by_kind("v1", config["kind"].as_str().unwrap()).unwrap();
    Config::read(resource, "p", "", config).unwrap()
}

/// Applies one configuration after the other, each as its manager, and yields the object.
fn applied(configs: &[(&str, Value)]) -> Value {
    let resource = by_plural("", "v1", "pods").unwrap();
    let mut live = None;
    for (manager, config) in configs {
        let config = read(pod(config.clone()));
        live = Some(apply(resource, live.as_ref(), &config, &by(manager, true)).unwrap());
    }
    live.unwrap()
}

fn named(names: &[&str]) -> Value {
    let items: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
    json!({"spec": {"containers": items}})
}

#[test]
fn list_items_keep_their_order() {
    let check = |live: &[&str], config: &[&str], expect: &[&str]| {
        let object = applied(&[("a", named(live)), ("b", named(config))]);
        let names: Vec<&str> = object["spec"]["containers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, expect, "{config:?} over {live:?}");
    };
    check(&["a"], &["b"], &["a", "b"]);
    check(&["a", "b"], &["a", "b"], &["a", "b"]);
    check(&["a", "b"], &["b", "a"], &["b", "a"]);
    check(&["a", "b", "c"], &["x", "b"], &["a", "x", "b", "c"]);
    check(&["a", "b", "c"], &["c", "a"], &["b", "c", "a"]);
    check(&["a"], &["x", "a", "y"], &["x", "a", "y"]);
    check(&["a", "b"], &["b", "n"], &["a", "b", "n"]);
}

#[test]
fn what_is_left_out_goes() {
    let check = |configs: &[(&str, Value)], pointer: &str, expect: Value| {
        let object = applied(configs);
        assert_eq!(object.pointer(pointer).cloned().unwrap_or_default(), expect, "{configs:?}");
    };
    let labels = |labels: Value| json!({"metadata": {"labels": labels}});
    let one = || labels(json!({"x": "1", "y": "1"}));
    check(&[("a", one()), ("a", labels(json!({"x": "1"})))], "/metadata/labels", json!({"x": "1"}));
    check(&[("a", one()), ("a", json!({}))], "/metadata/labels", json!(null));
    check(&[("a", one()), ("a", json!({}))], "/metadata/name", json!("p"));
    // What somebody else owns too stays.
    check(
        &[("a", one()), ("b", labels(json!({"y": "1"}))), ("a", json!({}))],
        "/metadata/labels",
        json!({"y": "1"}),
    );
    check(&[("a", named(&["c", "d"])), ("a", named(&["d"]))], "/spec/containers", json!([{"name": "d"}]));
    check(
        &[("a", named(&["c", "d"])), ("b", named(&["c"])), ("a", named(&["d"]))],
        "/spec/containers",
        json!([{"name": "c"}, {"name": "d"}]),
    );
    // An item goes with what others have set in it, unless the item is theirs too.
    let finalizers = |list: Value| json!({"metadata": {"finalizers": list}});
    check(
        &[
            ("a", finalizers(json!(["x/a", "x/b"]))),
            ("b", finalizers(json!(["x/b", "x/c"]))),
            ("a", json!({})),
        ],
        "/metadata/finalizers",
        json!(["x/b", "x/c"]),
    );
    let selector = |value: Value| json!({"spec": {"nodeSelector": value}});
    check(
        &[("a", selector(json!({"x": "1"}))), ("b", selector(json!({"y": "1"})))],
        "/spec/nodeSelector",
        json!({"y": "1"}),
    );
}

#[test]
fn conflicts_name_every_field_and_owner() {
    let resource = by_plural("", "v1", "pods").unwrap();
    let live = applied(&[
        ("b", json!({"metadata": {"labels": {"x": "1"}}, "spec": {"nodeSelector": {"k": "1"}}})),
        ("a", json!({"spec": {"hostNetwork": true}})),
    ]);
    let other = read(pod(json!({"metadata": {"labels": {"x": "2"}},
        "spec": {"nodeSelector": {"k": "2"}, "hostNetwork": false}})));
    let status = apply(resource, Some(&live), &other, &by("c", false)).unwrap_err();
    assert_eq!(
        status.message,
        "Apply failed with 3 conflicts: conflicts with \"a\":\n- .spec.hostNetwork\nconflicts with \"b\":\n\
         - .metadata.labels.x\n- .spec.nodeSelector"
    );
    let causes = &status.details.as_ref().unwrap().causes;
    assert_eq!(causes.len(), 3);
    assert_eq!(
        (causes[2].message.as_str(), causes[2].field.as_str()),
        ("conflict with \"b\"", ".spec.nodeSelector")
    );
    // The same values are shared, and who forces takes all.
    let same = read(pod(json!({"metadata": {"labels": {"x": "1"}}})));
    let shared = apply(resource, Some(&live), &same, &by("c", false)).unwrap();
    assert_eq!(shared["metadata"]["managedFields"].as_array().unwrap().len(), 3);
    let forced = apply(resource, Some(&live), &other, &by("c", true)).unwrap();
    let owners = forced["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(owners.len(), 1, "{owners:?}");
    assert_eq!(owners[0]["manager"], "c");
}

#[test]
fn an_object_without_managers_has_one() {
    let resource = by_plural("", "v1", "pods").unwrap();
    let live = pod(json!({"metadata": {"labels": {"x": "1"}}}));
    let config = read(pod(json!({"metadata": {"labels": {"x": "2"}}})));
    let status = apply(resource, Some(&live), &config, &by("a", false)).unwrap_err();
    assert_eq!(
        status.message,
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .metadata.labels.x"
    );
}

#[test]
fn the_same_again_changes_nothing() {
    let resource = by_plural("", "v1", "pods").unwrap();
    let config =
        read(pod(json!({"metadata": {"labels": {"x": ""}, "annotations": {}, "creationTimestamp": null},
        "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1000m", "memory": 1024}},
            "ports": [{"containerPort": 80}], "command": []}]}, "status": {"phase": "Running"}})));
    let first = apply(resource, None, &config, &by("a", false)).unwrap();
    assert_eq!(first["spec"]["containers"][0]["resources"]["limits"], json!({"cpu": "1", "memory": "1024"}));
    assert_eq!(first.get("status"), None, "the status is another writer's");
    let later = Applier { now: Timestamp::from_second(600).unwrap(), ..by("a", false) };
    assert_eq!(apply(resource, Some(&first), &config, &later).unwrap(), first);
    assert!(managed::same_owners(&first, &first));
    assert_eq!(
        first["metadata"]["managedFields"][0]["fieldsV1"],
        json!({"f:metadata": {"f:labels": {"f:x": {}}}, "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {},
            "f:name": {}, "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
            "f:resources": {"f:limits": {"f:cpu": {}, "f:memory": {}}}}}}})
    );
}

#[test]
fn configurations_that_fit_no_pod() {
    let resource = by_plural("", "v1", "pods").unwrap();
    let check = |config: Value, expect: &str| {
        let status = Config::read(resource, "p", "", config).unwrap_err();
        assert_eq!(status.code, 400);
        assert!(status.message.contains(expect), "{}", status.message);
    };
    let about = "failed to create typed patch object (/p; /v1, Kind=Pod): ";
    check(
        pod(json!({"spec": {"containers": [{"name": "c", "imag": "x"}]}})),
        &format!("{about}.spec.containers[name=\"c\"].imag: field not declared in schema"),
    );
    check(pod(json!({"spec": {"containers": [{"image": "x"}]}})), "omits key field \"name\"");
    check(pod(json!({"metadata": {"finalizers": ["x/a", "x/a"]}})), "duplicate entries for key [=\"x/a\"]");
    check(pod(json!({"spec": {"hostNetwork": "yes"}})), about);
    check(pod(json!({"spec": {"containers": "none"}})), about);
    check(pod(json!({"metadata": "none"})), "Kind=Pod");
    check(json!([]), "invalid object type: /, Kind=");
    check(json!(null), "invalid object type: /, Kind=");
}

proptest! {
    #[test]
    fn any_lists_merge_and_part_again(
        live in prop::sample::subsequence(vec!["a", "b", "c", "d", "e", "f"], 1..6).prop_shuffle(),
        config in prop::sample::subsequence(vec!["a", "b", "c", "d", "e", "f"], 1..6).prop_shuffle(),
    ) {
        let names = |object: &Value| -> Vec<String> {
            let items = object.pointer("/spec/containers").and_then(Value::as_array);
            items.into_iter().flatten().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
        };
        let both = applied(&[("one", named(&live)), ("two", named(&config))]);
        let merged = names(&both);
        let wanted: Vec<&String> = merged.iter().filter(|name| config.contains(&name.as_str())).collect();
        prop_assert_eq!(wanted, config.iter().collect::<Vec<_>>());
        let rest: Vec<&String> = merged.iter().filter(|name| !config.contains(&name.as_str())).collect();
        prop_assert_eq!(rest, live.iter().filter(|name| !config.contains(name)).collect::<Vec<_>>());
        // Who takes everything back leaves what the other wants.
        let left = applied(&[("one", named(&live)), ("two", named(&config)), ("two", json!({}))]);
        let mut left = names(&left);
        left.sort();
        let mut expect: Vec<&str> = live.clone();
        expect.sort_unstable();
        prop_assert_eq!(left, expect);
    }
}
