//! An unmodified kubectl 1.36 against a whole server: what controllers and scheduler make of what it asks for.
//!
//! `LICHEN_KUBECTL`, or else `kubectl` on the PATH, must be of that version. Where there is none the test says
//! `skipped: why`, and with `CI=true` it fails. The nodes are objects only: the test says in their name that pods run.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use lichen_control::{Config, Server};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

const VERSION: &str = "v1.36.";
/// Longest that one command may take: a hang is a failure, not a wait.
const COMMAND_MAX: Duration = Duration::from_secs(60);
/// Rounds in which nodes are played until a rollout is over.
const ROUNDS_MAX: usize = 40;

struct Cluster {
    server: Server,
    program: PathBuf,
    dir: tempfile::TempDir,
}

struct Output {
    ok: bool,
    text: String,
}

impl Output {
    #[track_caller]
    fn has(self, parts: &[&str]) -> Output {
        for part in parts {
            assert!(self.text.contains(part), "no {part:?} in {}", self.text);
        }
        self
    }
}

impl Cluster {
    async fn start() -> Option<Cluster> {
        let program =
            std::env::var_os("LICHEN_KUBECTL").map_or_else(|| PathBuf::from("kubectl"), PathBuf::from);
        let version = Command::new(&program).args(["version", "--client"]).output().await;
        let why = match version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()) {
            Ok(text) if text.contains(VERSION) => {
                let dir = tempfile::tempdir().unwrap();
                let server = Server::start(Config::new(dir.path().join("data"))).await.unwrap();
                std::fs::write(dir.path().join("config"), server.admin_kubeconfig()).unwrap();
                return Some(Cluster { server, program, dir });
            }
            Ok(text) => format!("{} is not {VERSION}x: {}", program.display(), text.trim()),
            Err(error) => format!("{}: {error}", program.display()),
        };
        assert!(std::env::var("CI").as_deref() != Ok("true"), "kubectl is needed: {why}");
        println!("skipped: {why}");
        None
    }

    async fn try_run(&self, line: &str, input: &str) -> Output {
        let mut command = Command::new(&self.program);
        command.args(line.split_whitespace()).env("KUBECONFIG", self.dir.path().join("config"));
        command.env("HOME", self.dir.path()).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).await.unwrap();
        drop(stdin);
        let output = tokio::time::timeout(COMMAND_MAX, child.wait_with_output()).await;
        let output = output.unwrap_or_else(|_| panic!("kubectl {line} hangs")).unwrap();
        let text = [output.stdout, output.stderr].concat();
        Output { ok: output.status.success(), text: String::from_utf8_lossy(&text).into_owned() }
    }

    async fn run(&self, line: &str) -> Output {
        self.feed(line, "").await
    }

    async fn feed(&self, line: &str, input: &str) -> Output {
        let output = self.try_run(line, input).await;
        assert!(output.ok, "kubectl {line}: {}", output.text);
        output
    }

    async fn list(&self, what: &str) -> Vec<Value> {
        let output = self.run(&format!("get {what} -o json")).await;
        let list: Value = serde_json::from_str(&output.text).unwrap();
        list["items"].as_array().unwrap().clone()
    }

    async fn node(&self, name: &str) {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        self.feed("create -f -", &node.to_string()).await;
        let amounts = json!({"cpu": "2", "memory": "4Gi", "pods": "20"});
        let conditions = json!([{"type": "Ready", "status": "True", "reason": "Played"}]);
        let status =
            json!({"status": {"capacity": amounts, "allocatable": amounts, "conditions": conditions}});
        self.patch_status(&format!("node/{name}"), status).await;
    }

    async fn patch_status(&self, what: &str, patch: Value) {
        let file = self.dir.path().join("patch.json");
        std::fs::write(&file, patch.to_string()).unwrap();
        self.run(&format!("patch {what} --subresource=status --patch-file {}", file.display())).await;
    }

    /// Does once what nodes do: bound pods run and are ready, pods that are deleted end. Says whether any did.
    async fn play_nodes(&self) -> bool {
        let mut acted = false;
        for (index, pod) in self.list("pods").await.into_iter().enumerate() {
            let name = pod["metadata"]["name"].as_str().unwrap();
            if pod["metadata"]["deletionTimestamp"].is_string() {
                self.try_run(&format!("delete pod {name} --force --grace-period=0 --wait=false"), "").await;
                acted = true;
            } else if pod["spec"]["nodeName"].is_string() && pod["status"]["phase"] != "Running" {
                let ready =
                    json!({"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"});
                let address = format!("10.64.9.{}", index + 1);
                let status = json!({"status": {"phase": "Running", "podIP": address, "conditions": [ready]}});
                self.patch_status(&format!("pod/{name}"), status).await;
                acted = true;
            }
        }
        acted
    }

    /// Plays the nodes until a Deployment is rolled out, as `kubectl rollout status` sees it.
    async fn roll(&self, deployment: &str) {
        for _ in 0..ROUNDS_MAX {
            let status = format!("rollout status deployment/{deployment} --watch=false");
            let done = self.run(&status).await.text.contains("successfully rolled out");
            if !self.play_nodes().await && done {
                return;
            }
        }
        panic!("{}", self.run("get all,events -o wide").await.text);
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
    cluster.node("n1").await;
    cluster.node("n2").await;
    cluster.feed("apply -f -", MANIFEST).await.has(&["deployment.apps/web created", "service/web created"]);
    cluster.roll("web").await;
    cluster.run("get deployment web").await.has(&["3/3"]);
    cluster.run("get pods -o wide").await.has(&["n1", "n2", "Running"]);
    cluster.run("get endpointslices").await.has(&["8080", "10.64.9."]);
    let described = cluster.run("describe deployment web").await;
    described.has(&[
        "ScalingReplicaSet",
        "3 desired | 3 updated | 3 total | 3 available",
        "NewReplicaSetAvailable",
    ]);
    cluster.run("wait --for=condition=Available deployment/web --timeout=5s").await;

    cluster
        .feed("apply -f -", MANIFEST)
        .await
        .has(&["deployment.apps/web unchanged", "service/web unchanged"]);
    let second = MANIFEST.replace("hello:v1", "hello:v2");
    cluster.feed("apply -f -", &second).await.has(&["deployment.apps/web configured"]);
    cluster.roll("web").await;
    cluster.run("rollout history deployment/web").await.has(&["1 ", "2 "]);
    cluster.run("rollout undo deployment/web").await.has(&["rolled back"]);
    cluster.roll("web").await;
    let images: Vec<Value> =
        cluster.list("pods").await.iter().map(|pod| pod["spec"]["containers"][0]["image"].clone()).collect();
    assert_eq!(images, vec![json!("hello:v1"); 3]);

    cluster.run("scale deployment/web --replicas=5").await;
    cluster.roll("web").await;
    assert_eq!(cluster.list("pods").await.len(), 5);
    cluster.run("rollout restart deployment/web").await;
    cluster.roll("web").await;
    cluster
        .run("events --for deployment/web")
        .await
        .has(&["Scaled up replica set", "Scaled down replica set"]);

    cluster.run("delete deployment web --cascade=foreground --wait=false").await;
    while cluster.play_nodes().await {}
    cluster.run("wait --for=delete deployment/web --timeout=30s").await;
    assert!(cluster.list("pods,replicasets").await.is_empty());
    cluster.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_fits_nowhere_and_a_namespace_that_goes() {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.run("create namespace team").await;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "big", "namespace": "team"},
        "spec": {"containers": [{"name": "c", "image": "hello:v1", "resources": {"requests": {"cpu": "4"}}}]}});
    cluster.feed("apply -f -", &pod.to_string()).await;
    cluster.node("n1").await;
    let message = "0/1 nodes are available: 1 Insufficient cpu.";
    cluster.run("wait --for=condition=PodScheduled=false pod/big -n team --timeout=20s").await;
    for _ in 0..ROUNDS_MAX {
        if cluster.run("describe pod big -n team").await.text.contains(message) {
            break;
        }
    }
    cluster.run("describe pod big -n team").await.has(&["FailedScheduling", "default-scheduler", message]);
    cluster.run("create configmap left -n team --from-literal=a=b").await;
    cluster.run("delete namespace team --timeout=30s").await.has(&["deleted"]);
    cluster.server.shutdown().await;
}
