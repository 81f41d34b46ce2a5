//! What the scheduler knows of nodes and of the pods on them, bindings in flight included.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lichen_api::k8s::api::core::v1::{Node, Pod};
use lichen_api::view::{Change, Kind, Object, ObjectKey, controller_of};

use crate::Resources;

/// A pod with what the plugins need of it worked out once.
#[derive(Clone, Debug)]
pub struct PodInfo {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its namespace and name.
    pub key: ObjectKey,
    /// What it asks for.
    pub requests: Resources,
    /// What it counts for when nodes are scored.
    pub scoring_requests: Resources,
    /// Ports of the node that it asks for: protocol, address, port.
    pub host_ports: BTreeSet<(String, String, i32)>,
    /// The UID of its controller.
    pub controller: Option<String>,
}

impl PodInfo {
    /// Works a pod out.
    pub fn new(pod: Arc<Pod>) -> PodInfo {
        let spec = pod.spec.as_ref();
        let containers = spec.into_iter().flat_map(|s| s.containers.iter());
        let host_ports = containers
            .flat_map(|container| container.ports.iter().flatten())
            .filter_map(|port| {
                let number = port.host_port.filter(|number| *number > 0)?;
                let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
                let address = port.host_ip.clone().filter(|ip| !ip.is_empty());
                Some((protocol, address.unwrap_or_else(|| "0.0.0.0".to_owned()), number))
            })
            .collect();
        PodInfo {
            key: ObjectKey::of(&pod.metadata),
            requests: spec.map(Resources::of_pod).unwrap_or_default(),
            scoring_requests: spec.map(Resources::of_pod_for_scoring).unwrap_or_default(),
            host_ports,
            controller: controller_of(&pod.metadata).map(|owner| owner.uid.clone()),
            pod,
        }
    }

    /// The pod's UID.
    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }
}

/// A node and what is on it.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// The node; `None` while only pods are known that name it.
    pub node: Option<Arc<Node>>,
    /// What it can give to pods.
    pub allocatable: Resources,
    /// What the pods on it ask for.
    pub requested: Resources,
    /// The same for scoring.
    pub scoring_requested: Resources,
    /// The pods on it, by namespace and name.
    pub pods: BTreeMap<ObjectKey, Arc<PodInfo>>,
}

impl NodeInfo {
    /// The node's name.
    pub fn name(&self) -> &str {
        self.node.as_ref().and_then(|node| node.metadata.name.as_deref()).unwrap_or_default()
    }

    fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.scoring_requested.add(&pod.scoring_requests);
        self.pods.insert(pod.key.clone(), pod);
    }

    fn remove(&mut self, key: &ObjectKey) {
        if let Some(pod) = self.pods.remove(key) {
            self.requested.subtract(&pod.requests);
            self.scoring_requested.subtract(&pod.scoring_requests);
        }
    }
}

#[derive(Clone, Debug)]
struct Placement {
    uid: String,
    node: String,
    assumed: bool,
}

/// Every node with the pods on it.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    nodes: BTreeMap<String, NodeInfo>,
    placements: BTreeMap<ObjectKey, Placement>,
}

impl Cluster {
    /// The nodes that exist, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.nodes.values().filter(|info| info.node.is_some())
    }

    /// One node, if it exists.
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.nodes.get(name).filter(|info| info.node.is_some())
    }

    /// Takes a change in, and names the node on which there may be more room, or other conditions, than before.
    pub fn apply(&mut self, change: &Change) -> Option<String> {
        match (change.id.kind, &change.new) {
            (Kind::NODE, Some(Object::Node(node))) => {
                self.put_node(&change.id.key.name, node.clone());
                Some(change.id.key.name.clone())
            }
            (Kind::NODE, None) => {
                self.remove_node(&change.id.key.name);
                None
            }
            (Kind::POD, Some(Object::Pod(pod))) => self.put_pod(pod),
            (Kind::POD, None) => self.remove_pod(&change.id.key),
            _ => None,
        }
    }

    /// Reckons with a pod on a node although the binding is not seen yet.
    pub fn assume(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.place(pod, node, true);
    }

    /// Takes back an assumption, unless the binding was seen meanwhile. Names the node that has room again.
    pub fn forget(&mut self, key: &ObjectKey, uid: &str) -> Option<String> {
        let placement = self.placements.get(key)?;
        if placement.assumed && placement.uid == uid { self.remove_pod(key) } else { None }
    }

    /// Whether that incarnation of the pod is on a node, seen or assumed.
    pub fn is_placed(&self, key: &ObjectKey, uid: &str) -> bool {
        self.placements.get(key).is_some_and(|placement| placement.uid == uid)
    }

    fn put_node(&mut self, name: &str, node: Arc<Node>) {
        let info = self.nodes.entry(name.to_owned()).or_default();
        info.allocatable = Resources::from_list(node.status.as_ref().and_then(|s| s.allocatable.as_ref()));
        info.node = Some(node);
    }

    fn remove_node(&mut self, name: &str) {
        if let Some(info) = self.nodes.get_mut(name) {
            info.node = None;
            info.allocatable = Resources::default();
            if info.pods.is_empty() {
                self.nodes.remove(name);
            }
        }
    }

    fn put_pod(&mut self, pod: &Arc<Pod>) -> Option<String> {
        let key = ObjectKey::of(&pod.metadata);
        let bound =
            pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).filter(|name| !name.is_empty());
        match bound {
            // A pod that has ended holds nothing, although it keeps its name and its node.
            Some(_) if is_terminal(pod) => self.remove_pod(&key),
            Some(node) => {
                let node = node.to_owned();
                let before = self.placements.get(&key).map(|placement| placement.node.clone());
                self.place(Arc::new(PodInfo::new(pod.clone())), &node, false);
                before.filter(|before| *before != node)
            }
            None => {
                let same = pod.metadata.uid.as_deref().is_some_and(|uid| self.is_placed(&key, uid));
                if same { None } else { self.remove_pod(&key) }
            }
        }
    }

    fn place(&mut self, pod: Arc<PodInfo>, node: &str, assumed: bool) {
        self.remove_pod(&pod.key);
        let placement = Placement { uid: pod.uid().to_owned(), node: node.to_owned(), assumed };
        self.placements.insert(pod.key.clone(), placement);
        self.nodes.entry(node.to_owned()).or_default().add(pod);
    }

    fn remove_pod(&mut self, key: &ObjectKey) -> Option<String> {
        let placement = self.placements.remove(key)?;
        if let Some(info) = self.nodes.get_mut(&placement.node) {
            info.remove(key);
            if info.pods.is_empty() && info.node.is_none() {
                self.nodes.remove(&placement.node);
            }
        }
        Some(placement.node)
    }
}

/// Whether a pod has ended for good.
pub(crate) fn is_terminal(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}
