use std::time::Duration;

use lichen_api::view::{Kind, ObjectId};
use serde_json::{Value, json};

use crate::Propagation;
use crate::testing::{Cluster, config_map, deployment, id_of, namespace, owner_uids, service};

fn uid(cluster: &Cluster, id: &ObjectId) -> String {
    cluster.value(id).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned()
}

fn owner(cluster: &Cluster, id: &ObjectId, block: bool) -> Value {
    json!({"apiVersion": id.kind.api_version(), "kind": id.kind.kind, "name": id.key.name, "uid": uid(cluster, id), "blockOwnerDeletion": block})
}

#[test]
fn every_namespace_has_a_default_service_account() {
    let mut cluster = Cluster::new();
    cluster.settle();
    let id = ObjectId::new(Kind::SERVICE_ACCOUNT, "default", "default");
    assert!(cluster.value(&id).is_some());
    cluster.delete(&id, None);
    cluster.settle();
    assert!(cluster.value(&id).is_some());
    cluster.assert_at_rest();
}

#[test]
fn a_namespace_is_emptied_pods_first_and_then_goes() {
    let mut cluster = Cluster::new();
    cluster.quick = false;
    let id = cluster.create(namespace("team"));
    for mut object in [deployment("web", 3), service("web", "web"), config_map("c", json!([]))] {
        object["metadata"]["namespace"] = json!("team");
        cluster.create(object);
    }
    let mut held = config_map("held", json!([]));
    held["metadata"]["namespace"] = json!("team");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    let held = cluster.create(held);
    cluster.run();
    cluster.delete(&id, None);
    cluster.settle();
    assert_eq!(cluster.value(&id).unwrap()["status"]["phase"], "Terminating");
    assert_eq!(cluster.pods().len(), 0);
    assert_eq!(cluster.count(Kind::POD), 3);
    assert_eq!(cluster.count(Kind::DEPLOYMENT), 1);

    let ending: Vec<_> = cluster.view.pods.values().cloned().collect();
    for pod in ending {
        cluster.confirm(&pod);
    }
    cluster.settle();
    assert_eq!(cluster.view.in_namespace("team").len(), 1);
    assert!(cluster.value(&id).is_some());

    cluster.edit(&held, |value| value["metadata"]["finalizers"] = json!([]));
    cluster.settle();
    assert_eq!(cluster.view.in_namespace("team").len(), 0);
    assert!(cluster.value(&id).is_none());
    cluster.assert_at_rest();
}

#[test]
fn dependents_go_with_the_last_owner_by_uid() {
    let mut cluster = Cluster::new();
    let first = cluster.create(config_map("first", json!([])));
    let second = cluster.create(config_map("second", json!([])));
    let owners = json!([owner(&cluster, &first, false), owner(&cluster, &second, false)]);
    let dependent = cluster.create(config_map("dependent", owners));
    let below = cluster.create(config_map("below", json!([owner(&cluster, &dependent, false)])));
    cluster.settle();

    // The name is taken over by another object: the reference is to the one that is gone.
    cluster.delete(&first, None);
    cluster.create(config_map("first", json!([])));
    cluster.settle();
    let left = cluster.view.get(&dependent).unwrap();
    assert_eq!(owner_uids(&left), [uid(&cluster, &second)]);

    cluster.delete(&second, None);
    cluster.settle();
    assert!(cluster.value(&dependent).is_none() && cluster.value(&below).is_none());
    cluster.assert_at_rest();
}

#[test]
fn a_dependent_that_comes_after_its_owner_went_goes_too() {
    let mut cluster = Cluster::new();
    let first = cluster.create(config_map("owner", json!([])));
    let reference = owner(&cluster, &first, false);
    cluster.delete(&first, None);
    let late = cluster.create(config_map("late", json!([reference])));
    let strange = json!({"apiVersion": "example.com/v1", "kind": "Lamp", "name": "l", "uid": "u"});
    let unknown = cluster.create(config_map("unknown", json!([strange])));
    cluster.settle();
    assert!(cluster.value(&late).is_none());
    assert!(cluster.value(&unknown).is_some(), "an owner of a kind that is not known may exist");
}

#[test]
fn an_owner_in_another_namespace_is_none() {
    let mut cluster = Cluster::new();
    cluster.create(namespace("other"));
    let mut far = config_map("far", json!([]));
    far["metadata"]["namespace"] = json!("other");
    let far = cluster.create(far);
    let dependent = cluster.create(config_map("dependent", json!([owner(&cluster, &far, false)])));
    cluster.settle();
    assert!(cluster.value(&dependent).is_none());
}

#[test]
fn foreground_waits_for_what_blocks() {
    let mut cluster = Cluster::new();
    let top = cluster.create(config_map("top", json!([])));
    let mut blocking = config_map("blocking", json!([owner(&cluster, &top, true)]));
    blocking["metadata"]["finalizers"] = json!(["example.com/hold"]);
    let blocking = cluster.create(blocking);
    let other = cluster.create(config_map("other", json!([owner(&cluster, &top, false)])));
    cluster.delete(&top, Some(Propagation::Foreground));
    cluster.settle();
    assert!(cluster.value(&top).is_some() && cluster.value(&other).is_none());
    cluster.edit(&blocking, |value| value["metadata"]["finalizers"] = json!([]));
    cluster.settle();
    assert!(cluster.value(&top).is_none() && cluster.value(&blocking).is_none());
}

