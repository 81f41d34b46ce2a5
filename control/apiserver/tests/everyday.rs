//! What people do with kubectl all day, verb by verb, and what it says when something is wrong: as a real cluster's.

mod common;

use lichen_firmware_tests::kubectl::Kubectl;
use serde_json::{Value, json};

const DEPLOYMENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: "hello:v1", ports: [{containerPort: 8080}]}]}
"#;

fn map(name: &str, data: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: {name}, labels: {{app: p}}}}, data: {{{data}}}}}"
    )
}

fn get(kubectl: &Kubectl, what: &str) -> Value {
    serde_json::from_str(&kubectl.run(&format!("get {what} -o json")).good().text).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creating() {
    let Some((server, kubectl)) = common::kubectl().await else { return };
    let own = server.credentials("someone", None);
    for (file, text) in [("tls.crt", &own.chain_pem), ("tls.key", &own.key_pem)] {
        std::fs::write(server.folder.path().join(file), text).unwrap();
    }
    let folder = server.folder.path().display();
    let made = [
        ("deployment d --image=i --replicas=2 --port=80", "deployment.apps/d created"),
        ("service clusterip s1 --tcp=80:8080", "service/s1 created"),
        ("service clusterip s2 --clusterip=None --tcp=80", "service/s2 created"),
        ("service nodeport s3 --tcp=80:8080 --node-port=30080", "service/s3 created"),
        ("service loadbalancer s4 --tcp=80:8080", "service/s4 created"),
        ("service externalname s5 --external-name=example.com", "service/s5 created"),
        ("configmap m --from-literal=a=b --from-literal=c=d", "configmap/m created"),
        ("secret generic g --from-literal=a=b", "secret/g created"),
        (
            "secret docker-registry r --docker-server=h --docker-username=u --docker-password=p",
            "secret/r created",
        ),
        (&format!("secret tls t --cert={folder}/tls.crt --key={folder}/tls.key"), "secret/t created"),
        ("namespace n", "namespace/n created"),
        ("serviceaccount a", "serviceaccount/a created"),
    ];
    for (what, expect) in made {
        kubectl.run(&format!("create {what}")).good().has(&[expect]);
    }
    kubectl.run("create configmap m").bad().has(&["configmaps \"m\" already exists"]);
    kubectl.run("create configmap Bad_Name").bad().has(&["metadata.name: Invalid value: \"Bad_Name\""]);
    kubectl.run("get svc").good().has(&["30080/TCP", "<pending>", "example.com", "None"]);
    kubectl.run("get secrets").good().has(&["kubernetes.io/dockerconfigjson", "kubernetes.io/tls", "Opaque"]);
    let dry = kubectl.run("create configmap dry --from-literal=a=b --dry-run=server -o json").good().text;
    let dry: Value = serde_json::from_str(&dry).unwrap();
    assert!(dry["metadata"]["uid"].is_string() && dry["metadata"].get("resourceVersion").is_none(), "{dry}");
    kubectl.run("get configmap dry").bad().has(&["NotFound"]);

    // Kinds and subresources that are not there are kubectl's ordinary errors.
    for (what, expect) in [
        ("job j --image=i", "could not find the requested resource (post jobs.batch)"),
        ("role r --verb=get --resource=pods", "could not find the requested resource"),
        ("ingress i --rule=a/b=c:80", "could not find the requested resource"),
        ("token a", "serviceaccounts/token is not served: no tokens are issued yet"),
    ] {
        kubectl.run(&format!("create {what}")).bad().has(&[expect]);
    }
    kubectl.run("autoscale deploy/d --max=3").bad();
    kubectl.run("top nodes").bad().has(&["Metrics API not available"]);
    kubectl.run("top pods").bad().has(&["Metrics API not available"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applying_and_comparing() {
    let Some((server, kubectl)) = common::kubectl().await else { return };
    let unknown = map("u", "a: b").replace(" data:", " dataa:");
    let refused = "strict decoding error: unknown field \"dataa\"";
    kubectl.feed("apply -f -", &unknown).bad().has(&[refused]);
    kubectl.feed("apply --validate=strict -f -", &unknown).bad().has(&[refused]);
    kubectl
        .feed("apply --validate=warn -f -", &unknown)
        .good()
        .has(&["Warning: unknown field \"dataa\"", "created"]);
    kubectl.feed("apply --validate=ignore -f -", &unknown).good().lacks(&["Warning"]);
    kubectl
        .feed("--warnings-as-errors apply --validate=warn -f -", &unknown)
        .bad()
        .has(&["1 warning received"]);

    let (one, two) = (map("one", "a: b"), map("two", "a: b"));
    let both = format!("{one}\n---\n{two}");
    kubectl.feed("apply -f -", &both).good().has(&["configmap/one created", "configmap/two created"]);
    kubectl
        .feed("apply --dry-run=server -f -", &map("one", "a: c"))
        .good()
        .has(&["configured (server dry run)"]);
    kubectl.run("apply view-last-applied cm/one").good().has(&["a: b"]);
    kubectl.feed("apply set-last-applied -f -", &map("one", "a: b")).good();
    kubectl.feed("diff -f -", &both).good();
    kubectl.feed("diff -f -", &map("one", "a: c")).bad().has(&["-  a: b", "+  a: c"]);
    kubectl.feed("diff --server-side -f -", &map("one", "a: c")).bad().has(&["Apply failed with 1 conflict"]);
    assert_eq!(get(&kubectl, "cm one")["data"], json!({"a": "b"}), "a comparison writes nothing");

    let prune = "apply -f - --prune -l app=p --prune-allowlist=core/v1/ConfigMap";
    kubectl.feed(prune, &one).good().has(&["configmap/two pruned", "configmap/u pruned"]);
    let set = "apply -f - --prune --applyset=secret/set -n default";
    let with_sets = [("KUBECTL_APPLYSET", "true")];
    kubectl.run_in(set, &format!("{}\n---\n{}", map("kept", "a: b"), map("gone", "a: b")), &with_sets).good();
    kubectl.run_in(set, &map("kept", "a: b"), &with_sets).good().has(&["configmap/gone pruned"]);

    kubectl.feed("replace -f -", &map("one", "a: r")).good().has(&["configmap/one replaced"]);
    kubectl.feed("replace -f -", &map("none", "a: r")).bad().has(&["configmaps \"none\" not found"]);
    let before = get(&kubectl, "cm one")["metadata"]["uid"].clone();
    kubectl.feed("replace --force -f -", &map("one", "a: f")).good().has(&["configmap/one replaced"]);
    assert_ne!(get(&kubectl, "cm one")["metadata"]["uid"], before, "it is another one");
    server.stop().await;
}

/// A program that edits by a sed expression, as EDITOR.
fn editor(folder: &std::path::Path, expression: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join("editor");
    std::fs::write(&path, format!("#!/bin/sh\nsed -i '{expression}' \"$1\"\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changing() {
    let Some((server, kubectl)) = common::kubectl().await else { return };
    kubectl.feed("create -f -", &map("m", "a: b")).good();
    kubectl.feed("create -f -", DEPLOYMENT).good();
    let edit = |what: &str, expression: &str| {
        kubectl.run_in(&format!("edit {what}"), "", &[("EDITOR", &editor(server.folder.path(), expression))])
    };
    edit("cm m", "s/a: b/a: edited/").good().has(&["configmap/m edited"]);
    assert_eq!(get(&kubectl, "cm m")["data"], json!({"a": "edited"}));
    edit("cm m", "").good().has(&["Edit cancelled, no changes made."]);
    edit("cm m", "s/^data:/dota:/")
        .bad()
        .has(&["configmaps \"m\" is invalid", "no valid changes were saved"]);
    edit("cm m", "s/^  name: m/  name: other/").bad().has(&["apiVersion, kind and name was changed"]);
    edit("deploy web", "s/replicas: 2/replicas: -2/").bad().has(&["deployments.apps \"web\" is invalid"]);
    edit("deploy web --subresource=status", "s/status: {}/status: {observedGeneration: 7}/").good();
    assert_eq!(get(&kubectl, "deploy web")["status"]["observedGeneration"], 7);

    for (what, expect) in [
        ("set image deploy/web c=hello:v2", "image updated"),
        ("set env deploy/web X=Y", "env updated"),
        ("set env deploy/web --from=configmap/m", "env updated"),
        (
            "set resources deploy/web --limits=cpu=200m,memory=64Mi --requests=cpu=100m",
            "resource requirements updated",
        ),
        ("set serviceaccount deploy/web sa", "serviceaccount updated"),
        ("rollout pause deploy/web", "paused"),
        ("rollout resume deploy/web", "resumed"),
        ("rollout restart deploy/web", "restarted"),
        ("label deploy/web tier=x", "labeled"),
        ("annotate deploy/web note=x", "annotated"),
        ("expose deploy/web --port=80 --target-port=8080", "service/web exposed"),
        ("set selector svc/web app=other", "selector updated"),
        (
            "patch deploy web --subresource=scale --type=merge -p {\"spec\":{\"replicas\":5}}",
            "scale.autoscaling/web patched",
        ),
    ] {
        kubectl.run(what).good().has(&[expect]);
    }
    kubectl.run("set env deploy/web --list").good().has(&["X=Y", "# A from configmap m, key a"]);
    let spec = get(&kubectl, "deploy web")["spec"].clone();
    let container = &spec["template"]["spec"]["containers"][0];
    assert_eq!(spec["replicas"], 5);
    assert_eq!(container["image"], "hello:v2");
    assert_eq!(
        container["resources"],
        json!({"limits": {"cpu": "200m", "memory": "64Mi"}, "requests": {"cpu": "100m"}})
    );
    assert_eq!(get(&kubectl, "svc web")["spec"]["selector"], json!({"app": "other"}));

    for (what, expect) in [
        ("set image deploy/web nope=x", "unable to find container named \"nope\""),
        ("rollout resume deploy/web", "is not paused"),
        ("rollout undo deploy/nope", "deployments.apps \"nope\" not found"),
        ("label deploy/web tier=y", "already has a value (x), and --overwrite is false"),
        ("expose deploy/web --port=80", "services \"web\" already exists"),
        ("scale deploy/web --replicas=1 --current-replicas=9", "Expected replicas to be 9, was 5"),
        (
            "patch cm m -p {\"data\":{\"x\":1}}",
            "cannot unmarshal number into Go struct field ConfigMap.data of type string",
        ),
        (
            "patch deploy web --type=json -p [{\"op\":\"test\",\"path\":\"/spec/replicas\",\"value\":9}]",
            "the server rejected our request",
        ),
        (
            "patch deploy web -p {\"spec\":{\"template\":{\"spec\":{\"containers\":[{\"image\":\"x\"}]}}}}",
            "does not contain declared merge key: name",
        ),
    ] {
        kubectl.run(what).bad().has(&[expect]);
    }
    kubectl
        .run("patch deploy web -p {\"spec\":{\"replicaz\":1}}")
        .good()
        .has(&["Warning: unknown field", "no change"]);
    kubectl
        .run("run p --image=i --restart=Never --port=80 --expose")
        .good()
        .has(&["service/p created", "pod/p created"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_and_deleting() {
    let Some((server, kubectl)) = common::kubectl().await else { return };
    let maps: Vec<String> = (0..5).map(|index| map(&format!("m{index}"), "a: b")).collect();
    kubectl.feed("create -f -", &maps.join("\n---\n")).good();
    kubectl.feed("create -f -", DEPLOYMENT).good();
    let names = "cm/m0\ncm/m1\ncm/m2\ncm/m3\ncm/m4\n".replace("cm/", "configmap/");
    assert_eq!(kubectl.run("get cm -o name --chunk-size=2").good().text, names);
    for (what, expect) in [
        ("cm -o custom-columns=N:.metadata.name,A:.data.a", "m4    b"),
        ("cm -o jsonpath='{range .items[*]}{.metadata.name}={.data.a} {end}'", "m0=b m1=b"),
        ("cm -o go-template='{{len .items}}'", "5"),
        ("cm --sort-by=.metadata.name --no-headers", "m0    1"),
        ("cm --show-labels", "app=p"),
        ("cm -L app", "APP"),
        ("cm -A", "default     m0"),
        ("cm --field-selector metadata.name=m3 -o name", "configmap/m3"),
        ("cm,deploy -l app", "deployment.apps/web"),
        ("all", "deployment.apps/web"),
        ("deploy.v1.apps web", "web"),
        ("deploy web --subresource=scale -o jsonpath={.status.selector}", "app=web"),
        ("--raw /apis/events.k8s.io/v1", "\"groupVersion\":\"events.k8s.io/v1\""),
    ] {
        kubectl.run(&format!("get {what}")).good().has(&[expect]);
    }
    kubectl.run("get pods --field-selector=foo=bar").bad().has(&["field label not supported: foo"]);
    kubectl.run("get cm m0 nope").bad().has(&["m0", "configmaps \"nope\" not found"]);
    for kind in ["cm", "deploy", "svc", "ns", "sa", "secret", "events", "leases", "endpointslices"] {
        kubectl.run(&format!("describe {kind} -A")).good();
    }
    kubectl
        .run("explain deployment.spec.strategy")
        .good()
        .has(&["rollingUpdate", "<RollingUpdateDeployment>"]);
    kubectl.run("explain pod.spec.containers").good().has(&["List of containers belonging to the pod."]);
    kubectl.run("explain cm").good().has(&["ConfigMap holds configuration data for pods to consume."]);
    kubectl.run("wait --for=create cm/m0 --timeout=5s").good().has(&["condition met"]);
    kubectl.run("wait --for=jsonpath={.data.a}=b cm/m0 --timeout=5s").good().has(&["condition met"]);
    kubectl.run("wait --for=delete cm/nope --timeout=5s").good();
    kubectl
        .run("wait --for=condition=Ready pod -l a=b --timeout=1s")
        .bad()
        .has(&["no matching resources found"]);

    kubectl.run("delete cm --all --dry-run=server").good().has(&["(server dry run)"]);
    kubectl.run("delete cm m0 m1 nope").bad().has(&[
        "\"m0\" deleted",
        "\"m1\" deleted",
        "\"nope\" not found",
    ]);
    kubectl.run("delete cm -l app=none").good().has(&["No resources found"]);
    kubectl.run("delete cm --field-selector=metadata.name=m2").good().has(&["\"m2\" deleted"]);
    kubectl.run("delete cm -l app=p").good().has(&["\"m3\" deleted", "\"m4\" deleted"]);
    kubectl.run("delete deploy web --cascade=orphan --wait=false").good();
    assert_eq!(get(&kubectl, "deploy web")["metadata"]["finalizers"], json!(["orphan"]));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_what() {
    let Some((server, kubectl)) = common::kubectl().await else { return };
    kubectl.run("auth whoami").good().has(&["Username", "admin", "[system:masters system:authenticated]"]);
    kubectl.run("auth can-i create pods").good().has(&["yes"]);
    kubectl.run("auth can-i get /metrics").good().has(&["yes"]);
    kubectl.run("auth can-i --list").good().has(&[
        "*.*",
        "selfsubjectreviews.authentication.k8s.io",
        "[/healthz]",
    ]);
    kubectl.run("auth can-i create pods --as=bob").bad().has(&["impersonation is not supported yet"]);

    // Others may ask about themselves, and nothing else.
    let mut other = server.client("system:node:n1", Some("system:nodes")).await;
    let review = |kind: &str, spec: Value| {
        let group = if kind == "SelfSubjectReview" { "authentication" } else { "authorization" };
        let plural = format!("{}s", kind.to_lowercase());
        let object = json!({"apiVersion": format!("{group}.k8s.io/v1"), "kind": kind, "spec": spec});
        (format!("/apis/{group}.k8s.io/v1/{plural}"), object)
    };
    let own = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let answer = other.post(&review("SelfSubjectReview", Value::Null).0, &own).await;
    assert_eq!(answer.code, 201, "{}", answer.text());
    assert_eq!(
        answer.json()["status"]["userInfo"],
        json!({"username": "system:node:n1", "groups": ["system:nodes", "system:authenticated"]})
    );
    let pods = json!({"verb": "list", "resource": "pods", "namespace": "default"});
    for (attributes, expect) in [
        (json!({"resourceAttributes": pods}), false),
        (json!({"nonResourceAttributes": {"path": "/healthz", "verb": "get"}}), true),
        (json!({"nonResourceAttributes": {"path": "/metrics", "verb": "get"}}), false),
    ] {
        let (path, object) = review("SelfSubjectAccessReview", attributes);
        assert_eq!(other.post(&path, &object).await.json()["status"], json!({"allowed": expect}), "{object}");
    }
    let named = json!({"resourceAttributes": pods, "groups": ["system:masters"]});
    let (path, object) = review("SubjectAccessReview", named);
    assert_eq!(other.post(&path, &object).await.code, 403);
    let mut admin = server.admin().await;
    assert_eq!(admin.post(&path, &object).await.json()["status"], json!({"allowed": true}));
    for (kind, spec, code) in [
        ("SubjectAccessReview", json!({"resourceAttributes": pods, "user": "u"}), 201),
        ("SubjectAccessReview", json!({"resourceAttributes": pods}), 422),
        ("SelfSubjectAccessReview", json!({}), 422),
        ("SelfSubjectAccessReview", json!({"resourceAttributes": "pods"}), 400),
    ] {
        let (path, object) = review(kind, spec);
        assert_eq!(admin.post(&path, &object).await.code, code, "{object}");
    }
    let mut anonymous = server.anonymous().await;
    assert_eq!(anonymous.post(&review("SelfSubjectReview", Value::Null).0, &own).await.code, 403);
    assert_eq!(admin.get(&path).await.code, 405);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_forms_of_events_and_of_endpoints() {
    let Some((server, kubectl)) = common::kubectl().await else { return };
    let mut admin = server.admin().await;
    let core = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "old"},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "name": "p", "namespace": "default"},
        "reason": "Started", "message": "it runs", "type": "Normal", "count": 3, "source": {"component": "me"},
        "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:01:00Z"});
    assert_eq!(admin.post("/api/v1/namespaces/default/events", &core).await.code, 201);
    let new = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "new"},
        "regarding": {"apiVersion": "v1", "kind": "Pod", "name": "p", "namespace": "default"}, "note": "it fell", "type": "Warning",
        "eventTime": "2026-01-01T00:00:00.000001Z", "reportingController": "example.com/c",
        "reportingInstance": "c-0", "action": "Fall", "reason": "Fell"});
    let path = "/apis/events.k8s.io/v1/namespaces/default/events";
    let made = admin.post(path, &new).await;
    assert_eq!(made.code, 201, "{}", made.text());
    assert_eq!(
        (&made.json()["note"], &made.json()["apiVersion"]),
        (&json!("it fell"), &json!("events.k8s.io/v1"))
    );
    let mut wrong = new.clone();
    wrong["metadata"]["name"] = json!("wrong");
    wrong.as_object_mut().unwrap().remove("action");
    assert_eq!(admin.post(path, &wrong).await.json()["details"]["causes"][0]["field"], "action");

    // Clients of both see both, by their own names.
    kubectl.run("get events").good().has(&["pod/p", "it runs", "it fell"]);
    kubectl.run("get events.events.k8s.io").good().has(&["pod/p", "it runs", "it fell"]);
    kubectl.run("events --for pod/p").good().has(&["it runs", "it fell"]);
    let old = admin.get(&format!("{path}/old")).await.json();
    assert_eq!((&old["note"], &old["deprecatedCount"]), (&json!("it runs"), &json!(3)));
    assert_eq!(old["regarding"]["name"], "p");
    let new = admin.get("/api/v1/namespaces/default/events/new").await.json();
    assert_eq!((&new["message"], &new["reportingComponent"]), (&json!("it fell"), &json!("example.com/c")));
    let by = "?fieldSelector=regarding.name%3Dp%2CreportingController%3Dexample.com%2Fc";
    let found = admin.get(&format!("{path}{by}")).await.json();
    assert_eq!(found["kind"], "EventList");
    assert_eq!(found["items"].as_array().unwrap().len(), 1);
    assert_eq!(admin.get(&format!("{path}?fieldSelector=involvedObject.name%3Dp")).await.code, 400);
    let series = json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:02:00.000000Z"}});
    assert_eq!(admin.patch(&format!("{path}/new"), "merge", &series).await.code, 200);
    assert_eq!(admin.patch(&format!("{path}/new"), "merge", &json!({"note": "else"})).await.code, 422);
    let stored = admin.get("/api/v1/namespaces/default/events/new").await.json();
    assert_eq!(stored["series"]["count"], 2, "{stored}");
    assert_eq!(stored["message"], "it fell");
    let watch = format!(
        "{path}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&timeoutSeconds=1"
    );
    let seen = admin.get(&watch).await.text();
    assert!(seen.contains("\"note\":\"it runs\"") && !seen.contains("\"message\""), "{seen}");
    assert_eq!(admin.send("DELETE", &format!("{path}/old"), &[], "").await.code, 200);
    kubectl.run("get event old").bad().has(&["NotFound"]);

    let endpoints = "{apiVersion: v1, kind: Endpoints, metadata: {name: e}, subsets: [{addresses: [{ip: 192.0.2.1}, \
        {ip: 192.0.2.2}], notReadyAddresses: [{ip: 192.0.2.3}], ports: [{port: 80}, {port: 81, name: x}]}]}";
    let deprecated = "Warning: v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice";
    kubectl
        .feed("create -f -", endpoints)
        .bad()
        .has(&["subsets[0].ports[0].name: Required value", deprecated]);
    let endpoints = endpoints.replace("{port: 80}", "{port: 80, name: http}");
    kubectl.feed("create -f -", &endpoints).good().has(&["endpoints/e created", deprecated]);
    kubectl.run("get ep").good().has(&["192.0.2.1:80,192.0.2.2:80,192.0.2.1:81 + 1 more...", deprecated]);
    kubectl
        .run("describe ep e")
        .good()
        .has(&["Addresses:          192.0.2.1,192.0.2.2", "NotReadyAddresses:  192.0.2.3"]);
    kubectl
        .feed("create -f -", &endpoints.replace("192.0.2.3", "127.0.0.1"))
        .bad()
        .has(&["may not be in the loopback range"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_and_what_is_not_served() {
    let Some((server, kubectl)) = common::kubectl().await else { return };
    kubectl.feed("create -f -", "{apiVersion: v1, kind: Node, metadata: {name: n1}}").good();
    for name in ["a", "b"] {
        let pod = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: n1, containers: [{{name: c, image: i}}]}}}}"
        );
        kubectl.feed("create -f -", &pod).good();
    }
    let mut admin = server.admin().await;
    for (name, phase) in [("a", "Running"), ("b", "Succeeded")] {
        let path = format!("/api/v1/namespaces/default/pods/{name}/status");
        assert_eq!(admin.patch(&path, "merge", &json!({"status": {"phase": phase}})).await.code, 200);
    }
    for (what, expect) in [
        ("taint nodes n1 k=v:NoSchedule", "node/n1 tainted"),
        ("taint nodes n1 k=w:NoSchedule --overwrite", "node/n1 modified"),
        ("taint nodes n1 k-", "node/n1 untainted"),
        ("cordon n1", "node/n1 cordoned"),
        ("uncordon n1", "node/n1 uncordoned"),
        ("uncordon n1", "node/n1 already uncordoned"),
        ("drain n1 --force --dry-run=server", "node/n1 drained (server dry run)"),
    ] {
        kubectl.run(what).good().has(&[expect]);
    }
    kubectl.run("taint nodes n1 k:NoExecute-").bad().has(&["taint \"k:NoExecute\" not found"]);
    kubectl.run("drain n1").bad().has(&["cannot delete Pods that declare no controller", "default/a"]);

    // Streams into containers end with a reason, not with a wait.
    let streams = "is not served: nodes open no streams into containers yet";
    for what in ["exec a -- ls", "attach a", "port-forward a 18080:80"] {
        kubectl.run(what).bad().has(&[streams]);
    }
    kubectl.run("debug a --image=i --attach=false").bad().has(&["ephemeral containers are disabled"]);
    kubectl.run("certificate approve c").bad().has(&["doesn't have a resource type"]);
    kubectl.run("get --raw /metrics").bad().has(&["NotFound"]);
    server.stop().await;
}
