//! Controllers and scheduler over a real registry.

use std::collections::BTreeSet;

use lichen_api::{Resource, kinds};
use lichen_registry::{
    AllocationRanges, DeleteOptions, Identity, Patch, Sources, WatchEvent, WatchOptions, WatchStart,
    WriteOptions,
};
use lichen_store::{HistoryBounds, Store};
use serde_json::{Value, json};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

struct Server {
    registry: Registry,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

fn user() -> Identity {
    Identity::new("admin", ["system:masters"])
}

impl Server {
    async fn start() -> Server {
        let store = Store::memory(HistoryBounds::default());
        let registry = Registry::new(store, AllocationRanges::default(), Sources::system());
        registry.bootstrap(6443).await.unwrap();
        Server::over(registry)
    }

    fn over(registry: Registry) -> Server {
        let (stop, stopping) = watch::channel(false);
        let task = tokio::spawn(run(registry.clone(), stopping));
        Server { registry, stop, task }
    }

    async fn stop(self) -> Registry {
        self.stop.send_replace(true);
        tokio::time::timeout(PATIENCE, self.task).await.expect("drains").unwrap();
        self.registry
    }

    async fn create(&self, resource: &'static Resource, object: Value) -> Value {
        let namespace = object["metadata"]["namespace"].as_str().map(str::to_owned);
        let options = WriteOptions::default();
        let written =
            self.registry.create(&user(), resource, namespace.as_deref(), object, &options).await.unwrap();
        written.record.value().unwrap()
    }

    async fn patch(&self, resource: &'static Resource, name: &str, sub: Option<&str>, patch: Value) {
        let namespace = resource.namespaced.then_some("default");
        let (patch, options) = (Patch::Strategic(patch), WriteOptions::default());
        self.registry.patch(&user(), resource, namespace, name, &patch, sub, &options).await.unwrap();
    }

    async fn list(&self, resource: &'static Resource) -> Vec<Value> {
        let list = self.registry.list(resource, None, &Default::default()).await.unwrap();
        list.items.iter().map(|record| record.value().unwrap()).collect()
    }

    /// Waits until a kind's objects are as wanted, change by change.
    async fn until(&self, resource: &'static Resource, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let mut watch = self.registry.watch(resource, None, &Default::default()).unwrap();
        let reached = async {
            loop {
                let objects = self.list(resource).await;
                if wanted(&objects) {
                    return objects;
                }
                watch.next().await.unwrap();
            }
        };
        match tokio::time::timeout(PATIENCE, reached).await {
            Ok(objects) => objects,
            Err(_) => panic!("never came: {:#?}", self.list(resource).await),
        }
    }

