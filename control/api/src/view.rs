//! Snapshot views: what the scheduler and the controllers see of a cluster.
//!
//! A [`View`] is a typed cache of every object at one revision, kept up by applying one change after the other in
//! the order of their revisions. Because one counter orders every kind, a view never shows an effect without its
//! cause: a pod is never seen before the ReplicaSet that asked for it.
//!
//! Invariants: an object is parsed once, when its change arrives ([`Object::decode`]); everything else shares it by
//! `Arc`. The indexes (by UID, by owner, by node, objects without a controller) always agree with the objects.
//! `managedFields` are not kept, and of the kinds that no controller reads ([`Object::Other`]) only the metadata
//! is, without annotations, so that ten thousand ConfigMaps cost little.
//!
//! Deliberately absent: watching (the control crate feeds a view), and writing (a view only mirrors the registry).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Endpoints, Event, Namespace, Node, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde::de::DeserializeOwned;

use crate::kinds::secret;

pub use id::{Kind, ObjectId, ObjectKey};

mod id;

/// What a view keeps of an object whose kind no controller reads: its metadata without annotations.
#[derive(Clone, Debug, PartialEq)]
pub struct Partial {
    /// The kind.
    pub kind: Kind,
    /// Metadata, without annotations and managedFields.
    pub metadata: ObjectMeta,
    /// Of an Event, when it last happened, as far as it says.
    pub last_seen: Option<jiff::Timestamp>,
    /// Of a Secret that is a bootstrap token, when it ends; the beginning of time if that cannot be read.
    pub expires: Option<jiff::Timestamp>,
}

/// The objects of one kind, ordered by namespace and name.
#[derive(Clone, Debug)]
pub struct Table<T>(BTreeMap<ObjectKey, Arc<T>>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table(BTreeMap::new())
    }
}

impl<T> Table<T> {
    /// The object of that name; the namespace is empty for a kind of the cluster.
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Arc<T>> {
        self.0.get(&ObjectKey::new(namespace, name))
    }

    /// The object under that key.
    pub fn by_key(&self, key: &ObjectKey) -> Option<&Arc<T>> {
        self.0.get(key)
    }

    /// Every object, by namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &Arc<T>)> {
        self.0.iter()
    }

    /// Every object, by namespace and name, without the keys.
    pub fn values(&self) -> impl Iterator<Item = &Arc<T>> {
        self.0.values()
    }

    /// The objects of one namespace, by name.
    pub fn in_namespace<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a ObjectKey, &'a Arc<T>)> {
        self.0.range(ObjectKey::new(namespace, "")..).take_while(move |(key, _)| key.namespace == namespace)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The kinds a view keeps whole: one line each. `(variant, type, table, Kind constant, group, version)`.
macro_rules! typed_kinds {
    ($(($variant:ident, $table:ident, $constant:ident, $group:literal, $version:literal)),* $(,)?) => {
        impl Kind {
            $(
                #[doc = concat!("The kind of a ", stringify!($variant), ".")]
                pub const $constant: Kind =
                    Kind { group: $group, version: $version, kind: stringify!($variant) };
            )*
        }

        /// One object as a view keeps it. Cloning shares it.
        #[derive(Clone, Debug)]
        pub enum Object {
            $(
                #[doc = concat!("A ", stringify!($variant), ".")]
                $variant(Arc<$variant>),
            )*
            /// An object of any other kind: its metadata.
            Other(Arc<Partial>),
        }

        impl Object {
            /// Reads an object of that kind from its JSON.
            pub fn decode(kind: Kind, json: &[u8]) -> Result<Object, serde_json::Error> {
                $(
                    if kind == Kind::$constant {
                        let mut object: $variant = serde_json::from_slice(json)?;
                        object.metadata.managed_fields = None;
                        return Ok(Object::$variant(Arc::new(object)));
                    }
                )*
                Object::decode_metadata(kind, json)
            }

            /// Its kind.
            pub fn kind(&self) -> Kind {
                match self {
                    $( Object::$variant(_) => Kind::$constant, )*
                    Object::Other(object) => object.kind,
                }
            }

            /// Its metadata, without managedFields.
            pub fn metadata(&self) -> &ObjectMeta {
                match self {
                    $( Object::$variant(object) => &object.metadata, )*
                    Object::Other(object) => &object.metadata,
                }
            }
        }

        impl PartialEq for Object {
            fn eq(&self, other: &Object) -> bool {
                match (self, other) {
                    $( (Object::$variant(a), Object::$variant(b)) => a == b, )*
                    (Object::Other(a), Object::Other(b)) => a == b,
                    _ => false,
                }
            }
        }

        /// Every object of a cluster at one revision.
        #[derive(Clone, Debug, Default)]
        pub struct View {
            $(
                #[doc = concat!("Every ", stringify!($variant), ".")]
                pub $table: Table<$variant>,
            )*
            others: BTreeMap<Kind, Table<Partial>>,
            revision: u64,
            by_uid: BTreeMap<String, ObjectId>,
            dependents: BTreeMap<String, BTreeSet<ObjectId>>,
            uncontrolled: BTreeSet<ObjectId>,
            pods_by_node: BTreeMap<String, BTreeSet<ObjectKey>>,
        }

        impl View {
            /// The object with that id.
            pub fn get(&self, id: &ObjectId) -> Option<Object> {
                $(
                    if id.kind == Kind::$constant
                        && let Some(object) = self.$table.by_key(&id.key)
                    {
                        return Some(Object::$variant(object.clone()));
                    }
                )*
                self.others.get(&id.kind)?.by_key(&id.key).cloned().map(Object::Other)
            }

            /// Every object of a namespace, kind by kind.
            pub fn in_namespace(&self, namespace: &str) -> Vec<Object> {
                let mut found = Vec::new();
                $( found.extend(self.$table.in_namespace(namespace).map(|(_, o)| Object::$variant(o.clone()))); )*
                for table in self.others.values() {
                    found.extend(table.in_namespace(namespace).map(|(_, o)| Object::Other(o.clone())));
                }
                found
            }

            /// Every object, kind by kind.
            pub fn objects(&self) -> Vec<Object> {
                let mut found = Vec::new();
                $( found.extend(self.$table.values().map(|o| Object::$variant(o.clone()))); )*
                for table in self.others.values() {
                    found.extend(table.values().map(|o| Object::Other(o.clone())));
                }
                found
            }

            fn put(&mut self, id: &ObjectId, object: Option<Object>) {
                $(
                    if id.kind == Kind::$constant {
                        self.$table.0.remove(&id.key);
                    }
                )*
                if let Some(table) = self.others.get_mut(&id.kind) {
                    table.0.remove(&id.key);
                }
                match object {
                    None => {}
                    $( Some(Object::$variant(object)) => drop(self.$table.0.insert(id.key.clone(), object)), )*
                    Some(Object::Other(object)) => {
                        self.others.entry(id.kind).or_default().0.insert(id.key.clone(), object);
                    }
                }
            }
        }
    };
}

