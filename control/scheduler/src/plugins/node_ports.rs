//! A port of a node is given to one pod.

use crate::plugin::{Filter, Reason};
use crate::{NodeInfo, PodInfo};

const TAKEN: &str = "node(s) didn't have free ports for the requested pod ports";
const EVERY_ADDRESS: &str = "0.0.0.0";

pub(crate) struct NodePorts;

impl Filter for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Vec<Reason> {
        let clash = pod.host_ports.iter().any(|(protocol, address, port)| {
            let taken = node.pods.values().flat_map(|other| &other.host_ports);
            taken.into_iter().any(|(other_protocol, other_address, other_port)| {
                protocol == other_protocol
                    && port == other_port
                    && (address == other_address
                        || address == EVERY_ADDRESS
                        || other_address == EVERY_ADDRESS)
            })
        });
        if clash { vec![TAKEN.into()] } else { Vec::new() }
    }
}
