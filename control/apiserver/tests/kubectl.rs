//! An unmodified kubectl 1.36 against the API server.
//!
//! `LICHEN_KUBECTL`, or else `kubectl` on the PATH, must be of that version. Where there is none the tests say
//! `skipped: why`, and with `CI=true` they fail. What needs a scheduler, controllers or nodes is elsewhere.

mod common;

use std::io::Read;

use serde_json::json;

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
    let Some((server, kubectl)) = common::kubectl().await else { return };
    kubectl.run("version").good().has(&["Server Version: v1.36", "lichen"]);
    let resources = kubectl.run("api-resources").good();
    resources.has(&["configmaps", "cm", "deployments", "deploy", "apps/v1", "Lease", "endpointslices", "po"]);
    kubectl.run("api-versions").good().has(&["apps/v1", "v1", "coordination.k8s.io/v1"]);
    kubectl.run("get ns").good().has(&["NAME", "STATUS", "AGE", "default", "Active", "kube-node-lease"]);
    kubectl.run("get svc").good().has(&["CLUSTER-IP", "kubernetes", "10.96.0.1", "443/TCP"]);
    kubectl.run("get svc -o wide").good().has(&["SELECTOR", "<none>"]);
    kubectl.run("get svc kubernetes -o yaml").good().has(&["clusterIP: 10.96.0.1", "kind: Service"]);
    let text = kubectl.run("get svc kubernetes -o json").good().text;
    let service: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(service["spec"]["ports"][0]["targetPort"], json!(server.address.port()));
    kubectl.run("get pods").good().has(&["No resources found in default namespace."]);
    kubectl.run("get pod nope").bad().has(&["Error from server (NotFound): pods \"nope\" not found"]);
    kubectl.run("get nonsense").bad().has(&["the server doesn't have a resource type \"nonsense\""]);
    kubectl.run("get cm -A --chunk-size=1 -o name").good();
    kubectl.run("describe svc kubernetes").good().has(&["IP:", "10.96.0.1", "TargetPort:"]);
    kubectl.run("get --raw /readyz").good().has(&["ok"]);
    kubectl.run("explain pod.spec.containers").good().has(&["KIND:       Pod", "image"]);
    kubectl.run("cluster-info").good().has(&["is running at"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writing() {
    let Some((server, kubectl)) = common::kubectl().await else { return };
    kubectl.feed("apply -f -", DEPLOYMENT).good().has(&["deployment.apps/web created"]);
    kubectl.feed("apply -f -", DEPLOYMENT).good().has(&["deployment.apps/web unchanged"]);
    let changed = DEPLOYMENT.replace("hello:v1", "hello:v2");
    kubectl.feed("apply -f -", &changed).good().has(&["deployment.apps/web configured"]);
    let image = "get deploy web -o jsonpath={.spec.template.spec.containers[0].image}/{.metadata.generation}";
    kubectl.run(image).good().has(&["hello:v2/2"]);
    kubectl.run("get deploy").good().has(&["READY", "UP-TO-DATE", "web", "0/2"]);
    kubectl.run("scale deploy/web --replicas=5").good().has(&["deployment.apps/web scaled"]);
    kubectl.run("scale deploy/web --replicas=4 --current-replicas=5").good();
    kubectl.run("scale deploy/web --replicas=4 --current-replicas=9").bad();
    kubectl.run("get deploy web -o jsonpath={.spec.replicas}").good().has(&["4"]);
    kubectl.run("label deploy web tier=x").good().has(&["deployment.apps/web labeled"]);
    kubectl.run("get deploy -l tier=x -o name").good().has(&["deployment.apps/web"]);
    kubectl.run("annotate deploy web note=y").good().has(&["deployment.apps/web annotated"]);
    let merge = r#"patch deploy web --type=merge -p {"spec":{"replicas":3}}"#;
    kubectl.run(merge).good().has(&["patched"]);
    kubectl.run(merge).good().has(&["patched (no change)"]);
    let strategic = r#"patch deploy web -p {"spec":{"template":{"spec":{"containers":[{"name":"c","env":[{"name":"A","value":"1"}]}]}}}}"#;
    kubectl.run(strategic).good().has(&["patched"]);
    let json = r#"patch deploy web --type=json -p [{"op":"replace","path":"/spec/paused","value":true}]"#;
    kubectl.run(json).bad();
    let json = r#"patch deploy web --type=json -p [{"op":"add","path":"/spec/paused","value":true}]"#;
    kubectl.run(json).good().has(&["patched"]);
    kubectl.run("get deploy web -o yaml").good().has(&["name: A", "image: hello:v2", "paused: true"]);
    kubectl.run("rollout status deploy/web --timeout=1s").bad();
    kubectl.run("describe deploy web").good().has(&["Replicas:", "hello:v2"]);
    let done = r#"patch deploy web --subresource=status --type=merge -p {"status":{"observedGeneration":99,"replicas":3,"updatedReplicas":3,"readyReplicas":3,"availableReplicas":3}}"#;
    kubectl.run(done).good();
    kubectl.run("rollout status deploy/web --timeout=20s").good().has(&["successfully rolled out"]);
    kubectl.run("get deploy web -o wide").good().has(&["3/3", "CONTAINERS", "hello:v2", "app=web"]);

    let map = "{apiVersion: v1, kind: ConfigMap, metadata: {name: m}, data: {a: b}}";
    kubectl.feed("create -f -", map).good().has(&["configmap/m created"]);
    kubectl.feed("create -f -", map).bad().has(&["AlreadyExists", "configmaps \"m\" already exists"]);
    kubectl.feed("replace -f -", &map.replace("b}", "c}")).good().has(&["replaced"]);
    let unknown = "{apiVersion: v1, kind: ConfigMap, metadata: {name: x}, dataa: {a: b}}";
    kubectl.feed("create -f -", unknown).bad().has(&["dataa"]);
    let wrong = "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {containers: []}}";
    kubectl.feed("create -f -", wrong).bad().has(&["spec.containers", "Required value"]);
    kubectl.feed("apply --dry-run=server -f -", unknown.replace("dataa", "data").as_str()).good();
    kubectl.run("get cm x").bad();
    kubectl.run("delete cm m").good().has(&["configmap \"m\" deleted"]);
    kubectl.run("delete cm m").bad().has(&["NotFound"]);
    kubectl.run("delete cm m --ignore-not-found").good();
    kubectl.run("delete deploy web --cascade=background").good();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_waits_and_watches() {
    let Some((server, kubectl)) = common::kubectl().await else { return };
    let pod = |name: &str, node: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: x}}}}, spec: {{nodeName: '{node}', containers: [{{name: c, image: i}}]}}}}"
        )
    };
    let mut watch = kubectl.spawn("get pods -w");
    kubectl.feed("create -f -", &pod("a", "n1")).good();
    kubectl.run("get pods").good().has(&["NAME", "READY", "STATUS", "RESTARTS", "a", "0/1", "Pending"]);
    kubectl.run("get pods -o wide").good().has(&["IP", "NODE", "n1"]);
    kubectl.run("get pods --field-selector spec.nodeName=n1 -o name").good().has(&["pod/a"]);
    kubectl.run("describe pod a").good().has(&["Node:", "n1/", "Image:", "i", "Events:"]);
    let wait = kubectl.spawn("wait pod/a --for=condition=Ready --timeout=30s");
    let ready = json!({"status": {"phase": "Running", "podIP": "10.64.1.2", "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{"name": "c", "ready": true, "restartCount": 0, "image": "i", "imageID": "", "state": {"running": {}}}]}});
    let mut admin = server.admin().await;
    let answer = admin.patch("/api/v1/namespaces/default/pods/a/status", "strategic-merge", &ready).await;
    assert_eq!(answer.code, 200, "{}", answer.text());
    let waited = wait.wait_with_output().unwrap();
    assert!(waited.status.success(), "{}", String::from_utf8_lossy(&waited.stderr));
    kubectl.run("get pods").good().has(&["1/1", "Running"]);

    kubectl.run("logs a").good().has(&["one\ntwo\n"]);
    kubectl.run("logs a -c c --tail=5 --timestamps").good().has(&["two"]);
    kubectl.run("logs a -c nope").bad().has(&["container nope is not valid for pod a"]);
    let mut follower = kubectl.spawn("logs -f a");
    let mut first = [0; 8];
    follower.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"one\ntwo\n");
    follower.kill().unwrap();
    follower.wait().unwrap();

    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "a.1", "namespace": "default"},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "name": "a", "namespace": "default"},
        "reason": "Started", "message": "it runs", "type": "Normal", "count": 1,
        "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:00Z"});
    assert_eq!(admin.post("/api/v1/namespaces/default/events", &event).await.code, 201);
    kubectl.run("events").good().has(&["Started", "it runs"]);
    kubectl.run("get events").good().has(&["LAST SEEN", "Started", "pod/a"]);
    kubectl.run("events --for pod/a").good().has(&["it runs"]);

    // Its node does not confirm: the pod stays until it is deleted by force.
    kubectl.run("delete pod a --wait=false").good().has(&["deleted"]);
    kubectl.run("get pods").good().has(&["Terminating"]);
    kubectl.run("delete pod a --force --grace-period=0").good();
    kubectl.run("get pod a").bad().has(&["NotFound"]);
    kubectl.feed("create -f -", &pod("b", "")).good();
    kubectl.run("delete pod b").good().has(&["deleted"]);
    kubectl.feed("create -f -", &pod("c", "")).good();
    let wait = kubectl.spawn("wait pod/c --for=delete --timeout=30s");
    kubectl.run("delete pods --all").good();
    assert!(wait.wait_with_output().unwrap().status.success());

    watch.kill().unwrap();
    let mut seen = String::new();
    watch.stdout.take().unwrap().read_to_string(&mut seen).unwrap();
    watch.wait().unwrap();
    assert!(seen.contains("Running") && seen.contains("Terminating"), "{seen}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_and_namespaces() {
    let Some((server, kubectl)) = common::kubectl().await else { return };
    let node = "{apiVersion: v1, kind: Node, metadata: {name: n1}}";
    kubectl.feed("create -f -", node).good().has(&["node/n1 created"]);
    kubectl.run("get nodes").good().has(&["STATUS", "ROLES", "VERSION", "n1", "Unknown"]);
    kubectl.run("get node n1 -o jsonpath={.spec.podCIDR}").good().has(&["10.64.1.0/24"]);
    kubectl.run("describe node n1").good().has(&["PodCIDR:", "10.64.1.0/24"]);
    kubectl.run("cordon n1").good().has(&["node/n1 cordoned"]);
    kubectl.run("get nodes").good().has(&["SchedulingDisabled"]);
    kubectl.run("taint nodes n1 k=v:NoSchedule").good().has(&["tainted"]);
    kubectl.run("delete node n1").good();
    kubectl.feed("create -f -", "{apiVersion: v1, kind: Namespace, metadata: {name: t}}").good();
    kubectl.run("delete ns t --wait=false").good();
    kubectl.run("get ns t").good().has(&["Terminating"]);
    let map = "{apiVersion: v1, kind: ConfigMap, metadata: {name: m, namespace: t}}";
    kubectl.feed("create -f -", map).bad().has(&["because it is being terminated"]);
    kubectl.run("delete ns default").bad().has(&["this namespace may not be deleted"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applying_on_the_server() {
    let Some((server, kubectl)) = common::kubectl().await else { return };
    let apply = "apply --server-side -f -";
    kubectl.feed(apply, DEPLOYMENT).good().has(&["deployment.apps/web serverside-applied"]);
    let version = "get deploy web -o jsonpath={.metadata.resourceVersion}";
    let first = kubectl.run(version).good().text;
    kubectl.feed(apply, DEPLOYMENT).good().has(&["serverside-applied"]);
    assert_eq!(kubectl.run(version).good().text, first, "the same again writes nothing");
    kubectl.run("get deploy web -o yaml --show-managed-fields").good().has(&[
        "operation: Apply",
        "manager: kubectl",
        "k:{\"containerPort\":8080,\"protocol\":\"TCP\"}",
    ]);

    kubectl.run("scale deploy/web --replicas=5").good();
    kubectl.run("set image deploy/web c=hello:v9").good().has(&["image updated"]);
    kubectl.feed(apply, DEPLOYMENT).bad().has(&[
        "Apply failed with 2 conflicts",
        ".spec.replicas",
        ".spec.template.spec.containers[name=\"c\"].image",
        "--force-conflicts",
    ]);
    let theirs = "apply --server-side --field-manager=other -f -";
    let part = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, labels: {by: other}}, spec: {replicas: 3}}";
    kubectl.feed(theirs, part).bad().has(&["Apply failed with 1 conflict: conflict with"]);
    kubectl.feed("apply --server-side --force-conflicts -f -", DEPLOYMENT).good();
    kubectl.run("get deploy web -o jsonpath={.spec.replicas}").good().has(&["2"]);
    kubectl.feed(theirs, part).bad().has(&["conflict with \"kubectl\": .spec.replicas"]);
    let forced = "apply --server-side --field-manager=other --force-conflicts -f -";
    kubectl.feed(forced, part).good();
    let shown = "get deploy web -o jsonpath={.spec.replicas}/{.metadata.labels}";
    kubectl.run(shown).good().has(&["3/", "\"by\":\"other\"", "\"app\":\"web\""]);

    // Who leaves a field out gives it up; nobody else had the label.
    kubectl.feed(forced, &part.replace(", labels: {by: other}", "")).good();
    assert!(!kubectl.run(shown).good().text.contains("other"));
    let unknown = part.replace("replicas", "replicaz");
    kubectl.feed(theirs, &unknown).bad().has(&[".spec.replicaz: field not declared in schema"]);
    kubectl.feed("diff --server-side --force-conflicts -f -", DEPLOYMENT).bad().has(&["replicas: 2"]);

    // What was applied by the client before is taken up.
    let map = "{apiVersion: v1, kind: ConfigMap, metadata: {name: m}, data: {a: b}}";
    kubectl.feed("apply -f -", map).good();
    kubectl.feed(apply, map).good().has(&["configmap/m serverside-applied"]);
    kubectl.feed(apply, map).good();
    server.stop().await;
}
