//! What every cluster has from its first moment.

use lichen_api::{Resource, Status, kinds};
use serde_json::{Value, json};

use crate::{Identity, NODE_LEASE_NAMESPACE, Patch, Registry, WriteOptions};

/// Who makes what exists from the start.
const BOOTSTRAPPER: &str = "system:apiserver";
/// Namespaces that exist from the start.
const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", NODE_LEASE_NAMESPACE];

impl Registry {
    /// Makes what is missing of the namespaces and the `kubernetes` Service, which leads to the API server's port.
    pub async fn bootstrap(&self, api_port: u16) -> Result<(), Status> {
        for name in NAMESPACES {
            let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            self.ensure(&kinds::namespace::RESOURCE, None, object).await?;
        }
        let address = self.inner.ranges.api_service().to_string();
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": "kubernetes",
                "labels": {"component": "apiserver", "provider": "kubernetes"},
            },
            "spec": {
                "clusterIP": address,
                "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": api_port}],
            },
        });
        let resource = &kinds::service::RESOURCE;
        self.ensure(resource, Some("default"), service).await?;
        // The port may be another one than that of the run before.
        let identity = Identity::component(BOOTSTRAPPER);
        let port = Patch::Merge(json!({"spec": {"ports": [
            {"name": "https", "port": 443, "protocol": "TCP", "targetPort": api_port},
        ]}}));
        let options = WriteOptions::default();
        self.patch(&identity, resource, Some("default"), "kubernetes", &port, None, &options).await.map(drop)
    }

    async fn ensure(
        &self,
        resource: &'static Resource,
        namespace: Option<&str>,
        object: Value,
    ) -> Result<(), Status> {
        // What is there needs no entry in the log.
        if self
            .get_local(resource, namespace, object["metadata"]["name"].as_str().unwrap_or_default())
            .is_ok()
        {
            return Ok(());
        }
        let identity = Identity::component(BOOTSTRAPPER);
        match self.create(&identity, resource, namespace, object, &WriteOptions::default()).await {
            Ok(_) => Ok(()),
            Err(status) if status.reason == "AlreadyExists" => Ok(()),
            // The Service's own address, taken by the Service itself: it is there already.
            Err(status) if status.code == 422 && resource.kind == "Service" => {
                self.get(resource, namespace, "kubernetes").await.map(drop).map_err(|_| status)
            }
            Err(status) => Err(status),
        }
    }
}
