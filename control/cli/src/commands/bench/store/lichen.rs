//! Lichen: its processes, and its objects through the API as any client has them.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request};
use rustls::ClientConfig;

use super::connection::{Connection, full, tls};
use super::{Api, Events, key};
use crate::commands::bench::free_address;
use crate::commands::bench::process::Process;
use crate::kubeconfig;

const COLLECTION: &str = "https://127.0.0.1/api/v1/namespaces/default/configmaps";

/// A cluster of Lichen's.
pub(super) struct Lichen {
    members: Vec<Member>,
    tls: Arc<ClientConfig>,
}

struct Member {
    address: SocketAddr,
    arguments: Vec<String>,
    process: Option<Process>,
}

impl Lichen {
    /// Starts a server and waits until it serves.
    pub(super) async fn start(folder: &Path) -> Result<Self> {
        let (address, mqtt) = (free_address()?, free_address()?);
        let data_dir = folder.to_string_lossy();
        let arguments = ["server", "--data-dir", &data_dir, "--api-addr", &address, "--mqtt-addr", &mqtt];
        let mut member = Member {
            address: address.parse()?,
            arguments: arguments.map(str::to_owned).to_vec(),
            process: None,
        };
        member.run().await?;
        let access = kubeconfig::read(&folder.join("admin.kubeconfig"))?;
        Ok(Self { members: vec![member], tls: tls(&access.ca_pem, &access.credentials)? })
    }
}

impl Member {
    async fn run(&mut self) -> Result<()> {
        self.process = Some(Process::start(&self.arguments, "A node joins").await?);
        Ok(())
    }
}

impl Api for Lichen {
    type Watch = Lines;
    const NAME: &'static str = "lichen";

    fn processes(&self) -> Vec<&Process> {
        self.members.iter().filter_map(|member| member.process.as_ref()).collect()
    }

    async fn connect(&self, member: usize) -> Result<Connection> {
        let member = self.members.get(member).context("no such member")?;
        Connection::open(member.address, self.tls.clone()).await
    }

    async fn create(&self, connection: &mut Connection, index: usize, value: String) -> Result<()> {
        send(connection, Method::POST, COLLECTION, Some(config_map(index, &value))).await
    }

    async fn put(&self, connection: &mut Connection, index: usize, value: String) -> Result<()> {
        let path = format!("{COLLECTION}/{}", key(index));
        send(connection, Method::PUT, &path, Some(config_map(index, &value))).await
    }

    async fn get(&self, connection: &mut Connection, index: usize) -> Result<()> {
        send(connection, Method::GET, &format!("{COLLECTION}/{}", key(index)), None).await
    }

    async fn watch(&self, connection: &mut Connection) -> Result<Lines> {
        // From what there is now on, as etcd's.
        let list = connection.send(request(Method::GET, &format!("{COLLECTION}?limit=1"), None)?).await?;
        let list: serde_json::Value = serde_json::from_slice(&list.into_body().collect().await?.to_bytes())?;
        let from =
            list["metadata"]["resourceVersion"].as_str().context("a list without a resourceVersion")?;
        let path = format!("{COLLECTION}?watch=true&resourceVersion={from}");
        let reply = connection.send(request(Method::GET, &path, None)?).await?;
        if !reply.status().is_success() {
            bail!("the watch is answered with {}", reply.status());
        }
        Ok(Lines { body: reply.into_body() })
    }
}

/// A ConfigMap that holds a value.
fn config_map(index: usize, value: &str) -> String {
    let name = key(index);
    format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}},"data":{{"value":"{value}"}}}}"#
    )
}

fn request(method: Method, path: &str, body: Option<String>) -> Result<Request<super::connection::Body>> {
    let mut request = Request::builder().method(method).uri(path);
    if body.is_some() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    Ok(request.body(full(body.unwrap_or_default()))?)
}

async fn send(connection: &mut Connection, method: Method, path: &str, body: Option<String>) -> Result<()> {
    let reply = connection.send(request(method, path, body)?).await?;
    let status = reply.status();
    let body = reply.into_body().collect().await?.to_bytes();
    if !status.is_success() {
        bail!("{path} is answered with {status}: {}", String::from_utf8_lossy(&body));
    }
    Ok(())
}

/// A watch of Lichen's: a line an event.
pub(super) struct Lines {
    body: Incoming,
}

impl Events for Lines {
    async fn next(&mut self) -> Result<usize> {
        loop {
            let frame = self.body.frame().await.context("the watch has ended")??;
            let lines = frame.data_ref().map_or(0, |data| data.iter().filter(|byte| **byte == b'\n').count());
            if lines > 0 {
                return Ok(lines);
            }
        }
    }
}
