//! What is remembered of a pod.

use std::collections::BTreeMap;

use jiff::Timestamp;
use lichen_api::k8s::api::core::v1::{Container, Pod};
use serde::{Deserialize, Serialize};

use crate::container::ContainerState;

/// What the machine must remember across restarts of the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodState {
    /// The pod's UID.
    pub uid: String,
    /// When the node first saw it.
    pub start_time: Timestamp,
    /// Whether its end has begun.
    pub life: Life,
    /// Whether its address and volumes stand.
    pub sandbox: Sandbox,
    /// Its cluster address, once it had one.
    pub pod_ip: Option<String>,
    /// The node's cluster address.
    pub host_ip: Option<String>,
    /// Its init containers, in order.
    pub init: Vec<ContainerState>,
    /// Its containers, in order.
    pub containers: Vec<ContainerState>,
    /// Since when each condition is as it is.
    pub transitions: BTreeMap<String, (bool, Timestamp)>,
}

/// Whether a pod's end has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Life {
    /// It is wanted and not finished.
    Active,
    /// It succeeded or failed; nothing runs any more.
    Finished,
    /// It is to go.
    Terminating(Terminating),
    /// It is gone.
    Gone,
}

/// The end of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminating {
    /// When its grace ends.
    pub deadline: Timestamp,
    /// Whether the control plane waits to hear that it is gone.
    pub confirm: bool,
}

/// Whether a pod's address and volumes stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sandbox {
    /// They were not asked for yet.
    Needed,
    /// They are being made.
    SettingUp,
    /// They can't be made now.
    Failed {
        /// Why.
        message: String,
        /// When they are tried again.
        until: Timestamp,
    },
    /// They stand.
    Ready,
    /// The pod is finished and its address is free.
    Released,
}

impl PodState {
    /// Of a pod that this node sees for the first time.
    pub(crate) fn new(pod: &Pod, now: Timestamp) -> Self {
        let spec = pod.spec.as_ref();
        let names = |list: Option<&Vec<Container>>| {
            list.into_iter().flatten().map(|c| ContainerState::new(&c.name)).collect()
        };
        Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            start_time: now,
            life: Life::Active,
            sandbox: Sandbox::Needed,
            pod_ip: None,
            host_ip: None,
            init: names(spec.and_then(|s| s.init_containers.as_ref())),
            containers: names(spec.map(|s| &s.containers)),
            transitions: BTreeMap::new(),
        }
    }
}
