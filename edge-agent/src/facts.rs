//! What a pod may be told about itself and its node: field and resource references.

use std::collections::BTreeMap;

use lichen_api::k8s::api::core::v1::{Container, Pod, ResourceFieldSelector};
use lichen_api::quantity::Quantity;

/// What is known beside the pod itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    pub(crate) node_name: String,
    pub(crate) pod_ip: String,
    pub(crate) host_ip: String,
    /// What the node can give, by resource: the limit of a container that has none.
    pub(crate) allocatable: BTreeMap<String, String>,
}

/// The value of a `fieldRef`.
pub(crate) fn field(pod: &Pod, facts: &Facts, path: &str) -> Result<String, String> {
    let meta = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    if let Some((list, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        let map = match list {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(format!("unsupported fieldPath: {path}")),
        };
        return Ok(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => pairs(&meta.labels),
        "metadata.annotations" => pairs(&meta.annotations),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => {
            pod.spec.as_ref().map(|s| text(&s.service_account_name)).unwrap_or_default()
        }
        "status.podIP" | "status.podIPs" => facts.pod_ip.clone(),
        "status.hostIP" | "status.hostIPs" => facts.host_ip.clone(),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// Labels or annotations as a downward file has them: a line each, values quoted.
fn pairs(map: &Option<BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.iter().flatten().map(|(key, value)| format!("{key}={value:?}")).collect();
    lines.join("\n")
}

/// The value of a `resourceFieldRef`.
pub(crate) fn resource(
    pod: &Pod,
    container: &Container,
    facts: &Facts,
    selector: &ResourceFieldSelector,
) -> Result<String, String> {
    let other;
    let container = match selector.container_name.as_deref() {
        None | Some("") => container,
        Some(name) => {
            let spec = pod.spec.as_ref();
            other = spec
                .into_iter()
                .flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers))
                .find(|c| c.name == name)
                .ok_or_else(|| format!("container {name} not found"))?;
            other
        }
    };
    let unsupported = || format!("unsupported container resource : {}", selector.resource);
    let (kind, name) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let resources = container.resources.as_ref();
    let amount = match kind {
        "limits" => resources.and_then(|r| r.limits.as_ref()).and_then(|l| l.get(name)),
        "requests" => resources.and_then(|r| r.requests.as_ref()).and_then(|l| l.get(name)),
        _ => return Err(unsupported()),
    };
    let text = match (amount, kind) {
        (Some(amount), _) => amount.0.clone(),
        (None, "limits") => facts.allocatable.get(name).cloned().ok_or_else(unsupported)?,
        (None, _) => "0".to_owned(),
    };
    let parse = |text: &str| text.parse::<Quantity>().map_err(|e| e.to_string());
    let value = parse(&text)?;
    let divisor = match &selector.divisor {
        Some(divisor) if divisor.0 != "0" && !divisor.0.is_empty() => parse(&divisor.0)?,
        _ => Quantity::from_units(1),
    };
    // CPU is counted in thousandths, everything else in whole units; both are rounded up.
    let (value, divisor) =
        if name == "cpu" { (value.milli(), divisor.milli()) } else { (value.units(), divisor.units()) };
    if divisor <= 0 {
        return Err("the divisor must be positive".to_owned());
    }
    Ok(value.checked_add(divisor - 1).map_or(i64::MAX, |sum| sum / divisor).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": "p", "namespace": "ns", "uid": "u", "labels": { "app": "x", "b": "\"q\"" } },
            "spec": { "serviceAccountName": "sa", "containers": [
                { "name": "c", "resources": { "limits": { "cpu": "1500m", "memory": "64Mi" } } },
            ] },
        }))
        .expect("a pod")
    }

    fn facts() -> Facts {
        Facts {
            node_name: "n".into(),
            pod_ip: "10.64.0.2".into(),
            host_ip: "10.64.0.1".into(),
            allocatable: [("ephemeral-storage".to_owned(), "10Gi".to_owned())].into(),
        }
    }

    #[test]
    fn fields() {
        let check = |path: &str, expect: Result<&str, &str>| {
            let got = field(&pod(), &facts(), path);
            assert_eq!(got, expect.map(str::to_owned).map_err(str::to_owned), "{path}");
        };
        check("metadata.name", Ok("p"));
        check("metadata.labels['app']", Ok("x"));
        check("metadata.labels['none']", Ok(""));
        check("metadata.labels", Ok("app=\"x\"\nb=\"\\\"q\\\"\""));
        check("spec.nodeName", Ok("n"));
        check("spec.serviceAccountName", Ok("sa"));
        check("status.podIP", Ok("10.64.0.2"));
        check("status.hostIP", Ok("10.64.0.1"));
        check("status.phase", Err("unsupported fieldPath: status.phase"));
    }

    #[test]
    fn resources() {
        let pod = pod();
        let container = &pod.spec.as_ref().expect("a spec").containers[0];
        let check = |selector: serde_json::Value, expect: Result<&str, &str>| {
            let selector = serde_json::from_value(selector).expect("a selector");
            let got = resource(&pod, container, &facts(), &selector);
            assert_eq!(got, expect.map(str::to_owned).map_err(str::to_owned));
        };
        check(json!({ "resource": "limits.cpu" }), Ok("2"));
        check(json!({ "resource": "limits.cpu", "divisor": "1m" }), Ok("1500"));
        check(json!({ "resource": "limits.memory", "divisor": "1Mi" }), Ok("64"));
        check(json!({ "resource": "limits.memory" }), Ok("67108864"));
        check(json!({ "resource": "requests.cpu" }), Ok("0"));
        check(json!({ "resource": "limits.ephemeral-storage", "divisor": "1Gi" }), Ok("10"));
        check(json!({ "resource": "cpu" }), Err("unsupported container resource : cpu"));
        check(json!({ "resource": "limits.cpu", "containerName": "x" }), Err("container x not found"));
    }
}
