//! Whether what is, is what is wanted: for when everything has been healed.

use std::collections::{BTreeMap, BTreeSet};

use lichen_state::Object;
use lichen_store::{Key, Record, Revision};
use serde_json::Value;

use crate::check::{Amounts, is_over};

/// What a node is found doing.
pub(crate) struct Found {
    pub(crate) name: String,
    /// The desired objects that it has.
    pub(crate) objects: Vec<Object>,
    /// The containers that run there, by id.
    pub(crate) running: BTreeSet<String>,
}

/// The objects that were read when the cluster was looked at last, so that only those are read that have changed since.
#[derive(Default)]
pub(crate) struct Known(BTreeMap<Key, (Revision, Value)>);

impl Known {
    fn update(&mut self, state: &[(Key, Record)]) -> Result<(), String> {
        let mut before = std::mem::take(&mut self.0);
        for (key, record) in state {
            // The gateway's and the registry's own keys hold no objects.
            if key.as_str().starts_with("/gateway/") || key.as_str().starts_with("/allocations/") {
                continue;
            }
            let known = before.remove(key).filter(|(revision, _)| *revision == record.revision());
            let known = match known {
                Some(known) => known,
                None => {
                    let value = record.value().map_err(|error| format!("{key} can't be read: {error}"))?;
                    (record.revision(), value)
                }
            };
            self.0.insert(key.clone(), known);
        }
        Ok(())
    }
}

/// The objects of the cluster, by kind.
struct Objects<'k>(BTreeMap<&'k str, Vec<&'k Value>>);

impl<'k> Objects<'k> {
    fn of(&self, kind: &str) -> impl Iterator<Item = &'k Value> + use<'k, '_> {
        self.0.get(kind).into_iter().flatten().copied()
    }

    fn all(&self) -> impl Iterator<Item = &'k Value> {
        self.0.values().flatten().copied()
    }
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

fn name(value: &Value) -> String {
    format!(
        "{} {}/{}",
        text(value, "/kind"),
        text(value, "/metadata/namespace"),
        text(value, "/metadata/name")
    )
}

