//! Somebody with kubectl: makes, changes and deletes objects through any server, and remembers what was acknowledged.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lichen_api::{Resource, Status, kinds};
use lichen_registry::{
    DeleteOptions, Identity, ListOptions, MASTERS_GROUP, Patch, Propagation, Registry, WriteOptions, name_of,
};
use lichen_store::Record;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::check::Checks;
use crate::dice::Dice;
use crate::trace::{Trace, note};

/// The namespace of everything here.
pub(crate) const NAMESPACE: &str = "default";
/// How often a write is tried, and how long each try may take.
const TRIES_MAX: usize = 6;
const TRY_MAX: Duration = Duration::from_secs(20);
const TRY_PAUSE: Duration = Duration::from_secs(1);
/// Configuration that pods name. It is there before them and is never deleted.
const CONFIG_MAPS: u64 = 3;

/// The servers that can be asked, by number.
pub(crate) type Servers = Arc<Mutex<BTreeMap<u64, Registry>>>;

/// Somebody.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) servers: Servers,
    pub(crate) dice: Dice,
    pub(crate) trace: Trace,
    pub(crate) checks: Checks,
    /// The most replicas of a Deployment.
    pub(crate) replicas_max: u64,
    /// How many names there are for objects of a kind.
    pub(crate) names: u64,
}

type Written = Result<Record, Status>;

/// What a client was told of a write.
pub(crate) enum Answer {
    Acknowledged,
    /// With a code. The write may have happened all the same.
    Refused(u16),
}

impl Client {
    fn identity() -> Identity {
        Identity::new("admin", [MASTERS_GROUP])
    }

    /// Writes through any server until one has acknowledged it, or has refused it: the code says why.
    async fn write(&self, what: &str, write: impl Fn(Registry) -> BoxFuture<'static, Written>) -> Answer {
        for _ in 0..TRIES_MAX {
            let servers: Vec<Registry> =
                self.servers.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
            if let Some(registry) = self.dice.pick(&servers) {
                match timeout(TRY_MAX, write(registry.clone())).await {
                    Ok(Ok(record)) => {
                        note!(self.trace, "client: {what}: revision {}", record.revision());
                        self.checks.acknowledged(&record);
                        return Answer::Acknowledged;
                    }
                    Ok(Err(status)) if status.code == 503 => {}
                    Ok(Err(status)) => {
                        note!(self.trace, "client: {what}: {}", status.code);
                        return Answer::Refused(status.code);
                    }
                    Err(_) => note!(self.trace, "client: {what}: no answer"),
                }
            }
            tokio::time::sleep(TRY_PAUSE).await;
        }
        Answer::Refused(503)
    }

    pub(crate) async fn create(&self, resource: &'static Resource, namespace: &str, object: Value) -> Answer {
        let what = format!("create {} {}", resource.kind, object["metadata"]["name"]);
        self.write(&what, |registry| {
            let (namespace, object) = (namespace.to_owned(), object.clone());
            async move {
                let (identity, options) = (Self::identity(), WriteOptions::default());
                let written = registry.create(&identity, resource, Some(&namespace), object, &options);
                written.await.map(|written| written.record)
            }
            .boxed()
        })
        .await
    }

    pub(crate) async fn patch(&self, resource: &'static Resource, name: &str, patch: Value) -> Answer {
        self.write(&format!("patch {} {name}", resource.kind), |registry| {
            let (name, patch) = (name.to_owned(), Patch::Strategic(patch.clone()));
            async move {
                let (identity, options) = (Self::identity(), WriteOptions::default());
                let written =
                    registry.patch(&identity, resource, Some(NAMESPACE), &name, &patch, None, &options);
                written.await.map(|written| written.record)
            }
            .boxed()
        })
        .await
    }

    async fn delete(&self, resource: &'static Resource, name: &str) -> Answer {
        let propagation = match self.dice.between(0, 9) {
            0 => Some(Propagation::Orphan),
            1..=3 => Some(Propagation::Foreground),
            4..=6 => Some(Propagation::Background),
            _ => None,
        };
        let grace_seconds = self.dice.chance(300).then_some(0);
        self.write(&format!("delete {} {name}", resource.kind), |registry| {
            let name = name.to_owned();
            async move {
                let options = DeleteOptions { propagation, grace_seconds, ..DeleteOptions::default() };
                let identity = Self::identity();
                let deleted = registry.delete(&identity, resource, Some(NAMESPACE), &name, &options);
                deleted.await.map(|deleted| deleted.record)
            }
            .boxed()
        })
        .await
    }

