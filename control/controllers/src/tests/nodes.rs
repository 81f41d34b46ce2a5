//! Nodes that are lost, alone and many at once, and what becomes of their pods.

use std::time::Duration;

use lichen_api::view::{Kind, ObjectId};
use serde_json::{Value, json};

use crate::testing::{Cluster, deployment, node, service};

const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const NOT_READY: &str = "node.kubernetes.io/not-ready";

fn id(name: &str) -> ObjectId {
    ObjectId::new(Kind::NODE, "", name)
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

impl Cluster {
    /// What the gateway writes of a node's link.
    fn set_ready(&mut self, name: &str, status: &str) {
        let now = self.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        self.edit(&id(name), |node| {
            node["status"]["conditions"][0] =
                json!({"type": "Ready", "status": status, "lastTransitionTime": now});
        });
    }

    /// A node's taints, as `key:effect`.
    fn taints(&self, name: &str) -> Vec<String> {
        let taints = self.value(&id(name)).unwrap()["spec"]["taints"].as_array().cloned().unwrap_or_default();
        let text = |taint: &Value| {
            format!("{}:{}", taint["key"].as_str().unwrap(), taint["effect"].as_str().unwrap())
        };
        taints.iter().map(text).collect()
    }

    fn evicting(&self) -> usize {
        let nodes: Vec<_> =
            self.view.nodes.values().map(|node| node.metadata.name.clone().unwrap()).collect();
        nodes
            .iter()
            .filter(|name| self.taints(name).iter().any(|taint| taint.ends_with(":NoExecute")))
            .count()
    }

    /// Lets time pass in small steps, as timers do.
    fn pass(&mut self, mut wait: Duration) {
        self.settle();
        while !wait.is_zero() {
            let step = wait.min(seconds(1));
            self.wait(step);
            self.settle();
            wait -= step;
        }
    }

    fn reasons(&self, reason: &str) -> usize {
        self.events.iter().filter(|event| event.reason == reason).count()
    }

    /// Pods bound to a node that count as ready.
    fn ready_on(&self, name: &str) -> usize {
        self.view.pods_on(name).filter(|pod| crate::testing::is_ready(pod)).count()
    }
}

/// A cluster whose nodes have been there for a while.
fn settled() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.pass(seconds(60));
    cluster
}

#[test]
fn taints_follow_the_conditions_of_a_node() {
    let mut cluster = settled();
    let own = json!([{"key": "own", "effect": "NoSchedule"}]);
    cluster.edit(&id("n1"), |node| node["spec"]["taints"] = own);
    for (status, expect) in [("False", NOT_READY), ("Unknown", UNREACHABLE), ("False", NOT_READY)] {
        cluster.set_ready("n1", status);
        cluster.settle();
        let mut taints = cluster.taints("n1");
        taints.sort();
        let mut expect =
            ["own:NoSchedule".into(), format!("{expect}:NoSchedule"), format!("{expect}:NoExecute")];
        expect.sort();
        assert_eq!(taints, expect, "{status}");
    }
    cluster.set_ready("n1", "True");
    cluster.settle();
    assert_eq!(cluster.taints("n1"), ["own:NoSchedule"]);
    assert_eq!((cluster.reasons("NodeNotReady"), cluster.reasons("NodeReady")), (1, 1));
    for (condition, key) in [
        ("MemoryPressure", "memory-pressure"),
        ("DiskPressure", "disk-pressure"),
        ("PIDPressure", "pid-pressure"),
        ("NetworkUnavailable", "network-unavailable"),
    ] {
        for (status, count) in [("True", 2), ("Unknown", 1), ("True", 2), ("False", 1)] {
            cluster.edit(&id("n1"), |node| {
                let ready = node["status"]["conditions"][0].clone();
                node["status"]["conditions"] = json!([ready, {"type": condition, "status": status}]);
            });
            cluster.settle();
            let taints = cluster.taints("n1");
            assert_eq!(taints.len(), count, "{condition} {status}");
            let there = taints.contains(&format!("node.kubernetes.io/{key}:NoSchedule"));
            assert_eq!(there, status == "True", "{condition} {status}");
        }
    }
    for cordoned in [true, false] {
        cluster.edit(&id("n1"), |node| node["spec"]["unschedulable"] = json!(cordoned));
        cluster.settle();
        let there = cluster.taints("n1").contains(&"node.kubernetes.io/unschedulable:NoSchedule".into());
        assert_eq!(there, cordoned);
    }
    cluster.assert_at_rest();
}

