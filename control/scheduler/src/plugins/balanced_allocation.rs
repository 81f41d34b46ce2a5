//! Prefers nodes whose CPU and memory would be used to the same degree.

use lichen_api::view::View;

use crate::plugin::{SCORE_MAX, Score};
use crate::{NodeInfo, PodInfo};

const PER_MILLE: i64 = 1000;

pub(crate) struct BalancedAllocation;

impl Score for BalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn weight(&self) -> i64 {
        1
    }

    fn score(&self, _: &View, pod: &PodInfo, nodes: &[&NodeInfo]) -> Vec<i64> {
        nodes.iter().map(|node| balance(pod, node)).collect()
    }
}

fn balance(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let used = |name: &str| {
        let allocatable = node.allocatable.get(name);
        let wanted = node.requested.get(name).saturating_add(pod.requests.get(name));
        if allocatable <= 0 {
            PER_MILLE
        } else {
            // In 128 bits, because a thousand times a number of bytes may not fit into 64.
            let per_mille = i128::from(wanted) * i128::from(PER_MILLE) / i128::from(allocatable);
            i64::try_from(per_mille.min(i128::from(PER_MILLE))).unwrap_or(PER_MILLE)
        }
    };
    // The standard deviation of two values is half their distance.
    let deviation = (used("cpu") - used("memory")).abs() / 2;
    (PER_MILLE - deviation) * SCORE_MAX / PER_MILLE
}
