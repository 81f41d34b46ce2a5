//! Tells where the pods of each Service are in the older form, for clients that know no EndpointSlices: one Endpoints
//! object of the Service's name.
//!
//! It holds what the slices hold, from the same [`groups`]. As in Kubernetes, a pod that ends is not told at all, and
//! what goes beyond [`ADDRESSES_MAX`] is cut off, ready pods last. Endpoints of a Service without a selector are
//! their maker's. Deliberately absent: the time of the change that led to an update, which nothing here reads.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use jiff::Timestamp;
use lichen_api::k8s::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service, ServiceSpec,
};
use lichen_api::k8s::api::discovery::v1::Endpoint;
use lichen_api::k8s::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lichen_api::view::{Change, Kind, Object, ObjectId, View};

use crate::endpoint_slice::{Group, HEADLESS, groups, is_headless, selector, services_concerned};
use crate::meta::{
    annotation, id_of, is_deleting, name, namespace, namespace_is_closed, regarding, uid, value, warning,
};
use crate::{Action, Interest, Outcome, Reconciler, Step};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
/// What Endpoints carry that do not tell everything.
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Most addresses of one Endpoints.
const ADDRESSES_MAX: usize = 1000;

/// See the module.
pub(crate) struct EndpointsController;

impl Reconciler for EndpointsController {
    fn name(&self) -> &'static str {
        "endpoint-controller"
    }

    fn interest(&self, view: &View, change: &Change) -> Vec<Interest> {
        if let Some(Object::Endpoints(_)) = change.object() {
            return vec![ObjectId { kind: Kind::SERVICE, key: change.id.key.clone() }.into()];
        }
        services_concerned(view, change).into_iter().map(Interest::from).collect()
    }

    fn reconcile(&self, view: &View, id: &ObjectId, _: Timestamp) -> Outcome {
        let mut outcome = Outcome::done();
        let existing = view.endpoints.by_key(&id.key).filter(|known| !is_deleting(&known.metadata));
        let Some(service) = view.services.by_key(&id.key) else {
            if let Some(left) = existing.filter(|known| is_ours(&known.metadata)) {
                outcome.push(Action::Delete {
                    id: id_of(Kind::ENDPOINTS, &left.metadata),
                    uid: uid(&left.metadata).to_owned(),
                    resource_version: left.metadata.resource_version.clone(),
                    propagation: None,
                    grace_seconds: None,
                });
            }
            return outcome;
        };
        let Some(spec) = service.spec.as_ref().filter(|_| selector(service).is_some()) else {
            return outcome;
        };
        if is_deleting(&service.metadata) {
            return outcome;
        }
        let (subsets, cut) = subsets(spec, groups(view, service, spec));
        let mut wanted = Endpoints {
            metadata: existing.map(|known| known.metadata.clone()).unwrap_or_default(),
            subsets: (!subsets.is_empty()).then_some(subsets),
        };
        mark(&mut wanted.metadata, service, cut);
        match existing {
            Some(known) if **known == wanted => {}
            Some(_) => outcome.push(Action::Update {
                id: ObjectId { kind: Kind::ENDPOINTS, key: id.key.clone() },
                object: value(&wanted),
                subresource: None,
            }),
            None if namespace_is_closed(view, namespace(&service.metadata)) => {}
            None => {
                let about = regarding(Kind::SERVICE, &service.metadata);
                let told =
                    format!("Failed to create endpoint for service {}/{}", id.key.namespace, id.key.name);
                outcome.steps.push(Step {
                    action: Action::Create {
                        id: ObjectId { kind: Kind::ENDPOINTS, key: id.key.clone() },
                        object: value(&wanted),
                    },
                    given: None,
                    done: None,
                    failed: Some(warning(&about, "FailedToCreateEndpoint", told)),
                });
            }
        }
        outcome
    }
}

fn is_ours(meta: &ObjectMeta) -> bool {
    meta.labels.as_ref().is_some_and(|labels| labels.get(MANAGED_BY).is_some_and(|by| by == MANAGER))
}

/// Gives the Endpoints the name and the labels that they have to have.
fn mark(meta: &mut ObjectMeta, service: &Service, cut: bool) {
    meta.name = Some(name(&service.metadata).to_owned());
    meta.namespace = Some(namespace(&service.metadata).to_owned());
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    meta.labels = Some(labels);
    if cut != annotation(meta, OVER_CAPACITY).is_some() {
        let mut annotations = meta.annotations.take().unwrap_or_default();
        match cut {
            true => annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned()),
            false => annotations.remove(OVER_CAPACITY),
        };
        meta.annotations = (!annotations.is_empty()).then_some(annotations);
    }
}