    async fn node(&self, name: &str) {
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        self.create(&kinds::node::RESOURCE, object).await;
        let amounts = json!({"cpu": "4", "memory": "8Gi", "pods": "110"});
        let status = json!({"status": {"capacity": amounts, "allocatable": amounts, "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        self.patch(&kinds::node::RESOURCE, name, Some("status"), status).await;
    }

    /// Says in the name of the nodes that every pod runs and is ready.
    async fn run_pods(&self) {
        for (index, pod) in self.list(&kinds::pod::RESOURCE).await.into_iter().enumerate() {
            if pod["status"]["phase"] == "Running" || !is_bound(&pod) {
                continue;
            }
            let time = "2026-01-01T00:00:00Z";
            let status = json!({"status": {"phase": "Running", "podIP": format!("10.64.0.{}", index + 2),
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": time}]}});
            self.patch(
                &kinds::pod::RESOURCE,
                pod["metadata"]["name"].as_str().unwrap(),
                Some("status"),
                status,
            )
            .await;
        }
    }
}

fn deployment(replicas: i32, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": "default", "name": "web"},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}},
        },
    })
}

fn is_bound(pod: &Value) -> bool {
    pod["spec"]["nodeName"].is_string()
}

#[tokio::test]
async fn a_deployment_and_its_service_become_pods_on_both_nodes_and_endpoints() {
    let server = Server::start().await;
    server.node("n1").await;
    server.node("n2").await;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    server.create(&kinds::service::RESOURCE, service).await;
    server.create(&kinds::deployment::RESOURCE, deployment(3, "hello:v1")).await;
    let pods = server.until(&kinds::pod::RESOURCE, |pods| pods.len() == 3 && pods.iter().all(is_bound)).await;
    let nodes: BTreeSet<&str> = pods.iter().map(|pod| pod["spec"]["nodeName"].as_str().unwrap()).collect();
    assert_eq!(nodes, ["n1", "n2"].into());

    server.run_pods().await;
    let complete = |objects: &[Value]| {
        objects.iter().any(|object| {
            let status = &object["status"];
            status["availableReplicas"] == 3
                && status["conditions"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|c| c["reason"] == "NewReplicaSetAvailable")
        })
    };
    server.until(&kinds::deployment::RESOURCE, complete).await;
    let ready = |slices: &[Value]| {
        let endpoints =
            slices.iter().flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
        endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true).count() == 3
    };
    server.until(&kinds::endpointslice::RESOURCE, ready).await;
    let told = |events: &[Value]| {
        let reasons: BTreeSet<&str> = events.iter().filter_map(|event| event["reason"].as_str()).collect();
        ["ScalingReplicaSet", "SuccessfulCreate", "Scheduled"].iter().all(|reason| reasons.contains(reason))
    };
    server.until(&kinds::event::RESOURCE, told).await;

    // Another template: one after the other is replaced, and the old set stays for a rollback.
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "hello:v2"}]}}}});
    server.patch(&kinds::deployment::RESOURCE, "web", None, image).await;
    let rolled = async {
        loop {
            let list = server.registry.list(&kinds::pod::RESOURCE, None, &Default::default()).await.unwrap();
            let pods: Vec<Value> = list.items.iter().map(|record| record.value().unwrap()).collect();
            let (ending, there): (Vec<_>, Vec<_>) =
                pods.iter().partition(|pod| pod["metadata"]["deletionTimestamp"].is_string());
            let image = |pod: &&Value| pod["spec"]["containers"][0]["image"] == "hello:v2";
            if ending.is_empty() && there.len() == 3 && there.iter().all(image) {
                break;
            }
            for pod in ending {
                let gone = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
                let name = pod["metadata"]["name"].as_str().unwrap();
                server
                    .registry
                    .delete(&user(), &kinds::pod::RESOURCE, Some("default"), name, &gone)
                    .await
                    .ok();
            }
            server.run_pods().await;
            let start = WatchStart::After(list.revision);
            let options = WatchOptions { start, ..WatchOptions::default() };
            server.registry.watch(&kinds::pod::RESOURCE, None, &options).unwrap().next().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, rolled).await.expect("the rollout ends");
    assert_eq!(server.list(&kinds::replicaset::RESOURCE).await.len(), 2);
    server.stop().await;
}

#[tokio::test]
async fn a_cluster_at_rest_is_not_written_to_also_by_the_next_leader() {
    let server = Server::start().await;
    server.node("n1").await;
    server.create(&kinds::deployment::RESOURCE, deployment(2, "hello:v1")).await;
    server.until(&kinds::pod::RESOURCE, |pods| pods.len() == 2 && pods.iter().all(is_bound)).await;
    server.run_pods().await;
    let available =
        |objects: &[Value]| objects.iter().any(|object| object["status"]["availableReplicas"] == 2);
    server.until(&kinds::deployment::RESOURCE, available).await;
    let registry = server.stop().await;
    // Whoever leads next finishes what the last one left; a third finds nothing to do.
    let registry = settled(Server::over(registry)).await;
    let before = registry.revision();
    let registry = settled(Server::over(registry)).await;
    assert_eq!(registry.revision(), before);
}

