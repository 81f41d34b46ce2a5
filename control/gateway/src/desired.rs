//! The desired state of every node: its own Node, its pods with the ConfigMaps and Secrets that they name, and all Services and
//! EndpointSlices. Pure: it is told of changes in the order of their revisions, and says what each node has yet to hear.
//!
//! For a node with a session there is a set of what it has yet to be sent, at most one entry an object: a node that is
//! slow costs no more than the objects that it is behind on, and an object that changes often is sent as it is, not as
//! it was. Nodes without a session cost their entry in the index.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lichen_store::Record;
use tokio::sync::Notify;

use crate::item::{Item, ItemKey, Kind, PodShape, pod_cidr};

/// What a node is to be told about one object.
#[derive(Clone, Debug)]
pub(crate) enum Delta {
    /// It should be like this.
    Put(Arc<Item>),
    /// It should no longer be, as of this version.
    Remove(ItemKey, u64),
}

/// What a node with a session has yet to be sent.
#[derive(Debug)]
struct Pending {
    puts: BTreeMap<ItemKey, Arc<Item>>,
    removes: BTreeMap<ItemKey, u64>,
    wake: Arc<Notify>,
}

#[derive(Debug, Default)]
struct NodeView {
    pods: BTreeSet<String>,
    /// The range of pod addresses that it was given: all that it is told of changes in its Node for.
    pod_cidr: Option<String>,
    /// The version of the last change that concerned this node alone.
    changed: u64,
    pending: Option<Pending>,
}

/// How a node's session begins.
#[derive(Debug)]
pub(crate) enum Start {
    /// It has everything up to this version already.
    Current(u64),
    /// It needs a snapshot: this many objects, as of this version.
    Snapshot { version: u64, count: usize },
}

/// What there is to send now.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) deltas: Vec<Delta>,
    /// The version up to which the node then has everything; none if more is to come.
    pub(crate) synced: Option<u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Desired {
    version: u64,
    objects: BTreeMap<ItemKey, Arc<Item>>,
    pods: BTreeMap<String, PodShape>,
    /// For each ConfigMap and Secret that pods name: on which nodes, and by how many pods there.
    named: BTreeMap<ItemKey, BTreeMap<String, usize>>,
    nodes: BTreeMap<String, NodeView>,
    /// The version of the last change that concerned every node.
    changed: u64,
}

impl Desired {
    /// Replaces everything by the state at `version`. Nodes are told of the differences.
    pub(crate) fn load(&mut self, objects: Vec<(Kind, String, Record)>, version: u64) {
        let found: BTreeSet<ItemKey> = objects.iter().map(|(kind, key, _)| (*kind, key.clone())).collect();
        let gone: Vec<ItemKey> = self.objects.keys().filter(|id| !found.contains(*id)).cloned().collect();
        for (kind, key) in gone.into_iter().rev() {
            self.change(kind, &key, None, version);
        }
        for (kind, key, record) in objects {
            let known = self.objects.get(&(kind, key.clone())).map(|item| item.version);
            if known != Some(record.revision().0) {
                self.change(kind, &key, Some(record), version);
            }
        }
        // Which of it is older than this process is not known: nobody is current until told so.
        self.changed = version;
        self.version = version;
    }

    /// Takes in a change. `record` is the object as it is now; none if it is gone.
    pub(crate) fn change(&mut self, kind: Kind, key: &str, record: Option<Record>, version: u64) {
        self.version = self.version.max(version);
        match kind {
            Kind::Node => {
                let pod_cidr = record.as_ref().and_then(pod_cidr);
                let delta = self.replace(&(kind, key.to_owned()), record, version);
                let view = self.nodes.entry(key.to_owned()).or_default();
                if view.pod_cidr != pod_cidr {
                    view.pod_cidr = pod_cidr;
                    self.tell(key, delta, version);
                }
            }
            Kind::Pod => self.change_pod(key, record, version),
            Kind::ConfigMap | Kind::Secret => {
                let id = (kind, key.to_owned());
                let delta = self.replace(&id, record, version);
                let nodes: Vec<String> =
                    self.named.get(&id).into_iter().flat_map(|nodes| nodes.keys().cloned()).collect();
                for node in nodes {
                    self.tell(&node, delta.clone(), version);
                }
            }
            Kind::Service | Kind::EndpointSlice => {
                let delta = self.replace(&(kind, key.to_owned()), record, version);
                self.changed = version;
                for view in self.nodes.values_mut() {
                    push(view, delta.clone());
                }
            }
        }
    }

