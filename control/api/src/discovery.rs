//! Discovery documents, generated from the table of kinds: what a client may ask for.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::resource::{Resource, sendable};

/// What can be done with every kind that is stored; `deletecollection` is left out where a kind has none.
const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// One subresource: its verbs, and its kind where that is not the resource's own.
struct Subresource {
    verbs: &'static [&'static str],
    kind: Option<(&'static str, &'static str, &'static str)>,
}

fn subresource(name: &str) -> Subresource {
    match name {
        "binding" => Subresource { verbs: &["create"], kind: Some(("", "", "Binding")) },
        "eviction" => Subresource { verbs: &["create"], kind: Some(("policy", "v1", "Eviction")) },
        "finalize" => Subresource { verbs: &["update"], kind: None },
        "log" => Subresource { verbs: &["get"], kind: None },
        "scale" => {
            Subresource { verbs: &["get", "patch", "update"], kind: Some(("autoscaling", "v1", "Scale")) }
        }
        _ => Subresource { verbs: &["get", "patch", "update"], kind: None },
    }
}

fn verbs(resource: &Resource) -> Vec<&'static str> {
    if resource.is_review() {
        return vec!["create"];
    }
    VERBS.iter().copied().filter(|verb| resource.delete_collection || *verb != "deletecollection").collect()
}

fn of_group(group: &str) -> impl Iterator<Item = &'static Resource> {
    sendable().filter(move |resource| resource.group == group)
}

/// The groups beside core, in the order of the table.
fn groups() -> Vec<&'static str> {
    let mut groups: Vec<&str> = Vec::new();
    for resource in sendable() {
        if !resource.group.is_empty() && !groups.contains(&resource.group) {
            groups.push(resource.group);
        }
    }
    groups
}

/// All (group, version) pairs that are served.
pub fn group_versions() -> BTreeSet<(&'static str, &'static str)> {
    sendable().map(|resource| (resource.group, resource.version)).collect()
}

fn versions(group: &str) -> Vec<&'static str> {
    let mut versions: Vec<&str> = of_group(group).map(|resource| resource.version).collect();
    versions.dedup();
    versions
}

/// `GET /api`.
pub fn api_versions() -> Value {
    json!({"kind": "APIVersions", "versions": versions(""), "serverAddressByClientCIDRs": []})
}