#[test]
fn pods_of_a_lost_node_stay_and_are_not_ready_until_their_node_says_so() {
    let mut cluster = settled();
    cluster.create(service("web", "web"));
    cluster.create(deployment("web", 4));
    cluster.run();
    let lost = cluster.ready_on("n1");
    assert_eq!(lost, 2);
    cluster.set_ready("n1", "Unknown");
    cluster.pass(seconds(60));
    cluster.wait(seconds(3600 * 24));
    cluster.settle();
    assert_eq!(cluster.evicting(), 1, "the taint is there, and tolerated");
    assert_eq!(
        (cluster.ready_on("n1"), cluster.view.pods_on("n1").count(), cluster.pods().len()),
        (0, lost, 4)
    );
    assert_eq!(cluster.reasons("NodeNotReady"), lost + 1, "one for each pod and one for the node");
    let serving = |cluster: &Cluster| -> usize {
        let slices = cluster.view.endpoint_slices.values();
        let endpoints = slices.flat_map(|slice| slice.endpoints.iter().flatten());
        endpoints.filter(|one| one.conditions.as_ref().and_then(|known| known.ready) == Some(true)).count()
    };
    assert_eq!(serving(&cluster), 4 - lost);
    cluster.assert_at_rest();

    cluster.set_ready("n1", "True");
    cluster.settle();
    assert_eq!((cluster.taints("n1").len(), cluster.ready_on("n1")), (0, 0), "it is the node that knows");
    let pods: Vec<_> = cluster.view.pods_on("n1").cloned().collect();
    for pod in pods {
        cluster.set_pod(&pod, |pod, now| {
            pod["status"]["conditions"] =
                json!([{"type": "Ready", "status": "True", "lastTransitionTime": now}]);
        });
    }
    cluster.settle();
    assert_eq!((cluster.ready_on("n1"), serving(&cluster)), (lost, 4));
    cluster.assert_at_rest();
}

#[test]
fn a_pod_that_asks_for_it_leaves_a_lost_node_in_time_and_waits_for_its_confirmation() {
    let mut cluster = settled();
    cluster.quick = false;
    let mut web = deployment("web", 4);
    web["spec"]["template"]["spec"]["tolerations"] = json!([
        {"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}
    ]);
    cluster.create(web);
    cluster.run();
    let lost = cluster.view.pods_on("n1").count();
    let going = |cluster: &Cluster| {
        cluster.view.pods_on("n1").filter(|pod| pod.metadata.deletion_timestamp.is_some()).count()
    };

    // Back in time: nothing happened.
    cluster.set_ready("n1", "Unknown");
    cluster.pass(seconds(29));
    cluster.set_ready("n1", "True");
    cluster.pass(seconds(60));
    assert_eq!((going(&cluster), cluster.pods().len()), (0, 4));

    cluster.set_ready("n1", "Unknown");
    cluster.pass(seconds(29));
    assert_eq!(going(&cluster), 0);
    cluster.pass(seconds(2));
    assert_eq!((going(&cluster), cluster.view.pods_on("n1").count()), (lost, lost), "ended, and not gone");
    assert_eq!(cluster.reasons("TaintManagerEviction"), lost);
    assert_eq!(cluster.pods().len(), 4, "replaced meanwhile");
    let pods: Vec<_> = cluster.view.pods_on("n1").cloned().collect();
    for pod in &pods {
        let why = crate::pods::condition(pod, "DisruptionTarget").unwrap();
        assert_eq!(why.reason.as_deref(), Some("DeletionByTaintManager"));
        cluster.confirm(pod);
    }
    cluster.settle();
    assert_eq!(cluster.pods().len(), 4);
}

#[test]
fn a_taint_that_a_pod_does_not_tolerate_ends_it_and_tolerations_count_from_when_both_were_there() {
    let mut cluster = settled();
    let check = |cluster: &mut Cluster, name: &str, tolerations: Value, leaves_after: Option<u64>| {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "default", "name": name},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "hello:v1"}]},
        });
        pod["spec"]["tolerations"] = tolerations;
        let id = cluster.create(pod);
        cluster.settle();
        if let Some(after) = leaves_after {
            cluster.pass(seconds(after.saturating_sub(1)));
            assert_eq!(cluster.value(&id).is_some(), after > 0, "{name}");
        }
        cluster.pass(seconds(3600));
        assert_eq!(cluster.value(&id).is_some(), leaves_after.is_none(), "{name}");
    };
    let wait = |seconds: i64| json!({"key": "repair", "operator": "Exists", "tolerationSeconds": seconds});
    check(&mut cluster, "before", json!([]), None);
    // As a client sets it: without the time.
    cluster.edit(&id("n1"), |node| {
        node["spec"]["taints"] = json!([{"key": "repair", "value": "now", "effect": "NoExecute"}]);
    });
    cluster.settle();
    assert!(cluster.value(&id("n1")).unwrap()["spec"]["taints"][0]["timeAdded"].is_string());
    assert_eq!(cluster.pods().len(), 0, "what was there goes at once");
    check(&mut cluster, "intolerant", json!([]), Some(0));
    check(&mut cluster, "patient", json!([{"key": "repair", "operator": "Exists"}]), None);
    check(&mut cluster, "other-value", json!([{"key": "repair", "value": "later"}]), Some(0));
    check(
        &mut cluster,
        "other-effect",
        json!([{"key": "repair", "operator": "Exists", "effect": "NoSchedule"}]),
        Some(0),
    );
    check(&mut cluster, "everything", json!([{"operator": "Exists"}]), None);
    check(&mut cluster, "an-hour-later", json!([wait(20)]), Some(20));
    check(&mut cluster, "negative", json!([wait(-5)]), Some(0));
    // Of two that cover the taint the first counts, as in Kubernetes.
    check(&mut cluster, "first", json!([wait(20), wait(5)]), Some(20));
}

