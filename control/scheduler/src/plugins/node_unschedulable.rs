//! A cordoned node takes only pods that tolerate that.

use lichen_api::k8s::api::core::v1::Taint;
use lichen_api::taints::{NO_SCHEDULE, UNSCHEDULABLE};

use crate::plugin::{Filter, Reason};
use crate::plugins::taint_toleration::tolerates;
use crate::{NodeInfo, PodInfo};

const CORDONED: &str = "node(s) were unschedulable";

pub(crate) struct NodeUnschedulable;

impl Filter for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Vec<Reason> {
        let spec = node.node.as_ref().and_then(|node| node.spec.as_ref());
        if spec.and_then(|spec| spec.unschedulable) != Some(true) {
            return Vec::new();
        }
        let taint =
            Taint { key: UNSCHEDULABLE.to_owned(), effect: NO_SCHEDULE.to_owned(), ..Taint::default() };
        if tolerates(pod, &taint) { Vec::new() } else { vec![CORDONED.into()] }
    }
}
