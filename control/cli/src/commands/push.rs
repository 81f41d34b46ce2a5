//! `lichen push`: puts a component into the cluster's own registry.

use std::path::PathBuf;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response};
use lichen_artifacts::{Pushed, Reference, Transport};

use crate::client::Client;

/// Puts a component into the cluster's own registry.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The component: a .wasm file.
    file: PathBuf,
    /// What a pod's `image` will call it, for example `hello:v1`.
    reference: Reference,
}

/// Runs the command.
pub(crate) async fn run(client: &Client, arguments: &Arguments) -> Result<()> {
    let component = std::fs::read(&arguments.file)
        .with_context(|| format!("cannot read {}", arguments.file.display()))?;
    let pushed = push(client, &arguments.reference, component.into())
        .await
        .with_context(|| format!("{}", arguments.file.display()))?;
    let existed = if pushed.layer_existed { " (its bytes were there)" } else { "" };
    println!("{}: {}{existed}", arguments.reference, pushed.manifest);
    Ok(())
}

/// Pushes a component under a name.
pub(crate) async fn push(client: &Client, reference: &Reference, component: Bytes) -> Result<Pushed> {
    Ok(lichen_artifacts::push(&Registry(client), reference, component).await?)
}

/// The registry behind the API server's address.
struct Registry<'a>(&'a Client);

impl Transport for Registry<'_> {
    async fn send(
        &self,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, Box<dyn std::error::Error + Send + Sync>> {
        let (parts, body) = self.0.send(request.map(Full::new)).await?.into_parts();
        Ok(Response::from_parts(parts, body.collect().await?.to_bytes()))
    }
}