/// `GET /apis`.
pub fn api_groups() -> Value {
    let groups: Vec<Value> = groups().into_iter().map(group_entry).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `GET /apis/<group>`; None if no such group is served.
pub fn api_group(group: &str) -> Option<Value> {
    if group.is_empty() || !groups().contains(&group) {
        return None;
    }
    let mut document = group_entry(group);
    document["kind"] = json!("APIGroup");
    document["apiVersion"] = json!("v1");
    Some(document)
}

fn group_entry(group: &str) -> Value {
    let versions: Vec<Value> = versions(group)
        .into_iter()
        .map(|version| json!({"groupVersion": format!("{group}/{version}"), "version": version}))
        .collect();
    let preferred = versions.first().cloned().unwrap_or_default();
    json!({"name": group, "versions": versions, "preferredVersion": preferred})
}

/// `GET /api/v1` (empty group) or `/apis/<group>/<version>`; None if not served.
pub fn api_resources(group: &str, version: &str) -> Option<Value> {
    let mut entries = Vec::new();
    for resource in of_group(group).filter(|resource| resource.version == version) {
        entries.push(resource_entry(resource));
        entries.extend(resource.subresources.iter().map(|name| subresource_entry(resource, name)));
    }
    let first = of_group(group).find(|resource| resource.version == version)?;
    let mut document =
        json!({"kind": "APIResourceList", "groupVersion": first.api_version(), "resources": entries});
    if !group.is_empty() {
        document["apiVersion"] = json!("v1");
    }
    Some(document)
}

fn with_names(entry: &mut Map<String, Value>, resource: &Resource) {
    for (key, names) in [("shortNames", resource.short_names), ("categories", resource.categories)] {
        if !names.is_empty() {
            entry.insert(key.to_owned(), json!(names));
        }
    }
}

fn resource_entry(resource: &Resource) -> Value {
    let mut entry = Map::new();
    entry.insert("name".to_owned(), json!(resource.plural));
    entry.insert("singularName".to_owned(), json!(resource.singular));
    entry.insert("namespaced".to_owned(), json!(resource.namespaced));
    entry.insert("kind".to_owned(), json!(resource.kind));
    entry.insert("verbs".to_owned(), json!(verbs(resource)));
    with_names(&mut entry, resource);
    Value::Object(entry)
}

fn subresource_entry(resource: &Resource, name: &str) -> Value {
    let known = subresource(name);
    let (group, version, kind) = known.kind.unwrap_or(("", "", resource.kind));
    let mut entry = json!({
        "name": format!("{}/{name}", resource.plural),
        "singularName": "",
        "namespaced": resource.namespaced,
        "kind": kind,
        "verbs": known.verbs,
    });
    if !version.is_empty() {
        entry["group"] = json!(group);
        entry["version"] = json!(version);
    }
    entry
}

/// Aggregated discovery v2 of `/api` (`core` = true) or `/apis`.
pub fn aggregated_v2(core: bool) -> Value {
    let groups = if core { vec![""] } else { groups() };
    let items: Vec<Value> = groups.into_iter().map(aggregated_group).collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_group(group: &'static str) -> Value {
    let versions: Vec<Value> = versions(group)
        .into_iter()
        .map(|version| {
            let resources: Vec<Value> = of_group(group)
                .filter(|resource| resource.version == version)
                .map(aggregated_resource)
                .collect();
            json!({"version": version, "resources": resources, "freshness": "Current"})
        })
        .collect();
    let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
    json!({"metadata": metadata, "versions": versions})
}

fn aggregated_resource(resource: &Resource) -> Value {
    let own = |kind: &str| json!({"group": "", "version": "", "kind": kind});
    let mut entry = Map::new();
    entry.insert("resource".to_owned(), json!(resource.plural));
    entry.insert("responseKind".to_owned(), own(resource.kind));
    let scope = if resource.namespaced { "Namespaced" } else { "Cluster" };
    entry.insert("scope".to_owned(), json!(scope));
    entry.insert("singularResource".to_owned(), json!(resource.singular));
    entry.insert("verbs".to_owned(), json!(verbs(resource)));
    with_names(&mut entry, resource);
    let subresources: Vec<Value> = resource
        .subresources
        .iter()
        .map(|name| {
            let known = subresource(name);
            let kind = match known.kind {
                Some((group, version, kind)) => json!({"group": group, "version": version, "kind": kind}),
                None => own(resource.kind),
            };
            json!({"subresource": name, "responseKind": kind, "verbs": known.verbs})
        })
        .collect();
    if !subresources.is_empty() {
        entry.insert("subresources".to_owned(), Value::Array(subresources));
    }
    Value::Object(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every document, cut down to what this server serves, is what the recorded server says of it.
    #[test]
    fn agrees_with_the_recorded_server() {
        let recorded: Value =
            serde_json::from_str(include_str!("../tests/fixtures/discovery/resources.json")).unwrap();
        let mut seen = 0;
        for (group, version) in group_versions() {
            let document = api_resources(group, version).unwrap();
            let path =
                if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
            for entry in document["resources"].as_array().unwrap() {
                let name = entry["name"].as_str().unwrap();
                let expect = &recorded[&path][name];
                assert_eq!(entry, expect, "{path} {name}");
                seen += 1;
            }
        }
        assert!(seen > 20);
    }

    #[test]
    fn aggregated_and_plain_agree() {
        for core in [true, false] {
            for group in aggregated_v2(core)["items"].as_array().unwrap() {
                let name = group["metadata"]["name"].as_str().unwrap_or_default();
                let plain = api_resources(name, "v1").unwrap();
                for resource in group["versions"][0]["resources"].as_array().unwrap() {
                    let entries = plain["resources"].as_array().unwrap();
                    let entry = entries.iter().find(|entry| entry["name"] == resource["resource"]).unwrap();
                    assert_eq!(entry["verbs"], resource["verbs"]);
                    assert_eq!(entry["kind"], resource["responseKind"]["kind"]);
                }
            }
        }
    }

    #[test]
    fn groups_are_found() {
        assert_eq!(api_group("apps").unwrap()["preferredVersion"]["groupVersion"], "apps/v1");
        assert_eq!(api_group("none.example"), None);
        assert_eq!(api_group(""), None);
        assert_eq!(api_resources("apps", "v9"), None);
        assert_eq!(api_groups()["groups"].as_array().unwrap().len(), 6);
    }
}
