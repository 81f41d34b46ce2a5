//! Tells where the pods of each Service are: EndpointSlices, by the readiness of the pods.
//!
//! A slice belongs to the Service whose UID owns it. One that has the Service's label but another owner, or none, was left
//! by an earlier Service of that name, by orphaning say: it is deleted, not taken over, as in Kubernetes.
//!
//! Of nodes only the zone matters here: that pods of a node out of reach are not ready is written into those pods.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use lichen_api::k8s::api::core::v1::{ObjectReference, Pod, Service, ServicePort, ServiceSpec};
use lichen_api::k8s::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use lichen_api::k8s::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lichen_api::k8s::apimachinery::pkg::util::intstr::IntOrString;
use lichen_api::labels::Selector;
use lichen_api::view::{Change, Kind, Object, ObjectId, View, owners_of};

use crate::meta::{
    controller_ref, id_of, is_deleting, name, namespace, namespace_is_closed, regarding, uid, value, warning,
};
use crate::{Action, Interest, Outcome, Reconciler, Step, hash, pods};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
/// The label of what belongs to a Service without an address of its own.
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Most endpoints of one slice.
const SLICE_ENDPOINTS_MAX: usize = 100;

/// See the module.
pub(crate) struct EndpointSliceController;

impl Reconciler for EndpointSliceController {
    fn name(&self) -> &'static str {
        "endpointslice-controller"
    }

    fn interest(&self, view: &View, change: &Change) -> Vec<Interest> {
        let mut keys = services_concerned(view, change);
        if let Some(Object::EndpointSlice(slice)) = change.object() {
            let labels = slice.metadata.labels.as_ref();
            let service = labels.and_then(|labels| labels.get(SERVICE_NAME));
            keys.extend(service.map(|name| ObjectId::new(Kind::SERVICE, &change.id.key.namespace, name)));
        }
        keys.into_iter().map(Interest::from).collect()
    }

    fn reconcile(&self, view: &View, id: &ObjectId, _: Timestamp) -> Outcome {
        let mut outcome = Outcome::done();
        let Some(service) = view.services.by_key(&id.key) else { return outcome };
        let Some(spec) = &service.spec else { return outcome };
        if is_deleting(&service.metadata) || selector(service).is_none() {
            return outcome;
        }
        let mut groups = groups(view, service, spec);
        let (own, foreign): (Vec<_>, Vec<_>) =
            slices_of(view, service).partition(|slice| is_owned(slice, service));
        let (mut placed, mut spare) = place(&mut groups, own.into_iter());
        // A slice that came to hold nothing is spare, unless it is the one that says so.
        let is_placeholder = |group: &Group| group.ports.is_empty() && groups.len() == 1;
        placed.retain(|(slice, key, endpoints)| {
            let keep = !endpoints.is_empty() || groups.get(key).is_some_and(is_placeholder);
            if !keep {
                spare.push(slice);
            }
            keep
        });
        for (slice, key, endpoints) in &placed {
            if let Some(group) = groups.get(key) {
                update(service, slice, group.ports.clone(), endpoints.clone(), &mut outcome);
            }
        }
        let mut fresh = 0;
        for (key, group) in &mut groups {
            let mut missing = !placed.iter().any(|(_, placed_key, _)| placed_key == key);
            while missing || !group.endpoints.is_empty() {
                missing = false;
                let mut endpoints = Vec::new();
                fill(&mut endpoints, group);
                // A spare slice is filled anew before another is made.
                match spare.pop() {
                    Some(slice) => update(service, slice, group.ports.clone(), endpoints, &mut outcome),
                    None => {
                        outcome.steps.extend(create(view, service, group.ports.clone(), endpoints, fresh));
                        fresh += 1;
                    }
                }
            }
        }
        // A slice that an earlier Service of the name left behind is not taken over: its owner is gone, or let it go.
        spare.extend(foreign.into_iter().filter(|slice| !is_deleting(&slice.metadata)));
        for slice in spare {
            outcome.push(Action::Delete {
                id: id_of(Kind::ENDPOINT_SLICE, &slice.metadata),
                uid: uid(&slice.metadata).to_owned(),
                resource_version: slice.metadata.resource_version.clone(),
                propagation: None,
                grace_seconds: None,
            });
        }
        outcome
    }
}

/// The Services whose endpoints a change may move: by the Service itself, its pods, or their nodes.
pub(crate) fn services_concerned(view: &View, change: &Change) -> BTreeSet<ObjectId> {
    match change.object() {
        Some(Object::Service(_)) => [change.id.clone()].into(),
        Some(Object::Pod(_)) => change.states().flat_map(|pod| services_of(view, pod.metadata())).collect(),
        Some(Object::Node(_)) if node_matters(change) => {
            let pods = view.pods_on(&change.id.key.name);
            pods.flat_map(|pod| services_of(view, &pod.metadata)).collect()
        }
        _ => BTreeSet::new(),
    }
}

