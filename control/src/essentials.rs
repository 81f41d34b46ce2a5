//! What every cluster has, kept in being by the member that leads: namespaces, the way to the API server, and the Leases
//! that say who leads.
//!
//! Whoever deletes one of these objects gets it back. A Lease is written when it changes hands, not to renew it: who
//! leads is the store's to judge, and everything that a leader writes is fenced by its term. So a Lease's `renewTime` is
//! the time at which it was acquired.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::select_all;
use lichen_api::{Resource, Status, kinds, names};
use lichen_peers::{MEMBERS_PREFIX, MemberRecord};
use lichen_registry::{DeleteOptions, Identity, Patch, Registry, WriteOptions, key_of};
use lichen_store::{Watch, WatchError};
use serde_json::{Value, json};

/// Who keeps these objects.
const KEEPER: &str = "system:apiserver";
/// Where the Leases are.
const LEASE_NAMESPACE: &str = "kube-system";
/// What is held by the member that leads.
const LEASES: [&str; 3] = ["kube-controller-manager", "kube-scheduler", "lichen-gateway"];
/// How long Kubernetes' components hold a Lease.
const LEASE_SECONDS: u32 = 15;
/// Where the way to the API server is.
const API_NAMESPACE: &str = "default";
/// The Service that leads to it.
const API_SERVICE: &str = "kubernetes";
/// The pause before what could not be written is written again.
const RETRY: Duration = Duration::from_secs(1);

/// What the member that leads keeps in being.
pub(crate) struct Essentials {
    /// Fenced by the leader's term.
    pub(crate) registry: Registry,
    /// The port of the API server.
    pub(crate) api_port: u16,
    /// The member that leads.
    pub(crate) holder: String,
}

impl Essentials {
    /// Makes what is missing, and takes the Leases.
    pub(crate) async fn make(&self) -> Result<(), Status> {
        self.registry.bootstrap(self.api_port).await?;
        self.publish().await?;
        for name in LEASES {
            self.take(name).await?;
        }
        Ok(())
    }