    /// Everything up to `version` has been told.
    pub(crate) fn progress(&mut self, version: u64) {
        self.version = self.version.max(version);
    }

    fn replace(&mut self, id: &ItemKey, record: Option<Record>, version: u64) -> Delta {
        match record {
            Some(record) => {
                let item = Arc::new(Item::new(id.0, &id.1, record));
                self.objects.insert(id.clone(), item.clone());
                Delta::Put(item)
            }
            None => {
                self.objects.remove(id);
                Delta::Remove(id.clone(), version)
            }
        }
    }

    fn change_pod(&mut self, key: &str, record: Option<Record>, version: u64) {
        let id = (Kind::Pod, key.to_owned());
        let new = record.as_ref().map(PodShape::of).unwrap_or_default();
        let delta = self.replace(&id, record, version);
        let old = match &delta {
            Delta::Put(_) => self.pods.insert(key.to_owned(), new),
            Delta::Remove(..) => self.pods.remove(key),
        };
        let old = old.unwrap_or_default();
        let fresh =
            self.pods.get(key).map(|shape| (shape.node.clone(), shape.refs.clone(), shape.fingerprint));
        let (node, refs, fingerprint) = fresh.unwrap_or_default();
        // First what the pod newly needs, then the pod, then what it no longer needs.
        if let Some(node) = &node {
            let view = self.nodes.entry(node.clone()).or_default();
            view.pods.insert(key.to_owned());
            for id in &refs {
                let kept = old.node.as_ref() == Some(node) && old.refs.contains(id);
                if !kept {
                    self.name(node, id, version);
                }
            }
            if old.node.as_ref() != Some(node) || old.fingerprint != fingerprint {
                self.tell(node, delta, version);
            }
        }
        if let Some(before) = &old.node {
            if node.as_ref() != Some(before) {
                if let Some(view) = self.nodes.get_mut(before) {
                    view.pods.remove(key);
                }
                self.tell(before, Delta::Remove(id, version), version);
            }
            for id in &old.refs {
                let kept = node.as_ref() == Some(before) && refs.contains(id);
                if !kept {
                    self.unname(before, id, version);
                }
            }
        }
    }

    /// One more pod on `node` names an object.
    fn name(&mut self, node: &str, id: &ItemKey, version: u64) {
        let count = self.named.entry(id.clone()).or_default().entry(node.to_owned()).or_default();
        *count += 1;
        if *count == 1
            && let Some(item) = self.objects.get(id).cloned()
        {
            self.tell(node, Delta::Put(item), version);
        }
    }

    /// One pod less on `node` names an object.
    fn unname(&mut self, node: &str, id: &ItemKey, version: u64) {
        let Some(nodes) = self.named.get_mut(id) else { return };
        let Some(count) = nodes.get_mut(node) else { return };
        *count -= 1;
        if *count == 0 {
            nodes.remove(node);
            if nodes.is_empty() {
                self.named.remove(id);
            }
            self.tell(node, Delta::Remove(id.clone(), version), version);
        }
    }

    fn tell(&mut self, node: &str, delta: Delta, version: u64) {
        if let Some(view) = self.nodes.get_mut(node) {
            view.changed = version;
            push(view, delta);
        }
    }