/// Endpoints that have the same ports, by the UID of their pods.
pub(crate) struct Group {
    pub(crate) ports: Vec<EndpointPort>,
    pub(crate) endpoints: BTreeMap<String, Endpoint>,
}

type Placed<'a> = (&'a Arc<EndpointSlice>, String, Vec<Endpoint>);

/// What a Service's slices should hold, by ports. Without any endpoint, one group without ports and endpoints.
pub(crate) fn groups(view: &View, service: &Service, spec: &ServiceSpec) -> BTreeMap<String, Group> {
    let mut groups = BTreeMap::new();
    for pod in members(view, service) {
        if let Some(endpoint) = endpoint(view, service, spec, pod) {
            let ports = ports(spec, pod);
            let group =
                groups.entry(key(&ports)).or_insert_with(|| Group { ports, endpoints: BTreeMap::new() });
            group.endpoints.insert(uid(&pod.metadata).to_owned(), endpoint);
        }
    }
    if groups.is_empty() {
        groups.insert(key(&[]), Group { ports: Vec::new(), endpoints: BTreeMap::new() });
    }
    groups
}

fn key(ports: &[EndpointPort]) -> String {
    value(&ports).to_string()
}

/// Leaves endpoints in the slices that hold them already, then fills these slices up. Takes what it places out of
/// the groups; returns what each slice holds, and the slices for which there is no group.
fn place<'a>(
    groups: &mut BTreeMap<String, Group>,
    slices: impl Iterator<Item = &'a Arc<EndpointSlice>>,
) -> (Vec<Placed<'a>>, Vec<&'a Arc<EndpointSlice>>) {
    let (mut placed, mut spare) = (Vec::new(), Vec::new());
    for slice in slices.filter(|slice| !is_deleting(&slice.metadata)) {
        let key = key(slice.ports.as_deref().unwrap_or_default());
        let Some(group) = groups.get_mut(&key) else {
            spare.push(slice);
            continue;
        };
        let held =
            slice.endpoints.iter().flatten().filter_map(|held| held.target_ref.as_ref()?.uid.as_deref());
        let kept = held.filter_map(|uid| group.endpoints.remove(uid)).take(SLICE_ENDPOINTS_MAX).collect();
        placed.push((slice, key, kept));
    }
    for (_, key, endpoints) in &mut placed {
        if let Some(group) = groups.get_mut(key) {
            fill(endpoints, group);
        }
    }
    (placed, spare)
}

fn fill(endpoints: &mut Vec<Endpoint>, group: &mut Group) {
    while endpoints.len() < SLICE_ENDPOINTS_MAX {
        let Some((_, endpoint)) = group.endpoints.pop_first() else { break };
        endpoints.push(endpoint);
    }
}

fn update(
    service: &Service,
    slice: &EndpointSlice,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
    outcome: &mut Outcome,
) {
    let labels = labels(service);
    let same = slice.metadata.labels.as_ref() == Some(&labels)
        && slice.ports.as_deref().unwrap_or_default() == ports
        && slice.endpoints.as_deref().unwrap_or_default() == endpoints;
    if same {
        return;
    }
    let mut object = slice.clone();
    object.metadata.labels = Some(labels);
    object.ports = Some(ports);
    object.endpoints = Some(endpoints);
    let id = id_of(Kind::ENDPOINT_SLICE, &slice.metadata);
    outcome.push(Action::Update { id, object: value(&object), subresource: None });
}

fn create(
    view: &View,
    service: &Service,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
    index: usize,
) -> Option<Step> {
    let space = namespace(&service.metadata);
    if namespace_is_closed(view, space) {
        return None;
    }
    let prefix = format!("{}-", name(&service.metadata));
    let mut free = (0_u64..)
        .map(|number| {
            format!("{prefix}{}", hash::suffix(&[uid(&service.metadata).as_bytes(), &number.to_be_bytes()]))
        })
        .filter(|name| view.endpoint_slices.get(space, name).is_none());
    let chosen = free.nth(index)?;
    let slice = EndpointSlice {
        address_type: "IPv4".to_owned(),
        endpoints: Some(endpoints),
        metadata: ObjectMeta {
            name: Some(chosen.clone()),
            generate_name: Some(prefix),
            namespace: Some(space.to_owned()),
            labels: Some(labels(service)),
            owner_references: Some(vec![controller_ref(Kind::SERVICE, &service.metadata)]),
            ..ObjectMeta::default()
        },
        ports: Some(ports),
    };
    let about = regarding(Kind::SERVICE, &service.metadata);
    let told = format!("Error updating Endpoint Slices for Service {space}/{}", name(&service.metadata));
    Some(Step {
        action: Action::Create {
            id: ObjectId::new(Kind::ENDPOINT_SLICE, space, chosen),
            object: value(&slice),
        },
        given: None,
        done: None,
        failed: Some(warning(&about, "FailedToUpdateEndpointSlices", told)),
    })
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), name(&service.metadata).to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    } else {
        labels.remove(HEADLESS);
    }
    labels
}

