//! A whole node over a fake link and the mock runtime.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lichen_link::LinkEvent;
use lichen_workload::mock::{Call, MockRuntime};
use lichen_workload::{ContainerId, Exit};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::*;
use crate::testing::Fake;

struct Bench {
    fake: Arc<Fake>,
    runtime: MockRuntime,
    running: Running,
    link: mpsc::Sender<LinkEvent>,
    version: u64,
}

async fn boot(dir: &Path, fake: &Arc<Fake>) -> Bench {
    boot_with(dir, fake, MockRuntime::default()).await
}

async fn boot_with(dir: &Path, fake: &Arc<Fake>, runtime: MockRuntime) -> Bench {
    let mut config = Config::new("edge-1", dir, "unused:1");
    config.shutdown_grace = Duration::ZERO;
    let (checkpoint, contents) = open(&config).await.expect("opens");
    let (link, events) = mpsc::channel(64);
    let ca_pem = fake.authority.ca_pem().to_owned();
    let build = Build { config, runtime: Arc::new(runtime.clone()), checkpoint, contents, ca_pem };
    let running = build.run(fake.clone(), events).await;
    Bench { fake: fake.clone(), runtime, running, link, version: 0 }
}

/// A node that is connected and has its range of addresses.
async fn node(dir: &Path, cidr: &str) -> Bench {
    let mut b = boot(dir, &Fake::new()).await;
    b.send(LinkEvent::Connected { epoch: 1, incarnation: 7 }).await;
    b.fake.wait("Node", "edge-1", |_| true).await;
    b.item("Node", "edge-1", json!({ "metadata": { "name": "edge-1" }, "spec": { "podCIDR": cidr } })).await;
    b
}

impl Bench {
    async fn send(&self, event: LinkEvent) {
        self.link.send(event).await.expect("the node listens");
    }

    async fn item(&mut self, kind: &str, key: &str, body: Value) {
        self.version += 1;
        let body = serde_cbor::to_vec(&body).expect("encodes").into();
        self.send(LinkEvent::Item { kind: kind.into(), key: key.into(), version: self.version, body }).await;
    }

    async fn status(&self, key: &str, condition: impl Fn(&Value) -> bool) -> Value {
        self.fake.wait("Pod", key, |pod| condition(&pod["status"])).await["status"].take()
    }

    async fn ready(&self, key: &str) -> Value {
        self.status(key, |status| status["containerStatuses"][0]["ready"] == true).await
    }

    fn id(&self, attempt: u32) -> ContainerId {
        ContainerId::of_attempt("u1", "c", attempt).expect("an id")
    }

    fn starts(&self) -> usize {
        self.runtime.calls().iter().filter(|call| matches!(call, Call::Start(_))).count()
    }
}

fn pod(spec: Value) -> Value {
    let mut spec = spec;
    let container = json!({ "name": "c", "image": "hello:v1", "ports": [{ "containerPort": 8080 }] });
    if spec["containers"].is_null() {
        spec["containers"] = json!([container]);
    }
    json!({
        "metadata": { "name": "p", "namespace": "ns", "uid": "u1", "generation": 1 },
        "spec": spec,
    })
}

fn waiting(status: &Value) -> &Value {
    &status["containerStatuses"][0]["state"]["waiting"]["reason"]
}

