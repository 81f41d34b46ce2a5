//! `lichen delete`: removes objects, and waits until they are gone.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::get;
use crate::client::{Client, path};
use crate::manifest;

/// Removes objects.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The kind (pods, deployment, ...), unless a file is given.
    #[arg(required_unless_present = "filename")]
    kind: Option<String>,
    /// The objects' names.
    #[arg(requires = "kind")]
    names: Vec<String>,
    /// Remove the objects of this manifest instead.
    #[arg(short, long, conflicts_with = "kind", value_name = "FILE")]
    filename: Option<PathBuf>,
    /// The namespace to look in.
    #[arg(short, long)]
    namespace: Option<String>,
}

/// Runs the command.
pub(crate) async fn run(client: &Client, arguments: &Arguments) -> Result<()> {
    let namespace = arguments.namespace.as_deref().unwrap_or(&client.namespace);
    let mut targets = Vec::new();
    if let Some(file) = &arguments.filename {
        for item in manifest::read(file)?.into_iter().rev() {
            let namespace = item.namespace.as_deref().unwrap_or(namespace);
            targets.push((item.title(), path(item.resource, Some(namespace), Some(&item.name))));
        }
    } else if let Some(kind) = &arguments.kind {
        let resource = get::resource(kind)?;
        if arguments.names.is_empty() {
            bail!("name the {} to delete", resource.plural);
        }
        for name in &arguments.names {
            targets.push((
                format!("{} \"{name}\"", resource.singular),
                path(resource, Some(namespace), Some(name)),
            ));
        }
    }
    for (title, path) in targets {
        client.delete(&path).await?;
        println!("{title} deleted");
    }
    Ok(())
}