/// Whether a Service has no address of its own.
pub(crate) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

fn slices_of<'a>(view: &'a View, service: &'a Service) -> impl Iterator<Item = &'a Arc<EndpointSlice>> {
    let slices = view.endpoint_slices.in_namespace(namespace(&service.metadata));
    slices.map(|(_, slice)| slice).filter(|slice| {
        let labels = slice.metadata.labels.as_ref();
        let label = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str);
        label(SERVICE_NAME) == Some(name(&service.metadata)) && label(MANAGED_BY) == Some(MANAGER)
    })
}

fn is_owned(slice: &EndpointSlice, service: &Service) -> bool {
    owners_of(&slice.metadata)
        .iter()
        .any(|owner| owner.kind == Kind::SERVICE.kind && owner.uid == uid(&service.metadata))
}

/// What finds the pods of a Service; `None` where something else than a selector says where it leads.
pub(crate) fn selector(service: &Service) -> Option<Selector> {
    let spec = service.spec.as_ref()?;
    let external = spec.type_.as_deref() == Some("ExternalName");
    let labels = spec.selector.as_ref().filter(|labels| !labels.is_empty() && !external)?;
    Some(Selector::from_map(labels))
}

fn services_of(view: &View, pod: &ObjectMeta) -> Vec<ObjectId> {
    let services = view.services.in_namespace(namespace(pod));
    let matching = services.filter(|(_, service)| selector(service).is_some_and(|s| s.matches(&pod.labels)));
    matching.map(|(key, _)| ObjectId { kind: Kind::SERVICE, key: key.clone() }).collect()
}

fn members<'a>(view: &'a View, service: &'a Service) -> impl Iterator<Item = &'a Arc<Pod>> {
    let selector = selector(service);
    let pods = view.pods.in_namespace(namespace(&service.metadata)).map(|(_, pod)| pod);
    pods.filter(move |pod| selector.as_ref().is_some_and(|s| s.matches(&pod.metadata.labels)))
}

/// Whether a node's change moves its zone.
fn node_matters(change: &Change) -> bool {
    let told = |object: Option<&Object>| match object {
        Some(Object::Node(node)) => {
            Some(node.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE)).cloned())
        }
        _ => None,
    };
    told(change.old.as_ref()) != told(change.new.as_ref())
}

/// The endpoint of a pod, once it has an address and until it has ended.
fn endpoint(view: &View, service: &Service, spec: &ServiceSpec, pod: &Pod) -> Option<Endpoint> {
    let address = pod.status.as_ref()?.pod_ip.clone().filter(|ip| !ip.is_empty())?;
    if pods::is_terminal(pod) {
        return None;
    }
    let node_name = pods::node(pod);
    let node = node_name.and_then(|node| view.nodes.get("", node));
    let serving = pods::is_ready(pod);
    let terminating = is_deleting(&pod.metadata);
    let ready = spec.publish_not_ready_addresses == Some(true) || serving && !terminating;
    let pod_spec = pod.spec.as_ref();
    let subdomain = pod_spec.and_then(|spec| spec.subdomain.as_deref());
    let named = subdomain == Some(name(&service.metadata));
    Some(Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: pod_spec.and_then(|spec| spec.hostname.clone()).filter(|_| named),
        node_name: node_name.map(str::to_owned),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        zone: node.and_then(|node| node.metadata.labels.as_ref()?.get(ZONE).cloned()),
        ..Endpoint::default()
    })
}

/// The ports of a Service as this pod has them. A named port that the pod does not have is left out.
fn ports(spec: &ServiceSpec, pod: &Pod) -> Vec<EndpointPort> {
    let ports = spec.ports.iter().flatten().filter_map(|port| {
        let number = target(port, pod)?;
        Some(EndpointPort {
            app_protocol: port.app_protocol.clone(),
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(number),
            protocol: Some(protocol(port).to_owned()),
        })
    });
    ports.collect()
}

fn protocol(port: &ServicePort) -> &str {
    port.protocol.as_deref().unwrap_or("TCP")
}

fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(wanted)) => {
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            let mut named =
                containers.flat_map(|container| container.ports.iter().flatten()).filter(|known| {
                    known.name.as_deref() == Some(wanted)
                        && known.protocol.as_deref().unwrap_or("TCP") == protocol(port)
                });
            named.next().map(|known| known.container_port)
        }
    }
}
