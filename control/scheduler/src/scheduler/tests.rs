use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::testing::{node, pod};

/// A view and a scheduler that are told the same, and a clock.
struct Bench {
    view: View,
    scheduler: Scheduler,
    now: Timestamp,
}

impl Bench {
    fn new() -> Bench {
        Bench { view: View::new(), scheduler: Scheduler::new(), now: Timestamp::UNIX_EPOCH }
    }

    fn put(&mut self, object: Object) {
        if let Some(change) = self.view.apply(object.id(), Some(object)) {
            self.scheduler.observe(&change);
        }
    }

    fn remove(&mut self, object: &Object) {
        if let Some(change) = self.view.apply(object.id(), None) {
            self.scheduler.observe(&change);
        }
    }

    fn wait(&mut self, seconds: i64) {
        self.now += jiff::SignedDuration::from_secs(seconds);
    }

    /// The plan as `pod -> node`, and the messages of the pods without one.
    fn plan(&mut self) -> (Vec<String>, Vec<String>) {
        let plan = self.scheduler.plan(&self.view, self.now);
        let bindings = plan.bindings.iter().map(|b| format!("{}>{}", b.pod.name, b.node)).collect();
        (bindings, plan.unschedulable.into_iter().map(|u| u.message).collect())
    }

    fn messages(&mut self) -> Vec<String> {
        let (bindings, messages) = self.plan();
        assert_eq!(bindings, Vec::<String>::new());
        messages
    }

    fn bindings(&mut self) -> Vec<String> {
        let (bindings, messages) = self.plan();
        assert_eq!(messages, Vec::<String>::new());
        bindings
    }
}

fn asks(cpu: &str) -> Value {
    json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}})
}

fn owned(name: &str) -> Object {
    let owner =
        json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "s", "uid": "s", "controller": true}]);
    pod(name, json!({"metadata": {"ownerReferences": owner}}))
}

#[test]
fn reasons_are_counted_in_the_words_of_kubernetes() {
    let mut bench = Bench::new();
    bench.put(pod("p", asks("2")));
    assert_eq!(bench.messages(), ["no nodes available to schedule pods"]);

    // The first node changes what there is to tell.
    bench.put(node("full", json!({"status": {"allocatable": {"cpu": "1"}}})));
    assert_eq!(bench.messages(), ["0/1 nodes are available: 1 Insufficient cpu."]);
    bench.remove(&node("full", json!({})));
    bench.remove(&pod("p", json!({})));

    bench.put(node("small", json!({"status": {"allocatable": {"cpu": "1"}}})));
    bench.put(node(
        "tainted",
        json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}}),
    ));
    bench.put(node("cordoned", json!({"spec": {"unschedulable": true}})));
    bench.put(pod("q", asks("2")));
    assert_eq!(
        bench.messages(),
        [
            "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable."
        ]
    );
}

#[test]
fn replicas_spread_over_equal_nodes() {
    let mut bench = Bench::new();
    bench.put(node("a", json!({})));
    bench.put(node("b", json!({})));
    for name in ["p1", "p2", "p3"] {
        bench.put(owned(name));
    }
    assert_eq!(bench.bindings(), ["p1>a", "p2>b", "p3>a"]);
}

#[test]
fn replicas_spread_even_if_a_node_has_more_room() {
    let mut bench = Bench::new();
    bench.put(node("a", json!({"status": {"allocatable": {"cpu": "64", "memory": "64Gi"}}})));
    bench.put(node("b", json!({})));
    for name in ["p1", "p2", "p3"] {
        bench.put(owned(name));
    }
    let nodes: BTreeSet<String> = bench.bindings().iter().map(|b| b[3..].to_owned()).collect();
    assert_eq!(nodes.len(), 2);
}

