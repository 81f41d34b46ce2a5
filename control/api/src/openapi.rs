//! OpenAPI v3 documents, generated from the table of kinds and the traced schema.
//!
//! They hold what kubectl reads: the schemas with their merge keys (`apply`, `edit`, `explain`), and for each path the operations with
//! their kind and the query parameters that kubectl looks for before it sends them. `openapi/descriptions.txt` holds what
//! `kubectl explain` shows, in the words of Kubernetes' own types (Apache-2.0, out of the k8s-openapi crate): a line a
//! type, then a line a field.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use crate::discovery::group_versions;
use crate::merge_keys::{ListType, Rules};
use crate::resource::{Resource, sendable};
use crate::schema::{Field, Kind, Type, schema};

const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

/// The hash of each document: clients keep a document as long as its hash stays.
static HASHES: LazyLock<BTreeMap<String, u64>> = LazyLock::new(|| {
    let paths = group_versions().into_iter().map(|(group, version)| path(group, version));
    paths
        .map(|path| (path.clone(), document(&path).map_or(0, |document| fnv(&document.to_string()))))
        .collect()
});

/// What is said of a type's field, and under the empty name of the type itself.
static DESCRIPTIONS: LazyLock<BTreeMap<(&str, &str), String>> = LazyLock::new(|| {
    let mut own = "";
    let lines = include_str!("openapi/descriptions.txt").lines().filter_map(|line| {
        let (first, rest) = line.split_once('\t')?;
        let (field, text) = if first.is_empty() { rest.split_once('\t')? } else { ("", rest) };
        if !first.is_empty() {
            own = first;
        }
        Some(((own, field), text.replace("\\n", "\n")))
    });
    lines.collect()
});

/// What every object says of itself.
const OF_EVERY_KIND: [(&str, &str); 2] = [
    ("apiVersion", "The group and version of the object's kind, for example apps/v1."),
    ("kind", "The kind of the object, in CamelCase. It cannot be changed."),
];

fn describe(id: &str, field: &str, value: &mut Value) {
    let of_every_kind = || OF_EVERY_KIND.iter().find(|(name, _)| *name == field).map(|(_, text)| *text);
    if let Some(text) = DESCRIPTIONS.get(&(id, field)).map(String::as_str).or_else(of_every_kind) {
        value["description"] = json!(text);
    }
}

fn path(group: &str, version: &str) -> String {
    match group {
        "" => format!("api/{version}"),
        group => format!("apis/{group}/{version}"),
    }
}

/// FNV-1a: enough to notice a change.
fn fnv(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// `GET /openapi/v3`.
pub fn index() -> Value {
    let paths: Map<String, Value> = HASHES
        .iter()
        .map(|(path, hash)| {
            let url = format!("/openapi/v3/{path}?hash={hash:016X}");
            (path.clone(), json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths})
}

/// `GET /openapi/v3/<path>` where path is `api/v1` or `apis/<group>/<version>`; None if not served.
pub fn document(name: &str) -> Option<Value> {
    let (group, version) =
        group_versions().into_iter().find(|(group, version)| path(group, version) == name)?;
    let served = sendable().filter(|resource| resource.group == group && resource.version == version);
    let mut schemas = Map::new();
    let mut paths = Map::new();
    for resource in served {
        add_kind(resource, &mut schemas);
        add_paths(resource, name, &mut paths);
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "unversioned"},
        "paths": paths,
        "components": {"schemas": schemas},
    }))
}

fn gvk(resource: &Resource, kind: &str) -> Value {
    json!({"group": resource.group, "kind": kind, "version": resource.version})
}

fn reference(id: &str) -> Value {
    json!({"allOf": [{"$ref": format!("#/components/schemas/{id}")}]})
}

fn add_kind(resource: &Resource, schemas: &mut Map<String, Value>) {
    let Kind::Struct(id) = resource.strategy.kind() else { return };
    let mut reached = BTreeSet::new();
    reach(&id, &mut reached);
    for name in reached {
        if let Some(known) = schema().get(name) {
            schemas.entry(name).or_insert_with(|| type_schema(name, known));
        }
    }
    schemas[&id]["x-kubernetes-group-version-kind"] = json!([gvk(resource, resource.kind)]);
    if resource.is_review() {
        return;
    }
    let list = resource.list_kind();
    schemas.insert(
        format!("{id}List"),
        json!({
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "metadata": reference(LIST_META),
                "items": {"type": "array", "items": reference(&id)},
            },
            "x-kubernetes-group-version-kind": [gvk(resource, &list)],
        }),
    );
    schemas.entry(LIST_META).or_insert_with(|| {
        json!({
            "type": "object",
            "properties": {
                "continue": {"type": "string"},
                "remainingItemCount": {"type": "integer", "format": "int64"},
                "resourceVersion": {"type": "string"},
                "selfLink": {"type": "string"},
            },
        })
    });
}

/// All structs that a struct is made of, itself included.
fn reach<'s>(id: &'s str, reached: &mut BTreeSet<&'s str>) {
    if !reached.insert(id) {
        return;
    }
    for field in schema().get(id).into_iter().flat_map(|known: &'static Type| known.fields.values()) {
        let mut kind = &field.kind;
        while let Kind::List(inner) | Kind::Map(inner) = kind {
            kind = inner;
        }
        if let Kind::Struct(inner) = kind {
            reach(inner, reached);
        }
    }
}

fn type_schema(id: &str, known: &Type) -> Value {
    let described = |(name, field): (&&'static str, &Field)| {
        let mut value = field_schema(field);
        describe(id, name, &mut value);
        ((*name).to_owned(), value)
    };
    let properties: Map<String, Value> = known.fields.iter().map(described).collect();
    let mut value = json!({"type": "object", "properties": properties});
    describe(id, "", &mut value);
    if known.atomic {
        value["x-kubernetes-map-type"] = json!("atomic");
    }
    value
}

