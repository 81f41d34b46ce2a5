//! `lichen fetch`: asks an HTTP address several times over fresh connections, as strangers to it would.
//!
//! The demo runs it in a process of its own, to call a Service from outside.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioExecutor;

/// Prints the answers of an HTTP address, a line each.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The address, for example `http://127.0.0.1:8080/`.
    url: hyper::Uri,
    /// How often to ask.
    #[arg(long, default_value_t = 1)]
    count: u32,
}

/// Runs the command.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    for _ in 0..arguments.count {
        println!("{}", get(&arguments.url).await?.trim_end());
    }
    Ok(())
}

/// The body of one answer, over a connection of its own.
pub(crate) async fn get(url: &hyper::Uri) -> Result<String> {
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .build_http::<Empty<Bytes>>();
    let reply = client.get(url.clone()).await.with_context(|| format!("GET {url}"))?;
    let status = reply.status();
    let body = String::from_utf8_lossy(&reply.into_body().collect().await?.to_bytes()).into_owned();
    ensure!(status.is_success(), "GET {url}: {status}: {}", body.trim());
    Ok(body)
}