    /// Makes what pods will name.
    pub(crate) async fn prepare(&self) {
        for number in 0..CONFIG_MAPS {
            let object = json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": format!("c{number}") },
                "data": { "value": "0" },
            });
            self.insist(&kinds::configmap::RESOURCE, NAMESPACE, object).await;
        }
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s" }, "stringData": { "value": "0" },
        });
        self.insist(&kinds::secret::RESOURCE, NAMESPACE, secret).await;
    }

    /// Creates what the rest relies on, however often it takes.
    pub(crate) async fn insist(&self, resource: &'static Resource, namespace: &str, object: Value) {
        // What is there already came of a write that was not acknowledged.
        while !matches!(
            self.create(resource, namespace, object.clone()).await,
            Answer::Acknowledged | Answer::Refused(409)
        ) {
            tokio::time::sleep(TRY_PAUSE).await;
        }
    }

    /// Does one thing that comes to mind.
    pub(crate) async fn act(&self) {
        let dice = &self.dice;
        let number = dice.between(0, self.names - 1);
        let (deployment, pod) = (format!("d{number}"), format!("p{number}"));
        match dice.between(0, 15) {
            0..=2 => {
                // The client asks again later, whatever the answer.
                let _ = self.deploy(&deployment).await;
            }
            3 | 4 => {
                let replicas = dice.between(0, self.replicas_max);
                self.patch(
                    &kinds::deployment::RESOURCE,
                    &deployment,
                    json!({ "spec": { "replicas": replicas } }),
                )
                .await;
            }
            5 | 6 => {
                let container = json!({ "name": "main", "image": self.image() });
                let template = json!({ "spec": { "template": { "spec": { "containers": [container] } } } });
                self.patch(&kinds::deployment::RESOURCE, &deployment, template).await;
            }
            7 => {
                // The client asks again later, whatever the answer.
                let _ = self.delete(&kinds::deployment::RESOURCE, &deployment).await;
            }
            8 | 14 | 15 => {
                self.delete(&kinds::deployment::RESOURCE, &deployment).await;
                self.deploy(&deployment).await;
            }
            9 => {
                // The client asks again later, whatever the answer.
                let _ = self.run(&pod).await;
            }
            10 => {
                self.delete(&kinds::pod::RESOURCE, &pod).await;
                self.run(&pod).await;
            }
            11 => self.delete_any_pod().await,
            12 => {
                let (value, map) = (dice.draw().to_string(), dice.between(0, CONFIG_MAPS - 1));
                let data = json!({ "data": { "value": value } });
                self.patch(&kinds::configmap::RESOURCE, &format!("c{map}"), data).await;
            }
            _ => {
                if let Answer::Refused(_) = self.serve(&deployment).await {
                    self.delete(&kinds::service::RESOURCE, &deployment).await;
                }
            }
        }
    }

    fn image(&self) -> String {
        format!("app:v{}", self.dice.between(1, 4))
    }

    fn pod_spec(&self) -> Value {
        let dice = &self.dice;
        let mut container = json!({
            "name": "main",
            "image": self.image(),
            "resources": { "requests": {
                "cpu": format!("{}m", dice.between(1, 8) * 100), "memory": format!("{}Mi", dice.between(16, 256)),
            }},
        });
        if dice.chance(500) {
            let map = json!({ "name": format!("c{}", dice.between(0, CONFIG_MAPS - 1)), "key": "value" });
            container["env"] = json!([{ "name": "VALUE", "valueFrom": { "configMapKeyRef": map } }]);
        }
        if dice.chance(200) {
            container["envFrom"] = json!([{ "secretRef": { "name": "s" } }]);
        }
        if dice.chance(300) {
            container["readinessProbe"] = json!({ "tcpSocket": { "port": 80 }, "periodSeconds": 5 });
        }
        json!({ "terminationGracePeriodSeconds": dice.between(0, 5), "containers": [container] })
    }

    async fn deploy(&self, name: &str) -> Answer {
        let strategy = if self.dice.chance(300) { "Recreate" } else { "RollingUpdate" };
        let object = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
            "spec": {
                "replicas": self.dice.between(0, self.replicas_max),
                "selector": { "matchLabels": { "app": name } },
                "strategy": { "type": strategy },
                "template": { "metadata": { "labels": { "app": name } }, "spec": self.pod_spec() },
            },
        });
        self.create(&kinds::deployment::RESOURCE, NAMESPACE, object).await
    }

    async fn run(&self, name: &str) -> Answer {
        let mut spec = self.pod_spec();
        spec["restartPolicy"] = json!(self.dice.pick(&["Always", "OnFailure", "Never"]));
        let object = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name }, "spec": spec });
        self.create(&kinds::pod::RESOURCE, NAMESPACE, object).await
    }

    async fn serve(&self, name: &str) -> Answer {
        let object = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
            "spec": { "selector": { "app": name }, "ports": [{ "port": 80, "targetPort": 8080 }] },
        });
        self.create(&kinds::service::RESOURCE, NAMESPACE, object).await
    }

    async fn delete_any_pod(&self) {
        let server = self.servers.lock().unwrap_or_else(PoisonError::into_inner).values().next().cloned();
        let Some(registry) = server else { return };
        let resource = &kinds::pod::RESOURCE;
        let listed =
            timeout(TRY_MAX, registry.list(resource, Some(NAMESPACE), &ListOptions::default())).await;
        let Ok(Ok(list)) = listed else { return };
        let names: Vec<String> = list.items.iter().map(|record| name_of(record).to_owned()).collect();
        if let Some(name) = self.dice.pick(&names) {
            self.delete(resource, name).await;
        }
    }
}