fn owners(value: &Value) -> impl Iterator<Item = &str> {
    let references = value["metadata"]["ownerReferences"].as_array();
    references.into_iter().flatten().filter_map(|reference| reference["uid"].as_str())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn is_true(object: &Value, condition: &str) -> bool {
    list(&object["status"]["conditions"])
        .iter()
        .any(|one| one["type"] == condition && one["status"] == "True")
}

/// Says what is not as wanted.
pub(crate) fn settled(known: &mut Known, state: &[(Key, Record)], found: &[Found]) -> Result<(), String> {
    known.update(state)?;
    let mut objects = Objects(BTreeMap::new());
    for (_, value) in known.0.values() {
        objects.0.entry(text(value, "/kind")).or_default().push(value);
    }
    let found: BTreeMap<&str, &Found> = found.iter().map(|found| (found.name.as_str(), found)).collect();
    nothing_lingers(&objects)?;
    nodes(&objects, &found)?;
    pods(&objects, &found)?;
    for deployment in objects.of("Deployment") {
        rolled_out(&objects, deployment)?;
    }
    for service in objects.of("Service") {
        served(&objects, service)?;
    }
    found.values().try_for_each(|found| informed(&objects, found))
}

/// Nothing waits for its end, and nothing outlives its owners.
fn nothing_lingers(objects: &Objects<'_>) -> Result<(), String> {
    let uids: BTreeSet<&str> = objects.all().map(|object| text(object, "/metadata/uid")).collect();
    for object in objects.all() {
        if !object["metadata"]["deletionTimestamp"].is_null() {
            return Err(format!("{} is still being deleted", name(object)));
        }
        if let Some(owner) = owners(object).find(|owner| !uids.contains(owner)) {
            return Err(format!("{} is still there, its owner {owner} is not", name(object)));
        }
    }
    Ok(())
}

fn nodes(objects: &Objects<'_>, found: &BTreeMap<&str, &Found>) -> Result<(), String> {
    for name in found.keys() {
        let node = objects.of("Node").find(|node| text(node, "/metadata/name") == *name);
        let node = node.ok_or_else(|| format!("there is no Node {name}"))?;
        if !is_true(node, "Ready") || !list(&node["spec"]["taints"]).is_empty() {
            return Err(format!("{name} is not ready: {} {}", node["spec"], node["status"]["conditions"]));
        }
    }
    Ok(())
}

/// What each node's pods ask for, with what it has.
fn loads(objects: &Objects<'_>) -> Vec<(Amounts, Amounts)> {
    let mut used: BTreeMap<&str, Amounts> = BTreeMap::new();
    for pod in objects.of("Pod").filter(|pod| !is_over(pod)) {
        let sum = used.entry(text(pod, "/spec/nodeName")).or_default();
        *sum = sum.plus(Amounts::of_pod(pod));
    }
    let nodes = objects.of("Node");
    let used = |node| used.get(text(node, "/metadata/name")).copied().unwrap_or_default();
    nodes.map(|node| (used(node), Amounts::of(&node["status"]["allocatable"]))).collect()
}

fn fits_nowhere(loads: &[(Amounts, Amounts)], pod: &Value) -> bool {
    let asks = Amounts::of_pod(pod);
    loads.iter().all(|(used, has)| !used.plus(asks).fits(*has))
}

/// Each pod that can run does, once, and nothing else runs.
fn pods(objects: &Objects<'_>, found: &BTreeMap<&str, &Found>) -> Result<(), String> {
    let mut wanted: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let loads = loads(objects);
    for pod in objects.of("Pod") {
        let node = text(pod, "/spec/nodeName");
        if is_over(pod) {
            continue;
        }
        if node.is_empty() {
            if fits_nowhere(&loads, pod) {
                continue;
            }
            return Err(format!("{} has no node", name(pod)));
        }
        if !is_true(pod, "Ready") {
            return Err(format!(
                "{} on {node} is not ready: {}",
                name(pod),
                pod["status"]["containerStatuses"]
            ));
        }
        for status in list(&pod["status"]["containerStatuses"]) {
            let id = text(status, "/containerID").rsplit('/').next().unwrap_or_default();
            wanted.entry(node).or_default().insert(id.to_owned());
        }
    }
    for (node, found) in found {
        let wanted = wanted.remove(node).unwrap_or_default();
        if wanted != found.running {
            let missing: Vec<_> = wanted.difference(&found.running).collect();
            let foreign: Vec<_> = found.running.difference(&wanted).collect();
            return Err(format!("{node} does not run {missing:?} and runs {foreign:?}"));
        }
    }
    match wanted.first_key_value() {
        Some((node, _)) => Err(format!("pods are on {node}, which is no node")),
        None => Ok(()),
    }
}

fn rolled_out(objects: &Objects<'_>, deployment: &Value) -> Result<(), String> {
    let (spec, status) = (&deployment["spec"], &deployment["status"]);
    let wanted = spec["replicas"].as_i64().unwrap_or(1);
    let uid = text(deployment, "/metadata/uid");
    let sets = objects.of("ReplicaSet").filter(|set| owners(set).any(|owner| owner == uid));
    let sets: BTreeSet<&str> = sets.map(|set| text(set, "/metadata/uid")).collect();
    let mut pods = objects.of("Pod").filter(|pod| owners(pod).any(|owner| sets.contains(owner)));
    // Without room for a pod a rollout rightly waits, and says so once its deadline has passed.
    if pods.any(|pod| text(pod, "/spec/nodeName").is_empty()) {
        let told = list(&status["conditions"]).iter().find(|one| one["type"] == "Progressing");
        let reason = told.and_then(|told| told["reason"].as_str()).unwrap_or_default();
        return match reason {
            "ProgressDeadlineExceeded" | "NewReplicaSetAvailable" => Ok(()),
            _ => Err(format!("{} has not told yet that it has no room: {reason:?}", name(deployment))),
        };
    }
    let counts = ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"];
    let done = status["observedGeneration"] == deployment["metadata"]["generation"]
        && counts.iter().all(|count| status[count].as_i64().unwrap_or(0) == wanted);
    if done { Ok(()) } else { Err(format!("{} wants {wanted}: {status}", name(deployment))) }
}

/// The slices of a Service name the addresses of the ready pods that it selects.
fn served(objects: &Objects<'_>, service: &Value) -> Result<(), String> {
    let Some(selector) = service["spec"]["selector"].as_object() else { return Ok(()) };
    let selected = |pod: &&Value| {
        let labels = &pod["metadata"]["labels"];
        selector.iter().all(|(key, value)| labels.get(key) == Some(value)) && is_true(pod, "Ready")
    };
    let wanted: BTreeSet<&str> =
        objects.of("Pod").filter(selected).map(|pod| text(pod, "/status/podIP")).collect();
    let uid = text(service, "/metadata/uid");
    let slices = objects.of("EndpointSlice").filter(|slice| owners(slice).any(|owner| owner == uid));
    let endpoints = slices.flat_map(|slice| list(&slice["endpoints"]));
    let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true);
    let named: BTreeSet<&str> = ready.map(|endpoint| text(endpoint, "/addresses/0")).collect();
    if named == wanted {
        Ok(())
    } else {
        Err(format!("{} leads to {named:?}, not {wanted:?}", name(service)))
    }
}

