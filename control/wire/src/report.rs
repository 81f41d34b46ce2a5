//! The kinds of report that a node makes, and what their bodies are. Every body is CBOR of a JSON value.
//!
//! A report shows a level, not an edge: a later one of the same kind, key and UID replaces an earlier one, and
//! the agent makes all of them anew when a session begins.

/// The Node. Key: its name; no UID. Body: the Node with the labels, annotations and taints that the node
/// itself wants at registration, and its whole status. It creates the object if there is none.
pub const NODE: &str = "Node";
/// A pod's status. Key: `namespace/name`; UID: the pod's. Body: a Pod with its name and its whole status.
pub const POD: &str = "Pod";
/// Nothing of a deleted pod runs any more: the object may go. Key: `namespace/name`; UID: the pod's. Body: null.
/// It is made until the pod is removed from the node's desired state.
pub const POD_GONE: &str = "PodGone";
/// An event. Key: `namespace/name` of the Event; no UID. Body: the Event. It creates or replaces the object.
pub const EVENT: &str = "Event";
/// The node has left as it was told to: nothing of it runs and its identity is wiped. Key: its name; no UID. Body: null.
pub const LEFT: &str = "Left";
