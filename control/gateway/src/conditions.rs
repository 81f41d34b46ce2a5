//! Merging what a node says of itself with what others have said. Pure.
//!
//! The control plane alone decides a Node's Ready condition, since only it can know that a node has gone silent; the other
//! [`AGENT_CONDITIONS`] are the node's, until it is silent. Conditions of other types are left to whoever set them. Times
//! that say no more than "still so" are not taken over: they would make a write of every heartbeat.

use jiff::Timestamp;
use lichen_api::kinds::node::AGENT_CONDITIONS;
use lichen_api::names;
use lichen_store::Record;
use serde_json::{Value, json};

const READY: &str = "Ready";

/// What the gateway knows about a node's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// A session stands.
    Up,
    /// There was none for the grace period.
    Silent,
}

/// Makes a Node say what is known of its link: a node with a session is ready, and of a silent one nothing is known, in
/// Kubernetes' own words. `heard` is when it was last heard of, as far as that is known.
pub(crate) fn set_link(node: &mut Value, link: Link, heard: Option<Timestamp>, now: Timestamp) {
    let created = node["metadata"]["creationTimestamp"].clone();
    let status = &mut node["status"];
    if !status.is_object() {
        *status = json!({});
    }
    let mut conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let now = json!(names::rfc3339(now));
    match link {
        Link::Up => {
            let ready = entry(&mut conditions, READY);
            if set(ready, "True", "KubeletReady", "the agent is connected and reports", &now) {
                ready["lastHeartbeatTime"] = now;
            }
        }
        Link::Silent => {
            let heard = heard.map(|heard| json!(names::rfc3339(heard)));
            for kind in AGENT_CONDITIONS {
                let condition = entry(&mut conditions, kind);
                let known = condition.get("status").is_some();
                let (reason, message) = match known {
                    true => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
                    false => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
                };
                if set(condition, "Unknown", reason, message, &now) {
                    match &heard {
                        Some(heard) => condition["lastHeartbeatTime"] = heard.clone(),
                        None if !known => condition["lastHeartbeatTime"] = created.clone(),
                        None => {}
                    }
                }
            }
        }
    }
    status["conditions"] = conditions.into();
}

/// The condition of that type, made if it is missing.
fn entry<'c>(conditions: &'c mut Vec<Value>, kind: &str) -> &'c mut Value {
    let at = conditions.iter().position(|condition| condition["type"] == kind);
    let at = at.unwrap_or_else(|| {
        conditions.push(json!({ "type": kind }));
        conditions.len() - 1
    });
    &mut conditions[at]
}

/// Sets what a condition says, and says whether that is another status than before.
fn set(condition: &mut Value, status: &str, reason: &str, message: &str, now: &Value) -> bool {
    if condition["status"] == status {
        return false;
    }
    condition["status"] = json!(status);
    condition["lastTransitionTime"] = now.clone();
    condition["reason"] = json!(reason);
    condition["message"] = json!(message);
    true
}

/// When a Node says that its node was last heard of.
pub(crate) fn last_heard(node: &Record) -> Option<Timestamp> {
    let node = node.value().ok()?;
    let ready = node["status"]["conditions"].as_array()?.iter().find(|one| one["type"] == READY)?;
    ready["lastHeartbeatTime"].as_str()?.parse().ok()
}