    /// Makes anew what somebody deletes, and follows the members' addresses, until the store closes.
    pub(crate) async fn keep(self) {
        loop {
            let Ok(mut watches) = self.watches() else { return };
            loop {
                if let Err(status) = self.mend().await {
                    tracing::warn!(%status, "what every cluster has can't be kept in being yet");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
                let next = watches.iter_mut().map(|watch| Box::pin(watch.next()));
                match select_all(next).await.0 {
                    Ok(_) => {}
                    Err(WatchError::Lagged) => break,
                    Err(WatchError::Closed) => return,
                }
            }
        }
    }

    fn watches(&self) -> Result<Vec<Watch>, lichen_store::Compacted> {
        let store = self.registry.store();
        let from = store.revision();
        let service = key_of(&kinds::service::RESOURCE, Some(API_NAMESPACE), API_SERVICE);
        let slices = key_of(&kinds::endpointslice::RESOURCE, Some(API_NAMESPACE), API_SERVICE);
        let leases = key_of(&kinds::lease::RESOURCE, Some(LEASE_NAMESPACE), "");
        let namespaces = key_of(&kinds::namespace::RESOURCE, None, "");
        let prefixes =
            [service.as_str(), slices.as_str(), leases.as_str(), namespaces.as_str(), MEMBERS_PREFIX];
        prefixes.into_iter().map(|prefix| store.watch(prefix, from)).collect()
    }

    async fn mend(&self) -> Result<(), Status> {
        self.registry.bootstrap(self.api_port).await?;
        self.publish().await?;
        for name in LEASES {
            if self.registry.get_local(&kinds::lease::RESOURCE, Some(LEASE_NAMESPACE), name).is_err() {
                self.take(name).await?;
            }
        }
        Ok(())
    }

    /// Holds a Lease, unless this member does already.
    async fn take(&self, name: &str) -> Result<(), Status> {
        let (resource, namespace) = (&kinds::lease::RESOURCE, Some(LEASE_NAMESPACE));
        let (identity, options) = (Identity::component(KEEPER), WriteOptions::default());
        let now = names::rfc3339_micro(self.registry.now());
        let held = |transitions: i64| {
            json!({
                "holderIdentity": self.holder, "leaseDurationSeconds": LEASE_SECONDS,
                "acquireTime": now, "renewTime": now, "leaseTransitions": transitions,
            })
        };
        let Ok(record) = self.registry.get_local(resource, namespace, name) else {
            let object = json!({"metadata": {"name": name, "namespace": LEASE_NAMESPACE}, "spec": held(0)});
            return self.registry.create(&identity, resource, namespace, object, &options).await.map(drop);
        };
        let lease: Value = record.value().map_err(Status::internal)?;
        if lease["spec"]["holderIdentity"] == self.holder {
            return Ok(());
        }
        let transitions = lease["spec"]["leaseTransitions"].as_i64().unwrap_or(0) + 1;
        let patch = Patch::Merge(json!({
            "metadata": {"resourceVersion": record.revision().to_string()}, "spec": held(transitions),
        }));
        self.registry.patch(&identity, resource, namespace, name, &patch, None, &options).await.map(drop)
    }

    /// Lists the members' API addresses behind the `kubernetes` Service. A server that is alone has none to list: whether
    /// nodes reach the address that it listens on, it can't know.
    async fn publish(&self) -> Result<(), Status> {
        let (resource, namespace) = (&kinds::endpointslice::RESOURCE, Some(API_NAMESPACE));
        let (identity, options) = (Identity::component(KEEPER), WriteOptions::default());
        let wanted =
            slices(MemberRecord::all(self.registry.store()).into_iter().map(|(_, record)| record.api_url));
        for (name, slice) in &wanted {
            match self.registry.get_local(resource, namespace, name) {
                Ok(_) => {
                    let patch =
                        Patch::Merge(json!({"endpoints": slice["endpoints"], "ports": slice["ports"]}));
                    self.registry.patch(&identity, resource, namespace, name, &patch, None, &options).await?;
                }
                Err(_) => {
                    self.registry.create(&identity, resource, namespace, slice.clone(), &options).await?;
                }
            }
        }
        for name in self.published(resource)? {
            if !wanted.contains_key(&name) {
                let options = DeleteOptions::default();
                match self.registry.delete(&identity, resource, namespace, &name, &options).await {
                    Err(status) if status.code != 404 => return Err(status),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The slices that were made here, by their label.
    fn published(&self, resource: &Resource) -> Result<Vec<String>, Status> {
        let prefix = key_of(resource, Some(API_NAMESPACE), API_SERVICE);
        let page =
            self.registry.store().range(prefix.as_str(), &Default::default()).map_err(Status::internal)?;
        let own = page.items.iter().map(|(_, record)| record);
        let own = own.filter(|record| record.labels().get(SERVICE_LABEL) == Some(API_SERVICE));
        Ok(own.map(|record| lichen_registry::name_of(record).to_owned()).collect())
    }
}

/// The label by which a slice belongs to its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// The slices of the `kubernetes` Service: one for each port, since a slice has the same for all its addresses. What is no
/// address of the outside can't be in one.
fn slices(urls: impl Iterator<Item = String>) -> BTreeMap<String, Value> {
    let mut ports: BTreeMap<(u16, &str), BTreeSet<String>> = BTreeMap::new();
    for url in urls {
        let address = url.strip_prefix("https://").and_then(|address| address.parse::<SocketAddr>().ok());
        let Some(address) = address else { continue };
        if !address.ip().is_loopback() && !address.ip().is_unspecified() {
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            ports.entry((address.port(), family)).or_default().insert(address.ip().to_string());
        }
    }
    let slice = |(index, ((port, family), addresses)): (usize, ((u16, &str), BTreeSet<String>))| {
        let name = match index {
            0 => API_SERVICE.to_owned(),
            _ => format!("{API_SERVICE}-{}-{port}", family.to_lowercase()),
        };
        let endpoints: Vec<_> = addresses
            .iter()
            .map(|address| json!({"addresses": [address], "conditions": {"ready": true}}))
            .collect();
        let slice = json!({
            "metadata": {"name": name, "namespace": API_NAMESPACE, "labels": {SERVICE_LABEL: API_SERVICE}},
            "addressType": family, "endpoints": endpoints,
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        });
        (name, slice)
    };
    ports.into_iter().enumerate().map(slice).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_the_api() {
        let check = |urls: &[&str], expect: &[(&str, &[&str], u16)]| {
            let slices = slices(urls.iter().map(|url| (*url).to_owned()));
            let got: Vec<_> = slices
                .iter()
                .map(|(name, slice)| {
                    let endpoints = slice["endpoints"].as_array().unwrap().iter();
                    let addresses: Vec<_> =
                        endpoints.map(|one| one["addresses"][0].as_str().unwrap()).collect();
                    (name.as_str(), addresses, slice["ports"][0]["port"].as_u64().unwrap() as u16)
                })
                .collect();
            let expect: Vec<_> =
                expect.iter().map(|(name, all, port)| (*name, all.to_vec(), *port)).collect();
            assert_eq!(got, expect, "{urls:?}");
        };
        check(&[], &[]);
        check(&["https://127.0.0.1:6443", "https://host.example:6443", ""], &[]);
        check(
            &["https://192.168.0.2:6443", "https://192.168.0.1:6443", "https://192.168.0.1:6443"],
            &[("kubernetes", &["192.168.0.1", "192.168.0.2"], 6443)],
        );
        check(
            &["https://192.168.0.1:7443", "https://192.168.0.1:6443", "https://[fd00::1]:6443"],
            &[
                ("kubernetes", &["192.168.0.1"], 6443),
                ("kubernetes-ipv4-7443", &["192.168.0.1"], 7443),
                ("kubernetes-ipv6-6443", &["fd00::1"], 6443),
            ],
        );
    }
}