    /// Begins to keep what `node` has yet to be sent. `has` is the version up to which it has everything.
    pub(crate) fn attach(&mut self, node: &str, has: Option<u64>) -> (Start, Arc<Notify>) {
        let wake = Arc::new(Notify::new());
        let changed = self.changed.max(self.nodes.get(node).map_or(0, |view| view.changed));
        let current = has.filter(|has| (changed..=self.version).contains(has));
        #[cfg(feature = "plant")]
        let current = if crate::plant::STALE_SNAPSHOT.load(std::sync::atomic::Ordering::Relaxed) {
            has.filter(|has| *has > 0)
        } else {
            current
        };
        let puts = match current {
            Some(_) => BTreeMap::new(),
            None => self.objects_of(node).map(|item| (item.id(), item)).collect(),
        };
        let start = match current {
            Some(_) => Start::Current(self.version),
            None => Start::Snapshot { version: self.version, count: puts.len() },
        };
        let view = self.nodes.entry(node.to_owned()).or_default();
        view.pending = Some(Pending { puts, removes: BTreeMap::new(), wake: wake.clone() });
        (start, wake)
    }

    /// Ends what [`Desired::attach`] began.
    pub(crate) fn detach(&mut self, node: &str) {
        if let Some(view) = self.nodes.get_mut(node) {
            view.pending = None;
        }
    }

    /// At most `max` of what `node` has yet to be sent, in an order in which it can act on each.
    pub(crate) fn take(&mut self, node: &str, max: usize) -> Taken {
        let version = self.version;
        let Some(pending) = self.nodes.get_mut(node).and_then(|view| view.pending.as_mut()) else {
            return Taken { deltas: Vec::new(), synced: None };
        };
        let mut deltas = Vec::new();
        while deltas.len() < max
            && let Some((_, item)) = pending.puts.pop_first()
        {
            deltas.push(Delta::Put(item));
        }
        while deltas.len() < max
            && pending.puts.is_empty()
            && let Some((id, version)) = pending.removes.pop_last()
        {
            deltas.push(Delta::Remove(id, version));
        }
        let drained = pending.puts.is_empty() && pending.removes.is_empty();
        Taken { deltas, synced: drained.then_some(version) }
    }

    /// Takes back what was taken and could not be sent, unless something newer has come.
    pub(crate) fn give_back(&mut self, node: &str, deltas: Vec<Delta>) {
        let Some(view) = self.nodes.get_mut(node) else { return };
        for delta in deltas {
            let id = match &delta {
                Delta::Put(item) => item.id(),
                Delta::Remove(id, _) => id.clone(),
            };
            let newer =
                |pending: &Pending| pending.puts.contains_key(&id) || pending.removes.contains_key(&id);
            if !view.pending.as_ref().is_some_and(newer) {
                push(view, delta);
            }
        }
    }

    fn objects_of<'a>(&'a self, node: &'a str) -> impl Iterator<Item = Arc<Item>> + 'a {
        let pods = self.nodes.get(node).into_iter().flat_map(|view| &view.pods);
        let pods = pods.map(|key| (Kind::Pod, key.clone()));
        let named =
            self.named.iter().filter(move |(_, nodes)| nodes.contains_key(node)).map(|(id, _)| id.clone());
        let shared = self.objects.range((Kind::Service, String::new())..(Kind::Pod, String::new()));
        let node = std::iter::once((Kind::Node, node.to_owned()));
        let own = node.chain(named).chain(pods).filter_map(|id| self.objects.get(&id).cloned());
        own.chain(shared.map(|(_, item)| item.clone()))
    }
}

fn push(view: &mut NodeView, delta: Delta) {
    let Some(pending) = &mut view.pending else { return };
    match delta {
        Delta::Put(item) => {
            pending.removes.remove(&item.id());
            pending.puts.insert(item.id(), item);
        }
        Delta::Remove(id, version) => {
            pending.puts.remove(&id);
            pending.removes.insert(id, version);
        }
    }
    pending.wake.notify_one();
}

#[cfg(test)]
mod tests;
