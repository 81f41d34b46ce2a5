//! Merging what a node says of itself with what others have said. Pure.
//!
//! The control plane alone decides a Node's Ready condition, since only it can know that a node has gone silent; every
//! other condition is the node's. Times that say no more than "still so" are not taken over: they would make a write of
//! every heartbeat.

use jiff::Timestamp;
use lichen_api::names;
use serde_json::{Value, json};

/// What the gateway knows about a node's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// A session stands.
    Up,
    /// There was none for the grace period.
    Silent,
}

impl Link {
    fn condition(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Link::Up => ("True", "AgentReady", "the agent is connected and reports"),
            Link::Silent => ("Unknown", "NodeStatusUnknown", "the agent stopped reporting"),
        }
    }
}

/// Sets the Ready condition of a node's status; a silent node's other conditions become unknown with it.
pub(crate) fn set_link(status: &mut Value, link: Link, now: Timestamp) {
    let (value, reason, message) = link.condition();
    let mut conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    if link == Link::Silent {
        for condition in &mut conditions {
            set(condition, "Unknown", reason, message, now);
        }
    }
    let at = conditions.iter().position(|condition| condition["type"] == "Ready");
    let at = at.unwrap_or_else(|| {
        conditions.push(json!({ "type": "Ready", "lastHeartbeatTime": names::rfc3339(now) }));
        conditions.len() - 1
    });
    set(&mut conditions[at], value, reason, message, now);
    if !status.is_object() {
        *status = json!({});
    }
    status["conditions"] = conditions.into();
}

fn set(condition: &mut Value, status: &str, reason: &str, message: &str, now: Timestamp) {
    if condition["status"] != status {
        condition["status"] = json!(status);
        condition["lastTransitionTime"] = json!(names::rfc3339(now));
        condition["lastHeartbeatTime"] = json!(names::rfc3339(now));
    }
    condition["reason"] = json!(reason);
    condition["message"] = json!(message);
}

/// A node's status as it is to be written: what the node reports, with the Ready condition that it has, and with the
/// times of conditions that have not changed.
pub(crate) fn merge_node(old: &Value, reported: &Value) -> Value {
    let mut new = if reported.is_object() { reported.clone() } else { json!({}) };
    let before = old["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    let said = new["conditions"].as_array().cloned().unwrap_or_default();
    let own = said.into_iter().filter(|condition| condition["type"] != "Ready");
    let mut conditions: Vec<Value> = own.map(|condition| keep_times(condition, before)).collect();
    conditions.extend(before.iter().filter(|condition| condition["type"] == "Ready").cloned());
    new["conditions"] = conditions.into();
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
        let mut old = json!({ "conditions": [{
            "type": "MemoryPressure", "status": "False", "lastHeartbeatTime": "2026-01-01T00:00:00Z",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]});
        set_link(&mut old, Link::Up, at("2026-01-01T00:00:00Z"));
        let mut reported = old.clone();
        reported["conditions"][0]["lastHeartbeatTime"] = json!("2026-01-01T00:10:00Z");
        reported["conditions"][1] = json!({ "type": "Ready", "status": "False" });
        assert_eq!(merge_node(&old, &reported), old, "and the node has no say in Ready");
        let mut again = old.clone();
        set_link(&mut again, Link::Up, at("2026-01-01T00:10:00Z"));
        assert_eq!(again, old);
    }

    #[test]
    fn silence_makes_every_condition_unknown_and_a_report_brings_them_back() {
        let mut status = json!({ "conditions": [{ "type": "MemoryPressure", "status": "False" }] });
        set_link(&mut status, Link::Up, at("2026-01-01T00:00:00Z"));
        set_link(&mut status, Link::Silent, at("2026-01-01T00:01:00Z"));
        for condition in status["conditions"].as_array().unwrap() {
            assert_eq!(condition["status"], "Unknown");
            assert_eq!(condition["reason"], "NodeStatusUnknown");
            assert_eq!(condition["lastTransitionTime"], "2026-01-01T00:01:00Z");
        }
        let reported = json!({ "conditions": [{ "type": "MemoryPressure", "status": "False" }] });
        let mut back = merge_node(&status, &reported);
        set_link(&mut back, Link::Up, at("2026-01-01T00:02:00Z"));
        assert_eq!(back["conditions"][0]["status"], "False");
        assert_eq!(back["conditions"][1]["status"], "True");
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
