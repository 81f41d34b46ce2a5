//! Discovery documents, generated from the table of kinds.

use serde_json::{Value, json};

/// `GET /api`.
pub fn api_versions() -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
}

/// `GET /apis`.
pub fn api_groups() -> Value {
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []})
}

/// `GET /apis/<group>`; None if no such group is served.
pub fn api_group(group: &str) -> Option<Value> {
    let _ = group;
    None
}

/// `GET /api/v1` (empty group) or `/apis/<group>/<version>`; None if not served.
pub fn api_resources(group: &str, version: &str) -> Option<Value> {
    let _ = (group, version);
    None
}

/// Aggregated discovery v2 of `/api` (`core` = true) or `/apis`.
pub fn aggregated_v2(core: bool) -> Value {
    let _ = core;
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": []})
}