typed_kinds![
    (Namespace, namespaces, NAMESPACE, "", "v1"),
    (Node, nodes, NODE, "", "v1"),
    (Pod, pods, POD, "", "v1"),
    (Service, services, SERVICE, "", "v1"),
    (ServiceAccount, service_accounts, SERVICE_ACCOUNT, "", "v1"),
    (Endpoints, endpoints, ENDPOINTS, "", "v1"),
    (EndpointSlice, endpoint_slices, ENDPOINT_SLICE, "discovery.k8s.io", "v1"),
    (Deployment, deployments, DEPLOYMENT, "apps", "v1"),
    (ReplicaSet, replica_sets, REPLICA_SET, "apps", "v1"),
];

impl Kind {
    /// The kind of an Event.
    pub const EVENT: Kind = Kind { group: "", version: "v1", kind: "Event" };
    /// The kind of a Secret.
    pub const SECRET: Kind = Kind { group: "", version: "v1", kind: "Secret" };
}

impl Object {
    /// Its id.
    pub fn id(&self) -> ObjectId {
        ObjectId { kind: self.kind(), key: ObjectKey::of(self.metadata()) }
    }

    /// Its UID; empty for an object that the registry has not stored.
    pub fn uid(&self) -> &str {
        self.metadata().uid.as_deref().unwrap_or_default()
    }

    /// Reads only the metadata of an object: of one whose kind no controller reads, or which cannot be read whole. It
    /// still counts as an owner, and as content of its namespace.
    pub fn decode_metadata(kind: Kind, json: &[u8]) -> Result<Object, serde_json::Error> {
        #[derive(serde::Deserialize)]
        struct OnlyMetadata {
            metadata: ObjectMeta,
        }
        let (mut last_seen, mut expires) = (None, None);
        let mut metadata = if kind == Kind::EVENT {
            let event: Event = parse(json)?;
            let series = event.series.and_then(|series| series.last_observed_time);
            let micro = series.max(event.event_time).map(|time| time.0);
            last_seen = micro.max(event.last_timestamp.map(|time| time.0));
            event.metadata
        } else if kind == Kind::SECRET {
            let secret: Secret = parse(json)?;
            expires = secret::token_expiry(&secret);
            secret.metadata
        } else {
            parse::<OnlyMetadata>(json)?.metadata
        };
        metadata.managed_fields = None;
        metadata.annotations = None;
        Ok(Object::Other(Arc::new(Partial { kind, metadata, last_seen, expires })))
    }
}

fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(json)
}

/// One object's transition. Never both `None`.
#[derive(Clone, Debug)]
pub struct Change {
    /// Which object.
    pub id: ObjectId,
    /// The object before; `None` if it was created.
    pub old: Option<Object>,
    /// The object after; `None` if it was removed.
    pub new: Option<Object>,
}

impl Change {
    /// The object as it is or, if it is gone, as it was.
    pub fn object(&self) -> Option<&Object> {
        self.new.as_ref().or(self.old.as_ref())
    }

    /// Whether the object is gone.
    pub fn is_removal(&self) -> bool {
        self.new.is_none()
    }

