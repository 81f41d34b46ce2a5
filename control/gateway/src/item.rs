//! Objects as a node receives them.

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::OnceLock;

use bytes::Bytes;
use lichen_api::{Resource, kinds};
use lichen_store::Record;
use serde_json::Value;

/// The kinds that a node is sent, in the order in which they are: what a pod needs comes before the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Node,
    ConfigMap,
    Secret,
    Service,
    EndpointSlice,
    Pod,
}

impl Kind {
    pub(crate) const ALL: [Kind; 6] =
        [Kind::Node, Kind::ConfigMap, Kind::Secret, Kind::Service, Kind::EndpointSlice, Kind::Pod];

    pub(crate) fn name(self) -> &'static str {
        self.resource().kind
    }

    fn resource(self) -> &'static Resource {
        match self {
            Kind::Node => &kinds::node::RESOURCE,
            Kind::ConfigMap => &kinds::configmap::RESOURCE,
            Kind::Secret => &kinds::secret::RESOURCE,
            Kind::Service => &kinds::service::RESOURCE,
            Kind::EndpointSlice => &kinds::endpointslice::RESOURCE,
            Kind::Pod => &kinds::pod::RESOURCE,
        }
    }

    /// Where the store keeps objects of the kind.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Kind::Node => "/core/nodes//",
            Kind::ConfigMap => "/core/configmaps/",
            Kind::Secret => "/core/secrets/",
            Kind::Service => "/core/services/",
            Kind::EndpointSlice => "/discovery.k8s.io/endpointslices/",
            Kind::Pod => "/core/pods/",
        }
    }

    /// Takes a key of the store apart: the kind and `namespace/name`.
    pub(crate) fn of_key(key: &str) -> Option<(Kind, &str)> {
        Kind::ALL.into_iter().find_map(|kind| Some((kind, key.strip_prefix(kind.prefix())?)))
    }
}

/// An object's kind and its `namespace/name`.
pub(crate) type ItemKey = (Kind, String);

/// An object at a version. Its encoding is made once, when the first node wants it.
pub(crate) struct Item {
    pub(crate) kind: Kind,
    pub(crate) key: String,
    pub(crate) version: u64,
    record: Record,
    body: OnceLock<Bytes>,
}

impl Item {
    pub(crate) fn new(kind: Kind, key: &str, record: Record) -> Item {
        Item { kind, key: key.to_owned(), version: record.revision().0, record, body: OnceLock::new() }
    }

    pub(crate) fn id(&self) -> ItemKey {
        (self.kind, self.key.clone())
    }

    /// The object as CBOR of its JSON, without managedFields.
    pub(crate) fn body(&self) -> &Bytes {
        self.body.get_or_init(|| {
            let mut json = Vec::new();
            self.record.write_json(&mut json, false);
            // The registry wrote this JSON itself, and CBOR has a form for every JSON value, so neither step fails on
            // anything but a bug; an empty body is then refused by the node.
            let value: Value = serde_json::from_slice(&json).unwrap_or_default();
            serde_cbor::to_vec(&value).unwrap_or_default().into()
        })
    }
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}@{}", self.kind.name(), self.key, self.version)
    }
}

/// What matters of a pod for deciding who is sent what.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PodShape {
    /// The node that it is bound to.
    pub(crate) node: Option<String>,
    /// The ConfigMaps and Secrets that it names.
    pub(crate) refs: BTreeSet<ItemKey>,
    /// Changes whenever anything but the status does. A node is not told of its own status reports.
    pub(crate) fingerprint: u64,
}

impl PodShape {
    pub(crate) fn of(record: &Record) -> PodShape {
        let Ok(mut pod) = record.value() else { return PodShape::default() };
        let refs = refs(&pod);
        let node = pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()).map(str::to_owned);
        if let Some(pod) = pod.as_object_mut() {
            pod.remove("status");
        }
        if let Some(metadata) = pod["metadata"].as_object_mut() {
            metadata.remove("managedFields");
            metadata.remove("resourceVersion");
        }
        let mut hasher = DefaultHasher::new();
        pod.to_string().hash(&mut hasher);
        PodShape { node, refs, fingerprint: hasher.finish() }
    }
}

/// The ConfigMaps and Secrets that a pod names and its node needs.
pub(crate) fn refs(pod: &Value) -> BTreeSet<ItemKey> {
    let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
    let mut refs = BTreeSet::new();
    let mut add = |kind: Kind, name: &Value| {
        if let Some(name) = name.as_str() {
            refs.insert((kind, format!("{namespace}/{name}")));
        }
    };
    let spec = &pod["spec"];
    for volume in list(&spec["volumes"]) {
        add(Kind::ConfigMap, &volume["configMap"]["name"]);
        add(Kind::Secret, &volume["secret"]["secretName"]);
        for source in list(&volume["projected"]["sources"]) {
            add(Kind::ConfigMap, &source["configMap"]["name"]);
            add(Kind::Secret, &source["secret"]["name"]);
        }
    }
    for container in list(&spec["containers"]).iter().chain(list(&spec["initContainers"])) {
        for from in list(&container["envFrom"]) {
            add(Kind::ConfigMap, &from["configMapRef"]["name"]);
            add(Kind::Secret, &from["secretRef"]["name"]);
        }
        for variable in list(&container["env"]) {
            add(Kind::ConfigMap, &variable["valueFrom"]["configMapKeyRef"]["name"]);
            add(Kind::Secret, &variable["valueFrom"]["secretKeyRef"]["name"]);
        }
    }
    refs
}

/// The range of pod addresses that a Node was given.
pub(crate) fn pod_cidr(record: &Record) -> Option<String> {
    record.value().ok()?["spec"]["podCIDR"].as_str().map(str::to_owned)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