#[test]
fn a_service_spreads_pods_without_a_controller() {
    let mut bench = Bench::new();
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "s"}, "spec": {"selector": {"app": "x"}}});
    bench.put(Object::decode(Kind::SERVICE, service.to_string().as_bytes()).unwrap());
    bench.put(node("a", json!({"status": {"allocatable": {"cpu": "64", "memory": "64Gi"}}})));
    bench.put(node("b", json!({})));
    for name in ["p1", "p2"] {
        bench.put(pod(name, json!({"metadata": {"labels": {"app": "x"}}})));
    }
    assert_eq!(bench.bindings(), ["p1>a", "p2>b"]);
}

#[test]
fn the_emptier_node_wins() {
    let mut bench = Bench::new();
    bench.put(node("a", json!({})));
    bench.put(node("b", json!({})));
    let mut busy = asks("3");
    busy["spec"]["nodeName"] = json!("a");
    bench.put(pod("busy", busy));
    bench.put(pod("p", asks("500m")));
    assert_eq!(bench.bindings(), ["p>b"]);
}

#[test]
fn a_binding_in_flight_is_counted_and_given_back_if_it_fails() {
    let mut bench = Bench::new();
    bench.put(node("a", json!({})));
    bench.put(pod("p", asks("3")));
    assert_eq!(bench.bindings(), ["p>a"]);
    bench.put(pod("q", asks("3")));
    assert_eq!(bench.messages(), ["0/1 nodes are available: 1 Insufficient cpu."]);

    // A status write of the pod in flight, not yet bound, does not free the room.
    bench.put(pod("p", json!({"status": {"phase": "Pending"}, "spec": asks("3")["spec"]})));
    bench.wait(60);
    assert_eq!(bench.plan(), (vec![], vec![]));

    bench.scheduler.failed(&ObjectKey::new("default", "p"), "uid-p", bench.now);
    assert_eq!(bench.bindings(), ["q>a"]);
    bench.wait(60);
    assert_eq!(bench.messages(), ["0/1 nodes are available: 1 Insufficient cpu."]);
}

#[test]
fn a_failed_binding_of_another_incarnation_or_a_seen_one_changes_nothing() {
    let mut bench = Bench::new();
    bench.put(node("a", json!({})));
    bench.put(pod("p", asks("3")));
    bench.plan();
    bench.scheduler.failed(&ObjectKey::new("default", "p"), "other", bench.now);
    assert_eq!(bench.scheduler.due(), None);
    let mut bound = asks("3");
    bound["spec"]["nodeName"] = json!("a");
    bench.put(pod("p", bound));
    bench.scheduler.failed(&ObjectKey::new("default", "p"), "uid-p", bench.now);
    assert_eq!(bench.scheduler.due(), None);
    assert_eq!(bench.scheduler.cluster().node("a").unwrap().pods.len(), 1);
}

/// Parks a pod that asks for 3 CPUs of a full node, applies a change, and says whether the pod is tried again.
fn woken_by(change: impl FnOnce(&mut Bench)) -> bool {
    let mut bench = Bench::new();
    bench.put(node("a", json!({})));
    let mut full = asks("2");
    full["spec"]["nodeName"] = json!("a");
    bench.put(pod("full", full));
    bench.put(pod("p", asks("3")));
    assert_eq!(bench.messages().len(), 1);
    bench.wait(60);
    change(&mut bench);
    bench.scheduler.due().is_some()
}