/// The subsets, one for each set of ports, and whether there are more addresses than they tell.
fn subsets(spec: &ServiceSpec, groups: BTreeMap<String, Group>) -> (Vec<EndpointSubset>, bool) {
    let portless = spec.ports.as_deref().unwrap_or_default().is_empty();
    let unready = spec.publish_not_ready_addresses == Some(true);
    let mut left = ADDRESSES_MAX;
    let mut cut = false;
    let mut told: Vec<EndpointSubset> = Vec::new();
    // Ready addresses of all groups come before the others of any, so that these are cut off first.
    let groups: Vec<Group> =
        groups.into_values().filter(|group| portless || !group.ports.is_empty()).collect();
    for ready in [true, false] {
        for (index, group) in groups.iter().enumerate() {
            let mut addresses: Vec<EndpointAddress> = group
                .endpoints
                .values()
                .filter(|endpoint| is_told(endpoint, unready) && is_ready(endpoint) == ready)
                .map(address)
                .collect();
            addresses.sort_by_key(|address| (address.ip.parse::<Ipv4Addr>().ok(), address.ip.clone()));
            cut |= addresses.len() > left;
            addresses.truncate(left);
            left -= addresses.len();
            if told.len() <= index {
                told.push(EndpointSubset { ports: Some(ports(group)), ..EndpointSubset::default() });
            }
            let addresses = (!addresses.is_empty()).then_some(addresses);
            match ready {
                true => told[index].addresses = addresses,
                false => told[index].not_ready_addresses = addresses,
            }
        }
    }
    for subset in &mut told {
        subset.ports = subset.ports.take().filter(|ports| !ports.is_empty());
    }
    told.retain(|subset| subset.addresses.is_some() || subset.not_ready_addresses.is_some());
    (told, cut)
}

fn is_told(endpoint: &Endpoint, unready: bool) -> bool {
    unready || endpoint.conditions.as_ref().is_none_or(|conditions| conditions.terminating != Some(true))
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().is_some_and(|conditions| conditions.ready == Some(true))
}

fn address(endpoint: &Endpoint) -> EndpointAddress {
    EndpointAddress {
        hostname: endpoint.hostname.clone(),
        ip: endpoint.addresses.first().cloned().unwrap_or_default(),
        node_name: endpoint.node_name.clone(),
        target_ref: endpoint.target_ref.clone(),
    }
}

fn ports(group: &Group) -> Vec<EndpointPort> {
    let told = group.ports.iter().map(|port| EndpointPort {
        app_protocol: port.app_protocol.clone(),
        name: port.name.clone().filter(|name| !name.is_empty()),
        port: port.port.unwrap_or_default(),
        protocol: port.protocol.clone(),
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use lichen_api::k8s::api::discovery::v1::EndpointConditions;

    use super::*;

    #[test]
    fn what_is_too_much_is_cut_off_unready_pods_first() {
        let group = |count: usize, ready: bool, port: i32| {
            let port =
                lichen_api::k8s::api::discovery::v1::EndpointPort { port: Some(port), ..Default::default() };
            let endpoint = |index: usize| Endpoint {
                addresses: vec![format!("10.64.{}.{}", index / 250, index % 250 + 1)],
                conditions: Some(EndpointConditions { ready: Some(ready), ..Default::default() }),
                ..Endpoint::default()
            };
            let endpoints = (0..count).map(|index| (format!("{index}"), endpoint(index))).collect();
            Group { ports: vec![port], endpoints }
        };
        let check = |unready: usize, ready: usize, expect: (Vec<(usize, usize)>, bool)| {
            let groups =
                [("a".to_owned(), group(unready, false, 1)), ("b".to_owned(), group(ready, true, 2))];
            let spec = ServiceSpec { ports: Some(vec![Default::default()]), ..ServiceSpec::default() };
            let (told, cut) = subsets(&spec, groups.into());
            let count = |list: &Option<Vec<_>>| list.as_ref().map_or(0, Vec::len);
            let counts: Vec<_> =
                told.iter().map(|one| (count(&one.addresses), count(&one.not_ready_addresses))).collect();
            assert_eq!((counts, cut), expect, "{unready} {ready}");
        };
        check(2, 3, (vec![(0, 2), (3, 0)], false));
        check(2, ADDRESSES_MAX, (vec![(ADDRESSES_MAX, 0)], true));
        check(2, ADDRESSES_MAX - 1, (vec![(0, 1), (ADDRESSES_MAX - 1, 0)], true));
        check(0, 0, (vec![], false));
    }
}
