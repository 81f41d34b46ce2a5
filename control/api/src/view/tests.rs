use serde_json::{Value, json};

use super::*;

const CONFIG_MAP: Kind = Kind { group: "", version: "v1", kind: "ConfigMap" };

fn decode(kind: Kind, object: Value) -> Object {
    Object::decode(kind, object.to_string().as_bytes()).unwrap()
}

fn pod(name: &str, owner: Option<&str>, node: Option<&str>) -> Object {
    let owners = owner.map(|uid| json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "set", "uid": uid, "controller": true}]));
    decode(
        Kind::POD,
        json!({"apiVersion": "v1", "kind": "Pod",
               "metadata": {"namespace": "a", "name": name, "uid": format!("uid-{name}"), "ownerReferences": owners, "managedFields": [{"manager": "x"}]},
               "spec": {"containers": [], "nodeName": node}}),
    )
}

fn put(view: &mut View, object: Object) -> Option<Change> {
    view.apply(object.id(), Some(object))
}

fn names<'a>(pods: impl Iterator<Item = &'a Arc<Pod>>) -> Vec<&'a str> {
    pods.map(|p| p.metadata.name.as_deref().unwrap()).collect()
}

#[test]
fn indexes_follow_an_object_through_its_life() {
    let mut view = View::new();
    put(&mut view, pod("p", None, None));
    assert_eq!(view.uncontrolled(Kind::POD, "a").count(), 1);

    let change = put(&mut view, pod("p", Some("set-1"), Some("n1"))).unwrap();
    assert!(change.old.is_some() && change.new.is_some());
    assert_eq!(view.uncontrolled(Kind::POD, "a").count(), 0);
    assert_eq!(names(view.pods_of("set-1")), ["p"]);
    assert_eq!(names(view.pods_on("n1")), ["p"]);
    assert!(view.by_uid("uid-p").is_some());

    let id = ObjectId::new(Kind::POD, "a", "p");
    let change = view.apply(id.clone(), None).unwrap();
    assert!(change.is_removal());
    assert_eq!(change.object().unwrap().uid(), "uid-p");
    assert_eq!(view.pods_of("set-1").count() + view.pods_on("n1").count() + view.objects().len(), 0);
    assert!(view.by_uid("uid-p").is_none());
    assert!(view.apply(id, None).is_none());
}

#[test]
fn a_namespace_is_listed_by_itself() {
    let mut view = View::new();
    for (namespace, name) in [("a", "x"), ("a", "y"), ("ab", "x"), ("", "x")] {
        put(&mut view, decode(CONFIG_MAP, json!({"metadata": {"namespace": namespace, "name": name}})));
    }
    put(&mut view, pod("p", None, None));
    let found: Vec<String> = view.in_namespace("a").iter().map(|o| o.id().to_string()).collect();
    assert_eq!(found, ["Pod a/p", "ConfigMap a/x", "ConfigMap a/y"]);
}

#[test]
fn what_no_controller_reads_is_not_kept() {
    let object = decode(
        CONFIG_MAP,
        json!({"metadata": {"name": "c", "annotations": {"large": "value"}, "managedFields": [{"manager": "x"}]}, "data": {"k": "v"}}),
    );
    assert_eq!(object.metadata().annotations, None);
    assert_eq!(pod("p", None, None).metadata().managed_fields, None);
    assert!(Object::decode(Kind::POD, b"{").is_err());
}

#[test]
fn a_view_never_goes_back() {
    let mut view = View::new();
    view.advance(7);
    view.advance(3);
    assert_eq!(view.revision(), 7);
}
