//! Amounts of what pods ask for and nodes offer.

use std::collections::BTreeMap;

use lichen_api::Quantity;
use lichen_api::k8s::api::core::v1::{Container, PodSpec};
use lichen_api::k8s::apimachinery::pkg::api::resource::Quantity as QuantityText;

/// What a container without a request counts as when nodes are scored: 0.1 CPU.
const SCORING_CPU_MILLI: i64 = 100;
/// What a container without a request counts as when nodes are scored: 200 MiB.
const SCORING_MEMORY_BYTES: i64 = 200 * 1024 * 1024;

/// Amounts by resource name: CPU in thousandths, everything else in whole units. What is not in it is zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources(BTreeMap<String, i64>);

impl Resources {
    /// Reads a resource list. An unreadable quantity counts as zero; validation lets none into the registry.
    pub fn from_list(list: Option<&BTreeMap<String, QuantityText>>) -> Resources {
        Resources(
            list.into_iter().flatten().map(|(name, text)| (name.clone(), amount(name, &text.0))).collect(),
        )
    }

    /// The amount of one resource.
    pub fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Every resource that is not zero, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, i64)> {
        self.0.iter().filter(|(_, amount)| **amount != 0).map(|(name, amount)| (name.as_str(), *amount))
    }

    /// Sets one amount.
    pub fn set(&mut self, name: &str, amount: i64) {
        self.0.insert(name.to_owned(), amount);
    }

    /// Adds, never beyond the largest number.
    pub fn add(&mut self, other: &Resources) {
        for (name, amount) in other.iter() {
            let sum = self.get(name).saturating_add(amount);
            self.set(name, sum);
        }
    }

    /// Takes away.
    pub fn subtract(&mut self, other: &Resources) {
        for (name, amount) in other.iter() {
            let rest = self.get(name).saturating_sub(amount);
            if rest == 0 {
                self.0.remove(name);
            } else {
                self.set(name, rest);
            }
        }
    }

    /// Raises each amount to at least the other's.
    fn raise(&mut self, other: &Resources) {
        for (name, amount) in other.iter() {
            if amount > self.get(name) {
                self.set(name, amount);
            }
        }
    }

    /// What a pod asks for: its containers together, or its largest init step if that is more, with the init
    /// containers that keep running counted beside whatever runs after them; and its overhead.
    pub fn of_pod(spec: &PodSpec) -> Resources {
        sum(spec, requests)
    }

    /// The same for scoring, where a container that asks for nothing still counts as something.
    pub fn of_pod_for_scoring(spec: &PodSpec) -> Resources {
        sum(spec, |container| {
            let mut found = requests(container);
            for (name, least) in [("cpu", SCORING_CPU_MILLI), ("memory", SCORING_MEMORY_BYTES)] {
                if !found.0.contains_key(name) {
                    found.set(name, least);
                }
            }
            found
        })
    }
}

fn sum(spec: &PodSpec, of: impl Fn(&Container) -> Resources) -> Resources {
    let mut steady = Resources::default();
    for container in &spec.containers {
        steady.add(&of(container));
    }
    let mut sidecars = Resources::default();
    let mut init_peak = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let mut step = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            steady.add(&step);
            sidecars.add(&step);
            init_peak.raise(&sidecars);
        } else {
            step.add(&sidecars);
            init_peak.raise(&step);
        }
    }
    steady.raise(&init_peak);
    // What is asked for the pod as a whole replaces the sum of what its containers ask for.
    if let Some(whole) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        for (name, amount) in Resources::from_list(Some(whole)).0 {
            steady.set(&name, amount);
        }
    }
    steady.add(&Resources::from_list(spec.overhead.as_ref()));
    steady
}

fn requests(container: &Container) -> Resources {
    let Some(resources) = &container.resources else { return Resources::default() };
    // A limit without a request is a request of as much.
    let mut found = Resources::from_list(resources.limits.as_ref());
    for (name, amount) in Resources::from_list(resources.requests.as_ref()).0 {
        found.set(&name, amount);
    }
    found
}

fn amount(name: &str, text: &str) -> i64 {
    let Ok(quantity) = text.parse::<Quantity>() else { return 0 };
    if name == "cpu" { quantity.milli() } else { quantity.units() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(spec: Value, expect: &[(&str, i64)]) {
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        assert_eq!(Resources::of_pod(&spec).iter().collect::<Vec<_>>(), expect);
    }

    fn asks(cpu: &str) -> Value {
        json!({"name": "c", "resources": {"requests": {"cpu": cpu}}})
    }

    #[test]
    fn a_pod_asks_for_its_containers_together() {
        check(json!({"containers": [asks("100m"), asks("1")]}), &[("cpu", 1100)]);
        check(
            json!({"containers": [{"name": "c", "resources": {"limits": {"memory": "1Ki"}}}]}),
            &[("memory", 1024)],
        );
        check(json!({"containers": [{"name": "c"}], "overhead": {"cpu": "5m"}}), &[("cpu", 5)]);
    }

    #[test]
    fn init_containers_count_by_their_peak() {
        check(json!({"containers": [asks("1")], "initContainers": [asks("2"), asks("3")]}), &[("cpu", 3000)]);
        check(json!({"containers": [asks("4")], "initContainers": [asks("2")]}), &[("cpu", 4000)]);
        let sidecar =
            json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}});
        check(json!({"containers": [asks("1")], "initContainers": [sidecar, asks("2")]}), &[("cpu", 3000)]);
        let sidecar =
            json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}});
        check(json!({"containers": [asks("3")], "initContainers": [asks("2"), sidecar]}), &[("cpu", 4000)]);
    }

    #[test]
    fn requests_of_the_pod_replace_those_of_its_containers() {
        check(json!({"containers": [asks("1")], "resources": {"requests": {"cpu": "3"}}}), &[("cpu", 3000)]);
    }

    #[test]
    fn what_asks_for_nothing_still_scores() {
        let spec: PodSpec =
            serde_json::from_value(json!({"containers": [{"name": "c"}, asks("0")]})).unwrap();
        assert_eq!(Resources::of_pod_for_scoring(&spec).get("cpu"), 100);
        assert_eq!(Resources::of_pod(&spec), Resources::default().clone().tap_zero());
    }

    impl Resources {
        fn tap_zero(mut self) -> Resources {
            self.0.retain(|_, amount| *amount != 0);
            self
        }
    }
}
