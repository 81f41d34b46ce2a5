//! Replays requests that a Kubernetes 1.36 API server was recorded with, and compares the answers.
//!
//! Each request goes to namespaces of its own on one real server. Codes, reasons, causes, warnings and messages are
//! compared; objects by their kind only (the API crate compares their fields).

mod common;

use serde::Deserialize;
use serde_json::{Value, json};

/// Recorded cases that this server does not answer like the recorded one, and why.
const NOT_YET: &[(&str, &str)] = &[
    ("apply.dup-list-key", "400 with the same message instead of 500"),
    ("fieldvalidation.apply.", "400 with the same message instead of 500"),
    ("403.impersonat", "impersonation comes later: refused until then"),
    ("410.", "needs a compacted history; tests/watch.rs has cases of its own"),
    ("eviction.pdb-429", "there are no disruption budgets yet"),
    ("eviction.dryrun", "there are no disruption budgets yet"),
    ("pod.exec-no-upgrade", "exec comes later"),
    ("page.second", "carries a token of the recorded server; tests/http.rs pages for itself"),
    ("create.with-rv", "400 with the same message instead of 500"),
    ("update.rv-not-number", "400 instead of 500"),
    ("watch.bad-rv", "400 instead of 500"),
    ("patch.smp-bad-directive", "4xx instead of 500"),
    ("patch.smp-missing-merge-key", "4xx instead of 500"),
    ("fieldvalidation.duplicate-yaml", "recorded with `y` as a boolean, which YAML 1.2 has as text"),
];

/// Cases whose message comes from Go's decoders, printers or storage: code, reason and causes' fields are compared.
const OTHER_WORDS: &[&str] = &[
    "406",
    "406.bad-as",
    "406.discovery",
    "406.table-v9",
    "415.post",
    "415.post-text",
    "body.",
    "continue.",
    "delete.bad-body",
    "delete.wrong-",
    "invalid.secret.bad-base64",
    "invalid.secret.dockerconfig-not-json",
    "rv.too-large",
    "rv.too-large-get",
    "fieldvalidation.patch.unknown.Strict",
    "fieldvalidation.smp.unknown.Strict",
    "immutable.pod.",
    "patch.",
    "update.without-rv-pod",
    "update.wrong-uid",
    "wrongtype.",
    "generatename.invalid",
];

#[derive(Deserialize)]
struct Case {
    name: String,
    method: String,
    path: String,
    headers: std::collections::BTreeMap<String, String>,
    body: Option<Value>,
    body_text: Option<String>,
    authorization: Option<String>,
    code: u16,
    #[serde(default)]
    warnings: Vec<String>,
    status: Option<Value>,
    kind: Option<String>,
}

/// Moves a recorded text into the namespaces of one case.
fn moved(text: &str, number: usize) -> String {
    let mut text = text.to_owned();
    for namespace in ["errs", "kinds", "term"] {
        for (before, after) in [("/", "/"), ("/", ""), ("\"", "\""), ("namespace ", " "), ("\\\"", "\\\"")] {
            let end_only = before == "/" && after.is_empty();
            if end_only && !text.ends_with(&format!("/{namespace}")) {
                continue;
            }
            text = text.replace(
                &format!("{before}{namespace}{after}"),
                &format!("{before}{namespace}{number}{after}"),
            );
        }
    }
    text
}

/// Makes what the recorded requests found.
async fn prepare(server: &common::Server, number: usize) {
    let [errs, kinds, term] = ["errs", "kinds", "term"].map(|name| format!("{name}{number}"));
    let namespace = |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    let namespaces = [&errs, &kinds, &term].map(|name| server.create(None, namespace(name)));
    futures_util::future::join_all(namespaces).await;
    let errs = errs.as_str();
    let pod = |name: &str, node: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "registry.example/app:1"}]}})
    };
    let deployment = |name: &str| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}},
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "registry.example/app:1"}]}}}})
    };
    let map = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "1"}});
    let mut immutable = map("imm");
    immutable["immutable"] = json!(true);
    immutable["data"] = json!({"a": "1"});
    let mut held = map("fin");
    held["metadata"]["finalizers"] = json!(["example.com/f"]);
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"ports": [{"port": 80}]}});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "type": "Opaque"});
    let bound = |name| pod(name, "golden-node");
    let inside =
        [map("a"), map("page0"), map("page1"), immutable, held, bound("p"), bound("ev"), deployment("d")];
    let inside = inside.into_iter().chain([service, secret]).map(|object| (errs, object));
    let others = [bound("minimal-pod"), bound("full-pod"), deployment("full-deployment")];
    let others = others.into_iter().map(|object| (kinds.as_str(), object));
    let all = inside.chain(others).map(|(namespace, object)| server.create(Some(namespace), object));
    futures_util::future::join_all(all).await;
    let mut admin = server.admin().await;
    admin.send("DELETE", &format!("/api/v1/namespaces/{term}"), &[], "").await;
}

/// What has to be there before one case, beyond what all of them find.
async fn prepare_one(admin: &mut common::Client, case: &str, number: usize) {
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "newlease"}, "spec": {}});
    match case {
        "update.without-rv-lease" => {
            let path = format!("/apis/coordination.k8s.io/v1/namespaces/errs{number}/leases");
            assert_eq!(admin.post(&path, &lease).await.code, 201);
        }
        "apply.conflict" | "apply.force" => {
            let path = format!("/api/v1/namespaces/errs{number}/configmaps/ap?fieldManager=m1");
            let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ap"}, "data": {"k": "1"}});
            let media = [("content-type", "application/apply-patch+yaml")];
            assert_eq!(admin.send("PATCH", &path, &media, map.to_string()).await.code, 201);
        }
        "apply.conflict-with-update" => {
            let path = format!("/api/v1/namespaces/errs{number}/configmaps/a?fieldManager=unknown");
            assert_eq!(admin.patch(&path, "merge", &json!({"data": {"k": "0"}})).await.code, 200);
        }
        "delete.again-with-finalizer" | "delete.remove-finalizer" | "delete.add-finalizer-while-deleting" => {
            let path = format!("/api/v1/namespaces/errs{number}/configmaps/fin");
            assert_eq!(admin.send("DELETE", &path, &[], "").await.code, 200);
        }
        "invalid.service.nodeport-taken" => {
            let path = format!("/api/v1/namespaces/errs{number}/services");
            let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "np"},
                "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}});
            assert_eq!(admin.post(&path, &service).await.code, 201);
        }
        _ => {}
    }
}

