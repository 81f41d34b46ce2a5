//! The scheduler, pure: what is known of nodes and pods, and the pods to place, give a [`Plan`].
//!
//! [`Scheduler`] is fed every change of a view and asked for plans; whoever drives it carries the plans out and says
//! how that went. A plan's bindings are reckoned with from the moment they are made (*assumed*), so that the next
//! plan does not give the same room away twice while the first is being written.
//!
//! Invariants: a plan never puts more on a node than the node can allocate, assumed bindings included; the same
//! changes and the same times give the same plans; a pod that fits nowhere is tried again only when a node passes, or
//! passes more, of the filters for it than before, or when the pod itself changes.
//!
//! What decides is in `plugins`, one small file each, in the two tables of [`plugin`].
//!
//! Deliberately absent: preemption, inter-pod affinity, volumes, sampling of nodes in large clusters, and the
//! retrying by time alone with which Kubernetes covers events it missed: a view misses none.

mod cluster;
mod plan;
#[cfg(feature = "plant")]
pub mod plant;
pub mod plugin;
mod plugins;
mod queue;
mod resources;
mod scheduler;

pub use cluster::{Cluster, NodeInfo, PodInfo};
pub use plan::{Binding, Plan, Unschedulable, plan};
pub use queue::{BACKOFF_MAX, BACKOFF_MIN, Queue};
pub use resources::Resources;
pub use scheduler::{PLAN_PODS_MAX, SCHEDULER_NAMES, Scheduler, wants_scheduling};

#[cfg(test)]
mod testing;