/// A node's status as it is to be written: what the node reports, with the Ready condition that it has, the conditions
/// that others have set, and the times of conditions that have not changed.
pub(crate) fn merge_node(old: &Value, reported: &Value) -> Value {
    let mut new = if reported.is_object() { reported.clone() } else { json!({}) };
    let before = old["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    let said = new["conditions"].as_array().cloned().unwrap_or_default();
    let own: Vec<Value> = said
        .into_iter()
        .filter(|condition| condition["type"] != READY)
        .map(|condition| keep_times(condition, before))
        .collect();
    let (ready, others): (Vec<&Value>, Vec<&Value>) =
        before.iter().partition(|condition| condition["type"] == READY);
    let others = others.into_iter().filter(|old| !own.iter().any(|new| new["type"] == old["type"]));
    new["conditions"] = others.chain(&own).chain(ready).cloned().collect::<Vec<Value>>().into();
    new
}

/// A pod's status as it is to be written: what the node reports, the conditions that others have set, and what was
/// decided when the pod was created. None if the report would take back a phase that is final.
pub(crate) fn merge_pod(old: &Value, reported: &Value) -> Option<Value> {
    let phase = |status: &Value| status["phase"].as_str().unwrap_or_default().to_owned();
    let (was, is) = (phase(old), phase(reported));
    if matches!(was.as_str(), "Succeeded" | "Failed") && is != was {
        return None;
    }
    let mut new = reported.as_object()?.clone();
    if let Some(class) = old.get("qosClass") {
        new.insert("qosClass".to_owned(), class.clone());
    }
    let before = old["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    let said = reported["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    let foreign = before.iter().filter(|old| !said.iter().any(|new| new["type"] == old["type"])).cloned();
    let conditions: Vec<Value> =
        foreign.chain(said.iter().cloned().map(|condition| keep_times(condition, before))).collect();
    if !conditions.is_empty() {
        new.insert("conditions".to_owned(), conditions.into());
    }
    Some(new.into())
}

/// A condition that says the same as before keeps its times.
fn keep_times(mut condition: Value, before: &[Value]) -> Value {
    let Some(old) = before.iter().find(|old| old["type"] == condition["type"]) else { return condition };
    let same = |field: &str| old.get(field) == condition.get(field);
    let (status, rest) = (same("status"), same("reason") && same("message"));
    let mut keep = |field: &str| {
        if let Some(time) = old.get(field) {
            condition[field] = time.clone();
        }
    };
    if status {
        keep("lastTransitionTime");
    }
    if status && rest {
        keep("lastHeartbeatTime");
        keep("lastProbeTime");
    }
    condition
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_heartbeat_alone_changes_nothing() {
        let mut old = json!({ "status": { "conditions": [{
            "type": "MemoryPressure", "status": "False", "lastHeartbeatTime": "2026-01-01T00:00:00Z",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]}});
        set_link(&mut old, Link::Up, None, at("2026-01-01T00:00:00Z"));
        let mut reported = old["status"].clone();
        reported["conditions"][0]["lastHeartbeatTime"] = json!("2026-01-01T00:10:00Z");
        reported["conditions"][1] = json!({ "type": "Ready", "status": "False" });
        assert_eq!(merge_node(&old["status"], &reported), old["status"], "and the node has no say in Ready");
        for link in [Link::Up, Link::Silent] {
            set_link(&mut old, link, None, at("2026-01-01T00:01:00Z"));
            let mut again = old.clone();
            set_link(&mut again, link, Some(at("2026-01-01T00:09:00Z")), at("2026-01-01T00:10:00Z"));
            assert_eq!(again, old);
        }
    }

    #[test]
    fn silence_makes_the_nodes_conditions_unknown_and_a_report_brings_them_back() {
        let own =
            json!({ "type": "MemoryPressure", "status": "False", "reason": "KubeletHasSufficientMemory" });
        let others =
            json!({ "type": "Watchdog", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:30Z" });
        let mut node = json!({
            "metadata": { "creationTimestamp": "2025-12-31T00:00:00Z" },
            "status": { "conditions": [own, others] },
        });
        set_link(&mut node, Link::Up, None, at("2026-01-01T00:00:00Z"));
        let heard = at("2026-01-01T00:00:20Z");
        set_link(&mut node, Link::Silent, Some(heard), at("2026-01-01T00:01:00Z"));
        let conditions = node["status"]["conditions"].as_array().unwrap();
        assert_eq!(conditions.len(), 5);
        let unknown = |reason: &str, message: &str| {
            json!({
                "status": "Unknown", "reason": reason, "message": message,
                "lastHeartbeatTime": "2026-01-01T00:00:20Z", "lastTransitionTime": "2026-01-01T00:01:00Z",
            })
        };
        let stopped = unknown("NodeStatusUnknown", "Kubelet stopped posting node status.");
        let never = unknown("NodeStatusNeverUpdated", "Kubelet never posted node status.");
        for condition in conditions {
            let mut said = condition.clone();
            let kind = said.as_object_mut().unwrap().remove("type").unwrap();
            match kind.as_str().unwrap() {
                "Watchdog" => assert_eq!(*condition, others, "nobody but its author knows"),
                "MemoryPressure" | "Ready" => assert_eq!(said, stopped, "{kind}"),
                _ => assert_eq!(said, never, "{kind}"),
            }
        }

        let mut back = node.clone();
        back["status"] = merge_node(&node["status"], &json!({ "conditions": [own] }));
        set_link(&mut back, Link::Up, None, at("2026-01-01T00:02:00Z"));
        let of = |kind: &str| {
            let all = back["status"]["conditions"].as_array().unwrap();
            all.iter().find(|condition| condition["type"] == kind).unwrap().clone()
        };
        assert_eq!((of("MemoryPressure"), of("Watchdog")), (own, others));
        assert_eq!(
            (&of("Ready")["status"], &of("Ready")["reason"]),
            (&json!("True"), &json!("KubeletReady"))
        );
    }

    #[test]
    fn a_node_that_never_said_anything_was_last_heard_of_when_it_was_made() {
        let mut node = json!({ "metadata": { "creationTimestamp": "2025-12-31T00:00:00Z" } });
        set_link(&mut node, Link::Silent, None, at("2026-01-01T00:01:00Z"));
        let conditions = node["status"]["conditions"].as_array().unwrap();
        assert_eq!(conditions.len(), AGENT_CONDITIONS.len());
        for condition in conditions {
            assert_eq!(condition["reason"], "NodeStatusNeverUpdated");
            assert_eq!(condition["lastHeartbeatTime"], "2025-12-31T00:00:00Z");
        }
    }

    #[test]
    fn a_pod_keeps_what_the_node_does_not_decide() {
        let old = json!({ "phase": "Pending", "qosClass": "Burstable", "conditions": [
            { "type": "PodScheduled", "status": "True" },
            { "type": "Ready", "status": "False", "lastTransitionTime": "t0" },
        ]});
        let reported = json!({ "phase": "Running", "conditions": [
            { "type": "Ready", "status": "False", "lastTransitionTime": "t1" },
        ]});
        let new = merge_pod(&old, &reported).unwrap();
        assert_eq!(new["qosClass"], "Burstable");
        assert_eq!(new["phase"], "Running");
        assert_eq!(new["conditions"], old["conditions"]);
    }

    #[test]
    fn a_final_phase_stays() {
        let check = |was: &str, is: &str, expect: bool| {
            let merged = merge_pod(&json!({ "phase": was }), &json!({ "phase": is }));
            assert_eq!(merged.is_some(), expect, "{was} -> {is}");
        };
        check("Running", "Succeeded", true);
        check("Succeeded", "Succeeded", true);
        check("Succeeded", "Running", false);
        check("Failed", "Succeeded", false);
        check("Pending", "Failed", true);
    }
}
