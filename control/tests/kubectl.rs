//! An unmodified kubectl 1.36 against a whole server: what controllers and scheduler make of what it asks for.
//!
//! `LICHEN_KUBECTL`, or else `kubectl` on the PATH, must be of that version. Where there is none the test says
//! `skipped: why`, and with `CI=true` it fails. The nodes are objects only: the test says in their name that pods run.

use lichen_control::{Config, Server};
use lichen_firmware_tests::kubectl::{Kubectl, Output};
use serde_json::{Value, json};

/// Rounds in which nodes are played until a rollout is over.
const ROUNDS_MAX: usize = 40;

struct Cluster {
    server: Server,
    kubectl: Kubectl,
    dir: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Option<Cluster> {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config");
        let kubectl = Kubectl::new(&config, dir.path())?;
        let server = Server::start(Config::new(dir.path().join("data"))).await.unwrap();
        std::fs::write(config, server.admin_kubeconfig()).unwrap();
        Some(Cluster { server, kubectl, dir })
    }

    fn run(&self, line: &str) -> Output {
        self.kubectl.run(line).good()
    }

    fn feed(&self, line: &str, input: &str) -> Output {
        self.kubectl.feed(line, input).good()
    }

    fn list(&self, what: &str) -> Vec<Value> {
        let output = self.run(&format!("get {what} -o json"));
        let list: Value = serde_json::from_str(&output.text).unwrap();
        list["items"].as_array().unwrap().clone()
    }

    fn node(&self, name: &str) {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        self.feed("create -f -", &node.to_string());
        let amounts = json!({"cpu": "2", "memory": "4Gi", "pods": "20"});
        let status = json!({"status": {"capacity": amounts, "allocatable": amounts}});
        self.patch_status(&format!("node/{name}"), status);
        self.link(name, "True");
    }

    /// Says of a node's link what a gateway would: since long ago, so that nothing has to be waited for.
    fn link(&self, node: &str, status: &str) {
        let ready = json!({
            "type": "Ready", "status": status, "reason": "Played", "lastTransitionTime": "2026-01-01T00:00:00Z",
        });
        self.patch_status(&format!("node/{node}"), json!({"status": {"conditions": [ready]}}));
    }

    /// Asks until the answer has all parts.
    fn until(&self, line: &str, parts: &[&str]) {
        for _ in 0..ROUNDS_MAX {
            let output = self.run(line);
            if parts.iter().all(|part| output.text.contains(part)) {
                return;
            }
        }
        self.run(line).has(parts);
    }

    fn patch_status(&self, what: &str, patch: Value) {
        let file = self.dir.path().join("patch.json");
        std::fs::write(&file, patch.to_string()).unwrap();
        self.run(&format!("patch {what} --subresource=status --patch-file {}", file.display()));
    }

    /// Does once what nodes do: bound pods run and are ready, pods that are deleted end. Says whether any did.
    fn play_nodes(&self) -> bool {
        let mut acted = false;
        for (index, pod) in self.list("pods").into_iter().enumerate() {
            let name = pod["metadata"]["name"].as_str().unwrap();
            if pod["metadata"]["deletionTimestamp"].is_string() {
                self.kubectl.run(&format!("delete pod {name} --force --grace-period=0 --wait=false"));
                acted = true;
            } else if pod["spec"]["nodeName"].is_string() && pod["status"]["phase"] != "Running" {
                let ready =
                    json!({"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"});
                let address = format!("10.64.9.{}", index + 1);
                let status = json!({"status": {"phase": "Running", "podIP": address, "conditions": [ready]}});
                self.patch_status(&format!("pod/{name}"), status);
                acted = true;
            }
        }
        acted
    }

    /// Plays the nodes until a Deployment is rolled out, as `kubectl rollout status` sees it.
    fn roll(&self, deployment: &str) {
        for _ in 0..ROUNDS_MAX {
            let status = format!("rollout status deployment/{deployment} --watch=false");
            let done = self.run(&status).text.contains("successfully rolled out");
            if !self.play_nodes() && done {
                return;
            }
        }
        panic!("{}", self.run("get all,events -o wide").text);
    }
}

