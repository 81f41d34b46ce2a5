//! An unmodified kubectl 1.36 against the API server.
//!
//! `LICHEN_KUBECTL`, or else `kubectl` on the PATH, must be of that version. Where there is none the tests say
//! `skipped: why`, and with `CI=true` they fail. What needs a scheduler, controllers or nodes is elsewhere.

mod common;

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

const VERSION: &str = "v1.36.";
/// Longest that one command may take: a hang is a failure, not a wait.
const COMMAND_MAX: Duration = Duration::from_secs(60);

struct Kubectl {
    program: PathBuf,
    config: PathBuf,
    home: PathBuf,
}

#[derive(Debug)]
struct Output {
    ok: bool,
    text: String,
    errors: String,
}

impl Output {
    #[track_caller]
    fn has(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.text.contains(part) || self.errors.contains(part), "no {part:?} in {self:#?}");
        }
        self
    }

    #[track_caller]
    fn good(self) -> Self {
        assert!(self.ok, "{self:#?}");
        self
    }

    #[track_caller]
    fn bad(self) -> Self {
        assert!(!self.ok, "{self:#?}");
        self
    }
}

impl Kubectl {
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.args(line.split_whitespace()).env("KUBECONFIG", &self.config).env("HOME", &self.home);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    async fn run(&self, line: &str) -> Output {
        self.run_with(line, "").await
    }

