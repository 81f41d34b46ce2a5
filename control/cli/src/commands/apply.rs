//! `lichen apply`: makes the cluster's objects what a manifest says.
//!
//! As `kubectl apply` does on the client's side: what was applied last is kept in an annotation (kubectl's own, so
//! that the two can be mixed), and what the manifest has dropped since is removed. Source: Kubernetes, "Declarative
//! Management of Kubernetes Objects Using Configuration Files".

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use crate::client::{Client, path};
use crate::manifest::{self, Item};

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const STRATEGIC_MERGE: &str = "application/strategic-merge-patch+json";

/// Makes the cluster's objects what a manifest says.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A file of YAML or JSON documents; `-` reads standard input. May be given several times.
    #[arg(short, long = "filename", required = true, value_name = "FILE")]
    filename: Vec<PathBuf>,
    /// The namespace of objects that name none.
    #[arg(short, long)]
    namespace: Option<String>,
}

/// Runs the command.
pub(crate) async fn run(client: &Client, arguments: &Arguments) -> Result<()> {
    for file in &arguments.filename {
        for item in manifest::read(file)? {
            let outcome = apply(client, &item, arguments.namespace.as_deref()).await?;
            println!("{} {outcome}", item.title());
        }
    }
    Ok(())
}

/// Applies one object; says what became of it in kubectl's words.
pub(crate) async fn apply(client: &Client, item: &Item, namespace: Option<&str>) -> Result<&'static str> {
    let namespace = item.namespace.as_deref().or(namespace).unwrap_or(&client.namespace);
    let own = path(item.resource, Some(namespace), Some(&item.name));
    let wanted = annotated(&item.object)?;
    let manager = "fieldManager=lichen-apply&fieldValidation=Strict";
    let done = async {
        let Some(live) = client.find(&own).await? else {
            let collection = path(item.resource, Some(namespace), None);
            client.create(&format!("{collection}?{manager}"), &wanted).await?;
            return anyhow::Ok("created");
        };
        let patch = three_way(last_applied(&live), &wanted);
        let now = client.patch(&format!("{own}?{manager}"), STRATEGIC_MERGE, &patch).await?;
        let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
        Ok(if version(&now) == version(&live) { "unchanged" } else { "configured" })
    };
    done.await.with_context(|| format!("applying {}", item.title()))
}

fn annotated(object: &Value) -> Result<Value> {
    let text = serde_json::to_string(object)? + "\n";
    let mut wanted = object.clone();
    let metadata = wanted["metadata"].as_object_mut().context("metadata is not an object")?;
    let annotations = metadata.entry("annotations").or_insert_with(|| Value::Object(Map::new()));
    annotations
        .as_object_mut()
        .context("metadata.annotations is not an object")?
        .insert(LAST_APPLIED.into(), text.into());
    Ok(wanted)
}

fn last_applied(live: &Value) -> Value {
    live["metadata"]["annotations"][LAST_APPLIED]
        .as_str()
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default()
}

/// What is wanted, with a null for every key that was applied last time and is wanted no more.
fn three_way(last: Value, wanted: &Value) -> Value {
    let Value::Object(wanted) = wanted else { return wanted.clone() };
    let mut patch: Map<String, Value> = Map::new();
    let mut last = match last {
        Value::Object(last) => last,
        _ => Map::new(),
    };
    for (key, value) in wanted {
        patch.insert(key.clone(), three_way(last.remove(key).unwrap_or_default(), value));
    }
    patch.extend(last.into_iter().map(|(key, _)| (key, Value::Null)));
    Value::Object(patch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_the_manifest_dropped_is_removed() {
        let last = json!({"data": {"a": "1", "b": "2"}, "metadata": {"labels": {"x": "y"}}});
        let wanted = json!({"data": {"a": "3"}, "metadata": {"name": "n"}});
        let patch = three_way(last, &wanted);
        assert_eq!(patch, json!({"data": {"a": "3", "b": null}, "metadata": {"name": "n", "labels": null}}));
    }
}
