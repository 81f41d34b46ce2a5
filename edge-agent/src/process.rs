//! What a pod says about a container that is a process, and what this node can't do of it.
//!
//! A container of an OCI image has a loopback interface of its own and nothing else, unless its pod uses the node's network
//! (`hostNetwork`). So what would have to reach it from outside is refused, with a sentence that says what to change.

use lichen_api::k8s::api::core::v1::{Container, Pod};
use lichen_workload::Process;

/// The container as a process; the error says what of it this node can't do.
pub(crate) fn process(pod: &Pod, container: &Container) -> Result<Process, String> {
    let spec = pod.spec.as_ref();
    let of_pod = spec.and_then(|spec| spec.security_context.as_ref());
    let own = container.security_context.as_ref();
    let host_network = spec.and_then(|spec| spec.host_network) == Some(true);
    check(pod, container, host_network)?;
    let id = |field: &str, value: Option<i64>| -> Result<Option<u32>, String> {
        let number = |value: i64| u32::try_from(value).map_err(|_| format!("{field} {value} is no id"));
        value.map(number).transpose()
    };
    let groups = of_pod.and_then(|c| c.supplemental_groups.as_deref()).unwrap_or_default();
    let groups = groups.iter().copied().map(|group| ("supplementalGroups", group));
    let groups = groups.chain(of_pod.and_then(|c| c.fs_group).map(|group| ("fsGroup", group)));
    let wanted = own.and_then(|c| c.capabilities.as_ref());
    let dropped = wanted.and_then(|c| c.drop.as_deref()).unwrap_or_default();
    let added = wanted.and_then(|c| c.add.as_deref()).unwrap_or_default();
    let name = pod.metadata.name.clone().unwrap_or_default();
    let hostname =
        spec.and_then(|spec| spec.hostname.clone()).filter(|name| !name.is_empty()).unwrap_or(name);
    Ok(Process {
        working_dir: container.working_dir.clone().filter(|dir| !dir.is_empty()),
        hostname,
        user: id("runAsUser", own.and_then(|c| c.run_as_user).or(of_pod.and_then(|c| c.run_as_user)))?,
        group: id("runAsGroup", own.and_then(|c| c.run_as_group).or(of_pod.and_then(|c| c.run_as_group)))?,
        groups: groups
            .filter_map(|(field, group)| id(field, Some(group)).transpose())
            .collect::<Result<_, _>>()?,
        capabilities: added.iter().filter(|name| !dropped.contains(name)).cloned().collect(),
        may_gain_privileges: own.and_then(|c| c.allow_privilege_escalation) == Some(true),
        read_only_root: own.and_then(|c| c.read_only_root_filesystem) == Some(true),
        not_root: own.and_then(|c| c.run_as_non_root).or(of_pod.and_then(|c| c.run_as_non_root))
            == Some(true),
        host_network,
    })
}

fn check(pod: &Pod, container: &Container, host_network: bool) -> Result<(), String> {
    let spec = pod.spec.as_ref();
    let own = container.security_context.as_ref();
    let is = |flag: Option<bool>| flag == Some(true);
    let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
    let asked =
        probes.into_iter().flatten().any(|probe| probe.http_get.is_some() || probe.tcp_socket.is_some());
    let ports = container.ports.iter().flatten().next().is_some();
    let refused = [
        (
            (ports || asked) && !host_network,
            "ports and probes: an OCI container is reached over the network with hostNetwork: true only",
        ),
        (
            is(own.and_then(|c| c.privileged)),
            "securityContext.privileged: an OCI container is never privileged",
        ),
        (is(container.tty), "tty: an OCI container has no terminal"),
        (is(container.stdin), "stdin: an OCI container has no input"),
        (is(spec.and_then(|s| s.host_pid)), "hostPID: an OCI container has processes of its own"),
        (is(spec.and_then(|s| s.host_ipc)), "hostIPC: an OCI container shares no memory with the node"),
        (
            is(spec.and_then(|s| s.share_process_namespace)),
            "shareProcessNamespace: each OCI container has processes of its own",
        ),
    ];
    match refused.into_iter().find(|(holds, _)| *holds) {
        Some((_, why)) => Err(format!("{why} on this node")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(spec: Value, container: Value) -> Result<Process, String> {
        let mut spec = spec;
        spec["containers"] = json!([container]);
        let pod: Pod =
            serde_json::from_value(json!({ "metadata": { "name": "p" }, "spec": spec })).expect("a pod");
        let container = &pod.spec.as_ref().expect("a spec").containers[0];
        process(&pod, container)
    }

    #[test]
    fn the_containers_word_comes_before_the_pods() {
        let pod = json!({ "securityContext": { "runAsUser": 1, "runAsGroup": 2, "runAsNonRoot": true,
            "supplementalGroups": [3], "fsGroup": 4 }, "hostNetwork": true, "hostname": "h" });
        let own = json!({ "name": "c", "workingDir": "/w", "ports": [{ "containerPort": 80 }], "securityContext": {
            "runAsUser": 10, "readOnlyRootFilesystem": true, "capabilities": { "add": ["CHOWN", "KILL"], "drop": ["KILL"] } } });
        let expect = Process {
            working_dir: Some("/w".into()),
            hostname: "h".into(),
            user: Some(10),
            group: Some(2),
            groups: vec![3, 4],
            capabilities: vec!["CHOWN".into()],
            may_gain_privileges: false,
            read_only_root: true,
            not_root: true,
            host_network: true,
        };
        assert_eq!(of(pod, own), Ok(expect));
        let nothing = Process { hostname: "p".into(), ..Process::default() };
        assert_eq!(of(json!({}), json!({ "name": "c" })), Ok(nothing));
    }

    #[test]
    fn what_cannot_be_done_is_named() {
        let check = |spec: Value, container: Value, field: &str| {
            let error = of(spec, container).expect_err("is refused");
            assert!(error.starts_with(field) && error.ends_with("on this node"), "{error}");
        };
        check(json!({}), json!({ "name": "c", "ports": [{ "containerPort": 80 }] }), "ports and probes");
        let probe = json!({ "tcpSocket": { "port": 80 } });
        check(json!({}), json!({ "name": "c", "readinessProbe": probe }), "ports and probes");
        let privileged = json!({ "privileged": true });
        check(json!({}), json!({ "name": "c", "securityContext": privileged }), "securityContext.privileged");
        check(json!({}), json!({ "name": "c", "tty": true }), "tty");
        check(json!({}), json!({ "name": "c", "stdin": true }), "stdin");
        check(json!({ "hostPID": true }), json!({ "name": "c" }), "hostPID");
        check(json!({ "hostIPC": true }), json!({ "name": "c" }), "hostIPC");
        check(json!({ "shareProcessNamespace": true }), json!({ "name": "c" }), "shareProcessNamespace");
        let root = of(json!({ "securityContext": { "runAsUser": -1 } }), json!({ "name": "c" }));
        assert_eq!(root, Err("runAsUser -1 is no id".to_owned()));
    }
}
