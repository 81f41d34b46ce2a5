//! Every reply shows when a node was last heard of, under the version that the Node has.

mod common;

use common::{HEARD_AT, HEARD_NODE};
use http_body_util::BodyExt;
use serde_json::{Value, json};

const NODES: &str = "/api/v1/nodes";
const STORED: &str = "2026-01-01T00:00:00Z";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

fn heartbeat(node: &Value) -> &str {
    node["status"]["conditions"][0]["lastHeartbeatTime"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_to_read_a_node_shows_when_it_was_heard_of() {
    let server = common::Server::start().await;
    let mut admin = server.admin().await;
    for name in [HEARD_NODE, "quiet"] {
        let ready = json!({"type": "Ready", "status": "True", "lastHeartbeatTime": STORED, "lastTransitionTime": STORED});
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": {"conditions": [ready]},
        });
        admin.post(NODES, &node).await;
    }
    let path = format!("{NODES}/{HEARD_NODE}");
    let node = admin.get(&path).await.json();
    assert_eq!(heartbeat(&node), HEARD_AT);
    assert_eq!(heartbeat(&admin.get(&format!("{NODES}/quiet")).await.json()), STORED);
    let patched = admin.patch(&path, "merge", &json!({"metadata": {"labels": {"a": "b"}}})).await.json();
    assert_eq!(heartbeat(&patched), HEARD_AT);
    let version = &patched["metadata"]["resourceVersion"];

    let list = admin.get(NODES).await.json();
    let shown: Vec<&str> = list["items"].as_array().unwrap().iter().map(heartbeat).collect();
    assert_eq!(shown, [HEARD_AT, STORED]);
    assert_eq!(list["items"][0]["metadata"]["resourceVersion"], *version);
    // A list of what was then is as it was then.
    let before = format!(
        "{NODES}?resourceVersion={}&resourceVersionMatch=Exact",
        node["metadata"]["resourceVersion"].as_str().unwrap()
    );
    assert_eq!(heartbeat(&admin.get(&before).await.json()["items"][0]), STORED);

    let accept = [("accept", TABLE)];
    let table = admin.send("GET", &format!("{NODES}?includeObject=Object"), &accept, "").await.json();
    assert_eq!(heartbeat(&table["rows"][0]["object"]), HEARD_AT);

    let mut watcher = server.admin().await;
    let response = watcher
        .open("GET", &format!("{NODES}?watch=1&fieldSelector=metadata.name%3D{HEARD_NODE}"), &[], "")
        .await;
    let mut body = response.into_body();
    let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
    let event: Value = serde_json::from_slice(piece.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
    assert_eq!((event["type"].as_str(), heartbeat(&event["object"])), (Some("ADDED"), HEARD_AT));
    assert_eq!(event["object"]["metadata"]["resourceVersion"], *version);
    drop(body);
    server.stop().await;
}
