use std::collections::BTreeSet;
use std::time::Duration;

use lichen_api::k8s::api::apps::v1::Deployment;
use lichen_api::k8s::api::core::v1::Pod;
use lichen_api::view::{Kind, ObjectId, View};
use proptest::prelude::*;
use serde_json::json;

use crate::testing::{Cluster, deployment, is_ready};

fn image(pod: &Pod) -> String {
    pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap_or_default()
}

fn told(cluster: &Cluster, id: &ObjectId) -> Deployment {
    (**cluster.view.deployments.by_key(&id.key).unwrap()).clone()
}

fn condition(deployment: &Deployment, kind: &str) -> (String, String) {
    let conditions = deployment.status.as_ref().unwrap().conditions.clone().unwrap_or_default();
    let found = conditions.into_iter().find(|c| c.type_ == kind).unwrap();
    (found.status, found.reason.unwrap_or_default())
}

fn set_image(cluster: &mut Cluster, id: &ObjectId, image: &str) {
    cluster.edit(id, |value| value["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image));
}

/// Pods that exist but are not on their way out, and how many of these are ready.
fn counts(view: &View) -> (usize, usize) {
    let active: Vec<_> = view.pods.values().filter(|pod| crate::pods::is_active(pod)).collect();
    (active.len(), active.iter().filter(|pod| is_ready(pod)).count())
}

#[test]
fn a_deployment_becomes_pods_and_then_rests() {
    let mut cluster = Cluster::new();
    let id = cluster.create(deployment("web", 3));
    cluster.settle();
    assert_eq!(cluster.pods().len(), 3);
    assert_eq!(condition(&told(&cluster, &id), "Available").0, "False");
    cluster.run();
    let done = told(&cluster, &id);
    let status = done.status.clone().unwrap();
    assert_eq!(
        (status.replicas, status.updated_replicas, status.ready_replicas, status.available_replicas),
        (Some(3), Some(3), Some(3), Some(3))
    );
    assert_eq!((status.unavailable_replicas, status.observed_generation), (None, Some(1)));
    assert_eq!(condition(&done, "Available"), ("True".into(), "MinimumReplicasAvailable".into()));
    assert_eq!(condition(&done, "Progressing"), ("True".into(), "NewReplicaSetAvailable".into()));
    assert_eq!(done.metadata.annotations.unwrap()["deployment.kubernetes.io/revision"], "1");

    let set = cluster.view.replica_sets.values().next().unwrap().clone();
    let hash = &set.metadata.labels.as_ref().unwrap()["pod-template-hash"];
    assert_eq!(set.metadata.name.as_deref(), Some(format!("web-{hash}").as_str()));
    let annotations = set.metadata.annotations.clone().unwrap();
    assert_eq!(annotations["team"], "a");
    assert_eq!(annotations["deployment.kubernetes.io/desired-replicas"], "3");
    let pod = &cluster.pods()[0];
    assert_eq!(&pod.metadata.labels.as_ref().unwrap()["pod-template-hash"], hash);
    assert!(pod.metadata.name.as_ref().unwrap().starts_with(&format!("web-{hash}-")));

    let told: BTreeSet<&str> = cluster.events.iter().map(|event| event.reason).collect();
    assert_eq!(told, ["ScalingReplicaSet", "SuccessfulCreate"].into());
    cluster.assert_at_rest();
}

#[test]
fn a_pod_that_goes_is_replaced_under_another_name() {
    let mut cluster = Cluster::new();
    cluster.create(deployment("web", 2));
    cluster.run();
    let before: BTreeSet<_> = cluster.pods().into_iter().map(|pod| pod.metadata.name).collect();
    let id = ObjectId::new(Kind::POD, "default", before.first().unwrap().clone().unwrap());
    cluster.delete(&id, None);
    cluster.settle();
    let after: BTreeSet<_> = cluster.pods().into_iter().map(|pod| pod.metadata.name).collect();
    assert_eq!(after.len(), 2);
    assert_eq!(before.intersection(&after).count(), 1);
}

#[test]
fn scaling_down_takes_those_first_whose_loss_costs_least() {
    let mut cluster = Cluster::new();
    let id = cluster.create(deployment("web", 4));
    cluster.settle();
    let pods = cluster.pods();
    for pod in &pods[..3] {
        cluster.run_pod(pod);
    }
    cluster.set_pod(&pods[0], |value, _| {
        value["metadata"]["annotations"] = json!({"controller.kubernetes.io/pod-deletion-cost": "-5"});
    });
    cluster.settle();
    for (left, gone) in [(3, 3), (2, 0)] {
        cluster.edit(&id, |value| value["spec"]["replicas"] = json!(left));
        cluster.settle();
        let names: Vec<_> = cluster.pods().into_iter().map(|pod| pod.metadata.name).collect();
        assert_eq!(names.len(), usize::try_from(left).unwrap());
        assert!(!names.contains(&pods[gone].metadata.name));
    }
    assert!(cluster.events.iter().any(|e| e.message.contains("Scaled down replica set web-") && e.message.ends_with("from 4 to 3")));
    cluster.edit(&id, |value| value["spec"]["replicas"] = json!(0));
    cluster.settle();
    assert_eq!(cluster.pods().len(), 0);
    cluster.assert_at_rest();
}

#[test]
fn a_rollback_brings_the_old_replica_set_back_under_a_new_revision() {
    let mut cluster = Cluster::new();
    let id = cluster.create(deployment("web", 2));
    cluster.run();
    set_image(&mut cluster, &id, "hello:v2");
    cluster.run();
    assert!(cluster.pods().iter().all(|pod| image(pod) == "hello:v2"));
    set_image(&mut cluster, &id, "hello:v1");
    cluster.run();
    assert!(cluster.pods().iter().all(|pod| image(pod) == "hello:v1"));
    assert_eq!(cluster.count(Kind::REPLICA_SET), 2);
    let revisions: BTreeSet<String> = cluster
        .view
        .replica_sets
        .values()
        .map(|set| set.metadata.annotations.as_ref().unwrap()["deployment.kubernetes.io/revision"].clone())
        .collect();
    assert_eq!(revisions, ["2".to_owned(), "3".to_owned()].into());
    assert_eq!(told(&cluster, &id).metadata.annotations.unwrap()["deployment.kubernetes.io/revision"], "3");
    cluster.assert_at_rest();
}

#[test]
fn history_is_kept_as_long_as_asked() {
    let mut cluster = Cluster::new();
    let mut object = deployment("web", 1);
    object["spec"]["revisionHistoryLimit"] = json!(2);
    let id = cluster.create(object);
    for version in 1..6 {
        set_image(&mut cluster, &id, &format!("hello:v{version}"));
        cluster.run();
    }
    assert_eq!(cluster.count(Kind::REPLICA_SET), 3);
    cluster.assert_at_rest();
}

#[test]
fn recreate_ends_the_old_before_it_starts_the_new() {
    let mut cluster = Cluster::new();
    cluster.quick = false;
    let mut object = deployment("web", 3);
    object["spec"]["strategy"] = json!({"type": "Recreate"});
    let id = cluster.create(object);
    cluster.run();
    set_image(&mut cluster, &id, "hello:v2");
    cluster.settle();
    let ending: Vec<Pod> = cluster.view.pods.values().map(|pod| (**pod).clone()).collect();
    assert_eq!((cluster.pods().len(), ending.len()), (0, 3));
    for (index, pod) in ending.iter().enumerate() {
        assert_eq!(cluster.pods().len(), 0, "after {index} of the old ones");
        cluster.confirm(pod);
        cluster.settle();
    }
    cluster.run();
    assert_eq!(cluster.pods().len(), 3);
    assert!(cluster.pods().iter().all(|pod| image(pod) == "hello:v2"));
    cluster.assert_at_rest();
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut cluster = Cluster::new();
    let id = cluster.create(deployment("web", 2));
    cluster.run();
    cluster.edit(&id, |value| value["spec"]["paused"] = json!(true));
    cluster.settle();
    assert_eq!(condition(&told(&cluster, &id), "Progressing"), ("Unknown".into(), "DeploymentPaused".into()));
    set_image(&mut cluster, &id, "hello:v2");
    cluster.edit(&id, |value| value["spec"]["replicas"] = json!(4));
    cluster.run();
    assert_eq!(cluster.pods().len(), 4);
    assert!(cluster.pods().iter().all(|pod| image(pod) == "hello:v1"));
    cluster.assert_at_rest();
    cluster.edit(&id, |value| value["spec"]["paused"] = json!(false));
    cluster.run();
    assert!(cluster.pods().iter().all(|pod| image(pod) == "hello:v2"));
    assert_eq!(condition(&told(&cluster, &id), "Progressing").1, "NewReplicaSetAvailable");
    cluster.assert_at_rest();
}

#[test]
fn a_rollout_that_stands_still_misses_its_deadline() {
    let mut cluster = Cluster::new();
    let id = cluster.create(deployment("web", 2));
    cluster.run();
    set_image(&mut cluster, &id, "missing:v1");
    cluster.settle();
    assert_eq!(condition(&told(&cluster, &id), "Progressing").0, "True");
    cluster.wait(Duration::from_secs(602));
    cluster.settle();
    assert_eq!(
        condition(&told(&cluster, &id), "Progressing"),
        ("False".into(), "ProgressDeadlineExceeded".into())
    );
    assert_eq!(condition(&told(&cluster, &id), "Available").0, "True");
    cluster.assert_at_rest();
    cluster.run();
    assert_eq!(
        condition(&told(&cluster, &id), "Progressing"),
        ("True".into(), "NewReplicaSetAvailable".into())
    );
}

#[test]
fn ready_is_not_available_before_min_ready_seconds() {
    let mut cluster = Cluster::new();
    let mut object = deployment("web", 1);
    object["spec"]["minReadySeconds"] = json!(10);
    let id = cluster.create(object);
    cluster.run();
    let available = |cluster: &Cluster| told(cluster, &id).status.unwrap().available_replicas;
    assert_eq!(available(&cluster), None);
    cluster.wait(Duration::from_secs(10));
    cluster.settle();
    assert_eq!(available(&cluster), Some(1));
    cluster.assert_at_rest();
}

#[test]
fn a_name_taken_by_another_replica_set_is_avoided() {
    let mut cluster = Cluster::new();
    let id = cluster.create(deployment("web", 1));
    cluster.run();
    let set = cluster.view.replica_sets.values().next().unwrap().clone();
    let taken = ObjectId::new(Kind::REPLICA_SET, "default", set.metadata.name.clone().unwrap());
    let mut squatter = cluster.value(&taken).unwrap().clone();
    cluster.delete(&id, None);
    cluster.settle();
    squatter["metadata"]["ownerReferences"] = json!([]);
    squatter["metadata"]["labels"] = json!({});
    squatter["spec"]["replicas"] = json!(0);
    squatter["spec"]["template"]["spec"]["containers"][0]["image"] = json!("other");
    cluster.create(squatter);
    let id = cluster.create(deployment("web", 1));
    cluster.run();
    assert_eq!(cluster.count(Kind::REPLICA_SET), 2);
    assert_eq!(told(&cluster, &id).status.unwrap().collision_count, Some(1));
    cluster.assert_at_rest();
}

#[derive(Clone, Debug)]
struct Rollout {
    replicas: i32,
    surge: String,
    unavailable: String,
    scale_to: Option<i32>,
    seed: u64,
}

fn rollout() -> impl Strategy<Value = Rollout> {
    let amount =
        || prop_oneof![(0..4_i32).prop_map(|n| n.to_string()), (0..101_i32).prop_map(|n| format!("{n}%"))];
    (1..12_i32, amount(), amount(), proptest::option::of(1..12_i32), any::<u64>()).prop_map(
        |(replicas, surge, unavailable, scale_to, seed)| Rollout {
            replicas,
            surge,
            unavailable,
            scale_to,
            seed,
        },
    )
}

fn amount(text: &str) -> serde_json::Value {
    text.parse::<i32>().map_or_else(|_| json!(text), |number| json!(number))
}

fn share(text: &str, total: i32, up: bool) -> i32 {
    match text.strip_suffix('%') {
        Some(percent) => {
            let product = percent.parse::<i32>().unwrap() * total;
            if up { (product + 99) / 100 } else { product / 100 }
        }
        None => text.parse().unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever order pods become ready in, and however slowly the old ones end, a rolling update keeps its promises.
    #[test]
    fn a_rolling_update_never_goes_below_or_above_its_margins(case in rollout()) {
        let mut cluster = Cluster::new();
        cluster.quick = false;
        let mut object = deployment("web", case.replicas);
        object["spec"]["strategy"] = json!({"type": "RollingUpdate", "rollingUpdate": {
            "maxSurge": amount(&case.surge), "maxUnavailable": amount(&case.unavailable)}});
        let id = cluster.create(object);
        cluster.run();
        let surge = share(&case.surge, case.replicas, true);
        let unavailable = share(&case.unavailable, case.replicas, false);
        let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
        if case.scale_to.is_none() {
            let most = usize::try_from(case.replicas + surge).unwrap();
            let least = usize::try_from((case.replicas - unavailable).max(0)).unwrap();
            cluster.invariant = Box::new(move |view| {
                let (active, ready) = counts(view);
                assert!(active <= most, "{active} pods, at most {most}");
                assert!(ready >= least, "{ready} ready, at least {least}");
            });
        }
        set_image(&mut cluster, &id, "hello:v2");
        cluster.settle();
        let mut seed = case.seed;
        for round in 0..400 {
            if round == 3 && let Some(replicas) = case.scale_to {
                cluster.edit(&id, |value| value["spec"]["replicas"] = json!(replicas));
            }
            let waiting: Vec<Pod> = cluster.pods().into_iter().filter(|pod| !is_ready(pod)).collect();
            let ending: Vec<Pod> = cluster.view.pods.values().filter(|p| p.metadata.deletion_timestamp.is_some()).map(|p| (**p).clone()).collect();
            if waiting.is_empty() && ending.is_empty() && round > 3 {
                break;
            }
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let pick = usize::try_from(seed >> 33).unwrap();
            if !ending.is_empty() && (waiting.is_empty() || pick % 3 == 0) {
                cluster.confirm(&ending[pick % ending.len()]);
            } else if !waiting.is_empty() {
                cluster.run_pod(&waiting[pick % waiting.len()]);
            }
            cluster.settle();
        }
        let wanted = usize::try_from(case.scale_to.unwrap_or(case.replicas)).unwrap();
        prop_assert_eq!(cluster.pods().len(), wanted);
        prop_assert!(cluster.pods().iter().all(|pod| image(pod) == "hello:v2"));
        prop_assert_eq!(condition(&told(&cluster, &id), "Progressing").1, "NewReplicaSetAvailable");
        cluster.assert_at_rest();
    }
}