const MANIFEST: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: c, image: "hello:v1", ports: [{name: http, containerPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 8080, targetPort: http}]
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_through_its_life() {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.node("n1");
    cluster.node("n2");
    cluster.feed("apply -f -", MANIFEST).has(&["deployment.apps/web created", "service/web created"]);
    cluster.roll("web");
    cluster.run("get deployment web").has(&["3/3"]);
    cluster.run("get pods -o wide").has(&["n1", "n2", "Running"]);
    cluster.run("get endpointslices").has(&["8080", "10.64.9."]);
    let described = cluster.run("describe deployment web");
    described.has(&[
        "ScalingReplicaSet",
        "3 desired | 3 updated | 3 total | 3 available",
        "NewReplicaSetAvailable",
    ]);
    cluster.run("wait --for=condition=Available deployment/web --timeout=5s");

    cluster.feed("apply -f -", MANIFEST).has(&["deployment.apps/web unchanged", "service/web unchanged"]);
    let second = MANIFEST.replace("hello:v1", "hello:v2");
    cluster.feed("apply -f -", &second).has(&["deployment.apps/web configured"]);
    cluster.roll("web");
    cluster.run("rollout history deployment/web").has(&["1 ", "2 "]);
    cluster.run("rollout undo deployment/web").has(&["rolled back"]);
    cluster.roll("web");
    let images: Vec<Value> =
        cluster.list("pods").iter().map(|pod| pod["spec"]["containers"][0]["image"].clone()).collect();
    assert_eq!(images, vec![json!("hello:v1"); 3]);

    cluster.run("scale deployment/web --replicas=5");
    cluster.roll("web");
    assert_eq!(cluster.list("pods").len(), 5);
    cluster.run("rollout restart deployment/web");
    cluster.roll("web");
    cluster.run("events --for deployment/web").has(&["Scaled up replica set", "Scaled down replica set"]);

    cluster.run("delete deployment web --cascade=foreground --wait=false");
    while cluster.play_nodes() {}
    cluster.run("wait --for=delete deployment/web --timeout=30s");
    assert!(cluster.list("pods,replicasets").is_empty());
    cluster.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_fits_nowhere_and_a_namespace_that_goes() {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.run("create namespace team");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "big", "namespace": "team"},
        "spec": {"containers": [{"name": "c", "image": "hello:v1", "resources": {"requests": {"cpu": "4"}}}]}});
    cluster.feed("apply -f -", &pod.to_string());
    cluster.node("n1");
    let message = "0/1 nodes are available: 1 Insufficient cpu.";
    cluster.run("wait --for=condition=PodScheduled=false pod/big -n team --timeout=20s");
    for _ in 0..ROUNDS_MAX {
        if cluster.run("describe pod big -n team").text.contains(message) {
            break;
        }
    }
    cluster.run("describe pod big -n team").has(&["FailedScheduling", "default-scheduler", message]);
    cluster.run("create configmap left -n team --from-literal=a=b");
    cluster.run("delete namespace team --timeout=30s").has(&["deleted"]);
    cluster.server.shutdown().await;
}

/// A Deployment of one pod, which leaves a lost node after `seconds`, or stays.
fn tolerant(name: &str, seconds: Option<u64>) -> String {
    let tolerations = match seconds {
        Some(seconds) => json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists",
            "effect": "NoExecute", "tolerationSeconds": seconds}]),
        None => json!([]),
    };
    let labels = json!({"app": name});
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels},
            "spec": {"tolerations": tolerations, "containers": [{"name": "c", "image": "hello:v1"}]}},
    }})
    .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_a_lost_node_stay_unless_they_ask_to_leave() {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.node("n1");
    cluster.node("n2");
    cluster.run("cordon n2").has(&["cordoned"]);
    cluster.run("get nodes").has(&["Ready,SchedulingDisabled"]);
    cluster.until("describe node n2", &["node.kubernetes.io/unschedulable:NoSchedule"]);
    for (name, seconds) in [("stays", None), ("leaves", Some(0)), ("hesitates", Some(3600))] {
        cluster.feed("apply -f -", &tolerant(name, seconds));
        cluster.roll(name);
    }
    cluster.run("uncordon n2").has(&["uncordoned"]);
    cluster.until("describe node n2", &["Taints:             <none>"]);
    let stays = cluster.run("describe pod -l app=stays");
    let lines: Vec<&str> = stays.text.lines().map(str::trim).collect();
    for key in ["not-ready", "unreachable"] {
        let expect = format!("node.kubernetes.io/{key}:NoExecute op=Exists");
        assert!(lines.iter().any(|line| line.ends_with(&expect)), "no time ends it: {lines:?}");
    }

    cluster.link("n1", "Unknown");
    cluster.until("get nodes", &["n1     NotReady", "n2     Ready"]);
    cluster.until(
        "describe node n1",
        &[
            "node.kubernetes.io/unreachable:NoExecute",
            "node.kubernetes.io/unreachable:NoSchedule",
            "NodeNotReady",
        ],
    );
    // The one that asked for it is replaced, and its object waits for the node.
    cluster.until("get pods -l app=leaves -o wide", &["Terminating", "n1", "n2"]);
    cluster.until("events", &["Marking for deletion Pod default/leaves-"]);
    cluster
        .run("get pods -l app=leaves --field-selector=spec.nodeName=n1 -o yaml")
        .has(&["DeletionByTaintManager"]);
    // The others are there as they were, but for that nobody knows whether they are ready.
    for name in ["stays", "hesitates"] {
        cluster.run(&format!("wait --for=condition=Ready=false pod -l app={name} --timeout=20s"));
        let pods = cluster.list(&format!("pods -l app={name}"));
        assert_eq!(pods.len(), 1);
        assert_eq!(
            (&pods[0]["status"]["phase"], &pods[0]["spec"]["nodeName"]),
            (&json!("Running"), &json!("n1"))
        );
        cluster.run(&format!("get pods -l app={name}")).has(&["Running"]).lacks(&["Terminating"]);
        cluster.run(&format!("get deployment {name}")).has(&["0/1"]);
    }
    // Someone who knows better than to wait says so.
    cluster
        .run("delete pods -l app=leaves --field-selector=spec.nodeName=n1 --force --grace-period=0")
        .has(&["force deleted"]);
    assert!(
        cluster
            .list("pods --field-selector=spec.nodeName=n1")
            .iter()
            .all(|pod| pod["metadata"]["deletionTimestamp"].is_null())
    );

    cluster.link("n1", "True");
    cluster.until("describe node n1", &["Taints:             <none>", "NodeReady"]);
    cluster.server.shutdown().await;
}
