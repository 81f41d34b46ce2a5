//! Manifests: YAML or JSON documents, each an object of a kind that the table knows.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use lichen_api::Resource;
use serde::Deserialize;
use serde_json::Value;

/// An object to apply, and where it belongs.
pub(crate) struct Item {
    /// Its kind's entry in the table.
    pub(crate) resource: &'static Resource,
    /// `metadata.namespace`, if the manifest says.
    pub(crate) namespace: Option<String>,
    /// `metadata.name`.
    pub(crate) name: String,
    /// The object as the manifest has it.
    pub(crate) object: Value,
}

impl Item {
    /// `deployment.apps/hello`, as kubectl names it.
    pub(crate) fn title(&self) -> String {
        match self.resource.group {
            "" => format!("{}/{}", self.resource.singular, self.name),
            group => format!("{}.{group}/{}", self.resource.singular, self.name),
        }
    }
}

/// Reads a file, or standard input when the path is `-`.
pub(crate) fn read(path: &Path) -> Result<Vec<Item>> {
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        text
    } else {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
    };
    parse(&text).with_context(|| format!("{}", path.display()))
}

/// The objects of a text with one or more documents; a `List` counts as its items.
pub(crate) fn parse(text: &str) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    for (index, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let at = || format!("document {}", index + 1);
        let value = Value::deserialize(document).with_context(at)?;
        if value.is_null() {
            continue;
        }
        if value["kind"] == "List" {
            for item in value["items"].as_array().context("items is not a list").with_context(at)? {
                items.push(item_of(item.clone()).with_context(at)?);
            }
        } else {
            items.push(item_of(value).with_context(at)?);
        }
    }
    if items.is_empty() {
        bail!("no objects in it");
    }
    Ok(items)
}

fn item_of(object: Value) -> Result<Item> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let api_version = text(&object["apiVersion"]).context("apiVersion is missing")?;
    let kind = text(&object["kind"]).context("kind is missing")?;
    let name =
        text(&object["metadata"]["name"]).with_context(|| format!("{kind}: metadata.name is missing"))?;
    let resource = lichen_api::by_kind(&api_version, &kind).with_context(|| {
        format!("no kind {kind:?} in {api_version:?}; `lichen get --help` lists the kinds")
    })?;
    Ok(Item { resource, namespace: text(&object["metadata"]["namespace"]), name, object })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_lists_give_their_objects() {
        let text = "
apiVersion: v1
kind: Namespace
metadata: {name: a}
---
---
apiVersion: v1
kind: List
items:
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: d, namespace: a}}
";
        let items = parse(text).unwrap();
        let titles: Vec<_> = items.iter().map(Item::title).collect();
        assert_eq!(titles, ["namespace/a", "deployment.apps/d"]);
        assert_eq!(items[1].namespace.as_deref(), Some("a"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expect) in [
            ("kind: Pod", "apiVersion is missing"),
            ("apiVersion: v1", "kind is missing"),
            ("{apiVersion: v1, kind: Pod}", "metadata.name is missing"),
            ("{apiVersion: v2, kind: Pod, metadata: {name: a}}", "no kind \"Pod\" in \"v2\""),
            ("a: [", "document 1"),
            ("", "no objects"),
        ] {
            let error = format!("{:#}", parse(text).err().unwrap());
            assert!(error.contains(expect), "{text}: {error} should say {expect}");
        }
    }
}
