//! `lichen logs`: what a container has written.

use std::io::Write;

use anyhow::Result;

use super::get::{escaped, resource};
use crate::client::{Client, path};

/// Shows what a container has written.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The pod.
    pod: String,
    /// The container, where the pod has several.
    #[arg(short, long)]
    container: Option<String>,
    /// The pod's namespace.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Stay and show what comes.
    #[arg(short, long)]
    follow: bool,
    /// Begin this many lines before the end.
    #[arg(long, value_name = "LINES")]
    tail: Option<u64>,
    /// The container's previous run.
    #[arg(short, long)]
    previous: bool,
    /// Begin each line with the time it was written.
    #[arg(long)]
    timestamps: bool,
}

/// Runs the command.
pub(crate) async fn run(client: &Client, arguments: &Arguments) -> Result<()> {
    let namespace = arguments.namespace.as_deref().unwrap_or(&client.namespace);
    let mut query = vec![];
    if let Some(container) = &arguments.container {
        query.push(format!("container={}", escaped(container)));
    }
    if let Some(tail) = arguments.tail {
        query.push(format!("tailLines={tail}"));
    }
    for (flag, name) in
        [(arguments.follow, "follow"), (arguments.previous, "previous"), (arguments.timestamps, "timestamps")]
    {
        if flag {
            query.push(format!("{name}=true"));
        }
    }
    let pod = path(resource("pods")?, Some(namespace), Some(&arguments.pod));
    let mut lines = client.stream(&format!("{pod}/log?{}", query.join("&"))).await?;
    let mut out = std::io::stdout().lock();
    while let Some(line) = lines.next().await? {
        out.write_all(&line)?;
        out.write_all(b"\n")?;
        out.flush()?;
    }
    Ok(())
}
