//! Objects for the tests of this crate.

use std::sync::Arc;

use lichen_api::view::{Kind, Object};
use serde_json::{Value, json};

use crate::{NodeInfo, PodInfo, Resources};

/// Lays the fields of `over` over those of `base`, at every depth.
pub(crate) fn overlay(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                overlay(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

pub(crate) fn pod(name: &str, over: Value) -> Object {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "default", "name": name, "uid": format!("uid-{name}"), "resourceVersion": "1"},
        "spec": {"containers": [{"name": "c"}]},
    });
    overlay(&mut object, over);
    Object::decode(Kind::POD, object.to_string().as_bytes()).unwrap()
}

pub(crate) fn node(name: &str, over: Value) -> Object {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "uid": format!("uid-{name}")},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}},
    });
    overlay(&mut object, over);
    Object::decode(Kind::NODE, object.to_string().as_bytes()).unwrap()
}

pub(crate) fn pod_info(name: &str, over: Value) -> PodInfo {
    let mut base = json!({"spec": {"containers": []}});
    overlay(&mut base, over);
    let Object::Pod(pod) = pod(name, base) else { unreachable!() };
    PodInfo::new(pod)
}

pub(crate) fn node_info(name: &str, over: Value) -> NodeInfo {
    let Object::Node(node) = node(name, json!({})) else { unreachable!() };
    let mut value = serde_json::to_value(&*node).unwrap();
    if over.pointer("/status/allocatable").is_some() {
        value["status"]["allocatable"] = Value::Null;
    }
    overlay(&mut value, over);
    let node = serde_json::from_value::<lichen_api::k8s::api::core::v1::Node>(value).unwrap();
    let allocatable = Resources::from_list(node.status.as_ref().and_then(|s| s.allocatable.as_ref()));
    NodeInfo { node: Some(Arc::new(node)), allocatable, ..NodeInfo::default() }
}