#[tokio::test]
async fn a_pod_lives_and_goes() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut b = node(dir.path(), "10.251.1.0/24").await;
    let registered =
        b.fake.wait("Node", "edge-1", |node| node["status"]["addresses"][0]["type"] == "InternalIP").await;
    assert_eq!(registered["status"]["addresses"][0]["address"], "10.251.1.1");
    assert_eq!(registered["metadata"]["labels"]["lichen.dev/runtime.wasm"], "true");

    b.item("ConfigMap", "ns/cm", json!({ "data": { "greeting": "hi" } })).await;
    let spec = json!({
        "terminationGracePeriodSeconds": 3,
        "volumes": [{ "name": "v", "configMap": { "name": "cm" } }],
        "containers": [{
            "name": "c", "image": "hello:v1", "args": ["--say", "$(GREETING)"],
            "ports": [{ "containerPort": 8080 }],
            "resources": { "limits": { "memory": "32Mi", "cpu": "250m" } },
            "env": [{ "name": "GREETING", "valueFrom": { "configMapKeyRef": { "name": "cm", "key": "greeting" } } }],
            "volumeMounts": [{ "name": "v", "mountPath": "/etc/cm" }],
        }],
    });
    b.item("Pod", "ns/p", pod(spec.clone())).await;
    let status = b.ready("ns/p").await;
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["podIP"], "10.251.1.2");
    assert_eq!(status["containerStatuses"][0]["containerID"], "wasm://u1_c_0");
    let spec_given = b.runtime.spec(&b.id(0)).expect("was created");
    assert_eq!(spec_given.args, ["--say", "hi"]);
    assert_eq!(spec_given.serve, ["127.251.1.2:8080".parse().expect("an address")]);
    assert_eq!(spec_given.limits.memory_bytes, Some(32 << 20));
    assert_eq!(spec_given.limits.cpu_millis, Some(250));
    assert!(spec_given.mounts[0].read_only && spec_given.mounts[0].guest == "/etc/cm");
    let file = spec_given.mounts[0].host.join("greeting");
    assert_eq!(std::fs::read_to_string(&file).expect("reads"), "hi");

    b.item("ConfigMap", "ns/cm", json!({ "data": { "greeting": "hello" } })).await;
    tokio::time::timeout(Duration::from_secs(20), async {
        while std::fs::read_to_string(&file).expect("is always whole") != "hello" {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the volume follows");

    let mut doomed = pod(spec);
    doomed["metadata"]["deletionTimestamp"] = json!("2026-11-22T02:19:02Z");
    doomed["metadata"]["deletionGracePeriodSeconds"] = json!(3);
    b.item("Pod", "ns/p", doomed.clone()).await;
    b.fake.wait("PodGone", "ns/p", |_| true).await;
    assert!(b.runtime.calls().contains(&Call::Stop(b.id(0), Duration::from_secs(3))));
    b.item("Pod", "ns/p", doomed).await;
    b.fake.wait("PodGone", "ns/p", |_| true).await;
    b.send(LinkEvent::Remove { kind: "Pod".into(), key: "ns/p".into(), version: 99 }).await;
    // A stop may overtake what is still on its way, so something after it is awaited.
    b.send(LinkEvent::Connected { epoch: 1, incarnation: 7 }).await;
    b.fake.wait("Node", "edge-1", |_| true).await;
    b.running.stop().await;
    let (_, contents) = Checkpoint::open(dir.path()).expect("opens");
    assert_eq!(contents.space(Space::Gone).count(), 0);
    assert_eq!(contents.space(Space::Pod).count(), 0);
    assert_eq!(contents.space(Space::Address).count(), 0);
    assert_eq!(contents.objects.iter().filter(|o| o.kind == "Pod").count(), 0);
}

#[tokio::test]
async fn missing_configuration_is_waited_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut b = node(dir.path(), "10.251.2.0/24").await;
    let spec = json!({ "containers": [{ "name": "c", "image": "hello:v1",
        "envFrom": [{ "secretRef": { "name": "s" } }] }] });
    b.item("Pod", "ns/p", pod(spec)).await;
    let status = b.status("ns/p", |status| waiting(status) == "CreateContainerConfigError").await;
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["message"], "secret \"s\" not found");
    assert_eq!(b.starts(), 0);
    b.item("Secret", "ns/s", json!({ "data": { "K": "dg==" } })).await;
    b.ready("ns/p").await;
    assert_eq!(b.runtime.spec(&b.id(0)).expect("was created").env, [("K".to_owned(), "v".to_owned())]);
    b.running.stop().await;
}

#[tokio::test]
async fn a_missing_volume_is_an_event_and_waited_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut b = node(dir.path(), "10.251.3.0/24").await;
    let spec = json!({ "volumes": [{ "name": "v", "configMap": { "name": "cm" } }] });
    b.item("Pod", "ns/p", pod(spec)).await;
    let status = b.status("ns/p", |status| status["message"].is_string()).await;
    assert_eq!(status["message"], "MountVolume.SetUp failed for volume \"v\" : configmap \"cm\" not found");
    b.item("ConfigMap", "ns/cm", json!({ "data": {} })).await;
    b.ready("ns/p").await;
    b.running.stop().await;
}

