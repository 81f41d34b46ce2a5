//! Prefers nodes with much room left.

use lichen_api::view::View;

use crate::plugin::{SCORE_MAX, Score};
use crate::{NodeInfo, PodInfo};

const RESOURCES: [&str; 2] = ["cpu", "memory"];

pub(crate) struct LeastAllocated;

impl Score for LeastAllocated {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn weight(&self) -> i64 {
        1
    }

    fn score(&self, _: &View, pod: &PodInfo, nodes: &[&NodeInfo]) -> Vec<i64> {
        nodes.iter().map(|node| free(pod, node)).collect()
    }
}

/// The share of the node that would be left, on average over the resources that the node has.
fn free(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let mut sum = 0;
    let mut counted = 0;
    for name in RESOURCES {
        let allocatable = node.allocatable.get(name);
        if allocatable <= 0 {
            continue;
        }
        let wanted = node.scoring_requested.get(name).saturating_add(pod.scoring_requests.get(name));
        let left = i128::from(allocatable.saturating_sub(wanted).max(0));
        sum += i64::try_from(left * i128::from(SCORE_MAX) / i128::from(allocatable)).unwrap_or(SCORE_MAX);
        counted += 1;
    }
    if counted == 0 { 0 } else { sum / counted }
}
