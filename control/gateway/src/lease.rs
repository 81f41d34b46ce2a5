//! A node's Lease: made once, and shown as renewed whenever the node is heard of.
//!
//! What is stored is only that there is one, as a kubelet would make it: it belongs to its Node, and goes with it. The
//! time of its renewal is answered from presence (see `lichen_registry::NodePresence`).

use std::time::Duration;

use lichen_api::{Status, kinds, names};
use lichen_registry::{Identity, NODE_LEASE_NAMESPACE, Patch, Registry, WriteOptions};
use serde_json::{Value, json};

/// Makes sure that the Node of that uid has its Lease.
pub(crate) async fn ensure(
    registry: &Registry,
    identity: &Identity,
    node: &str,
    uid: &str,
    lease: Duration,
) -> Result<(), Status> {
    let (resource, namespace) = (&kinds::lease::RESOURCE, Some(NODE_LEASE_NAMESPACE));
    let owners = json!([{ "apiVersion": "v1", "kind": "Node", "name": node, "uid": uid }]);
    let options = WriteOptions::default();
    match registry.get_local(resource, namespace, node) {
        Ok(record) => {
            let known: Value = record.value().map_err(Status::internal)?;
            if known["metadata"]["ownerReferences"] == owners {
                return Ok(());
            }
            // It is of an earlier Node of that name, and would go as that one did.
            let patch = Patch::Merge(json!({ "metadata": { "ownerReferences": owners } }));
            registry.patch(identity, resource, namespace, node, &patch, None, &options).await?;
        }
        Err(_) => {
            let object = json!({
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": { "name": node, "namespace": NODE_LEASE_NAMESPACE, "ownerReferences": owners },
                "spec": {
                    "holderIdentity": node,
                    "leaseDurationSeconds": lease.as_secs().max(1),
                    "renewTime": names::rfc3339_micro(registry.now()),
                },
            });
            match registry.create(identity, resource, namespace, object, &options).await {
                // The namespace goes, or is yet to come: the node's next report tries again.
                Err(status) if matches!(status.code, 403 | 404) => {
                    tracing::debug!(node, %status, "the node has no Lease yet");
                }
                other => drop(other?),
            }
        }
    }
    Ok(())
}
