//! What a plugin is, and the tables of those there are.

use std::borrow::Cow;

use lichen_api::view::View;

use crate::plugins::{
    BalancedAllocation, LeastAllocated, NodeAffinity, NodeName, NodePorts, NodeResourcesFit,
    NodeUnschedulable, SelectorSpread, TaintToleration,
};
use crate::{NodeInfo, PodInfo};

/// The highest score a node can have from one plugin.
pub const SCORE_MAX: i64 = 100;

/// Why a node cannot take a pod, in Kubernetes' words; counted over the nodes.
pub type Reason = Cow<'static, str>;

/// Says whether a pod may run on a node.
///
/// The answer depends on the pod and on this one node alone. The scheduler relies on it: a pod that fits nowhere is
/// tried again when a changed node passes more of the filters for it.
pub trait Filter: Sync {
    /// The plugin's name, as Kubernetes calls it.
    fn name(&self) -> &'static str;

    /// Why the node cannot take the pod; nothing if it can.
    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Vec<Reason>;
}

/// Says how well a node suits a pod that may run there.
pub trait Score: Sync {
    /// The plugin's name, as Kubernetes calls it.
    fn name(&self) -> &'static str;

    /// How much this plugin counts.
    fn weight(&self) -> i64;

    /// A score for each of the nodes, from 0 to [`SCORE_MAX`].
    fn score(&self, view: &View, pod: &PodInfo, nodes: &[&NodeInfo]) -> Vec<i64>;
}

/// Every filter. A node is asked in this order, up to the first that refuses.
pub static FILTERS: &[&dyn Filter] =
    &[&NodeUnschedulable, &NodeName, &TaintToleration, &NodeAffinity, &NodePorts, &NodeResourcesFit];

/// Every score.
pub static SCORES: &[&dyn Score] =
    &[&TaintToleration, &NodeAffinity, &LeastAllocated, &BalancedAllocation, &SelectorSpread];

/// Why a node cannot take a pod: the reasons of the first filter that refuses.
pub fn refusal(pod: &PodInfo, node: &NodeInfo) -> Vec<Reason> {
    FILTERS
        .iter()
        .map(|filter| filter.filter(pod, node))
        .find(|reasons| !reasons.is_empty())
        .unwrap_or_default()
}

/// Which filter refuses the node first, by its place in the table; `None` if none does.
pub fn refused_by(pod: &PodInfo, node: &NodeInfo) -> Option<usize> {
    FILTERS.iter().position(|filter| !filter.filter(pod, node).is_empty())
}

/// Stretches raw values so that the largest becomes [`SCORE_MAX`]; `reverse` if less is better.
pub(crate) fn normalize(raw: Vec<i64>, reverse: bool) -> Vec<i64> {
    let most = raw.iter().copied().max().unwrap_or(0);
    raw.into_iter()
        .map(|value| {
            let scaled = if most > 0 { value * SCORE_MAX / most } else { 0 };
            if reverse { SCORE_MAX - scaled } else { scaled }
        })
        .collect()
}
