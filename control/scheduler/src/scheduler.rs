//! The scheduler as a whole: changes in, plans out.

use std::sync::Arc;

use jiff::Timestamp;
use lichen_api::k8s::api::core::v1::Pod;
use lichen_api::view::{Change, Kind, Object, ObjectKey, View};

use crate::cluster::is_terminal;
use crate::plugin::{refusal, refused_by};
use crate::{Cluster, Plan, PodInfo, Queue, plan};

/// Most pods in one plan, so that changes are taken in between.
pub const PLAN_PODS_MAX: usize = 256;

/// The names by which pods ask for this scheduler in `spec.schedulerName`. Other names are other schedulers'.
pub const SCHEDULER_NAMES: [&str; 2] = ["default-scheduler", "lichen"];

/// Everything the scheduler remembers.
#[derive(Clone, Debug, Default)]
pub struct Scheduler {
    cluster: Cluster,
    queue: Queue,
}

impl Scheduler {
    /// One that knows of nothing yet.
    pub fn new() -> Scheduler {
        Scheduler::default()
    }

    /// One that knows what a view shows. Nothing is in flight.
    pub fn from_view(view: &View) -> Scheduler {
        let mut scheduler = Scheduler::new();
        let nodes = view.nodes.values().cloned().map(Object::Node);
        for object in nodes.chain(view.pods.values().cloned().map(Object::Pod)) {
            scheduler.observe(&Change { id: object.id(), old: None, new: Some(object) });
        }
        scheduler
    }

    /// What is known of nodes and pods.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Takes in a change of the view.
    pub fn observe(&mut self, change: &Change) {
        if change.id.kind == Kind::NODE {
            self.observe_node(change);
            return;
        }
        let helped = self.cluster.apply(change);
        if change.id.kind == Kind::POD {
            self.queue_pod(change);
        }
        if let Some(node) = helped {
            self.unpark(&node);
        }
    }

    /// Plans for the pods that are due. Every pod of the plan's bindings must be reported by [`Scheduler::failed`]
    /// unless it was bound.
    pub fn plan(&mut self, view: &View, now: Timestamp) -> Plan {
        let due = self.queue.take(now, PLAN_PODS_MAX);
        let plan = plan(&mut self.cluster, view, due);
        for refused in &plan.unschedulable {
            self.queue.park(&refused.pod.key);
        }
        plan
    }

    /// A binding did not happen: the room is given back, and the pod is tried again after a back-off.
    pub fn failed(&mut self, pod: &ObjectKey, uid: &str, now: Timestamp) {
        if let Some(node) = self.cluster.forget(pod, uid) {
            self.queue.retry(pod, now);
            self.unpark(&node);
        }
    }

    /// A binding did not happen because the pod had changed: the room is given back, and the pod is looked at again at
    /// once. To be said when the change has been observed.
    pub fn stale(&mut self, pod: &ObjectKey, uid: &str) {
        if let Some(node) = self.cluster.forget(pod, uid) {
            self.queue.put_back(pod);
            self.unpark(&node);
        }
    }

    /// When there is something to plan; `None` if only a change can bring something.
    pub fn due(&self) -> Option<Timestamp> {
        self.queue.due()
    }

    /// A node that changed helps a pod that it refuses later than before, if at all: what is told of the pod was true
    /// of the node as it was. The first node helps everyone, since now there is something to tell.
    fn observe_node(&mut self, change: &Change) {
        let name = &change.id.key.name;
        let before = self.cluster.node(name).filter(|_| self.queue.has_parked()).cloned();
        self.cluster.apply(change);
        let Some(after) = self.cluster.node(name) else { return };
        let first = change.old.is_none() && self.cluster.nodes().count() == 1;
        self.queue.unpark(|pod| {
            let now = refused_by(pod, after);
            first || now.is_none() || before.as_ref().is_some_and(|before| refused_by(pod, before) < now)
        });
    }

    fn queue_pod(&mut self, change: &Change) {
        let Some(Object::Pod(pod)) = &change.new else {
            self.queue.remove(&change.id.key);
            return;
        };
        if !wants_scheduling(pod) {
            self.queue.remove(&change.id.key);
            return;
        }
        let changed = match &change.old {
            Some(Object::Pod(old)) => old.spec != pod.spec || old.metadata.labels != pod.metadata.labels,
            _ => true,
        };
        self.queue.put(Arc::new(PodInfo::new(pod.clone())), changed);
    }

    fn unpark(&mut self, node: &str) {
        if let Some(info) = self.cluster.node(node) {
            self.queue.unpark(|pod| refusal(pod, info).is_empty());
        }
    }
}

/// Whether a pod waits for this scheduler.
pub fn wants_scheduling(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let asked = spec.scheduler_name.as_deref().unwrap_or_default();
    spec.node_name.as_deref().unwrap_or_default().is_empty()
        && spec.scheduling_gates.as_deref().unwrap_or_default().is_empty()
        && (asked.is_empty() || SCHEDULER_NAMES.contains(&asked))
        && pod.metadata.deletion_timestamp.is_none()
        && !is_terminal(pod)
}

#[cfg(test)]
mod tests;
