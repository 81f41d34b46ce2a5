//! What a checkpoint holds, and how it changes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A set of keys whose values mean nothing here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Space {
    /// By UID: where a pod is in its life.
    Pod,
    /// By UID: the pod's address.
    Address,
    /// By UID: a pod whose end the control plane has yet to hear of.
    Gone,
    /// By image reference: which artifact on disk it led to.
    Image,
    /// Facts about the node that the control plane gave it.
    Node,
}

impl Space {
    /// All of them.
    pub(crate) const ALL: [Self; 5] = [Self::Pod, Self::Address, Self::Gone, Self::Image, Self::Node];
}

/// Who the node is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The name it joined under.
    pub node_name: String,
    /// Its certificate (PEM).
    pub certificate_pem: String,
    /// The certificate's private key (PEM).
    pub key_pem: String,
    /// The cluster's CA (PEM).
    pub ca_pem: String,
    /// The key of its sessions.
    pub session_key: [u8; 32],
    /// The serial number of the last renewal that was asked for.
    #[serde(default)]
    pub renewals: u64,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("node_name", &self.node_name).finish_non_exhaustive()
    }
}

/// How the node reaches its broker.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broker {
    /// `host:port`.
    pub address: String,
    /// The authority of the broker's certificate (PEM), if it is not the cluster's.
    pub ca_pem: Option<String>,
    /// The certificate that the node shows the broker (PEM) and its private key, if it is not the node's own.
    pub certificate_pem: Option<(String, String)>,
    /// User and password, for a broker that wants them.
    pub login: Option<(String, String)>,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").field("address", &self.address).finish_non_exhaustive()
    }
}

/// How far the node has its desired state, and from whom.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncState {
    /// The highest owner epoch seen.
    pub epoch: u64,
    /// The incarnation that the version counts in, and the version, if the desired state is complete.
    pub synced: Option<(u64, u64)>,
}

/// A desired object.
#[derive(Clone, PartialEq, Eq)]
pub struct Object {
    /// Its kind.
    pub kind: String,
    /// Its key, `namespace/name`.
    pub key: String,
    /// The version that it last changed at.
    pub version: u64,
    /// CBOR of its JSON value.
    pub body: Vec<u8>,
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} at {}", self.kind, self.key, self.version)
    }
}

/// Everything that a checkpoint holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Who the node is, once it joined.
    pub identity: Option<Identity>,
    /// How the node reached its broker last.
    pub broker: Option<Broker>,
    /// How far it has its desired state.
    pub sync: SyncState,
    /// The desired objects.
    pub objects: Vec<Object>,
    /// All spaces that hold something.
    pub spaces: BTreeMap<Space, BTreeMap<String, Vec<u8>>>,
}

impl Contents {
    /// A space's entries.
    pub fn space(&self, space: Space) -> impl Iterator<Item = (&str, &[u8])> {
        self.spaces.get(&space).into_iter().flatten().map(|(key, value)| (key.as_str(), value.as_slice()))
    }
}

/// A change of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The node's identity.
    Identity(Identity),
    /// How the node reaches its broker.
    Broker(Broker),
    /// How far the desired state has arrived.
    Sync(SyncState),
    /// A desired object, new or changed.
    PutObject(Object),
    /// A desired object that is no more.
    RemoveObject {
        /// Its kind.
        kind: String,
        /// Its key.
        key: String,
    },
    /// An entry, new or changed.
    Put(Space, String, Vec<u8>),
    /// An entry that is no more.
    Remove(Space, String),
}