#[test]
fn pods_of_a_node_out_of_service_go_without_its_word() {
    let mut cluster = settled();
    cluster.quick = false;
    cluster.create(deployment("web", 4));
    cluster.run();
    let lost = cluster.view.pods_on("n1").count();
    let out =
        json!([{"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}]);
    cluster.edit(&id("n1"), |node| node["spec"]["taints"] = out.clone());
    cluster.settle();
    let all = |cluster: &Cluster| (cluster.view.pods_on("n1").count(), cluster.pods().len());
    assert_eq!(all(&cluster), (lost, 4), "a node that is ready confirms it itself");
    cluster.set_ready("n1", "Unknown");
    cluster.settle();
    assert_eq!(all(&cluster), (0, 4));
    assert_eq!(cluster.reasons("NodeGone"), lost);
    cluster.assert_at_rest();
}

/// A cluster of zones, `(nodes, lost)`, in which the lost ones have just been found to be.
fn zones(all: &[(usize, usize)]) -> Cluster {
    let mut cluster = Cluster::new();
    for name in ["n1", "n2"] {
        cluster.delete(&id(name), None);
    }
    for (zone, (nodes, _)) in all.iter().enumerate() {
        for number in 0..*nodes {
            let mut node = node(&format!("z{zone}-{number:03}"));
            node["metadata"]["labels"] = json!({"topology.kubernetes.io/zone": format!("z{zone}")});
            cluster.create(node);
        }
    }
    cluster.pass(seconds(60));
    for (zone, (_, lost)) in all.iter().enumerate() {
        for number in 0..*lost {
            cluster.set_ready(&format!("z{zone}-{number:03}"), "Unknown");
        }
    }
    cluster.settle();
    cluster
}

#[test]
fn nodes_are_tainted_at_kubernetes_rate_and_not_at_all_when_too_many_are_lost() {
    let check = |all: &[(usize, usize)], expect: [usize; 4]| {
        let mut cluster = zones(all);
        let mut got = [0; 4];
        for (at, wait) in [0, 9, 2, 189].into_iter().enumerate() {
            cluster.pass(seconds(wait));
            got[at] = cluster.evicting();
        }
        assert_eq!(got, expect, "after 0, 9, 11 and 200 s in {all:?}");
        cluster.assert_at_rest();
    };
    check(&[(1, 1)], [0, 0, 0, 0]);
    check(&[(2, 1)], [1, 1, 1, 1]);
    // Two of three are more than 55 %, and yet too few to call it a disruption.
    check(&[(3, 2)], [1, 1, 2, 2]);
    check(&[(3, 3)], [0, 0, 0, 0]);
    check(&[(5, 3)], [0, 0, 0, 0]);
    check(&[(6, 3)], [1, 1, 2, 3]);
    check(&[(20, 10)], [1, 1, 2, 10]);
    check(&[(20, 11)], [0, 0, 0, 0]);
    // A large zone goes on slowly.
    check(&[(50, 30)], [0, 0, 0, 0]);
    check(&[(51, 30)], [1, 1, 1, 3]);
    // A zone that is lost as a whole, with others that are not: its pods have somewhere to go.
    check(&[(3, 3), (3, 0)], [1, 1, 2, 3]);
    check(&[(3, 3), (3, 1)], [2, 2, 3, 4]);
    check(&[(3, 3), (5, 5)], [0, 0, 0, 0]);
}

#[test]
fn when_everything_is_lost_taints_are_taken_off_and_those_back_first_do_not_decide() {
    let mut cluster = zones(&[(10, 2)]);
    cluster.pass(seconds(20));
    assert_eq!(cluster.evicting(), 2);
    let name = |number: usize| format!("z0-{number:03}");
    for number in 2..10 {
        cluster.set_ready(&name(number), "Unknown");
    }
    cluster.settle();
    assert_eq!(cluster.evicting(), 0, "the fault is most likely on this side");
    assert!((0..10).all(|number| cluster.taints(&name(number)) == [format!("{UNREACHABLE}:NoSchedule")]));
    cluster.pass(seconds(600));
    // The link is back, and so are the nodes, one after the other.
    for number in 0..9 {
        cluster.set_ready(&name(number), "True");
        cluster.pass(seconds(4));
        assert_eq!(cluster.evicting(), 0, "{number}");
    }
    cluster.pass(seconds(40));
    assert_eq!(cluster.evicting(), 1, "the one that stays away");
    cluster.set_ready(&name(9), "True");
    cluster.pass(seconds(60));
    assert_eq!(cluster.evicting(), 0);
    cluster.assert_at_rest();
}
