//! `lichen apply`: makes the cluster's objects what a manifest says, by server-side apply.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::client::{Client, path};
use crate::manifest::{self, Item};

const APPLY_PATCH: &str = "application/apply-patch+yaml";
const OPTIONS: &str = "fieldManager=lichen&fieldValidation=Strict";

/// Makes the cluster's objects what a manifest says.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A file of YAML or JSON documents; `-` reads standard input. May be given several times.
    #[arg(short, long = "filename", required = true, value_name = "FILE")]
    filename: Vec<PathBuf>,
    /// The namespace of objects that name none.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Take over fields that somebody else manages, instead of failing with a conflict.
    #[arg(long)]
    force_conflicts: bool,
}

/// Runs the command.
pub(crate) async fn run(client: &Client, arguments: &Arguments) -> Result<()> {
    for file in &arguments.filename {
        for item in manifest::read(file)? {
            let outcome =
                apply(client, &item, arguments.namespace.as_deref(), arguments.force_conflicts).await?;
            println!("{} {outcome}", item.title());
        }
    }
    Ok(())
}

/// Applies one object; says what became of it in kubectl's words.
pub(crate) async fn apply(
    client: &Client,
    item: &Item,
    namespace: Option<&str>,
    force: bool,
) -> Result<&'static str> {
    let namespace = item.namespace.as_deref().or(namespace).unwrap_or(&client.namespace);
    let own = path(item.resource, Some(namespace), Some(&item.name));
    let done = async {
        let before = client.find(&own).await?;
        let after =
            client.patch(&format!("{own}?{OPTIONS}&force={force}"), APPLY_PATCH, &item.object).await?;
        let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
        anyhow::Ok(match before {
            None => "created",
            Some(before) if version(&before) == version(&after) => "unchanged",
            Some(_) => "configured",
        })
    };
    done.await.with_context(|| format!("applying {}", item.title()))
}
