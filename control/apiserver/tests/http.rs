//! What the server does with connections, identities and bodies.

mod common;

use std::sync::Arc;

use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_masters_may_use_the_api() {
    let server = common::Server::start().await;
    let mut admin = server.admin().await;
    assert_eq!(admin.post(MAPS, &map("a")).await.code, 201);
    let node = server.client("system:node:edge-1", Some("system:nodes")).await;
    let anonymous = server.anonymous().await;
    let imposter = server.client("system:masters", None).await;
    for mut client in [node, anonymous, imposter] {
        let answer = client.get("/api/v1/nodes/edge-1").await;
        assert_eq!((answer.code, answer.json()["reason"].clone()), (403, json!("Forbidden")));
        for (method, path) in [
            ("GET", MAPS.to_owned()),
            ("GET", format!("{MAPS}?watch=1")),
            ("GET", "/api/v1/namespaces/kube-system/secrets".to_owned()),
            ("GET", "/apis".to_owned()),
            ("GET", "/openapi/v3".to_owned()),
            ("GET", "/nothing".to_owned()),
            ("POST", MAPS.to_owned()),
            ("PUT", format!("{MAPS}/a")),
            ("PATCH", format!("{MAPS}/a")),
            ("DELETE", format!("{MAPS}/a")),
            ("GET", "/v2/".to_owned()),
        ] {
            let answer = client.send(method, &path, &[("content-type", "application/json")], "{}").await;
            assert_eq!(answer.code, 403, "{method} {path}: {}", answer.text());
        }
        for path in ["/version", "/healthz", "/livez", "/readyz"] {
            assert_eq!(client.get(path).await.code, 200, "{path}");
        }
    }
    let mut node = server.client("system:node:edge-1", Some("system:nodes")).await;
    let message = "nodes \"edge-1\" is forbidden: User \"system:node:edge-1\" cannot get resource \"nodes\" in API group \"\" at the cluster scope";
    assert_eq!(node.get("/api/v1/nodes/edge-1").await.json()["message"], message);
    assert_eq!(admin.get(&format!("{MAPS}/a")).await.json()["data"]["k"], "v");
    // Nobody becomes another by saying so.
    let answer = admin.send("GET", MAPS, &[("impersonate-user", "alice")], "").await;
    assert_eq!(answer.code, 403);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_handlers_share_the_port() {
    let server = common::Server::start().await;
    let mut admin = server.admin().await;
    // Larger than any body of the API may be.
    let answer = admin.send("PUT", "/v2/x/blobs", &[], vec![0u8; 4_000_000]).await;
    assert_eq!((answer.code, answer.text().as_str()), (200, "admin /v2/x/blobs 4000000"));
    assert_eq!(admin.get("/v2").await.text(), "admin /v2 0");
    assert_eq!(admin.get("/v22").await.code, 404);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_bound_and_evicted_by_requests() {
    let server = common::Server::start().await;
    let mut admin = server.admin().await;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let path = "/api/v1/namespaces/default/pods";
    assert_eq!(admin.post(path, &pod).await.code, 201);
    let bad = [
        json!({"kind": "Binding", "target": {}}),
        json!({"kind": "Pod", "target": {"name": "n1"}}),
        json!({"metadata": {"uid": 5}, "target": {"name": "n1"}}),
        json!({"metadata": {"uid": "other"}, "target": {"name": "n1"}}),
        json!({"metadata": {"name": "b"}, "target": {"name": "n1"}}),
    ];
    for (body, code) in bad.iter().zip([422, 400, 400, 409, 400]) {
        let answer = admin.post(&format!("{path}/a/binding"), body).await;
        assert_eq!(answer.code, code, "{body}: {}", answer.text());
    }
    let good = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "a"}, "target": {"kind": "Node", "name": "n1"}});
    assert_eq!(admin.post(&format!("{path}/a/binding"), &good).await.code, 201);
    assert_eq!(admin.get(&format!("{path}/a")).await.json()["spec"]["nodeName"], "n1");
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "a"}, "deleteOptions": {"gracePeriodSeconds": 7}});
    assert_eq!(admin.post(&format!("{path}/a/eviction"), &eviction).await.code, 201);
    assert_eq!(admin.get(&format!("{path}/a")).await.json()["metadata"]["deletionGracePeriodSeconds"], 7);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_are_read_page_by_page_at_one_revision() {
    let server = common::Server::start().await;
    let mut admin = server.admin().await;
    for number in 0..5 {
        admin.post(MAPS, &map(&format!("m{number}"))).await;
    }
    let page = admin.get(&format!("{MAPS}?limit=2")).await.json();
    assert_eq!(page["metadata"]["remainingItemCount"], 3);
    admin.send("DELETE", &format!("{MAPS}/m3"), &[], "").await;
    admin.post(MAPS, &map("m9")).await;
    let mut names = Vec::new();
    let mut page = page;
    loop {
        for item in page["items"].as_array().unwrap() {
            names.push(item["metadata"]["name"].as_str().unwrap().to_owned());
        }
        let Some(token) = page["metadata"]["continue"].as_str() else { break };
        let next = admin.get(&format!("{MAPS}?limit=2&continue={token}")).await.json();
        assert_eq!(next["metadata"]["resourceVersion"], page["metadata"]["resourceVersion"]);
        page = next;
    }
    assert_eq!(names, ["m0", "m1", "m2", "m3", "m4"]);

    // A list that is longer than one piece of a body.
    let large = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "l-"}, "data": {"k": "x".repeat(40_000)}});
    for _ in 0..8 {
        assert_eq!(admin.post(MAPS, &large).await.code, 201);
    }
    let all = admin.get(MAPS).await;
    assert!(all.bytes.len() > 320_000);
    assert_eq!(all.json()["items"].as_array().unwrap().len(), 13);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_may_be_yaml_or_protobuf() {
    let server = common::Server::start().await;
    let mut admin = server.admin().await;
    let headers = [("content-type", "application/yaml"), ("accept", "application/yaml")];
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: y}\ndata: {a: \"1\"}\n";
    let answer = admin.send("POST", MAPS, &headers, text).await;
    assert_eq!(answer.code, 201, "{}", answer.text());
    assert!(answer.text().contains("name: y"), "{}", answer.text());
    let twice = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: z}\ndata: {a: \"1\", a: \"2\"}\n";
    let answer = admin.send("POST", &format!("{MAPS}?fieldValidation=Strict"), &headers, twice).await;
    assert_eq!(answer.code, 400);
    assert!(answer.text().contains("duplicate field"), "{}", answer.text());

    let protobuf = [("content-type", "application/vnd.kubernetes.protobuf")];
    let map = "k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x06\x0a\x04\x0a\x02pb";
    let answer = admin.send("POST", MAPS, &protobuf, map).await;
    assert_eq!(answer.code, 201, "{}", answer.text());
    assert_eq!(admin.get(&format!("{MAPS}/pb")).await.code, 200);
    let answer = admin.send("POST", MAPS, &protobuf, "k8s\0\x0a\x7f").await;
    assert_eq!(answer.code, 400);
    assert!(answer.text().contains("the protobuf body is malformed"), "{}", answer.text());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discovery_is_not_sent_twice() {
    let server = common::Server::start().await;
    let mut admin = server.admin().await;
    let accept =
        ("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json");
    let first = admin.send("GET", "/apis", &[accept], "").await;
    assert_eq!(first.code, 200);
    assert_eq!(first.json()["kind"], "APIGroupDiscoveryList");
    let tag = first.headers["etag"].to_str().unwrap().to_owned();
    let second = admin.send("GET", "/apis", &[accept, ("if-none-match", &tag)], "").await;
    assert_eq!((second.code, second.bytes.len()), (304, 0));
    let plain = admin.get("/apis").await.json();
    assert_eq!(plain["kind"], "APIGroupList");
    let index = admin.get("/openapi/v3").await.json();
    for path in index["paths"].as_object().unwrap().values() {
        let url = path["serverRelativeURL"].as_str().unwrap();
        assert_eq!(admin.get(url).await.json()["openapi"], "3.0.0", "{url}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_of_one_object_lose_nothing() {
    let server = common::Server::start().await;
    let mut admin = server.admin().await;
    admin.post(MAPS, &map("shared")).await;
    let mut writers = Vec::new();
    for number in 0..6 {
        let mut client = server.admin().await;
        writers.push(tokio::spawn(async move {
            let patch = json!({"data": {format!("w{number}"): "1"}});
            client.patch(&format!("{MAPS}/shared"), "merge", &patch).await.code
        }));
    }
    for writer in writers {
        assert_eq!(writer.await.unwrap(), 200);
    }
    let data = admin.get(&format!("{MAPS}/shared")).await.json()["data"].clone();
    assert_eq!(data.as_object().unwrap().len(), 7, "{data}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_come_from_the_pods_node() {
    let nodes = Arc::new(common::Nodes::default());
    let server = common::Server::start_with(Some(nodes.clone()), Default::default()).await;
    let mut admin = server.admin().await;
    for (name, node) in [("a", "n1"), ("b", "n2"), ("c", "")] {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}});
        server.create(Some("default"), pod).await;
    }
    let path = |name: &str, query: &str| format!("/api/v1/namespaces/default/pods/{name}/log?{query}");
    let answer = admin.get(&path("a", "tailLines=5&timestamps=true")).await;
    assert_eq!((answer.code, answer.text().as_str()), (200, "one\ntwo\n"));
    assert_eq!(answer.headers["content-type"], "text/plain");
    let asked = nodes.asked.lock().unwrap().remove(0);
    assert_eq!((asked.pod.as_str(), asked.container.as_str(), asked.tail_lines), ("a", "c", Some(5)));
    assert!(asked.timestamps && !asked.uid.is_empty() && !asked.follow);
    assert_eq!(admin.get(&path("b", "")).await.code, 503);
    assert_eq!(admin.get(&path("c", "")).await.code, 400);
    assert_eq!(admin.get(&path("nope", "")).await.code, 404);
    assert_eq!(admin.get(&path("a", "container=x")).await.code, 400);

    // A log that is followed does not keep the server from ending.
    use http_body_util::BodyExt;
    let mut follower = server.admin().await;
    let mut body = follower.open("GET", &path("a", "follow=true"), &[], "").await.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(first.starts_with(b"one\n"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_applied() {
    let server = common::Server::start().await;
    let mut admin = server.admin().await;
    let media = [("content-type", "application/apply-patch+yaml")];
    let path = "/apis/apps/v1/namespaces/default/deployments/web";
    let text = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {replicas: 1, selector: {matchLabels: {a: b}},\
        template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i, resources: {limits: {cpu: 1000m}}}]}}}}";
    // A dry run leaves nothing behind, a first apply creates, the same again writes nothing.
    let dry = admin.send("PATCH", &format!("{path}?fieldManager=m1&dryRun=All"), &media, text).await;
    assert_eq!(dry.code, 201, "{}", dry.text());
    assert_eq!(admin.get(path).await.code, 404);
    let first = admin.send("PATCH", &format!("{path}?fieldManager=m1"), &media, text).await;
    assert_eq!(first.code, 201, "{}", first.text());
    let again = admin.send("PATCH", &format!("{path}?fieldManager=m1"), &media, text).await;
    assert_eq!((again.code, again.json()), (200, first.json()));
    let owners = |object: &Value| -> Vec<String> {
        let entries = object["metadata"]["managedFields"].as_array().unwrap();
        entries
            .iter()
            .map(|entry| {
                let text = |field: &str| entry[field].as_str().unwrap_or("-").to_owned();
                format!("{} {} {}", text("manager"), text("operation"), text("subresource"))
            })
            .collect()
    };

    // The status is applied to by itself, with an owner of its own.
    let status = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {replicas: 7}, status: {replicas: 3}}";
    let done = admin.send("PATCH", &format!("{path}/status?fieldManager=m1"), &media, status).await.json();
    assert_eq!((&done["spec"]["replicas"], &done["status"]["replicas"]), (&json!(1), &json!(3)));
    assert_eq!(owners(&done), ["m1 Apply -", "m1 Apply status"]);
    let other = status.replace("replicas: 3", "replicas: 4");
    let refused = admin.send("PATCH", &format!("{path}/status?fieldManager=m2"), &media, other).await;
    assert_eq!(refused.code, 409, "{}", refused.text());
    assert_eq!(
        refused.json()["message"],
        "Apply failed with 1 conflict: conflict with \"m1\" with subresource \"status\": .status.replicas"
    );
    let absent = admin
        .send("PATCH", &format!("{path}x/status?fieldManager=m1"), &media, status.replace("web", "webx"))
        .await;
    assert_eq!(absent.code, 404, "{}", absent.text());

    // Several conflicts are told by their owner, and force takes all of them.
    let theirs = text.replace("replicas: 1", "replicas: 2").replace("image: i", "image: j");
    let refused = admin.send("PATCH", &format!("{path}?fieldManager=m2"), &media, theirs.clone()).await;
    assert_eq!(
        refused.json()["message"],
        "Apply failed with 2 conflicts: conflicts with \"m1\":\n- .spec.replicas\n\
         - .spec.template.spec.containers[name=\"c\"].image"
    );
    assert_eq!(refused.json()["details"]["causes"].as_array().unwrap().len(), 2);
    let forced = admin.send("PATCH", &format!("{path}?fieldManager=m2&force=true"), &media, theirs).await;
    assert_eq!((forced.code, &forced.json()["spec"]["replicas"]), (200, &json!(2)), "{}", forced.text());

    // What cannot be applied: a stale version, a field given twice, another kind of body, the scale.
    let stale = text.replace("name: web", "name: web, resourceVersion: \"1\"");
    let refused = admin.send("PATCH", &format!("{path}?fieldManager=m1&force=true"), &media, stale).await;
    assert_eq!(refused.code, 409, "{}", refused.text());
    let twice = text.replace("replicas: 1", "replicas: 1, replicas: 2");
    let strict = format!("{path}?fieldManager=m1&fieldValidation=Strict");
    let refused = admin.send("PATCH", &strict, &media, twice).await;
    assert_eq!(refused.code, 400, "{}", refused.text());
    for (body, code) in [("a: [", 400), ("[]", 400), ("5", 400), ("", 400)] {
        let refused = admin.send("PATCH", &format!("{path}?fieldManager=m1"), &media, body).await;
        assert_eq!(refused.code, code, "{body}: {}", refused.text());
    }
    let refused = admin.send("PATCH", &format!("{path}/scale?fieldManager=m1"), &media, "{}").await;
    assert_eq!(refused.code, 415, "{}", refused.text());
    let lost = text.replace("name: web", "name: web, namespace: nowhere");
    let refused = admin
        .send(
            "PATCH",
            &path.replace("default", "nowhere").replace("web", "web?fieldManager=m1"),
            &media,
            lost,
        )
        .await;
    assert_eq!(refused.code, 404, "{}", refused.text());
    server.stop().await;
}