async fn differences(server: &common::Server, case: &Case, number: usize) -> Vec<String> {
    let mut admin = server.admin().await;
    prepare_one(&mut admin, &case.name, number).await;
    let mut client = match (case.authorization.as_deref(), case.headers.get("Impersonate-User")) {
        (_, Some(user)) => server.client(user, None).await,
        (Some("none"), None) if case.code != 413 && case.code != 422 => server.anonymous().await,
        _ => server.admin().await,
    };
    let mut headers: Vec<(&str, &str)> = Vec::new();
    for (name, value) in &case.headers {
        let unsent = name.starts_with("Impersonate") || (name == "Accept" && value.is_empty());
        if !unsent {
            headers.push((name, value));
        }
    }
    if case.authorization.as_deref() == Some("Bearer <invalid>") {
        headers.push(("Authorization", "Bearer nobody"));
    }
    let body = match (&case.body, &case.body_text, case.name.as_str()) {
        (_, _, "invalid.configmap.too-large") => big_map(1_100_000),
        (_, _, "request-too-large") => big_map(3_300_000),
        (Some(body), _, _) if !body.is_null() => {
            moved(&current(&mut admin, case, body, number).await, number)
        }
        (_, Some(text), _) => text.clone(),
        _ => String::new(),
    };
    let answer = client.send(&case.method, &moved(&case.path, number), &headers, body).await;
    let got = answer.json();
    let mut wrong = Vec::new();
    let mut check = |what: &str, got: Value, expect: Value| {
        if got != expect {
            wrong.push(format!("{what}: {got}, recorded {expect}"));
        }
    };
    check("code", json!(answer.code), json!(case.code));
    if !case.warnings.is_empty() || answer.code < 300 {
        check("warnings", json!(answer.warnings()), json!(case.warnings));
    }
    if let Some(kind) = &case.kind {
        check("kind", got["kind"].clone(), json!(kind));
    }
    if let Some(status) = &case.status {
        let expect: Value = serde_json::from_str(&moved(&status.to_string(), number)).unwrap();
        check("reason", got["reason"].clone(), expect["reason"].clone());
        let exact = !OTHER_WORDS.iter().any(|prefix| matches_name(&case.name, prefix));
        if exact {
            check("message", got["message"].clone(), expect["message"].clone());
            check("details", details(&got), details(&expect));
        } else {
            let fields = |value: &Value| {
                let causes = value["details"]["causes"].as_array();
                let mut all: Vec<Value> =
                    causes.into_iter().flatten().map(|c| json!([c["reason"], c["field"]])).collect();
                all.dedup();
                json!(all)
            };
            check("causes", fields(&got), fields(&expect));
        }
    }
    wrong
}

/// The details of a Status, without uids and without causes that are given twice.
fn details(status: &Value) -> Value {
    let mut details = status["details"].clone();
    if let Some(map) = details.as_object_mut() {
        map.remove("uid");
    }
    if let Some(causes) = details["causes"].as_array_mut() {
        causes.dedup();
    }
    details
}

/// A recorded body, with the uid and version of this server's object where it had those of the recorded one.
async fn current(admin: &mut common::Client, case: &Case, body: &Value, number: usize) -> String {
    let mut body = body.clone();
    if case.name.starts_with("conflict.") {
        // The recorded stale version could happen to be the current one here.
        body["metadata"]["resourceVersion"] = json!("1");
    }
    if matches!(case.name.as_str(), "conflict.put-stale-rv" | "update.noop-keeps-rv") {
        let now = admin.get(&moved(&case.path, number)).await.json();
        body["metadata"]["uid"] = now["metadata"]["uid"].clone();
        if case.name == "update.noop-keeps-rv" {
            body = now;
        }
    }
    body.to_string()
}

/// A name stands for itself; one that ends in a dot or a dash for all that begin with it.
fn matches_name(name: &str, pattern: &str) -> bool {
    name == pattern || (pattern.ends_with(['.', '-']) && name.starts_with(pattern))
}

fn big_map(bytes: usize) -> String {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "big"}, "data": {"k": "x".repeat(bytes)}}).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_answered_as_recorded() {
    let server = common::Server::start().await;
    let only = std::env::var("LICHEN_REPLY").unwrap_or_default();
    let mut failed = Vec::new();
    let mut compared = 0;
    for (number, line) in include_str!("fixtures/replies.jsonl").lines().enumerate() {
        let case: Case = serde_json::from_str(line).unwrap();
        if NOT_YET.iter().any(|(prefix, _)| case.name.starts_with(prefix)) || !case.name.starts_with(&only) {
            continue;
        }
        prepare(&server, number).await;
        let wrong = differences(&server, &case, number).await;
        compared += 1;
        if !wrong.is_empty() {
            failed.push(format!("{}: {}", case.name, wrong.join("\n    ")));
        }
    }
    server.stop().await;
    assert!(failed.is_empty(), "{} of {compared} differ:\n{}", failed.len(), failed.join("\n"));
}