    /// The states of the object, old before new, that exist.
    pub fn states(&self) -> impl Iterator<Item = &Object> {
        self.old.iter().chain(self.new.iter())
    }
}

impl View {
    /// An empty view.
    pub fn new() -> View {
        View::default()
    }

    /// The revision that the view has seen everything up to.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Notes that everything up to `revision` has been seen. A view never goes back.
    pub fn advance(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
    }

    /// Puts (`Some`) or removes (`None`) an object and says what changed; `None` if nothing was there to remove.
    ///
    /// An object that took the name of another one without the removal being seen is two changes in one; a caller
    /// that cares compares UIDs.
    pub fn apply(&mut self, id: ObjectId, new: Option<Object>) -> Option<Change> {
        let old = self.get(&id);
        if old.is_none() && new.is_none() {
            return None;
        }
        if let Some(old) = &old {
            self.unindex(&id, old);
        }
        if let Some(new) = &new {
            self.index(&id, new);
        }
        self.put(&id, new.clone());
        Some(Change { id, old, new })
    }

    /// The object with that UID.
    pub fn by_uid(&self, uid: &str) -> Option<Object> {
        self.by_uid.get(uid).and_then(|id| self.get(id))
    }

    /// The objects with an owner reference to that UID, whether or not it is their controller.
    pub fn dependents(&self, uid: &str) -> impl Iterator<Item = &ObjectId> {
        self.dependents.get(uid).into_iter().flatten()
    }

    /// The pods whose controller has that UID.
    pub fn pods_of<'a>(&'a self, uid: &'a str) -> impl Iterator<Item = &'a Arc<Pod>> {
        self.dependents(uid)
            .filter(|id| id.kind == Kind::POD)
            .filter_map(|id| self.pods.by_key(&id.key))
            .filter(move |pod| controller_of(&pod.metadata).is_some_and(|owner| owner.uid == uid))
    }

    /// The ReplicaSets whose controller has that UID.
    pub fn replica_sets_of<'a>(&'a self, uid: &'a str) -> impl Iterator<Item = &'a Arc<ReplicaSet>> {
        self.dependents(uid)
            .filter(|id| id.kind == Kind::REPLICA_SET)
            .filter_map(|id| self.replica_sets.by_key(&id.key))
            .filter(move |set| controller_of(&set.metadata).is_some_and(|owner| owner.uid == uid))
    }

    /// The names of the pods or ReplicaSets of a namespace that no controller owns: those that may be adopted.
    pub fn uncontrolled<'a>(&'a self, kind: Kind, namespace: &'a str) -> impl Iterator<Item = &'a ObjectKey> {
        self.uncontrolled
            .range(ObjectId::new(kind, namespace, "")..)
            .take_while(move |id| id.kind == kind && id.key.namespace == namespace)
            .map(|id| &id.key)
    }

    /// The pods bound to a node, whatever their phase.
    pub fn pods_on<'a>(&'a self, node: &str) -> impl Iterator<Item = &'a Arc<Pod>> {
        self.pods_by_node.get(node).into_iter().flatten().filter_map(|key| self.pods.by_key(key))
    }

    fn index(&mut self, id: &ObjectId, object: &Object) {
        let meta = object.metadata();
        if let Some(uid) = &meta.uid {
            self.by_uid.insert(uid.clone(), id.clone());
        }
        for owner in owners_of(meta) {
            self.dependents.entry(owner.uid.clone()).or_default().insert(id.clone());
        }
        if is_adoptable(id.kind) && controller_of(meta).is_none() {
            self.uncontrolled.insert(id.clone());
        }
        if let Some(node) = node_of(object) {
            self.pods_by_node.entry(node.to_owned()).or_default().insert(id.key.clone());
        }
    }

    fn unindex(&mut self, id: &ObjectId, object: &Object) {
        let meta = object.metadata();
        if let Some(uid) = &meta.uid {
            self.by_uid.remove(uid);
        }
        for owner in owners_of(meta) {
            remove_from(&mut self.dependents, &owner.uid, id);
        }
        self.uncontrolled.remove(id);
        if let Some(node) = node_of(object) {
            remove_from(&mut self.pods_by_node, node, &id.key);
        }
    }
}

/// The owner reference of the controller of an object, if one controls it.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    owners_of(meta).iter().find(|owner| owner.controller == Some(true))
}

/// The owner references of an object.
pub fn owners_of(meta: &ObjectMeta) -> &[OwnerReference] {
    meta.owner_references.as_deref().unwrap_or_default()
}

fn is_adoptable(kind: Kind) -> bool {
    kind == Kind::POD || kind == Kind::REPLICA_SET
}

fn node_of(object: &Object) -> Option<&str> {
    let Object::Pod(pod) = object else { return None };
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

fn remove_from<V: Ord>(index: &mut BTreeMap<String, BTreeSet<V>>, key: &str, value: &V) {
    if let Some(set) = index.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            index.remove(key);
        }
    }
}

#[cfg(test)]
mod tests;