#[test]
fn orphans_stay_and_lose_the_reference() {
    let mut cluster = Cluster::new();
    let id = cluster.create(deployment("web", 2));
    cluster.run();
    cluster.delete(&id, Some(Propagation::Orphan));
    cluster.settle();
    assert!(cluster.value(&id).is_none());
    assert_eq!((cluster.count(Kind::REPLICA_SET), cluster.pods().len()), (1, 2));
    let set = cluster.view.replica_sets.values().next().unwrap().clone();
    assert_eq!(set.metadata.owner_references, None);

    // A Deployment with the same template takes them over again.
    cluster.create(deployment("web", 2));
    cluster.settle();
    assert_eq!((cluster.count(Kind::REPLICA_SET), cluster.pods().len()), (1, 2));
    cluster.assert_at_rest();
}

#[test]
fn deleting_a_deployment_takes_everything_with_it() {
    let mut cluster = Cluster::new();
    for propagation in [Propagation::Background, Propagation::Foreground] {
        let id = cluster.create(deployment("web", 3));
        cluster.run();
        cluster.delete(&id, Some(propagation));
        cluster.settle();
        assert_eq!(
            (cluster.count(Kind::DEPLOYMENT), cluster.count(Kind::REPLICA_SET), cluster.pods().len()),
            (0, 0, 0)
        );
    }
    cluster.assert_at_rest();
}

#[test]
fn pods_of_a_node_that_does_not_come_back_go() {
    let mut cluster = Cluster::new();
    cluster.quick = false;
    cluster.create(deployment("web", 4));
    cluster.run();
    let node = ObjectId::new(Kind::NODE, "", "n1");
    let lost = cluster.view.pods_on("n1").count();
    assert!(lost > 0);
    let object = crate::testing::node("n1");
    cluster.delete(&node, None);
    cluster.settle();
    cluster.wait(Duration::from_secs(20));
    cluster.settle();
    assert_eq!(cluster.view.pods_on("n1").count(), lost, "it may be about to come back");
    cluster.create(object);
    cluster.wait(Duration::from_secs(60));
    cluster.settle();
    assert_eq!(cluster.view.pods_on("n1").count(), lost);

    cluster.delete(&node, None);
    cluster.settle();
    cluster.wait(Duration::from_secs(41));
    cluster.settle();
    assert_eq!(cluster.view.pods_on("n1").count(), 0);
    assert_eq!(cluster.pods().len(), 4, "replaced");
}

#[test]
fn events_are_forgotten_an_hour_after_they_last_happened() {
    let mut cluster = Cluster::new();
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"namespace": "default", "name": "e"},
                       "involvedObject": {}, "lastTimestamp": "2026-01-01T00:30:00Z"});
    let id = id_of(&event);
    cluster.create(event);
    let other =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "default", "name": "e"}});
    let other = cluster.create(other);
    for (minutes, there) in [(0, true), (65, true), (24, true), (1, false)] {
        cluster.wait(Duration::from_secs(60 * minutes));
        cluster.settle();
        assert_eq!(cluster.value(&id).is_some(), there, "after {minutes} more minutes");
    }
    // Whatever key the controller is asked for.
    cluster.assert_at_rest();
    assert!(cluster.value(&other).is_some());
}

#[test]
fn tokens_go_when_they_expire_and_other_secrets_stay() {
    let mut cluster = Cluster::new();
    // As base64, which is how a Secret has them.
    const IN_HALF_AN_HOUR: &str = "MjAyNi0wMS0wMVQwMDozMDowMFo=";
    const NOW: &str = "MjAyNi0wMS0wMVQwMDowMDowMFo=";
    const SOON: &str = "c29vbg==";
    let secret = |namespace: &str, name: &str, kind: &str, expiration: &str| {
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": namespace, "name": name},
               "type": kind, "data": {"expiration": expiration}})
    };
    const TOKEN: &str = "bootstrap.kubernetes.io/token";
    // What, and after which of the steps below it is still there.
    let cases = [
        (secret("kube-system", "in-half-an-hour", TOKEN, IN_HALF_AN_HOUR), [true, true, false]),
        (secret("kube-system", "unreadable", TOKEN, SOON), [false, false, false]),
        (secret("kube-system", "opaque", "Opaque", NOW), [true, true, true]),
        (secret("default", "elsewhere", TOKEN, NOW), [true, true, true]),
    ];
    let mut endless = secret("kube-system", "endless", TOKEN, "");
    endless["data"].as_object_mut().unwrap().clear();
    let cases: Vec<_> = cases.into_iter().chain([(endless, [true; 3])]).collect();
    for (object, _) in &cases {
        cluster.create(object.clone());
    }
    for (step, seconds) in [0, 1799, 1].into_iter().enumerate() {
        cluster.wait(Duration::from_secs(seconds));
        cluster.settle();
        for (object, there) in &cases {
            let id = id_of(object);
            assert_eq!(cluster.value(&id).is_some(), there[step], "{id} in step {step}");
        }
    }
    cluster.assert_at_rest();
}
