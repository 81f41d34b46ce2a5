//! A registry over a store in memory, for every test.

#![allow(dead_code, reason = "each test uses what it needs")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use lichen_api::{Resource, Status, kinds};
use lichen_registry::{
    AllocationRanges, DeleteOptions, Identity, Patch, Registry, Sources, WriteOptions, Written,
};
use lichen_store::{HistoryBounds, RangeOptions, Store};
use serde_json::{Value, json};

pub(crate) const MAP: &Resource = &kinds::configmap::RESOURCE;
pub(crate) const POD: &Resource = &kinds::pod::RESOURCE;
pub(crate) const SERVICE: &Resource = &kinds::service::RESOURCE;
pub(crate) const NODE: &Resource = &kinds::node::RESOURCE;
pub(crate) const NAMESPACE: &Resource = &kinds::namespace::RESOURCE;

pub(crate) struct World {
    pub(crate) registry: Registry,
    pub(crate) me: Identity,
}

/// A registry whose time stands still and whose randomness is a counter, spread over all bits.
pub(crate) async fn world() -> World {
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let drawn = AtomicU64::new(0);
    let random = move || {
        let number = u128::from(drawn.fetch_add(1, Ordering::Relaxed) + 1);
        number.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)
    };
    let store = Store::memory(HistoryBounds::default());
    let registry = Registry::new(store, AllocationRanges::default(), Sources::new(move || now, random));
    registry.bootstrap(6443).await.unwrap();
    World { registry, me: Identity::component("system:controller:tester") }
}

/// A kind as the registry takes it: the table's own entry.
pub(crate) fn entry(resource: &Resource) -> &'static Resource {
    lichen_api::by_plural(resource.group, resource.version, resource.plural).unwrap()
}

pub(crate) fn home(resource: &Resource) -> Option<&'static str> {
    resource.namespaced.then_some("default")
}

impl World {
    pub(crate) async fn create(&self, resource: &Resource, object: Value) -> Result<Written, Status> {
        let resource = entry(resource);
        self.registry.create(&self.me, resource, home(resource), object, &WriteOptions::default()).await
    }

    pub(crate) async fn get(&self, resource: &Resource, name: &str) -> Result<Value, Status> {
        let resource = entry(resource);
        Ok(self.registry.get(resource, home(resource), name).await?.value().unwrap())
    }

    pub(crate) async fn merge(
        &self,
        resource: &Resource,
        name: &str,
        sub: Option<&str>,
        patch: Value,
    ) -> Result<Written, Status> {
        let (resource, patch) = (entry(resource), Patch::Merge(patch));
        let options = WriteOptions::default();
        self.registry.patch(&self.me, resource, home(resource), name, &patch, sub, &options).await
    }

    pub(crate) async fn delete(
        &self,
        resource: &Resource,
        name: &str,
        options: DeleteOptions,
    ) -> Result<bool, Status> {
        let resource = entry(resource);
        self.registry
            .delete(&self.me, resource, home(resource), name, &options)
            .await
            .map(|deleted| deleted.gone)
    }

    /// The keys of everything that is allocated.
    pub(crate) fn allocated(&self) -> BTreeSet<String> {
        let page = self.registry.store().range("/allocations/", &RangeOptions::default()).unwrap();
        page.items
            .iter()
            .map(|(key, _)| key.as_str().trim_start_matches("/allocations/").to_owned())
            .collect()
    }
}

pub(crate) fn map(name: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"k": "v"}})
}

pub(crate) fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

pub(crate) fn service(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    if spec.get("ports").is_none() {
        spec["ports"] = json!([{"port": 80}]);
    }
    json!({"metadata": {"name": name}, "spec": spec})
}
