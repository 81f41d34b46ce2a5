use serde_json::{Value, json};

use super::*;
use crate::{by_kind, by_plural};

/// Everything that a recorded reply shows and that a patch does not decide.
fn settled(resource: &Resource, object: &Value) -> Value {
    let mut object = resource.strategy.decode(object.clone(), &mut |path| panic!("unknown {path}")).unwrap();
    resource.strategy.default(&mut object);
    let metadata = object["metadata"].as_object_mut().unwrap();
    for key in ["managedFields", "resourceVersion", "generation", "annotations"] {
        metadata.remove(key);
    }
    object.as_object_mut().unwrap().remove("status");
    object
}

#[test]
fn recorded_patches() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/patches");
    let mut count = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let case: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let before = &case["before"];
        let resource =
            by_kind(before["apiVersion"].as_str().unwrap(), before["kind"].as_str().unwrap()).unwrap();
        let mut object = before.clone();
        let patch = &case["request"]["body"];
        let done = match name.split('.').next().unwrap() {
            "smp" => strategic(&mut object, patch, resource),
            "merge" => merge(&mut object, patch),
            _ => json(&mut object, patch),
        };
        count += 1;
        if case["code"] == 200 {
            done.unwrap_or_else(|status| panic!("{name}: {status}"));
            assert_eq!(settled(resource, &object), settled(resource, &case["after"]), "{name}");
        } else if let Err(status) = done {
            assert_eq!(status.to_json()["message"], case["after"]["message"], "{name}");
        } else {
            let object = settled(resource, &object);
            let errors = resource.strategy.validate_update(&object, &settled(resource, before), None);
            let status = Status::invalid(resource, "d", errors);
            assert_eq!(status.to_json(), case["after"], "{name}");
        }
    }
    assert!(count > 20, "only {count} recorded patches");
}

#[test]
fn strategic_edges() {
    let pods = by_plural("", "v1", "pods").unwrap();
    let check = |target: Value, patch: Value, expect: Value| {
        let mut object = target;
        strategic(&mut object, &patch, pods).unwrap();
        assert_eq!(object, expect, "{patch}");
    };
    check(
        json!({}),
        json!({"metadata": {"labels": {"a": "1", "b": null}}}),
        json!({"metadata": {"labels": {"a": "1"}}}),
    );
    check(
        json!({"metadata": {"labels": {"a": "1"}}}),
        json!({"metadata": {"labels": {"$patch": "delete"}}}),
        json!({"metadata": {}}),
    );
    check(
        json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}}),
        json!({"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}]}}),
        json!({"spec": {"containers": [{"name": "b"}, {"name": "c"}, {"name": "a"}]}}),
    );
    check(
        json!({}),
        json!({"spec": {"containers": [{"name": "a", "$patch": "merge", "image": "x"}]}}),
        json!({"spec": {"containers": [{"name": "a", "image": "x"}]}}),
    );
}

#[test]
fn refused() {
    let pods = by_plural("", "v1", "pods").unwrap();
    let check = |patch: Value, message: &str| {
        let mut object = json!({"spec": {"containers": [{"name": "a"}]}});
        assert_eq!(strategic(&mut object, &patch, pods).unwrap_err().message, message, "{patch}");
    };
    check(json!({"$patch": "nope"}), "unknown patch type: nope");
    check(
        json!({"spec": {"containers": [{"image": "x"}]}}),
        "map: {\"image\":\"x\"} does not contain declared merge key: name",
    );
    check(json!({"spec": {"containers": ["x"]}}), "expected a list of maps in the patch");
    check(Value::Null, "Invalid JSON Patch");
    check(
        json!("x"),
        "error decoding patch: json: cannot unmarshal string into Go value of type map[string]interface {}",
    );
    let mut object = json!({"a": 1});
    assert_eq!(merge(&mut object, &json!([])).unwrap_err().code, 400);
    assert_eq!(json(&mut object, &json!({})).unwrap_err().code, 400);
    assert_eq!(json(&mut object, &json!([{"op": "nope", "path": "/a"}])).unwrap_err().code, 422);
    assert_eq!(json(&mut object, &json!([{"op": "test", "path": "/a", "value": 2}])).unwrap_err().code, 422);
}

#[test]
fn a_json_patch_cannot_grow_a_document_without_bound() {
    let check = |patch: Value, code: Option<u16>| {
        let mut target = json!({ "a": { "b": "c" } });
        assert_eq!(json(&mut target, &patch).err().map(|status| status.code), code, "{patch}");
    };
    let copy = |index: usize| json!({ "op": "copy", "from": "/a", "path": format!("/a/x{index}") });
    check((0..8).map(copy).collect(), None);
    check((0..24).map(copy).collect(), Some(422));
    let nest = [
        json!({ "op": "add", "path": "/y", "value": {} }),
        json!({ "op": "move", "from": "/a", "path": "/y/a" }),
        json!({ "op": "move", "from": "/y", "path": "/a" }),
    ];
    check(Value::from(vec![nest.clone(); 20].concat()), None);
    check(Value::from(vec![nest; 200].concat()), Some(422));
    check(vec![json!({ "op": "test", "path": "/a/b", "value": "c" }); OPERATIONS_MAX + 1].into(), Some(413));
}
