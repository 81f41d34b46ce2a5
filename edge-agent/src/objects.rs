//! The desired objects that this node was given, typed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lichen_api::k8s::api::core::v1::{ConfigMap, Node, Pod, Secret, Service};
use lichen_api::k8s::api::discovery::v1::EndpointSlice;
use lichen_net::Table;
use serde::de::DeserializeOwned;

/// Kind and key of an object.
pub(crate) type Id = (String, String);

/// The desired objects by `namespace/name`.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    pub(crate) config_maps: BTreeMap<String, Arc<ConfigMap>>,
    pub(crate) secrets: BTreeMap<String, Arc<Secret>>,
    pub(crate) services: BTreeMap<String, Service>,
    pub(crate) pods: BTreeMap<String, Arc<Pod>>,
    pub(crate) node: Option<Node>,
    pub(crate) table: Table,
    known: BTreeSet<Id>,
}

/// What an object that came or went calls for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Effect {
    /// A pod is new or changed.
    Pod(Arc<Pod>),
    /// A pod is to go.
    PodRemoved,
    /// Pods may find what they miss, or have to see something new.
    Config,
    /// Routes may be others.
    Services,
    /// The node's own object is new.
    Node,
    /// It is of no interest here.
    Nothing,
}

/// An object can't be read.
#[derive(Debug, thiserror::Error)]
#[error("the {kind} {key} cannot be read: {source}")]
pub(crate) struct DecodeError {
    kind: String,
    key: String,
    source: serde_cbor::Error,
}

impl Objects {
    /// Takes up an object, new or changed.
    pub(crate) fn put(&mut self, kind: &str, key: &str, body: &[u8]) -> Result<Effect, DecodeError> {
        let error = |source| DecodeError { kind: kind.to_owned(), key: key.to_owned(), source };
        fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, serde_cbor::Error> {
            serde_cbor::from_slice(body)
        }
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        let effect = match kind {
            "Pod" => {
                let pod: Arc<Pod> = Arc::new(decode(body).map_err(error)?);
                self.pods.insert(key.to_owned(), pod.clone());
                Effect::Pod(pod)
            }
            "ConfigMap" => {
                self.config_maps.insert(key.to_owned(), Arc::new(decode(body).map_err(error)?));
                Effect::Config
            }
            "Secret" => {
                self.secrets.insert(key.to_owned(), Arc::new(decode(body).map_err(error)?));
                Effect::Config
            }
            "Service" => {
                let service: Service = decode(body).map_err(error)?;
                self.table.set_service(namespace, name, &service);
                self.services.insert(key.to_owned(), service);
                Effect::Services
            }
            "EndpointSlice" => {
                let slice: EndpointSlice = decode(body).map_err(error)?;
                self.table.set_slice(namespace, name, &slice);
                Effect::Services
            }
            "Node" => {
                self.node = Some(decode(body).map_err(error)?);
                Effect::Node
            }
            _ => Effect::Nothing,
        };
        self.known.insert((kind.to_owned(), key.to_owned()));
        Ok(effect)
    }

    /// Forgets an object.
    pub(crate) fn remove(&mut self, kind: &str, key: &str) -> Effect {
        // A node keeps the range of addresses that its pods have, until it is given another.
        if kind == "Node" || !self.known.remove(&(kind.to_owned(), key.to_owned())) {
            return Effect::Nothing;
        }
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        match kind {
            "Pod" => {
                self.pods.remove(key);
                Effect::PodRemoved
            }
            "ConfigMap" => {
                self.config_maps.remove(key);
                Effect::Config
            }
            "Secret" => {
                self.secrets.remove(key);
                Effect::Config
            }
            "Service" => {
                self.services.remove(key);
                self.table.remove_service(namespace, name);
                Effect::Services
            }
            "EndpointSlice" => {
                self.table.remove_slice(namespace, name);
                Effect::Services
            }
            _ => Effect::Nothing,
        }
    }

    /// Everything that is known now; what a snapshot doesn't name of it no longer exists.
    pub(crate) fn known(&self) -> BTreeSet<Id> {
        self.known.clone()
    }

    /// The range of pod addresses that the node was given.
    pub(crate) fn pod_cidr(&self) -> Option<&str> {
        self.node.as_ref()?.spec.as_ref()?.pod_cidr.as_deref().filter(|cidr| !cidr.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn cbor(value: &Value) -> Vec<u8> {
        serde_cbor::to_vec(value).expect("encodes")
    }

    #[test]
    fn objects_come_and_go() {
        let mut objects = Objects::default();
        let secret = json!({ "metadata": { "name": "s" }, "data": { "k": "aGk=" } });
        assert_eq!(objects.put("Secret", "ns/s", &cbor(&secret)).expect("reads"), Effect::Config);
        let data = objects.secrets["ns/s"].data.clone().expect("data");
        assert_eq!(data["k"].0, b"hi");
        let pod = json!({
            "metadata": { "name": "p", "creationTimestamp": "2026-11-22T02:19:02Z" },
            "spec": { "containers": [{ "name": "c", "image": "i", "readinessProbe": {
                "httpGet": { "port": 8080 } }, "resources": { "limits": { "memory": "1Gi" } } }] },
        });
        assert!(matches!(objects.put("Pod", "ns/p", &cbor(&pod)).expect("reads"), Effect::Pod(_)));
        let service =
            json!({ "spec": { "clusterIP": "10.96.0.9", "ports": [{ "port": 80, "targetPort": "web" }] } });
        assert_eq!(objects.put("Service", "ns/w", &cbor(&service)).expect("reads"), Effect::Services);
        assert_eq!(objects.table.routes().len(), 1);
        let node = json!({ "metadata": { "name": "n" }, "spec": { "podCIDR": "10.64.3.0/24" } });
        assert_eq!(objects.put("Node", "n", &cbor(&node)).expect("reads"), Effect::Node);
        assert_eq!(objects.pod_cidr(), Some("10.64.3.0/24"));
        assert_eq!(objects.known().len(), 4);
        assert_eq!(objects.remove("Node", "n"), Effect::Nothing);
        assert_eq!(objects.pod_cidr(), Some("10.64.3.0/24"));
        assert_eq!(objects.remove("Service", "ns/w"), Effect::Services);
        assert_eq!(objects.table.routes().len(), 0);
        assert_eq!(objects.remove("Pod", "ns/p"), Effect::PodRemoved);
        assert_eq!(objects.remove("Pod", "ns/p"), Effect::Nothing);
    }

    #[test]
    fn what_cannot_be_read_changes_nothing() {
        let mut objects = Objects::default();
        for body in [b"".as_slice(), b"\xff", &cbor(&json!({ "spec": 3 })), &cbor(&json!([]))] {
            let error = objects.put("Pod", "ns/p", body).expect_err("is refused");
            assert!(error.to_string().starts_with("the Pod ns/p cannot be read: "), "{error}");
        }
        assert!(objects.known().is_empty());
        assert_eq!(objects.put("Gadget", "x", b"").expect("is ignored"), Effect::Nothing);
    }
}
