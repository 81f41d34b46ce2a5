//! The plugins, one file each. A new one is a file here and a line in the tables of [`crate::plugin`].

mod balanced_allocation;
mod least_allocated;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources_fit;
mod node_unschedulable;
mod selector_spread;
mod taint_toleration;

pub(crate) use balanced_allocation::BalancedAllocation;
pub(crate) use least_allocated::LeastAllocated;
pub(crate) use node_affinity::NodeAffinity;
pub(crate) use node_name::NodeName;
pub(crate) use node_ports::NodePorts;
pub(crate) use node_resources_fit::NodeResourcesFit;
pub(crate) use node_unschedulable::NodeUnschedulable;
pub(crate) use selector_spread::SelectorSpread;
pub(crate) use taint_toleration::TaintToleration;
