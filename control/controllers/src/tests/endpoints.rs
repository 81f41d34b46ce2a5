use std::sync::Arc;

use lichen_api::k8s::api::discovery::v1::EndpointSlice;
use serde_json::json;

use crate::Propagation;
use crate::testing::{Cluster, deployment, service};

fn slices(cluster: &Cluster) -> Vec<Arc<EndpointSlice>> {
    cluster.view.endpoint_slices.values().cloned().collect()
}

/// Endpoints as `ready serving terminating`.
fn conditions(cluster: &Cluster) -> Vec<String> {
    let mut found: Vec<String> = slices(cluster)
        .iter()
        .flat_map(|slice| slice.endpoints.clone().unwrap_or_default())
        .map(|endpoint| {
            let told = endpoint.conditions.unwrap();
            let letter =
                |state: Option<bool>, letter: &'static str| if state == Some(true) { letter } else { "-" };
            [letter(told.ready, "r"), letter(told.serving, "s"), letter(told.terminating, "t")].concat()
        })
        .collect();
    found.sort();
    found
}

#[test]
fn endpoints_follow_the_readiness_of_pods() {
    let mut cluster = Cluster::new();
    cluster.quick = false;
    cluster.create(service("web", "web"));
    cluster.settle();
    let empty = slices(&cluster);
    assert_eq!(empty.len(), 1);
    assert_eq!(empty[0].endpoints.as_deref(), Some(&[][..]));
    assert_eq!(empty[0].metadata.labels.as_ref().unwrap()["kubernetes.io/service-name"], "web");

    let id = cluster.create(deployment("web", 2));
    cluster.run();
    assert_eq!(conditions(&cluster), ["rs-", "rs-"]);
    let slice = &slices(&cluster)[0];
    assert_eq!(slices(&cluster).len(), 1);
    assert_eq!(slice.metadata.name, empty[0].metadata.name);
    let port = &slice.ports.as_ref().unwrap()[0];
    assert_eq!((port.name.as_deref(), port.port), (Some("http"), Some(8080)));
    let endpoint = &slice.endpoints.as_ref().unwrap()[0];
    assert!(endpoint.node_name.is_some() && endpoint.target_ref.as_ref().unwrap().uid.is_some());

    let pod = cluster.pods().remove(0);
    cluster.set_pod(&pod, |value, _| value["status"]["conditions"] = json!([]));
    cluster.settle();
    assert_eq!(conditions(&cluster), ["---", "rs-"]);

    cluster.edit(&id, |value| value["spec"]["replicas"] = json!(1));
    cluster.settle();
    assert_eq!(conditions(&cluster), ["--t", "rs-"]);
    cluster.assert_at_rest();
}

#[test]
fn slices_hold_a_hundred_endpoints_and_endpoints_stay_where_they_are() {
    let mut cluster = Cluster::new();
    cluster.create(service("web", "web"));
    let id = cluster.create(deployment("web", 230));
    cluster.run();
    let sizes = |cluster: &Cluster| {
        let mut sizes: Vec<usize> =
            slices(cluster).iter().map(|slice| slice.endpoints.as_ref().unwrap().len()).collect();
        sizes.sort();
        sizes
    };
    assert_eq!(sizes(&cluster), [30, 100, 100]);
    cluster.edit(&id, |value| value["spec"]["replicas"] = json!(1));
    cluster.settle();
    assert_eq!(sizes(&cluster), [1]);
    cluster.edit(&id, |value| value["spec"]["replicas"] = json!(0));
    cluster.settle();
    assert_eq!(sizes(&cluster), [0]);
    cluster.assert_at_rest();
}

#[test]
fn ports_by_name_are_those_of_each_pod() {
    let mut cluster = Cluster::new();
    let mut named = service("web", "web");
    named["spec"]["ports"][0]["targetPort"] = json!("http");
    let id = cluster.create(named);
    for (name, port) in [("a", 8080), ("b", 9090)] {
        let mut object = deployment(name, 1);
        object["spec"]["template"]["metadata"]["labels"]["app"] = json!("web");
        object["spec"]["template"]["metadata"]["labels"]["is"] = json!(name);
        object["spec"]["selector"] = json!({"matchLabels": {"is": name}});
        object["spec"]["template"]["spec"]["containers"][0]["ports"] =
            json!([{"name": "http", "containerPort": port}]);
        cluster.create(object);
    }
    cluster.run();
    let numbers = |cluster: &Cluster| {
        let mut numbers: Vec<Option<i32>> = slices(cluster)
            .iter()
            .flat_map(|slice| slice.ports.clone().unwrap_or_default())
            .map(|p| p.port)
            .collect();
        numbers.sort();
        numbers
    };
    assert_eq!(numbers(&cluster), [Some(8080), Some(9090)]);
    cluster.edit(&id, |value| value["spec"]["ports"][0]["targetPort"] = json!(1234));
    cluster.settle();
    assert_eq!(numbers(&cluster), [Some(1234)]);
    cluster.assert_at_rest();
}

