//! What `kubectl get pods` says about a pod.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::table::{self, list, number, or, text};

/// The cells of a pod.
pub fn row(object: &Value, now: Timestamp) -> Vec<Value> {
    let summary = summarize(object);
    let restarts = match (summary.restarts, summary.last_restart) {
        (count, Some(at)) if count > 0 => format!("{count} ({} ago)", table::since(at, now)),
        (count, _) => count.to_string(),
    };
    let address = or(text(object, "/status/podIPs/0/ip"), text(object, "/status/podIP"));
    vec![
        table::name(object),
        json!(format!("{}/{}", summary.ready, summary.containers)),
        json!(summary.reason),
        json!(restarts),
        table::age(object, now),
        json!(or(address, "<none>")),
        json!(or(text(object, "/spec/nodeName"), "<none>")),
        json!(or(text(object, "/status/nominatedNodeName"), "<none>")),
        json!(gates(object)),
    ]
}

struct Summary<'o> {
    ready: usize,
    containers: usize,
    reason: String,
    restarts: i64,
    last_restart: Option<&'o str>,
}

fn condition_is_true(object: &Value, kind: &str) -> bool {
    list(object, "/status/conditions")
        .iter()
        .any(|condition| condition["type"] == kind && condition["status"] == "True")
}

fn exit_reason(terminated: &Value) -> String {
    match (text(terminated, "/reason"), number(terminated, "/signal")) {
        ("", 0) => format!("ExitCode:{}", number(terminated, "/exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn summarize(object: &Value) -> Summary<'_> {
    let init = list(object, "/spec/initContainers");
    let is_sidecar = |name: &str| {
        init.iter().any(|one| text(one, "/name") == name && text(one, "/restartPolicy") == "Always")
    };
    let sidecars = init.iter().filter(|one| text(one, "/restartPolicy") == "Always").count();
    let phase = text(object, "/status/phase");
    let mut summary = Summary {
        ready: 0,
        containers: list(object, "/spec/containers").len() + sidecars,
        reason: or(text(object, "/status/reason"), phase).to_owned(),
        restarts: 0,
        last_restart: None,
    };
    let gated = list(object, "/status/conditions")
        .iter()
        .any(|condition| condition["type"] == "PodScheduled" && condition["reason"] == "SchedulingGated");
    if gated {
        summary.reason = "SchedulingGated".to_owned();
    }
    let mut sidecar_restarts = 0;
    let mut sidecar_last = None;
    let mut initializing = false;
    for (index, status) in list(object, "/status/initContainerStatuses").iter().enumerate() {
        let sidecar = is_sidecar(text(status, "/name"));
        let restarted = finished_at(status);
        summary.restarts += number(status, "/restartCount");
        summary.last_restart = summary.last_restart.max(restarted);
        if sidecar {
            sidecar_restarts += number(status, "/restartCount");
            sidecar_last = sidecar_last.max(restarted);
        }
        let terminated = status.pointer("/state/terminated");
        let waiting = text(status, "/state/waiting/reason");
        summary.reason = match terminated {
            Some(terminated) if number(terminated, "/exitCode") == 0 => continue,
            _ if sidecar && status["started"] == true => {
                summary.ready += usize::from(status["ready"] == true);
                continue;
            }
            Some(terminated) => format!("Init:{}", exit_reason(terminated)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{index}/{}", init.len()),
        };
        initializing = true;
        break;
    }
    if !initializing || condition_is_true(object, "Initialized") {
        summary.restarts = sidecar_restarts;
        summary.last_restart = sidecar_last;
        containers(object, &mut summary);
    }
    let deleting = !text(object, "/metadata/deletionTimestamp").is_empty();
    if deleting && text(object, "/status/reason") == "NodeLost" {
        summary.reason = "Unknown".to_owned();
    } else if deleting && !matches!(phase, "Succeeded" | "Failed") {
        summary.reason = "Terminating".to_owned();
    }
    summary
}

fn finished_at(status: &Value) -> Option<&str> {
    Some(text(status, "/lastState/terminated/finishedAt")).filter(|at| !at.is_empty())
}

fn containers<'o>(object: &'o Value, summary: &mut Summary<'o>) {
    let mut running = false;
    for status in list(object, "/status/containerStatuses").iter().rev() {
        summary.restarts += number(status, "/restartCount");
        summary.last_restart = summary.last_restart.max(finished_at(status));
        let waiting = text(status, "/state/waiting/reason");
        if !waiting.is_empty() {
            summary.reason = waiting.to_owned();
        } else if let Some(terminated) = status.pointer("/state/terminated") {
            summary.reason = exit_reason(terminated);
        } else if status["ready"] == true && status.pointer("/state/running").is_some() {
            running = true;
            summary.ready += 1;
        }
    }
    if summary.reason == "Completed" && running {
        let ready = condition_is_true(object, "Ready");
        summary.reason = if ready { "Running" } else { "NotReady" }.to_owned();
    }
}

fn gates(object: &Value) -> String {
    let gates = list(object, "/spec/readinessGates");
    let open = gates.iter().filter(|gate| condition_is_true(object, text(gate, "/conditionType"))).count();
    match gates.len() {
        0 => "<none>".to_owned(),
        all => format!("{open}/{all}"),
    }
}
