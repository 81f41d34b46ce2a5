//! What Rust types cannot say about lists and maps: merge keys, sets, what is owned as a whole.
//!
//! Names and keys are those that Kubernetes publishes in its OpenAPI document as `x-kubernetes-*`. A list that is not named here is atomic
//! and replaced by a strategic merge patch; a map that is not named here merges key by key.

/// How a field's value merges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Identity of list items for managedFields and server-side apply.
    pub list: ListType,
    /// Whether an applier owns the map as a whole.
    pub atomic_map: bool,
    /// The key of a strategic merge patch; `Some("")` merges a list of texts as a set.
    pub patch_key: Option<&'static str>,
    /// Whether a strategic merge patch may name the keys to retain.
    pub retain_keys: bool,
}

/// Identity of list items.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    /// Owned and replaced as a whole.
    #[default]
    Atomic,
    /// Items are identified by their value.
    Set,
    /// Items are identified by these fields.
    Map(&'static [&'static str]),
}

const fn by(keys: &'static [&'static str]) -> Rules {
    Rules { list: ListType::Map(keys), atomic_map: false, patch_key: Some(keys[0]), retain_keys: false }
}

const fn retain(mut rules: Rules) -> Rules {
    rules.retain_keys = true;
    rules
}

/// Merged by server-side apply only; a strategic merge patch replaces the list.
const fn unpatched(keys: &'static [&'static str]) -> Rules {
    Rules { list: ListType::Map(keys), atomic_map: false, patch_key: None, retain_keys: false }
}

/// Merged by a strategic merge patch only.
const fn patched(key: &'static str) -> Rules {
    Rules { list: ListType::Atomic, atomic_map: false, patch_key: Some(key), retain_keys: false }
}

const SET: Rules = Rules { list: ListType::Set, atomic_map: false, patch_key: None, retain_keys: false };
const PATCHED_SET: Rules = Rules { patch_key: Some(""), ..SET };
const ATOMIC_MAP: Rules =
    Rules { list: ListType::Atomic, atomic_map: true, patch_key: None, retain_keys: false };
const RETAIN: Rules = Rules { list: ListType::Atomic, atomic_map: false, patch_key: None, retain_keys: true };

/// (struct, field, rules).
pub static RULES: &[(&str, &str, Rules)] = &[
    ("ObjectMeta", "finalizers", PATCHED_SET),
    ("ObjectMeta", "ownerReferences", by(&["uid"])),
    ("PodSpec", "volumes", retain(by(&["name"]))),
    ("PodSpec", "containers", by(&["name"])),
    ("PodSpec", "initContainers", by(&["name"])),
    ("PodSpec", "ephemeralContainers", by(&["name"])),
    ("PodSpec", "imagePullSecrets", by(&["name"])),
    ("PodSpec", "hostAliases", by(&["ip"])),
    ("PodSpec", "schedulingGates", by(&["name"])),
    ("PodSpec", "resourceClaims", retain(by(&["name"]))),
    ("PodSpec", "topologySpreadConstraints", by(&["topologyKey", "whenUnsatisfiable"])),
    ("PodSpec", "nodeSelector", ATOMIC_MAP),
    ("Container", "env", by(&["name"])),
    ("Container", "ports", by(&["containerPort", "protocol"])),
    ("Container", "volumeMounts", by(&["mountPath"])),
    ("Container", "volumeDevices", by(&["devicePath"])),
    ("EphemeralContainer", "env", by(&["name"])),
    ("EphemeralContainer", "ports", by(&["containerPort", "protocol"])),
    ("EphemeralContainer", "volumeMounts", by(&["mountPath"])),
    ("EphemeralContainer", "volumeDevices", by(&["devicePath"])),
    ("ResourceRequirements", "claims", unpatched(&["name"])),
    ("PodStatus", "conditions", by(&["type"])),
    ("PodStatus", "podIPs", by(&["ip"])),
    ("PodStatus", "hostIPs", patched("ip")),
    ("PodStatus", "resourceClaimStatuses", retain(by(&["name"]))),
    ("ContainerStatus", "volumeMounts", by(&["mountPath"])),
    ("ContainerStatus", "allocatedResourcesStatus", by(&["name"])),
    ("ServiceSpec", "ports", by(&["port", "protocol"])),
    ("ServiceSpec", "selector", ATOMIC_MAP),
    ("ServiceStatus", "conditions", by(&["type"])),
    ("ServiceAccount", "secrets", by(&["name"])),
    ("NodeSpec", "podCIDRs", PATCHED_SET),
    ("NodeStatus", "conditions", by(&["type"])),
    ("NodeStatus", "addresses", by(&["type"])),
    ("NamespaceStatus", "conditions", by(&["type"])),
    ("DeploymentSpec", "strategy", RETAIN),
    ("DeploymentStatus", "conditions", by(&["type"])),
    ("ReplicaSetStatus", "conditions", by(&["type"])),
    ("Endpoint", "addresses", SET),
];

/// Structs that an applier owns as a whole.
const ATOMIC: [&str; 15] = [
    "ConfigMapKeySelector",
    "FileKeySelector",
    "LabelSelector",
    "LocalObjectReference",
    "NodeSelector",
    "NodeSelectorTerm",
    "ObjectFieldSelector",
    "ObjectReference",
    "OwnerReference",
    "ResourceFieldSelector",
    "ScopedResourceSelectorRequirement",
    "SecretKeySelector",
    "SecretReference",
    "TopologySelectorTerm",
    "TypedLocalObjectReference",
];

/// The rules of a field.
pub fn rules(name: &str, field: &str) -> Rules {
    RULES
        .iter()
        .find(|(known, known_field, _)| *known == name && *known_field == field)
        .map(|(_, _, rules)| *rules)
        .unwrap_or_default()
}

/// Whether an applier owns this struct as a whole.
pub fn is_atomic(name: &str) -> bool {
    ATOMIC.contains(&name)
}

/// The value that a list key has when it is left out.
pub fn key_default(field: &str) -> Option<&'static str> {
    (field == "protocol").then_some("TCP")
}
