//! Lichen: its processes, and its objects through the API as any client has them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request};
use lichen_control::{MEMBERS_PATH, Purpose};
use rustls::ClientConfig;

use super::connection::{Connection, full, tls};
use super::{Api, Events, key};
use crate::client::Client;
use crate::commands::bench::process::Process;
use crate::commands::bench::{PATIENCE, free_address};
use crate::commands::token;
use crate::kubeconfig;

/// How long a token for members lives; each joins at once.
const TOKEN_TTL: Duration = Duration::from_secs(600);
const COLLECTION: &str = "https://127.0.0.1/api/v1/namespaces/default/configmaps";

/// A cluster of Lichen's.
pub(super) struct Lichen {
    members: Vec<Member>,
    tls: Arc<ClientConfig>,
    client: Client,
}

struct Member {
    address: SocketAddr,
    /// Where the others reach it, which tells it from them.
    peer: String,
    arguments: Vec<String>,
    process: Option<Process>,
}

impl Lichen {
    /// Starts a server, or several as members, and waits until they serve and vote.
    pub(super) async fn start(folder: &Path, count: usize) -> Result<Self> {
        let mut first = Member::new(&folder.join("0"))?;
        if count > 1 {
            first.add(&["--cluster-init", "--peer-addr", &first.peer.clone()]);
        }
        first.run().await?;
        let access = kubeconfig::read(&folder.join("0/admin.kubeconfig"))?;
        let client = Client::new(&access)?;
        let server = format!("https://{}", first.address);
        let mut lichen =
            Self { members: vec![first], tls: tls(&access.ca_pem, &access.credentials)?, client };
        for index in 1..count {
            let token = token::create(&lichen.client, TOKEN_TTL, Purpose::Member).await?;
            let mut member = Member::new(&folder.join(index.to_string()))?;
            member.add(&["--join", &server, "--token", &token, "--peer-addr", &member.peer.clone()]);
            member.run().await?;
            lichen.members.push(member);
        }
        let deadline = Instant::now() + PATIENCE;
        while count > 1
            && lichen.roles().await?.values().filter(|role| role.as_str() != "learner").count() < count
        {
            if Instant::now() > deadline {
                bail!("not all members vote");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(lichen)
    }

    /// What the members are, by their addresses, asked of any that answers.
    async fn roles(&self) -> Result<BTreeMap<String, String>> {
        let mut connection = None;
        for index in 0..self.members.len() {
            if let Ok(open) = self.connect(index).await {
                connection = Some(open);
                break;
            }
        }
        let mut connection = connection.context("no member answers")?;
        let path = format!("https://127.0.0.1{MEMBERS_PATH}");
        let reply = connection.send(request(Method::GET, &path, None)?).await?;
        let list: serde_json::Value = serde_json::from_slice(&reply.into_body().collect().await?.to_bytes())?;
        let members = list["items"].as_array().with_context(|| format!("no list of members: {list}"))?;
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        Ok(members.iter().map(|member| (text(&member["peerAddress"]), text(&member["role"]))).collect())
    }
}

impl Member {
    fn new(data_dir: &Path) -> Result<Self> {
        let (address, mqtt) = (free_address()?, free_address()?);
        let data_dir = data_dir.to_string_lossy();
        let arguments = ["server", "--data-dir", &data_dir, "--api-addr", &address, "--mqtt-addr", &mqtt];
        let arguments = arguments.map(str::to_owned).to_vec();
        Ok(Self { address: address.parse()?, peer: free_address()?, arguments, process: None })
    }

    fn add(&mut self, arguments: &[&str]) {
        self.arguments.extend(arguments.iter().map(|&argument| argument.to_owned()));
    }

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

    async fn leader(&self) -> Result<usize> {
        let roles = self.roles().await?;
        let leads = |member: &Member| roles.get(&member.peer).is_some_and(|role| role == "leader");
        self.members.iter().position(leads).context("no member of lichen leads")
    }

    async fn kill(&mut self, member: usize) -> Result<()> {
        let member = self.members.get_mut(member).context("no such member")?;
        member.process.take().context("the member does not run")?.stop().await
    }

    async fn restart(&mut self, member: usize) -> Result<()> {
        self.members.get_mut(member).context("no such member")?.run().await
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