#[test]
fn a_parked_pod_is_tried_again_only_when_a_change_could_help_it() {
    assert!(!woken_by(|_| {}));
    assert!(woken_by(|bench| bench.put(node("b", json!({})))));
    assert!(!woken_by(|bench| bench.put(node("b", json!({"status": {"allocatable": {"cpu": "2"}}})))));
    assert!(!woken_by(|bench| bench.put(node("b", json!({"spec": {"unschedulable": true}})))));
    assert!(woken_by(|bench| bench.put(node("a", json!({"status": {"allocatable": {"cpu": "5"}}})))));
    assert!(!woken_by(|bench| bench.put(node("a", json!({"metadata": {"labels": {"l": "v"}}})))));
    let tainted = json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}});
    assert!(!woken_by(|bench| bench.put(node("a", tainted.clone()))));
    assert!(
        woken_by(|bench| {
            bench.put(node("a", tainted.clone()));
            bench.put(node("a", json!({})));
        }),
        "another filter refuses the node now, and that has to be told"
    );
    assert!(woken_by(|bench| bench.remove(&pod("full", json!({})))));
    let mut ended = asks("2");
    ended["spec"]["nodeName"] = json!("a");
    ended["status"] = json!({"phase": "Succeeded"});
    assert!(woken_by(|bench| bench.put(pod("full", ended))));
    assert!(woken_by(|bench| bench.put(pod("p", asks("1")))));
    let mut noted = asks("3");
    noted["status"] = json!({"phase": "Pending"});
    assert!(!woken_by(|bench| bench.put(pod("p", noted))));
    assert!(!woken_by(|bench| bench.remove(&node("a", json!({})))));
}

#[test]
fn attempts_back_off_and_the_wait_is_bounded() {
    let mut bench = Bench::new();
    bench.put(node("a", json!({})));
    bench.put(pod("p", asks("1")));
    let mut waits = Vec::new();
    for _ in 0..6 {
        assert_eq!(bench.bindings(), ["p>a"]);
        bench.scheduler.failed(&ObjectKey::new("default", "p"), "uid-p", bench.now);
        let due = bench.scheduler.due().unwrap();
        waits.push(due.duration_since(bench.now).as_secs());
        assert_eq!(bench.plan(), (vec![], vec![]));
        bench.now = due;
    }
    assert_eq!(waits, [1, 2, 4, 8, 10, 10]);
}

#[test]
fn a_stale_binding_is_planned_anew_at_once() {
    let mut bench = Bench::new();
    bench.put(node("a", json!({})));
    bench.put(pod("p", asks("1")));
    assert_eq!(bench.bindings(), ["p>a"]);
    bench.put(pod("p", asks("2")));
    bench.scheduler.stale(&ObjectKey::new("default", "p"), "uid-p");
    assert_eq!(bench.bindings(), ["p>a"]);
    assert_eq!(bench.scheduler.cluster().node("a").unwrap().requested.get("cpu"), 2000);
}

#[test]
fn who_is_not_asked_does_not_schedule() {
    let mut bench = Bench::new();
    bench.put(node("a", json!({})));
    bench.put(pod("theirs", json!({"spec": {"schedulerName": "other"}})));
    bench.put(pod("gated", json!({"spec": {"schedulingGates": [{"name": "g"}]}})));
    bench.put(pod("ending", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})));
    bench.put(pod("ours", json!({"spec": {"schedulerName": "lichen"}})));
    bench.put(pod("default", json!({"spec": {"schedulerName": "default-scheduler"}})));
    assert_eq!(bench.bindings(), ["ours>a", "default>a"]);
    bench.put(pod("gated", json!({})));
    assert_eq!(bench.bindings(), ["gated>a"]);
}

#[test]
fn higher_priority_first() {
    let mut bench = Bench::new();
    bench.put(node("a", json!({})));
    bench.put(pod("low", json!({})));
    bench.put(pod("high", json!({"spec": {"priority": 5}})));
    assert_eq!(bench.bindings(), ["high>a", "low>a"]);
}

#[test]
fn a_host_port_is_given_once_a_node() {
    let mut bench = Bench::new();
    bench.put(node("a", json!({})));
    let port = |ip: &str| json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80, "hostIP": ip}]}]}});
    bench.put(pod("p", port("127.0.0.1")));
    bench.put(pod("q", port("127.0.0.2")));
    assert_eq!(bench.bindings(), ["p>a", "q>a"]);
    bench.put(pod("r", port("")));
    assert_eq!(
        bench.messages(),
        ["0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."]
    );
}

