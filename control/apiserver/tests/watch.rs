//! Watches over HTTPS: what each client sees, in which order, and how a watch ends.

mod common;

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// The lines of a watch, as they come.
struct Lines {
    body: Incoming,
    text: Vec<u8>,
}

impl Lines {
    async fn open(client: &mut common::Client, query: &str, accept: &str) -> Self {
        let path = format!("{MAPS}?watch=1&{query}");
        let response = client.open("GET", &path, &[("accept", accept)], "").await;
        assert_eq!(response.status(), 200);
        Self { body: response.into_body(), text: Vec::new() }
    }

    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(Duration::from_secs(30), self.body.frame()).await;
            match frame.expect("the watch is silent") {
                Some(frame) => self.text.extend_from_slice(&frame.unwrap().into_data().unwrap()),
                None => return None,
            }
        }
    }

    /// The next event as `TYPE name value-of-data.k`.
    async fn brief(&mut self) -> String {
        let Some(event) = self.next().await else { return "end".to_owned() };
        let object = &event["object"];
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        format!(
            "{} {} {}",
            text(&event["type"]),
            text(&object["metadata"]["name"]),
            text(&object["data"]["k"])
        )
    }
}

fn map(name: &str, side: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"s": side}}, "data": {"k": value}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_selector_sees_objects_come_and_go() {
    let server = common::Server::start().await;
    let mut admin = server.admin().await;
    let mut watcher = server.admin().await;
    admin.post(MAPS, &map("early", "in", "0")).await;
    let begin = admin.get(MAPS).await.json()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let query = format!("labelSelector=s%3Din&resourceVersion={begin}&timeoutSeconds=600");
    let mut lines = Lines::open(&mut watcher, &query, "application/json").await;

    admin.post(MAPS, &map("a", "in", "1")).await;
    assert_eq!(lines.brief().await, "ADDED a 1");
    admin.post(MAPS, &map("unseen", "out", "1")).await;
    let change = |patch: Value| patch;
    admin.patch(&format!("{MAPS}/a"), "merge", &change(json!({"data": {"k": "2"}}))).await;
    assert_eq!(lines.brief().await, "MODIFIED a 2");
    // Out of view: what it was before, under the revision of the change.
    let out = json!({"metadata": {"labels": {"s": "out"}}, "data": {"k": "3"}});
    let left = admin.patch(&format!("{MAPS}/a"), "merge", &out).await.json();
    let event = lines.next().await.unwrap();
    assert_eq!(event["type"], "DELETED");
    assert_eq!(
        (&event["object"]["data"]["k"], &event["object"]["metadata"]["labels"]["s"]),
        (&json!("2"), &json!("in"))
    );
    assert_eq!(event["object"]["metadata"]["resourceVersion"], left["metadata"]["resourceVersion"]);
    admin.patch(&format!("{MAPS}/a"), "merge", &json!({"data": {"k": "4"}})).await;
    admin.patch(&format!("{MAPS}/a"), "merge", &json!({"metadata": {"labels": {"s": "in"}}})).await;
    assert_eq!(lines.brief().await, "ADDED a 4");
    // What changes nothing is no event.
    admin.patch(&format!("{MAPS}/a"), "merge", &json!({"data": {"k": "4"}})).await;
    admin.patch(&format!("{MAPS}/a"), "merge", &json!({"metadata": {"finalizers": ["x.y/z"]}})).await;
    assert_eq!(lines.brief().await, "MODIFIED a 4");
    admin.send("DELETE", &format!("{MAPS}/a"), &[], "").await;
    assert_eq!(lines.brief().await, "MODIFIED a 4");
    admin.patch(&format!("{MAPS}/a"), "merge", &json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(lines.brief().await, "DELETED a 4");
    server.stop().await;
    assert_eq!(lines.brief().await, "end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_can_begin_with_what_exists() {
    let server = common::Server::start().await;
    let mut admin = server.admin().await;
    admin.post(MAPS, &map("a", "in", "1")).await;
    let mut watcher = server.admin().await;
    let query =
        "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=3";
    let mut lines = Lines::open(&mut watcher, query, "application/json").await;
    assert_eq!(lines.brief().await, "ADDED a 1");
    let mark = lines.next().await.unwrap();
    assert_eq!((&mark["type"], &mark["object"]["kind"]), (&json!("BOOKMARK"), &json!("ConfigMap")));
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let last = lines.next().await.unwrap();
    assert_eq!(last["type"], "BOOKMARK");
    assert!(last["object"]["metadata"].get("annotations").is_none());
    assert_eq!(lines.brief().await, "end");

    // The older way: no marks, then the changes.
    let mut lines =
        Lines::open(&mut watcher, "resourceVersion=0&timeoutSeconds=600", "application/json").await;
    assert_eq!(lines.brief().await, "ADDED a 1");
    admin.post(MAPS, &map("b", "in", "2")).await;
    assert_eq!(lines.brief().await, "ADDED b 2");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_and_metadata_are_watched_too() {
    let server = common::Server::start().await;
    let mut admin = server.admin().await;
    admin.post(MAPS, &map("a", "in", "1")).await;
    admin.post(MAPS, &map("b", "in", "1")).await;
    let mut watcher = server.admin().await;
    let mut lines = Lines::open(&mut watcher, "timeoutSeconds=600", TABLE).await;
    let first = lines.next().await.unwrap();
    assert_eq!(first["object"]["kind"], "Table");
    assert_eq!(first["object"]["columnDefinitions"][0]["name"], "Name");
    assert_eq!(first["object"]["rows"][0]["cells"][0], "a");
    let second = lines.next().await.unwrap();
    assert_eq!(second["object"]["rows"][0]["cells"][0], "b");
    assert!(second["object"]["columnDefinitions"].as_array().is_none_or(Vec::is_empty));

    let mut watcher = server.admin().await;
    let partial = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let mut lines = Lines::open(&mut watcher, "timeoutSeconds=600", partial).await;
    let event = lines.next().await.unwrap();
    assert_eq!(event["object"]["kind"], "PartialObjectMetadata");
    assert!(event["object"].get("data").is_none());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_object_is_watched_by_its_name_alone() {
    let server = common::Server::start().await;
    let mut admin = server.admin().await;
    let mut watcher = server.admin().await;
    let query = "fieldSelector=metadata.name%3Da&timeoutSeconds=600";
    let mut lines = Lines::open(&mut watcher, query, "application/json").await;
    admin.post(MAPS, &map("a-longer-name", "in", "1")).await;
    admin.post(MAPS, &map("a", "in", "2")).await;
    assert_eq!(lines.brief().await, "ADDED a 2");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_that_is_gone_is_told_in_the_stream() {
    let bounds = lichen_store::HistoryBounds { changes_max: 4, ..Default::default() };
    let server = common::Server::start_with(None, bounds).await;
    let mut admin = server.admin().await;
    for number in 0..8 {
        admin.post(MAPS, &map(&format!("m{number}"), "in", "1")).await;
    }
    for accept in ["application/json", TABLE] {
        let mut watcher = server.admin().await;
        let mut lines = Lines::open(&mut watcher, "resourceVersion=2", accept).await;
        let event = lines.next().await.unwrap();
        assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
        assert_eq!(event["object"]["reason"], "Expired");
        assert_eq!(lines.brief().await, "end");
    }
    let old = admin.get(&format!("{MAPS}?resourceVersion=2&resourceVersionMatch=Exact")).await;
    assert_eq!((old.code, old.json()["reason"].clone()), (410, json!("Expired")));
    let page = admin.get(&format!("{MAPS}?limit=2")).await.json();
    let token = page["metadata"]["continue"].as_str().unwrap();
    for number in 0..8 {
        admin.patch(&format!("{MAPS}/m{number}"), "merge", &json!({"data": {"k": "2"}})).await;
    }
    let late = admin.get(&format!("{MAPS}?limit=2&continue={token}")).await;
    assert_eq!(late.code, 410);
    let fresh = late.json()["metadata"]["continue"].as_str().unwrap().to_owned();
    let rest = admin.get(&format!("{MAPS}?continue={fresh}")).await.json();
    let names: Vec<&str> = rest["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["metadata"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["m2", "m3", "m4", "m5", "m6", "m7"]);

    // A watch in YAML is refused, and so is one from no number.
    let answer = admin.send("GET", &format!("{MAPS}?watch=1"), &[("accept", "application/yaml")], "").await;
    assert_eq!(answer.code, 406);
    assert_eq!(admin.get(&format!("{MAPS}?watch=1&resourceVersion=abc")).await.code, 400);
    server.stop().await;
}
