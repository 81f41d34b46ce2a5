use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use serde_json::json;

use super::*;

fn unknown_of<T: DeserializeOwned + Serialize>(value: Value) -> (Value, Vec<String>) {
    let mut unknown = Vec::new();
    let value = normalize::<T>(value, &mut |path| unknown.push(path.to_owned())).unwrap();
    (value, unknown)
}

#[test]
fn unknown_fields_are_dropped_and_named() {
    let (value, unknown) = unknown_of::<Pod>(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "uk", "nolabel": 1},
        "spec": {"containers": [{"name": "c", "image": "x", "imagee": "y"}], "nope": {"deep": true}},
    }));
    assert_eq!(unknown, ["metadata.nolabel", "spec.containers[0].imagee", "spec.nope"]);
    assert_eq!(value["spec"], json!({"containers": [{"name": "c", "image": "x"}]}));
}

#[test]
fn canonical_forms() {
    let (value, unknown) = unknown_of::<Pod>(json!({
        "metadata": {"name": "a", "labels": {}, "creationTimestamp": null},
        "spec": {"priorityClassName": "", "nodeSelector": {}, "volumes": [{"name": "e", "emptyDir": {}}],
            "containers": [{"name": "c", "args": [], "resources": {"limits": {"cpu": 1, "memory": "1024Mi"}}}]},
    }));
    assert!(unknown.is_empty());
    assert_eq!(value["metadata"], json!({"name": "a"}));
    assert_eq!(
        value["spec"],
        json!({"containers": [{"name": "c", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}],
            "volumes": [{"name": "e", "emptyDir": {}}]})
    );
}

#[test]
fn type_errors_name_the_field() {
    fn check<T: DeserializeOwned>(value: Value, path: &str, message: &str) {
        let error = decode::<T>(value, &mut |_| {}).err().expect("an error");
        assert_eq!((error.path.as_str(), error.message.as_str()), (path, message));
    }
    check::<Deployment>(
        json!({"spec": {"replicas": "3"}}),
        "spec.replicas",
        "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
    );
    check::<ConfigMap>(
        json!({"data": {"a": 1}}),
        "data.a",
        "json: cannot unmarshal number into Go struct field ConfigMap.data of type string",
    );
    check::<Pod>(
        json!({"metadata": {"name": true}}),
        "metadata.name",
        "json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.name of type string",
    );
    check::<Pod>(
        json!({"spec": {"containers": {}}}),
        "spec.containers",
        "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type list",
    );
    check::<ConfigMap>(
        json!({"metadata": {"deletionTimestamp": "yesterday"}}),
        "metadata.deletionTimestamp",
        "parsing time \"yesterday\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"yesterday\" as \"2006\"",
    );
    check::<Pod>(
        json!({"spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "abc"}}}]}}),
        "spec.containers[0].resources.limits.cpu",
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
    );
    assert!(decode::<Secret>(json!({"data": {"a": "***"}}), &mut |_| {}).is_err());
}
