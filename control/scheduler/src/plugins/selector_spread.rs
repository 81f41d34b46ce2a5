//! Spreads what belongs together over the nodes.
//!
//! Pods belong together if the same controller made them or, without a controller, if a Service selects them both.
//! This stands where Kubernetes has the default constraints of PodTopologySpread, for host names.

use std::collections::BTreeMap;

use lichen_api::k8s::api::core::v1::Service;
use lichen_api::view::View;

use crate::plugin::{Score, normalize};
use crate::{NodeInfo, PodInfo};

pub(crate) struct SelectorSpread;

impl Score for SelectorSpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn score(&self, view: &View, pod: &PodInfo, nodes: &[&NodeInfo]) -> Vec<i64> {
        let Some(group) = Group::of(view, pod) else { return vec![0; nodes.len()] };
        let raw = nodes
            .iter()
            .map(|node| {
                let members = node.pods.values().filter(|other| group.has(pod, other));
                i64::try_from(members.count()).unwrap_or(i64::MAX)
            })
            .collect();
        normalize(raw, true)
    }
}

enum Group<'a> {
    Controller(&'a str),
    Services(BTreeMap<&'a str, &'a str>),
}

impl<'a> Group<'a> {
    fn of(view: &'a View, pod: &'a PodInfo) -> Option<Group<'a>> {
        if let Some(uid) = &pod.controller {
            return Some(Group::Controller(uid));
        }
        let services = view.services.in_namespace(&pod.key.namespace);
        let selectors =
            services.filter_map(|(_, service)| selector(service)).filter(|s| carries(pod, s.iter()));
        let merged: BTreeMap<&str, &str> =
            selectors.flatten().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        (!merged.is_empty()).then_some(Group::Services(merged))
    }

    fn has(&self, pod: &PodInfo, other: &PodInfo) -> bool {
        pod.key.namespace == other.key.namespace
            && other.pod.metadata.deletion_timestamp.is_none()
            && match self {
                Group::Controller(uid) => other.controller.as_deref() == Some(uid),
                Group::Services(labels) => carries(other, labels.iter()),
            }
    }
}

fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    service.spec.as_ref()?.selector.as_ref().filter(|selector| !selector.is_empty())
}

fn carries(pod: &PodInfo, mut wanted: impl Iterator<Item = (impl AsRef<str>, impl AsRef<str>)>) -> bool {
    let labels = pod.pod.metadata.labels.as_ref();
    wanted.all(|(key, value)| labels.and_then(|l| l.get(key.as_ref())).is_some_and(|v| v == value.as_ref()))
}