    async fn run_with(&self, line: &str, input: &str) -> Output {
        use tokio::io::AsyncWriteExt;
        let mut child = self.command(line).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).await.unwrap();
        drop(stdin);
        let output = tokio::time::timeout(COMMAND_MAX, child.wait_with_output());
        let output = output.await.unwrap_or_else(|_| panic!("kubectl {line} hangs")).unwrap();
        Output {
            ok: output.status.success(),
            text: String::from_utf8_lossy(&output.stdout).into_owned(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

async fn start() -> Option<(common::Server, Kubectl)> {
    let program = std::env::var_os("LICHEN_KUBECTL").map_or_else(|| PathBuf::from("kubectl"), PathBuf::from);
    let version = Command::new(&program).args(["version", "--client"]).output().await;
    let found = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let why = match found {
        Ok(text) if text.contains(VERSION) => {
            let nodes = std::sync::Arc::new(common::Nodes::default());
            let server = common::Server::start_with(Some(nodes), Default::default()).await;
            let config = server.kubeconfig();
            let home = server.folder.path().to_owned();
            return Some((server, Kubectl { program, config, home }));
        }
        Ok(text) => format!("{} is not {VERSION}x: {}", program.display(), text.trim()),
        Err(error) => format!("{}: {error}", program.display()),
    };
    assert!(std::env::var("CI").as_deref() != Ok("true"), "kubectl is needed: {why}");
    println!("skipped: {why}");
    None
}

const DEPLOYMENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: c, image: "hello:v1", ports: [{containerPort: 8080}]}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discovery_and_reading() {
    let Some((server, kubectl)) = start().await else { return };
    kubectl.run("version").await.good().has(&["Server Version: v1.36", "lichen"]);
    let resources = kubectl.run("api-resources").await.good();
    resources.has(&["configmaps", "cm", "deployments", "deploy", "apps/v1", "Lease", "endpointslices", "po"]);
    kubectl.run("api-versions").await.good().has(&["apps/v1", "v1", "coordination.k8s.io/v1"]);
    kubectl.run("get ns").await.good().has(&[
        "NAME",
        "STATUS",
        "AGE",
        "default",
        "Active",
        "kube-node-lease",
    ]);
    kubectl.run("get svc").await.good().has(&["CLUSTER-IP", "kubernetes", "10.96.0.1", "443/TCP"]);
    kubectl.run("get svc -o wide").await.good().has(&["SELECTOR", "<none>"]);
    kubectl.run("get svc kubernetes -o yaml").await.good().has(&["clusterIP: 10.96.0.1", "kind: Service"]);
    let text = kubectl.run("get svc kubernetes -o json").await.good().text;
    let service: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(service["spec"]["ports"][0]["targetPort"], json!(server.address.port()));
    kubectl.run("get pods").await.good().has(&["No resources found in default namespace."]);
    kubectl.run("get pod nope").await.bad().has(&["Error from server (NotFound): pods \"nope\" not found"]);
    kubectl.run("get nonsense").await.bad().has(&["the server doesn't have a resource type \"nonsense\""]);
    kubectl.run("get cm -A --chunk-size=1 -o name").await.good();
    kubectl.run("describe svc kubernetes").await.good().has(&["IP:", "10.96.0.1", "TargetPort:"]);
    kubectl.run("get --raw /readyz").await.good().has(&["ok"]);
    kubectl.run("explain pod.spec.containers").await.good().has(&["KIND:       Pod", "image"]);
    kubectl.run("cluster-info").await.good().has(&["is running at"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writing() {
    let Some((server, kubectl)) = start().await else { return };
    kubectl.run_with("apply -f -", DEPLOYMENT).await.good().has(&["deployment.apps/web created"]);
    kubectl.run_with("apply -f -", DEPLOYMENT).await.good().has(&["deployment.apps/web unchanged"]);
    let changed = DEPLOYMENT.replace("hello:v1", "hello:v2");
    kubectl.run_with("apply -f -", &changed).await.good().has(&["deployment.apps/web configured"]);
    let image = "get deploy web -o jsonpath={.spec.template.spec.containers[0].image}/{.metadata.generation}";
    kubectl.run(image).await.good().has(&["hello:v2/2"]);
    kubectl.run("get deploy").await.good().has(&["READY", "UP-TO-DATE", "web", "0/2"]);
    kubectl.run("scale deploy/web --replicas=5").await.good().has(&["deployment.apps/web scaled"]);
    kubectl.run("scale deploy/web --replicas=4 --current-replicas=5").await.good();
    kubectl.run("scale deploy/web --replicas=4 --current-replicas=9").await.bad();
    kubectl.run("get deploy web -o jsonpath={.spec.replicas}").await.good().has(&["4"]);
    kubectl.run("label deploy web tier=x").await.good().has(&["deployment.apps/web labeled"]);
    kubectl.run("get deploy -l tier=x -o name").await.good().has(&["deployment.apps/web"]);
    kubectl.run("annotate deploy web note=y").await.good().has(&["deployment.apps/web annotated"]);
    let merge = r#"patch deploy web --type=merge -p {"spec":{"replicas":3}}"#;
    kubectl.run(merge).await.good().has(&["patched"]);
    kubectl.run(merge).await.good().has(&["patched (no change)"]);
    let strategic = r#"patch deploy web -p {"spec":{"template":{"spec":{"containers":[{"name":"c","env":[{"name":"A","value":"1"}]}]}}}}"#;
    kubectl.run(strategic).await.good().has(&["patched"]);
    let json = r#"patch deploy web --type=json -p [{"op":"replace","path":"/spec/paused","value":true}]"#;
    kubectl.run(json).await.bad();
    let json = r#"patch deploy web --type=json -p [{"op":"add","path":"/spec/paused","value":true}]"#;
    kubectl.run(json).await.good().has(&["patched"]);
    kubectl.run("get deploy web -o yaml").await.good().has(&["name: A", "image: hello:v2", "paused: true"]);
    kubectl.run("rollout status deploy/web --timeout=1s").await.bad();
    kubectl.run("describe deploy web").await.good().has(&["Replicas:", "hello:v2"]);
    let done = r#"patch deploy web --subresource=status --type=merge -p {"status":{"observedGeneration":99,"replicas":3,"updatedReplicas":3,"readyReplicas":3,"availableReplicas":3}}"#;
    kubectl.run(done).await.good();
    kubectl.run("rollout status deploy/web --timeout=20s").await.good().has(&["successfully rolled out"]);
    kubectl.run("get deploy web -o wide").await.good().has(&["3/3", "CONTAINERS", "hello:v2", "app=web"]);

    let map = "{apiVersion: v1, kind: ConfigMap, metadata: {name: m}, data: {a: b}}";
    kubectl.run_with("create -f -", map).await.good().has(&["configmap/m created"]);
    kubectl
        .run_with("create -f -", map)
        .await
        .bad()
        .has(&["AlreadyExists", "configmaps \"m\" already exists"]);
    kubectl.run_with("replace -f -", &map.replace("b}", "c}")).await.good().has(&["replaced"]);
    let unknown = "{apiVersion: v1, kind: ConfigMap, metadata: {name: x}, dataa: {a: b}}";
    kubectl.run_with("create -f -", unknown).await.bad().has(&["dataa"]);
    let wrong = "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {containers: []}}";
    kubectl.run_with("create -f -", wrong).await.bad().has(&["spec.containers", "Required value"]);
    kubectl.run_with("apply --dry-run=server -f -", unknown.replace("dataa", "data").as_str()).await.good();
    kubectl.run("get cm x").await.bad();
    kubectl.run("delete cm m").await.good().has(&["configmap \"m\" deleted"]);
    kubectl.run("delete cm m").await.bad().has(&["NotFound"]);
    kubectl.run("delete cm m --ignore-not-found").await.good();
    kubectl.run("delete deploy web --cascade=background").await.good();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_waits_and_watches() {
    let Some((server, kubectl)) = start().await else { return };
    let pod = |name: &str, node: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: x}}}}, spec: {{nodeName: '{node}', containers: [{{name: c, image: i}}]}}}}"
        )
    };
    let mut watch = kubectl.command("get pods -w").spawn().unwrap();
    kubectl.run_with("create -f -", &pod("a", "n1")).await.good();
    kubectl.run("get pods").await.good().has(&["NAME", "READY", "STATUS", "RESTARTS", "a", "0/1", "Pending"]);
    kubectl.run("get pods -o wide").await.good().has(&["IP", "NODE", "n1"]);
    kubectl.run("get pods --field-selector spec.nodeName=n1 -o name").await.good().has(&["pod/a"]);
    kubectl.run("describe pod a").await.good().has(&["Node:", "n1/", "Image:", "i", "Events:"]);
    let wait = tokio::spawn(kubectl.command("wait pod/a --for=condition=Ready --timeout=30s").output());
    let ready = json!({"status": {"phase": "Running", "podIP": "10.64.1.2", "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{"name": "c", "ready": true, "restartCount": 0, "image": "i", "imageID": "", "state": {"running": {}}}]}});
    let mut admin = server.admin().await;
    let answer = admin.patch("/api/v1/namespaces/default/pods/a/status", "strategic-merge", &ready).await;
    assert_eq!(answer.code, 200, "{}", answer.text());
    let waited = wait.await.unwrap().unwrap();
    assert!(waited.status.success(), "{}", String::from_utf8_lossy(&waited.stderr));
    kubectl.run("get pods").await.good().has(&["1/1", "Running"]);

    kubectl.run("logs a").await.good().has(&["one\ntwo\n"]);
    kubectl.run("logs a -c c --tail=5 --timestamps").await.good().has(&["two"]);
    kubectl.run("logs a -c nope").await.bad().has(&["container nope is not valid for pod a"]);
    let mut follower = kubectl.command("logs -f a").spawn().unwrap();
    let mut first = [0; 8];
    follower.stdout.take().unwrap().read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"one\ntwo\n");
    follower.kill().await.unwrap();

    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "a.1", "namespace": "default"},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "name": "a", "namespace": "default"},
        "reason": "Started", "message": "it runs", "type": "Normal", "count": 1,
        "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:00Z"});
    assert_eq!(admin.post("/api/v1/namespaces/default/events", &event).await.code, 201);
    kubectl.run("events").await.good().has(&["Started", "it runs"]);
    kubectl.run("get events").await.good().has(&["LAST SEEN", "Started", "pod/a"]);
    kubectl.run("events --for pod/a").await.good().has(&["it runs"]);

    // Its node does not confirm: the pod stays until it is deleted by force.
    kubectl.run("delete pod a --wait=false").await.good().has(&["deleted"]);
    kubectl.run("get pods").await.good().has(&["Terminating"]);
    kubectl.run("delete pod a --force --grace-period=0").await.good();
    kubectl.run("get pod a").await.bad().has(&["NotFound"]);
    kubectl.run_with("create -f -", &pod("b", "")).await.good();
    kubectl.run("delete pod b").await.good().has(&["deleted"]);
    kubectl.run_with("create -f -", &pod("c", "")).await.good();
    let wait = tokio::spawn(kubectl.command("wait pod/c --for=delete --timeout=30s").output());
    kubectl.run("delete pods --all").await.good();
    assert!(wait.await.unwrap().unwrap().status.success());

    watch.start_kill().unwrap();
    let mut seen = String::new();
    watch.stdout.take().unwrap().read_to_string(&mut seen).await.unwrap();
    assert!(seen.contains("Running") && seen.contains("Terminating"), "{seen}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_and_namespaces() {
    let Some((server, kubectl)) = start().await else { return };
    let node = "{apiVersion: v1, kind: Node, metadata: {name: n1}}";
    kubectl.run_with("create -f -", node).await.good().has(&["node/n1 created"]);
    kubectl.run("get nodes").await.good().has(&["STATUS", "ROLES", "VERSION", "n1", "Unknown"]);
    kubectl.run("get node n1 -o jsonpath={.spec.podCIDR}").await.good().has(&["10.64.1.0/24"]);
    kubectl.run("describe node n1").await.good().has(&["PodCIDR:", "10.64.1.0/24"]);
    kubectl.run("cordon n1").await.good().has(&["node/n1 cordoned"]);
    kubectl.run("get nodes").await.good().has(&["SchedulingDisabled"]);
    kubectl.run("taint nodes n1 k=v:NoSchedule").await.good().has(&["tainted"]);
    kubectl.run("delete node n1").await.good();
    kubectl.run_with("create -f -", "{apiVersion: v1, kind: Namespace, metadata: {name: t}}").await.good();
    kubectl.run("delete ns t --wait=false").await.good();
    kubectl.run("get ns t").await.good().has(&["Terminating"]);
    let map = "{apiVersion: v1, kind: ConfigMap, metadata: {name: m, namespace: t}}";
    kubectl.run_with("create -f -", map).await.bad().has(&["because it is being terminated"]);
    kubectl.run("delete ns default").await.bad().has(&["this namespace may not be deleted"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applying_on_the_server() {
    let Some((server, kubectl)) = start().await else { return };
    let apply = "apply --server-side -f -";
    kubectl.run_with(apply, DEPLOYMENT).await.good().has(&["deployment.apps/web serverside-applied"]);
    let version = "get deploy web -o jsonpath={.metadata.resourceVersion}";
    let first = kubectl.run(version).await.good().text;
    kubectl.run_with(apply, DEPLOYMENT).await.good().has(&["serverside-applied"]);
    assert_eq!(kubectl.run(version).await.good().text, first, "the same again writes nothing");
    kubectl.run("get deploy web -o yaml --show-managed-fields").await.good().has(&[
        "operation: Apply",
        "manager: kubectl",
        "k:{\"containerPort\":8080,\"protocol\":\"TCP\"}",
    ]);

    kubectl.run("scale deploy/web --replicas=5").await.good();
    kubectl.run("set image deploy/web c=hello:v9").await.good().has(&["image updated"]);
    kubectl.run_with(apply, DEPLOYMENT).await.bad().has(&[
        "Apply failed with 2 conflicts",
        ".spec.replicas",
        ".spec.template.spec.containers[name=\"c\"].image",
        "--force-conflicts",
    ]);
    let theirs = "apply --server-side --field-manager=other -f -";
    let part = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, labels: {by: other}}, spec: {replicas: 3}}";
    kubectl.run_with(theirs, part).await.bad().has(&["Apply failed with 1 conflict: conflict with"]);
    kubectl.run_with("apply --server-side --force-conflicts -f -", DEPLOYMENT).await.good();
    kubectl.run("get deploy web -o jsonpath={.spec.replicas}").await.good().has(&["2"]);
    kubectl.run_with(theirs, part).await.bad().has(&["conflict with \"kubectl\": .spec.replicas"]);
    let forced = "apply --server-side --field-manager=other --force-conflicts -f -";
    kubectl.run_with(forced, part).await.good();
    let shown = "get deploy web -o jsonpath={.spec.replicas}/{.metadata.labels}";
    kubectl.run(shown).await.good().has(&["3/", "\"by\":\"other\"", "\"app\":\"web\""]);

    // Who leaves a field out gives it up; nobody else had the label.
    kubectl.run_with(forced, &part.replace(", labels: {by: other}", "")).await.good();
    assert!(!kubectl.run(shown).await.good().text.contains("other"));
    let unknown = part.replace("replicas", "replicaz");
    kubectl.run_with(theirs, &unknown).await.bad().has(&[".spec.replicaz: field not declared in schema"]);
    kubectl
        .run_with("diff --server-side --force-conflicts -f -", DEPLOYMENT)
        .await
        .bad()
        .has(&["replicas: 2"]);

    // What was applied by the client before is taken up.
    let map = "{apiVersion: v1, kind: ConfigMap, metadata: {name: m}, data: {a: b}}";
    kubectl.run_with("apply -f -", map).await.good();
    kubectl.run_with(apply, map).await.good().has(&["configmap/m serverside-applied"]);
    kubectl.run_with(apply, map).await.good();
    server.stop().await;
}