/// A node has what it is to have, as it is now, and nothing else.
fn informed(objects: &Objects<'_>, found: &Found) -> Result<(), String> {
    let node = found.name.as_str();
    let mine: Vec<&Value> = objects.of("Pod").filter(|pod| text(pod, "/spec/nodeName") == node).collect();
    let names = |pod: &&Value, kind: &str, object: &Value| {
        list(&pod["spec"]["containers"]).iter().any(|container| {
            let map = list(&container["env"]).iter().map(|one| &one["valueFrom"]["configMapKeyRef"]["name"]);
            let secret = list(&container["envFrom"]).iter().map(|one| &one["secretRef"]["name"]);
            let mut named: Box<dyn Iterator<Item = &Value>> =
                if kind == "ConfigMap" { Box::new(map) } else { Box::new(secret) };
            named.any(|name| *name == object["metadata"]["name"])
        })
    };
    let mut wanted = BTreeMap::new();
    for (kind, known) in &objects.0 {
        for object in known {
            let mine = match *kind {
                "Node" => text(object, "/metadata/name") == node,
                "Pod" => text(object, "/spec/nodeName") == node,
                "ConfigMap" | "Secret" => mine.iter().any(|pod| names(pod, kind, object)),
                "Service" | "EndpointSlice" => true,
                _ => false,
            };
            if mine {
                wanted.insert(name(object), essence(object));
            }
        }
    }
    for object in &found.objects {
        let value: Value = serde_cbor::from_slice(&object.body).unwrap_or_default();
        match wanted.remove(&name(&value)) {
            None => return Err(format!("{node} still has {} {}", object.kind, object.key)),
            Some(wanted) if wanted != essence(&value) => {
                return Err(format!("{node} has an old {} {}", object.kind, object.key));
            }
            Some(_) => {}
        }
    }
    match wanted.pop_first() {
        Some((missing, _)) => Err(format!("{node} lacks {missing}")),
        None => Ok(()),
    }
}

/// What a node is told of changes in.
fn essence(object: &Value) -> Value {
    if object["kind"] == "Node" {
        return object["spec"]["podCIDR"].clone();
    }
    let mut essence = object.clone();
    if let Some(metadata) = essence["metadata"].as_object_mut() {
        metadata.remove("managedFields");
        metadata.remove("resourceVersion");
    }
    if object["kind"] == "Pod"
        && let Some(pod) = essence.as_object_mut()
    {
        pod.remove("status");
    }
    essence
}