fn field_schema(field: &Field) -> Value {
    let mut value = kind_schema(&field.kind);
    extensions(&field.kind, field.rules, &mut value);
    value
}

fn kind_schema(kind: &Kind) -> Value {
    match kind {
        Kind::String => json!({"type": "string"}),
        Kind::Time | Kind::MicroTime => json!({"type": "string", "format": "date-time"}),
        Kind::Bytes => json!({"type": "string", "format": "byte"}),
        Kind::Int32 => json!({"type": "integer", "format": "int32"}),
        Kind::Int64 => json!({"type": "integer", "format": "int64"}),
        Kind::Double => json!({"type": "number", "format": "double"}),
        Kind::Boolean => json!({"type": "boolean"}),
        Kind::Quantity => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        Kind::IntOrString => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        Kind::Any => json!({"type": "object"}),
        Kind::List(item) => json!({"type": "array", "items": kind_schema(item)}),
        Kind::Map(value) => json!({"type": "object", "additionalProperties": kind_schema(value)}),
        Kind::Struct(id) => reference(id),
    }
}

fn extensions(kind: &Kind, rules: Rules, value: &mut Value) {
    if let Kind::List(_) = kind {
        let list_type = match rules.list {
            ListType::Atomic => "atomic",
            ListType::Set => "set",
            ListType::Map(keys) => {
                value["x-kubernetes-list-map-keys"] = json!(keys);
                "map"
            }
        };
        value["x-kubernetes-list-type"] = json!(list_type);
    }
    if rules.atomic_map {
        value["x-kubernetes-map-type"] = json!("atomic");
    }
    let strategy: Vec<&str> = [("merge", rules.patch_key.is_some()), ("retainKeys", rules.retain_keys)]
        .into_iter()
        .filter_map(|(name, given)| given.then_some(name))
        .collect();
    if !strategy.is_empty() {
        value["x-kubernetes-patch-strategy"] = json!(strategy.join(","));
    }
    if let Some(key) = rules.patch_key.filter(|key| !key.is_empty()) {
        value["x-kubernetes-patch-merge-key"] = json!(key);
    }
}

fn add_paths(resource: &Resource, prefix: &str, paths: &mut Map<String, Value>) {
    let scope = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("/{prefix}{scope}/{}", resource.plural);
    let post = operation(resource, "post", &["dryRun", "fieldManager", "fieldValidation"]);
    if resource.is_review() {
        paths.insert(collection, json!({"post": post}));
        return;
    }
    let selection = ["labelSelector", "fieldSelector", "limit", "continue", "watch"];
    let list = operation(resource, "list", &selection);
    paths.insert(collection.clone(), json!({"get": list, "post": post}));
    let mut one = vec![(String::new(), &["get", "put", "patch", "delete"][..])];
    if resource.has_subresource("status") {
        one.push(("/status".to_owned(), &["get", "put", "patch"][..]));
    }
    for (suffix, methods) in one {
        let mut item = Map::new();
        for method in methods {
            let parameters: &[&str] = match *method {
                "get" => &[],
                "patch" => &["dryRun", "fieldManager", "fieldValidation", "force"],
                "put" => &["dryRun", "fieldManager", "fieldValidation"],
                _ => &["dryRun", "gracePeriodSeconds", "propagationPolicy"],
            };
            item.insert((*method).to_owned(), operation(resource, method, parameters));
        }
        paths.insert(format!("{collection}/{{name}}{suffix}"), Value::Object(item));
    }
}

fn operation(resource: &Resource, action: &str, parameters: &[&str]) -> Value {
    let parameters: Vec<Value> = parameters
        .iter()
        .map(|name| {
            let kind = match *name {
                "limit" | "gracePeriodSeconds" => "integer",
                "watch" | "force" => "boolean",
                _ => "string",
            };
            json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}})
        })
        .collect();
    let id = match resource.strategy.kind() {
        Kind::Struct(id) if action == "list" => format!("{id}List"),
        Kind::Struct(id) => id,
        _ => String::new(),
    };
    json!({
        "parameters": parameters,
        "responses": {"200": {
            "description": "OK",
            "content": {"application/json": {"schema": {"$ref": format!("#/components/schemas/{id}")}}},
        }},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk(resource, resource.kind),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_resolves() {
        for (group, version) in group_versions() {
            let document = document(&path(group, version)).unwrap();
            let schemas = document["components"]["schemas"].as_object().unwrap();
            let text = document.to_string();
            for reference in text.split("\"#/components/schemas/").skip(1) {
                let id = reference.split('"').next().unwrap();
                assert!(schemas.contains_key(id), "{id} in {group}/{version}");
            }
        }
        assert_eq!(document("apis/none/v1"), None);
    }

    #[test]
    fn what_kubectl_reads() {
        let core = document("api/v1").unwrap();
        let schemas = &core["components"]["schemas"];
        let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
        assert!(
            containers["description"].as_str().unwrap().starts_with("List of containers"),
            "{containers}"
        );
        let volumes = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["volumes"];
        assert_eq!(volumes["x-kubernetes-patch-strategy"], "merge,retainKeys");
        assert_eq!(
            schemas["io.k8s.api.core.v1.Pod"]["x-kubernetes-group-version-kind"],
            json!([{"group": "", "kind": "Pod", "version": "v1"}])
        );
        let patch = &core["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        let names: Vec<&str> =
            patch["parameters"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
        assert!(core["paths"]["/api/v1/nodes"]["get"].is_object());
        let url = index()["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
        assert!(url.starts_with("/openapi/v3/apis/apps/v1?hash="), "{url}");
    }
}