#[derive(Clone, Debug)]
enum Event {
    Node { index: u8, cpu: u8, cordoned: bool },
    RemoveNode(u8),
    Pod { index: u8, cpu: u8 },
    RemovePod(u8),
    Finish(u8),
    Plan { fails: bool },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0..4_u8, 1..8_u8, any::<bool>()).prop_map(|(index, cpu, cordoned)| Event::Node {
            index,
            cpu,
            cordoned
        }),
        (0..4_u8).prop_map(Event::RemoveNode),
        (0..12_u8, 1..5_u8).prop_map(|(index, cpu)| Event::Pod { index, cpu }),
        (0..12_u8).prop_map(Event::RemovePod),
        (0..12_u8).prop_map(Event::Finish),
        any::<bool>().prop_map(|fails| Event::Plan { fails }),
    ]
}

/// Runs events and returns all plans. Checks after each plan that no node which took a pod in it is over-committed.
fn run(events: &[Event]) -> Vec<String> {
    let mut bench = Bench::new();
    let mut asked: BTreeMap<u8, u8> = BTreeMap::new();
    let mut log = Vec::new();
    for event in events {
        bench.wait(20);
        match event {
            Event::Node { index, cpu, cordoned } => {
                let over = json!({"spec": {"unschedulable": cordoned}, "status": {"allocatable": {"cpu": cpu.to_string(), "pods": "4"}}});
                bench.put(node(&format!("n{index}"), over));
            }
            Event::RemoveNode(index) => bench.remove(&node(&format!("n{index}"), json!({}))),
            Event::Pod { index, cpu } if !asked.contains_key(index) => {
                asked.insert(*index, *cpu);
                bench.put(pod(&format!("p{index}"), asks(&cpu.to_string())));
            }
            Event::RemovePod(index) if asked.remove(index).is_some() => {
                bench.remove(&pod(&format!("p{index}"), json!({})));
            }
            Event::Finish(index) => {
                let known = bench.view.pods.get("default", &format!("p{index}")).cloned();
                if let Some(known) = known.filter(|p| p.spec.as_ref().unwrap().node_name.is_some()) {
                    let mut ended = (*known).clone();
                    ended.status.get_or_insert_default().phase = Some("Succeeded".into());
                    bench.put(Object::Pod(Arc::new(ended)));
                }
            }
            Event::Plan { fails } => {
                let plan = bench.scheduler.plan(&bench.view, bench.now);
                for binding in &plan.bindings {
                    let info = bench.scheduler.cluster().node(&binding.node).expect("a node that exists");
                    assert!(info.requested.get("cpu") <= info.allocatable.get("cpu"), "{events:?}");
                    assert!(info.pods.len() <= 4);
                    log.push(format!("{}>{}", binding.pod.name, binding.node));
                    if *fails {
                        bench.scheduler.failed(&binding.pod, &binding.uid, bench.now);
                    } else {
                        let mut bound = (**bench.view.pods.by_key(&binding.pod).unwrap()).clone();
                        bound.spec.as_mut().unwrap().node_name = Some(binding.node.clone());
                        bench.put(Object::Pod(Arc::new(bound)));
                    }
                }
                log.extend(plan.unschedulable.iter().map(|u| format!("{}: {}", u.pod.key.name, u.message)));
            }
            _ => {}
        }
    }
    // What is due nowhere fits nowhere: no parked pod was forgotten.
    bench.wait(60);
    while bench.scheduler.due().is_some_and(|due| due <= bench.now) {
        let plan = bench.scheduler.plan(&bench.view, bench.now);
        log.extend(plan.bindings.iter().map(|b| format!("{}>{}", b.pod.name, b.node)));
    }
    for pod in bench.view.pods.values().filter(|pod| wants_scheduling(pod)) {
        let info = PodInfo::new(pod.clone());
        let free = bench.scheduler.cluster().nodes().any(|node| refusal(&info, node).is_empty());
        assert!(!free || bench.scheduler.cluster().is_placed(&info.key, info.uid()), "{events:?}");
    }
    log
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn never_over_commits_never_forgets_and_is_deterministic(events in proptest::collection::vec(event(), 1..60)) {
        prop_assert_eq!(run(&events), run(&events));
    }
}
