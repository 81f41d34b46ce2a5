//! Every state of a removal, and where it leads.

use super::*;

const ORDERS: [Order; 2] = [Order::Decommission, Order::Revoke];
const TRUSTS: [Trust; 3] = [Trust::None, Trust::Member, Trust::Leaving];
const PODS: [Pods; 3] = [Pods::None, Pods::Ending, Pods::Some];

fn every() -> impl Iterator<Item = Found> {
    let flags = (0..8).map(|bits| [bits & 1 != 0, bits & 2 != 0, bits & 4 != 0]);
    flags.flat_map(|[ready, cordoned, told]| {
        ORDERS.into_iter().flat_map(move |order| {
            TRUSTS.into_iter().flat_map(move |member| {
                PODS.into_iter().map(move |pods| Found { order, member, ready, cordoned, told, pods })
            })
        })
    })
}

#[test]
fn trust_goes_first_when_a_device_is_revoked_and_the_node_goes_last() {
    for found in every() {
        let step = next(&found);
        if found.order == Order::Revoke {
            assert_eq!(step == Step::TakeTrust, found.member != Trust::None, "{found:?}");
            assert_ne!(step, Step::Wait, "a stolen device is not waited for: {found:?}");
        }
        if step == Step::Finish {
            assert_eq!(found.pods, Pods::None, "{found:?}");
            assert_ne!(found.member, Trust::Member, "{found:?}");
        }
        if step == Step::Wait {
            assert!(found.ready, "nobody who is away is waited for: {found:?}");
        }
    }
}

/// What a step leads to, as far as the gateway alone brings it about.
fn after(found: Found, step: Step) -> Found {
    match step {
        Step::TakeTrust => Found { member: Trust::None, told: false, ..found },
        Step::Tell => Found { told: true, cordoned: true, ..found },
        Step::Cordon => Found { cordoned: true, ..found },
        Step::EndPods { force: true } => Found { pods: Pods::None, ..found },
        Step::EndPods { force: false } => Found { pods: Pods::Ending, ..found },
        Step::AskToLeave => Found { member: Trust::Leaving, ..found },
        // The node ends its pods and leaves, or falls silent.
        Step::Wait if found.pods == Pods::Ending => Found { pods: Pods::None, ..found },
        Step::Wait => Found { ready: false, ..found },
        Step::Finish => found,
    }
}

#[test]
fn every_removal_comes_to_its_end() {
    for start in every() {
        let mut found = start;
        let mut steps = Vec::new();
        while steps.last() != Some(&Step::Finish) {
            assert!(steps.len() < 8, "{start:?}: {steps:?}");
            let step = next(&found);
            found = after(found, step);
            steps.push(step);
        }
    }
}

#[test]
fn a_pod_brings_all_its_secrets_into_reach() {
    let pod = json!({ "metadata": { "namespace": "ns" }, "spec": {
        "imagePullSecrets": [{ "name": "pull" }],
        "volumes": [{ "secret": { "secretName": "volume" } },
                    { "projected": { "sources": [{ "secret": { "name": "projected" } }] } },
                    { "configMap": { "name": "no-secret" } }],
        "initContainers": [{ "envFrom": [{ "secretRef": { "name": "init" } }] }],
        "containers": [{ "env": [{ "valueFrom": { "secretKeyRef": { "name": "env" } } }] }],
    }});
    let secrets: Vec<String> = secrets_of(&pod).into_iter().collect();
    assert_eq!(secrets, ["ns/env", "ns/init", "ns/projected", "ns/pull", "ns/volume"]);
}

#[test]
fn a_node_may_not_order_its_own_removal() {
    let annotations = json!({ ORDER_ANNOTATION: "revoke", RESULT_ANNOTATION: "{}", "own": "1" });
    assert_eq!(without_reserved(&annotations), json!({ "own": "1" }));
    assert_eq!(without_reserved(&Value::Null), Value::Null);
}
