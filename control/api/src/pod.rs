//! What pods and pod templates share: defaults, rules, quality of service.

pub mod containers;
pub mod defaults;
pub mod row;
pub mod rules;
pub mod volumes;

use serde_json::Value;

use crate::quantity::Quantity;

/// The quality of service class that a pod's resources make: `Guaranteed`, `Burstable` or `BestEffort`.
pub fn qos_class(spec: &Value) -> &'static str {
    let (mut any, mut guaranteed) = (false, true);
    let lists = ["containers", "initContainers"];
    let containers = lists.iter().filter_map(|list| spec.get(list)?.as_array()).flatten();
    for container in containers {
        for resource in ["cpu", "memory"] {
            let amount = |kind: &str| -> Option<Quantity> {
                let text = container.pointer(&format!("/resources/{kind}/{resource}"))?.as_str()?;
                text.parse().ok().filter(|quantity: &Quantity| !quantity.is_zero())
            };
            let (request, limit) = (amount("requests"), amount("limits"));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|request| Some(request) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn classes() {
        let check = |resources: Value, expect: &str| {
            let spec = json!({"containers": [{"name": "c", "resources": resources}]});
            assert_eq!(qos_class(&spec), expect, "{spec}");
        };
        check(json!({}), "BestEffort");
        check(json!({"requests": {"cpu": "0"}}), "BestEffort");
        check(json!({"requests": {"cpu": "1"}}), "Burstable");
        check(json!({"limits": {"cpu": "1"}}), "Burstable");
        check(json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed");
        check(
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}}),
            "Guaranteed",
        );
        check(
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}}),
            "Burstable",
        );
    }
}
