//! Whether what is, is what is wanted: for when everything has been healed.

use std::collections::{BTreeMap, BTreeSet};

use lichen_state::Object;
use lichen_store::{Key, Record};
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

/// The objects of the cluster, by kind.
struct Objects(BTreeMap<String, Vec<Value>>);

impl Objects {
    fn of(&self, kind: &str) -> &[Value] {
        self.0.get(kind).map_or(&[], Vec::as_slice)
    }

    fn all(&self) -> impl Iterator<Item = &Value> {
        self.0.values().flatten()
    }

    fn pods_of<'a>(&'a self, owner: &'a str) -> impl Iterator<Item = &'a Value> {
        self.of("Pod").iter().filter(move |pod| owners(pod).any(|uid| uid == owner))
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
pub(crate) fn settled(state: &[(Key, Record)], found: &[Found]) -> Result<(), String> {
    let mut objects = Objects(BTreeMap::new());
    for (key, record) in state {
        // The gateway's and the registry's own keys hold no objects.
        if !key.as_str().starts_with("/gateway/") && !key.as_str().starts_with("/allocations/") {
            let value = record.value().map_err(|error| format!("{key} can't be read: {error}"))?;
            objects.0.entry(text(&value, "/kind").to_owned()).or_default().push(value);
        }
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
fn nothing_lingers(objects: &Objects) -> Result<(), String> {
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

fn nodes(objects: &Objects, found: &BTreeMap<&str, &Found>) -> Result<(), String> {
    for name in found.keys() {
        let node = objects.of("Node").iter().find(|node| text(node, "/metadata/name") == *name);
        let node = node.ok_or_else(|| format!("there is no Node {name}"))?;
        if !is_true(node, "Ready") || !list(&node["spec"]["taints"]).is_empty() {
            return Err(format!("{name} is not ready: {} {}", node["spec"], node["status"]["conditions"]));
        }
    }
    Ok(())
}

fn fits_nowhere(objects: &Objects, pod: &Value) -> bool {
    objects.of("Node").iter().all(|node| {
        let on_it = |pod: &&Value| pod["spec"]["nodeName"] == node["metadata"]["name"] && !is_over(pod);
        let used = objects.of("Pod").iter().filter(on_it).map(Amounts::of_pod);
        let used = used.fold(Amounts::of_pod(pod), Amounts::plus);
        !used.fits(Amounts::of(&node["status"]["allocatable"]))
    })
}

/// Each pod that can run does, once, and nothing else runs.
fn pods(objects: &Objects, found: &BTreeMap<&str, &Found>) -> Result<(), String> {
    let mut wanted: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for pod in objects.of("Pod") {
        let node = text(pod, "/spec/nodeName");
        if is_over(pod) {
            continue;
        }
        if node.is_empty() {
            if fits_nowhere(objects, pod) {
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

fn rolled_out(objects: &Objects, deployment: &Value) -> Result<(), String> {
    let (spec, status) = (&deployment["spec"], &deployment["status"]);
    let wanted = spec["replicas"].as_i64().unwrap_or(1);
    let uid = text(deployment, "/metadata/uid");
    let sets = objects.of("ReplicaSet").iter().filter(|set| owners(set).any(|owner| owner == uid));
    let mut pods = sets.flat_map(|set| objects.pods_of(text(set, "/metadata/uid")));
    // Without room for a pod a rollout rightly waits.
    if pods.any(|pod| text(pod, "/spec/nodeName").is_empty()) {
        return Ok(());
    }
    let counts = ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"];
    let done = status["observedGeneration"] == deployment["metadata"]["generation"]
        && counts.iter().all(|count| status[count].as_i64().unwrap_or(0) == wanted);
    if done { Ok(()) } else { Err(format!("{} wants {wanted}: {status}", name(deployment))) }
}

/// The slices of a Service name the addresses of the ready pods that it selects.
fn served(objects: &Objects, service: &Value) -> Result<(), String> {
    let Some(selector) = service["spec"]["selector"].as_object() else { return Ok(()) };
    let selected = |pod: &&Value| {
        let labels = &pod["metadata"]["labels"];
        selector.iter().all(|(key, value)| labels.get(key) == Some(value)) && is_true(pod, "Ready")
    };
    let wanted: BTreeSet<&str> =
        objects.of("Pod").iter().filter(selected).map(|pod| text(pod, "/status/podIP")).collect();
    let uid = text(service, "/metadata/uid");
    let slices = objects.of("EndpointSlice").iter().filter(|slice| owners(slice).any(|owner| owner == uid));
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
fn informed(objects: &Objects, found: &Found) -> Result<(), String> {
    let node = found.name.as_str();
    let mine: Vec<&Value> =
        objects.of("Pod").iter().filter(|pod| text(pod, "/spec/nodeName") == node).collect();
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
            let mine = match kind.as_str() {
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
