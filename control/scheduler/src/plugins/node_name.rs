//! A pod that names its node runs there or nowhere.

use crate::plugin::{Filter, Reason};
use crate::{NodeInfo, PodInfo};

const NO_MATCH: &str = "node(s) didn't match the requested node name";

pub(crate) struct NodeName;

impl Filter for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Vec<Reason> {
        let wanted = pod.pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
        if wanted.is_empty() || wanted == node.name() { Vec::new() } else { vec![NO_MATCH.into()] }
    }
}