#[tokio::test]
async fn pods_come_back_without_the_control_plane() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut b = node(dir.path(), "10.251.4.0/24").await;
    b.item("Pod", "ns/p", pod(json!({}))).await;
    let before = b.ready("ns/p").await;
    let fake = b.fake.clone();
    b.running.stop().await;
    assert!(matches!(b.runtime.calls().last(), Some(Call::Stop(..))));

    // No Connected, and no artifact to be had: all that is needed is on the node.
    let again = boot(dir.path(), &fake).await;
    let status = again.ready("ns/p").await;
    assert_eq!(status["podIP"], before["podIP"]);
    assert_eq!(status["startTime"], before["startTime"]);
    let container = &status["containerStatuses"][0];
    assert_eq!(container["restartCount"], 1);
    assert_eq!(container["lastState"]["terminated"]["reason"], "ContainerStatusUnknown");
    assert!(again.runtime.spec(&again.id(1)).is_some(), "attempt 1");
    assert_eq!(fake.offsets.lock().expect("not poisoned").len(), 1);

    // A snapshot that doesn't name the pod any more ends it.
    again.send(LinkEvent::Connected { epoch: 1, incarnation: 8 }).await;
    again.send(LinkEvent::SnapshotBegin { version: 100, count: 0 }).await;
    again.send(LinkEvent::SnapshotEnd { version: 100 }).await;
    again.status("ns/p", |status| !status["containerStatuses"][0]["state"]["terminated"].is_null()).await;
    again.running.stop().await;
    let (_, contents) = Checkpoint::open(dir.path()).expect("opens");
    assert_eq!(contents.sync.synced, Some((8, 100)));
    let left: Vec<_> = contents.objects.iter().map(|o| o.kind.as_str()).collect();
    assert_eq!(left, ["Node"]);
}

/// What a node that is killed leaves: its checkpoint and its containers, as they were when they were last looked at.
async fn killed(b: Bench) -> (Arc<Fake>, MockRuntime) {
    let Bench { fake, runtime, running, .. } = b;
    let left = runtime.successor();
    running.stop().await;
    (fake, left)
}

#[tokio::test]
async fn containers_that_outlive_the_agent_are_taken_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut b = node(dir.path(), "10.251.8.0/24").await;
    b.item("Pod", "ns/p", pod(json!({}))).await;
    let before = b.ready("ns/p").await;
    let (fake, left) = killed(b).await;

    let b = boot_with(dir.path(), &fake, left).await;
    let status = b.ready("ns/p").await;
    assert_eq!(status["podIP"], before["podIP"]);
    let container = &status["containerStatuses"][0];
    assert_eq!(container["restartCount"], 0, "it is the same container");
    assert_eq!(container["state"]["running"], before["containerStatuses"][0]["state"]["running"]);
    assert_eq!(b.starts(), 0);

    // It ends: the next attempt goes through all that a first one does.
    b.runtime.exit(&b.id(0), Exit::Code(3)).expect("runs");
    let status = b.status("ns/p", |status| status["containerStatuses"][0]["restartCount"] == 1).await;
    assert_eq!(status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 3);
    b.ready("ns/p").await;
    assert!(b.runtime.spec(&b.id(1)).is_some());
    b.running.stop().await;
}

#[tokio::test]
async fn what_ended_while_the_agent_was_away_is_told_with_its_code() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut b = node(dir.path(), "10.251.9.0/24").await;
    b.item("Pod", "ns/p", pod(json!({ "restartPolicy": "OnFailure" }))).await;
    b.ready("ns/p").await;
    let (fake, left) = killed(b).await;
    left.exit(&ContainerId::of_attempt("u1", "c", 0).expect("an id"), Exit::Code(0))
        .expect("is left running");
    let b = boot_with(dir.path(), &fake, left).await;
    let status = b.status("ns/p", |status| status["phase"] == "Succeeded").await;
    let ended = &status["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(0), &json!("Completed")));
    assert_eq!(
        ended["finishedAt"], "1970-01-01T00:00:00Z",
        "the mock's time of its end, not of the agent's start"
    );
    assert_eq!(b.starts(), 0);
    b.running.stop().await;
}

#[tokio::test]
async fn a_container_of_no_pod_is_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut b = node(dir.path(), "10.251.10.0/24").await;
    b.item("Pod", "ns/p", pod(json!({}))).await;
    b.ready("ns/p").await;
    let (fake, left) = killed(b).await;
    let other = tempfile::tempdir().expect("a directory");
    let b = boot_with(other.path(), &fake, left).await;
    let id = b.id(0);
    tokio::time::timeout(Duration::from_secs(20), async {
        while b.runtime.state(&id).is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it is removed");
    b.running.stop().await;
}

#[tokio::test]
async fn exits_are_seen_and_survive_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut b = node(dir.path(), "10.251.5.0/24").await;
    b.item("Pod", "ns/p", pod(json!({ "restartPolicy": "Never" }))).await;
    b.ready("ns/p").await;
    b.runtime.exit(&b.id(0), Exit::OutOfMemory).expect("runs");
    let status = b.status("ns/p", |status| status["phase"] == "Failed").await;
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["reason"], "OOMKilled");
    let fake = b.fake.clone();
    b.running.stop().await;
    let again = boot(dir.path(), &fake).await;
    again.send(LinkEvent::Connected { epoch: 1, incarnation: 7 }).await;
    let status = again.status("ns/p", |_| true).await;
    assert_eq!(status["phase"], "Failed");
    assert_eq!(again.starts(), 0);
    again.running.stop().await;
}