/// Stops a server when it has done everything there was to do: what a later object asks for is done after that.
async fn settled(server: Server) -> Registry {
    for turn in 0..5 {
        tokio::task::yield_now().await;
        let before = server.registry.revision();
        tokio::time::sleep(Duration::from_millis(100)).await;
        if turn > 0 && server.registry.revision() == before {
            break;
        }
    }
    server.stop().await
}

#[tokio::test]
async fn a_pod_that_fits_nowhere_says_why_and_runs_when_a_node_comes() {
    let server = Server::start().await;
    server.node("n1").await;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "default", "name": "big"},
        "spec": {"nodeSelector": {"disk": "ssd"}, "containers": [{"name": "c", "image": "hello:v1"}]}});
    server.create(&kinds::pod::RESOURCE, pod).await;
    let message = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.";
    let told = |pods: &[Value]| {
        let conditions = pods[0]["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["reason"] == "Unschedulable" && c["message"] == message)
    };
    server.until(&kinds::pod::RESOURCE, told).await;
    let failed = |events: &[Value]| {
        events.iter().any(|e| e["reason"] == "FailedScheduling" && e["message"] == message)
    };
    server.until(&kinds::event::RESOURCE, failed).await;
    server.patch(&kinds::node::RESOURCE, "n1", None, json!({"metadata": {"labels": {"disk": "ssd"}}})).await;
    let pods = server.until(&kinds::pod::RESOURCE, |pods| pods.iter().all(is_bound)).await;
    let conditions = pods[0]["status"]["conditions"].as_array().unwrap();
    let scheduled: Vec<&Value> = conditions.iter().filter(|c| c["type"] == "PodScheduled").collect();
    assert_eq!((scheduled.len(), &scheduled[0]["status"]), (1, &json!("True")));
    server.stop().await;
}

#[tokio::test]
async fn a_namespace_goes_with_everything_in_it() {
    let server = Server::start().await;
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}});
    server.create(&kinds::namespace::RESOURCE, space).await;
    let mut object = deployment(2, "hello:v1");
    object["metadata"]["namespace"] = json!("team");
    server.create(&kinds::deployment::RESOURCE, object).await;
    let map =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "team", "name": "c"}});
    server.create(&kinds::configmap::RESOURCE, map).await;
    server.until(&kinds::pod::RESOURCE, |pods| pods.len() == 2).await;
    server
        .until(&kinds::serviceaccount::RESOURCE, |all| {
            all.iter().any(|s| s["metadata"]["namespace"] == "team")
        })
        .await;
    server
        .registry
        .delete(&user(), &kinds::namespace::RESOURCE, None, "team", &DeleteOptions::default())
        .await
        .unwrap();
    server
        .until(&kinds::namespace::RESOURCE, |all| all.iter().all(|n| n["metadata"]["name"] != "team"))
        .await;
    for resource in [&kinds::pod::RESOURCE, &kinds::deployment::RESOURCE, &kinds::configmap::RESOURCE] {
        assert_eq!(server.list(resource).await, Vec::<Value>::new());
    }
    server.stop().await;
}

#[tokio::test]
async fn two_hundred_replicas_are_exactly_two_hundred() {
    let server = Server::start().await;
    for name in ["n1", "n2"] {
        server.node(name).await;
    }
    server.create(&kinds::deployment::RESOURCE, deployment(200, "hello:v1")).await;
    let mut watch = server.registry.watch(&kinds::pod::RESOURCE, None, &Default::default()).unwrap();
    let mut bound = BTreeSet::new();
    let all_bound = async {
        while bound.len() < 200 {
            if let WatchEvent::Added(record) | WatchEvent::Modified(record) = watch.next().await.unwrap()
                && record.fields().get("spec.nodeName").is_some_and(|node| !node.is_empty())
            {
                bound.insert(record.uid().to_owned());
            }
        }
    };
    tokio::time::timeout(PATIENCE, all_bound).await.expect("every pod is bound");
    let registry = settled(server).await;
    let pods = registry.list(&kinds::pod::RESOURCE, None, &Default::default()).await.unwrap();
    assert_eq!(pods.items.len(), 200);
}
