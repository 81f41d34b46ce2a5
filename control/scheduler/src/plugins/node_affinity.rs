//! Node selector and node affinity, required and preferred.

use lichen_api::k8s::api::core::v1::{NodeAffinity as Affinity, NodeSelectorRequirement, NodeSelectorTerm};
use lichen_api::labels::{Operator, Requirement};
use lichen_api::view::View;

use crate::plugin::{Filter, Reason, Score, normalize};
use crate::{NodeInfo, PodInfo};

const NO_MATCH: &str = "node(s) didn't match Pod's node affinity/selector";

pub(crate) struct NodeAffinity;

impl Filter for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Vec<Reason> {
        if selector_matches(pod, node) && required_matches(pod, node) {
            Vec::new()
        } else {
            vec![NO_MATCH.into()]
        }
    }
}

impl Score for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn score(&self, _: &View, pod: &PodInfo, nodes: &[&NodeInfo]) -> Vec<i64> {
        let preferred =
            affinity(pod).and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
        let raw = nodes
            .iter()
            .map(|node| {
                let terms = preferred.into_iter().flatten();
                let matching = terms.filter(|term| term_matches(&term.preference, node));
                matching.map(|term| i64::from(term.weight)).sum()
            })
            .collect();
        normalize(raw, false)
    }
}

fn affinity(pod: &PodInfo) -> Option<&Affinity> {
    pod.pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()
}

fn selector_matches(pod: &PodInfo, node: &NodeInfo) -> bool {
    let selector = pod.pod.spec.as_ref().and_then(|spec| spec.node_selector.as_ref());
    selector.into_iter().flatten().all(|(key, value)| label(node, key) == Some(value))
}

fn required_matches(pod: &PodInfo, node: &NodeInfo) -> bool {
    let required = affinity(pod).and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|selector| selector.node_selector_terms.iter().any(|term| term_matches(term, node)))
}

/// A term without requirements matches nothing; otherwise all of them must hold.
fn term_matches(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|wanted| holds(wanted, label(node, &wanted.key)))
        && fields.iter().all(|wanted| wanted.key == "metadata.name" && holds(wanted, Some(node.name())))
}

fn holds(wanted: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = || wanted.values.clone().unwrap_or_default();
    let bound = || wanted.values.as_ref().and_then(|v| v.first()).and_then(|v| v.parse::<i64>().ok());
    let operator = match (wanted.operator.as_str(), bound()) {
        ("In", _) => Operator::In(values()),
        ("NotIn", _) => Operator::NotIn(values()),
        ("Exists", _) => Operator::Exists,
        ("DoesNotExist", _) => Operator::DoesNotExist,
        ("Gt", Some(bound)) => Operator::GreaterThan(bound),
        ("Lt", Some(bound)) => Operator::LessThan(bound),
        _ => return false,
    };
    let labels: Vec<(String, String)> =
        value.map(|v| (wanted.key.clone(), v.to_owned())).into_iter().collect();
    Requirement { key: wanted.key.clone(), operator }.matches(&labels)
}

fn label<'a>(node: &'a NodeInfo, key: &str) -> Option<&'a str> {
    node.node.as_ref()?.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{node_info, pod_info};

    fn check(spec: Value, fits: bool) {
        let node = node_info("n1", json!({"metadata": {"labels": {"zone": "a", "size": "4"}}}));
        let pod = pod_info("p", json!({"spec": spec}));
        assert_eq!(Filter::filter(&NodeAffinity, &pod, &node).is_empty(), fits, "{:?}", pod.pod.spec);
    }

    fn required(terms: Value) -> Value {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
    }

    fn expression(key: &str, operator: &str, values: Value) -> Value {
        required(json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]))
    }

    #[test]
    fn node_selector() {
        check(json!({"nodeSelector": {"zone": "a"}}), true);
        check(json!({"nodeSelector": {"zone": "b"}}), false);
        check(json!({"nodeSelector": {"other": ""}}), false);
    }

    #[test]
    fn every_operator() {
        check(expression("zone", "In", json!(["b", "a"])), true);
        check(expression("zone", "In", json!(["b"])), false);
        check(expression("zone", "NotIn", json!(["b"])), true);
        check(expression("zone", "NotIn", json!(["a"])), false);
        check(expression("other", "NotIn", json!(["a"])), true);
        check(expression("zone", "Exists", json!(null)), true);
        check(expression("other", "Exists", json!(null)), false);
        check(expression("other", "DoesNotExist", json!(null)), true);
        check(expression("zone", "DoesNotExist", json!(null)), false);
        check(expression("size", "Gt", json!(["3"])), true);
        check(expression("size", "Gt", json!(["4"])), false);
        check(expression("size", "Lt", json!(["5"])), true);
        check(expression("size", "Lt", json!(["4"])), false);
        check(expression("zone", "Gt", json!(["1"])), false);
        check(expression("zone", "Like", json!(["a"])), false);
    }

    #[test]
    fn terms_are_alternatives_and_an_empty_one_matches_nothing() {
        check(required(json!([])), false);
        check(required(json!([{}])), false);
        let wrong = json!({"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]});
        let right = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]});
        check(required(json!([wrong, right])), true);
        let both =
            json!({"matchExpressions": wrong["matchExpressions"], "matchFields": right["matchFields"]});
        check(required(json!([both])), false);
    }

    #[test]
    fn preferred_terms_add_their_weights() {
        let term = |weight: i32, zone: &str| json!({"weight": weight, "preference": {"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]}});
        let spec = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [term(10, "a"), term(5, "b")]}}});
        let pod = pod_info("p", json!({"spec": spec}));
        let nodes: Vec<NodeInfo> = ["a", "b", "c"]
            .map(|zone| node_info(zone, json!({"metadata": {"labels": {"zone": zone}}})))
            .into();
        let nodes: Vec<&NodeInfo> = nodes.iter().collect();
        assert_eq!(NodeAffinity.score(&View::new(), &pod, &nodes), [100, 50, 0]);
    }
}