#[tokio::test]
async fn a_namesake_takes_the_place_of_an_older_pod() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut b = node(dir.path(), "10.251.6.0/24").await;
    b.item("Pod", "ns/p", pod(json!({ "terminationGracePeriodSeconds": 0 }))).await;
    b.ready("ns/p").await;
    let mut other = pod(json!({}));
    other["metadata"]["uid"] = json!("u2");
    b.item("Pod", "ns/p", other).await;
    let status = b
        .fake
        .wait("Pod", "ns/p", |pod| {
            pod["metadata"]["uid"] == "u2" && pod["status"]["containerStatuses"][0]["ready"] == true
        })
        .await;
    assert_ne!(status["status"]["podIP"], Value::Null);
    b.running.stop().await;
}

#[tokio::test]
async fn an_address_that_somebody_else_uses_is_left_alone() {
    let _squatter = std::net::TcpListener::bind("127.251.7.2:8080").expect("binds");
    let dir = tempfile::tempdir().expect("a directory");
    let mut b = node(dir.path(), "10.251.7.0/24").await;
    b.item("Pod", "ns/p", pod(json!({}))).await;
    assert_eq!(b.ready("ns/p").await["podIP"], "10.251.7.3");
    b.running.stop().await;
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let dir = tempfile::tempdir().expect("a directory");
    let check = async |config: Config, expect: &str| match Agent::start_with(
        config,
        Arc::new(MockRuntime::default()),
    )
    .await
    {
        Ok(_) => panic!("it started"),
        Err(error) => {
            // As the programs print it: with its causes.
            let error = format!("{:#}", anyhow::Error::from(error));
            assert!(error.contains(expect), "{error}");
        }
    };
    let config = |name: &str| Config::new(name, dir.path(), "127.0.0.1:1");
    check(config("Not A Name"), "is not a lowercase DNS subdomain").await;
    check(config("n"), "has not joined a cluster yet").await;
    let mut bad = config("n");
    bad.token = Some("nonsense".into());
    check(bad, "not a join token").await;
    let (checkpoint, _) = Checkpoint::open(dir.path()).expect("opens");
    check(config("n"), "another agent is running on").await;
    let identity = Identity {
        node_name: "other".into(),
        certificate_pem: String::new(),
        key_pem: String::new(),
        ca_pem: String::new(),
        session_key: [0; 32],
        renewals: 0,
    };
    checkpoint.commit(&[Change::Identity(identity)]).expect("commits");
    drop(checkpoint);
    check(config("n"), "belongs to the node other").await;
}

#[tokio::test]
async fn a_node_that_is_deleted_registers_again_without_a_new_session() {
    let dir = tempfile::tempdir().expect("a directory");
    let b = node(dir.path(), "10.251.8.0/24").await;
    b.fake.wait("Node", "edge-1", |node| node["status"]["addresses"][0]["type"] == "InternalIP").await;
    b.send(LinkEvent::Remove { kind: "Node".into(), key: "edge-1".into(), version: 9 }).await;
    let again = b.fake.wait("Node", "edge-1", |_| true).await;
    assert_eq!(again["status"]["addresses"][0]["address"], "10.251.8.1", "its pods keep their addresses");
    b.running.stop().await;
}

#[tokio::test]
async fn a_node_that_is_told_to_leave_ends_its_pods_wipes_itself_and_says_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut b = node(dir.path(), "10.251.9.0/24").await;
    b.item("Pod", "ns/p", pod(json!({ "terminationGracePeriodSeconds": 7 }))).await;
    b.ready("ns/p").await;
    b.send(LinkEvent::Leave).await;
    b.fake.wait("Left", "edge-1", |_| true).await;
    assert!(b.runtime.calls().contains(&Call::Stop(b.id(0), Duration::from_secs(7))), "with their own grace");
    // It was wiped before it was said: whoever dies from now on has left.
    let left: Vec<_> = std::fs::read_dir(dir.path()).expect("lists").collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!*b.running.left.borrow(), "it waits for the control plane to have heard it");
    b.send(LinkEvent::Lost(lichen_wire::session::LostReason::Bye)).await;
    b.running.left.wait_for(|left| *left).await.expect("the core says so");
    b.running.stop().await;
    let (_, contents) = Checkpoint::open(dir.path()).expect("opens");
    assert_eq!(contents, Contents::default());
}