#[test]
fn a_service_does_not_take_over_the_slices_of_an_earlier_one_of_its_name() {
    for propagation in [Propagation::Orphan, Propagation::Background] {
        let mut cluster = Cluster::new();
        let id = cluster.create(service("web", "web"));
        cluster.create(deployment("web", 2));
        cluster.run();
        let first = slices(&cluster).remove(0);

        cluster.delete(&id, Some(propagation));
        // Orphaning is done before the Service goes. Else nobody reconciles until its name is taken again, as while the
        // leader is lost.
        if propagation == Propagation::Orphan {
            cluster.settle();
            assert_eq!(slices(&cluster)[0].metadata.owner_references.as_deref().unwrap_or_default(), []);
        }
        cluster.create(service("web", "web"));
        cluster.settle();

        let now = slices(&cluster);
        assert_eq!(now.len(), 1, "{propagation:?}");
        let owners = now[0].metadata.owner_references.as_deref().unwrap();
        assert_eq!(owners[0].uid, cluster.value(&id).unwrap()["metadata"]["uid"]);
        assert_ne!(now[0].metadata.uid, first.metadata.uid);
        assert_eq!(conditions(&cluster), ["rs-", "rs-"]);
        cluster.assert_at_rest();
    }
}

/// The Endpoints of a Service: of each subset its ports, how many are ready and how many are not.
fn told(cluster: &Cluster, name: &str) -> Option<Vec<(Vec<i32>, usize, usize)>> {
    let endpoints = cluster.view.endpoints.get("default", name)?;
    let count = |list: &Option<Vec<_>>| list.as_ref().map_or(0, Vec::len);
    let subsets = endpoints.subsets.iter().flatten();
    let told = subsets.map(|subset| {
        let ports = subset.ports.iter().flatten().map(|port| port.port).collect();
        (ports, count(&subset.addresses), count(&subset.not_ready_addresses))
    });
    Some(told.collect())
}

#[test]
fn endpoints_in_the_older_form_tell_the_same() {
    let mut cluster = Cluster::new();
    cluster.quick = false;
    let id = cluster.create(service("web", "web"));
    cluster.settle();
    assert_eq!(told(&cluster, "web"), Some(vec![]));
    let labels = cluster.view.endpoints.get("default", "web").unwrap().metadata.labels.clone().unwrap();
    assert_eq!(labels["endpoints.kubernetes.io/managed-by"], "endpoint-controller");
    let deployed = cluster.create(deployment("web", 2));
    cluster.run();
    assert_eq!(told(&cluster, "web"), Some(vec![(vec![8080], 2, 0)]));
    let pod = cluster.pods().remove(0);
    cluster.set_pod(&pod, |value, _| value["status"]["conditions"] = json!([]));
    cluster.settle();
    assert_eq!(told(&cluster, "web"), Some(vec![(vec![8080], 1, 1)]));
    // A pod that ends is told by its slice only.
    cluster.edit(&deployed, |value| value["spec"]["replicas"] = json!(1));
    cluster.settle();
    assert_eq!(told(&cluster, "web"), Some(vec![(vec![8080], 1, 0)]));
    cluster.edit(&id, |value| value["spec"]["publishNotReadyAddresses"] = json!(true));
    cluster.settle();
    assert_eq!(told(&cluster, "web"), Some(vec![(vec![8080], 2, 0)]));
    cluster.assert_at_rest();
    cluster.delete(&id, None);
    cluster.settle();
    assert_eq!(told(&cluster, "web"), None);
}

#[test]
fn endpoints_of_a_service_without_a_selector_are_their_makers() {
    let mut cluster = Cluster::new();
    let mut bare = service("bare", "x");
    bare["spec"].as_object_mut().unwrap().remove("selector");
    let id = cluster.create(bare);
    cluster.create(
        json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "bare", "namespace": "default"},
        "subsets": [{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 1}]}]}),
    );
    cluster.settle();
    assert_eq!(told(&cluster, "bare"), Some(vec![(vec![1], 1, 0)]));
    cluster.delete(&id, None);
    cluster.settle();
    assert_eq!(told(&cluster, "bare"), Some(vec![(vec![1], 1, 0)]));
    cluster.assert_at_rest();
}
