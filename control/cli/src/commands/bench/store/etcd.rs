//! etcd: its processes, with TLS and its defaults otherwise, and its gRPC calls.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, TE};
use hyper::{Method, Request, Response};
use lichen_pki::Authority;
use rustls::ClientConfig;

use super::connection::{Body, Connection, full, tls};
use super::protobuf::{Fields, Value, framed, put_bytes, unframed};
use super::{Api, Events, key};
use crate::commands::bench::process::Process;
use crate::commands::bench::{PATIENCE, free_address};

const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";
const STATUS: &str = "/etcdserverpb.Maintenance/Status";
const WATCH: &str = "/etcdserverpb.Watch/Watch";

/// The program, and the version that it says it is.
pub(super) fn find(given: Option<&Path>) -> Result<(PathBuf, String)> {
    let program = given.unwrap_or(Path::new("etcd"));
    let said = std::process::Command::new(program).arg("--version").stderr(Stdio::null()).output();
    let said = match said {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
        _ => bail!(
            "{} does not run as etcd: install 3.5 or newer (Debian 13 and later: apt-get install etcd-server), \
             or say where it is with --etcd PATH",
            program.display()
        ),
    };
    let version =
        said.lines().find_map(|line| line.strip_prefix("etcd Version: ")).unwrap_or_default().trim();
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    if (numbers.next(), numbers.next()) < (Some(3), Some(5)) {
        bail!("{} is etcd {version:?}; 3.5 or newer is compared with", program.display());
    }
    Ok((program.to_owned(), version.to_owned()))
}

/// A cluster of etcd's.
pub(super) struct Etcd {
    program: PathBuf,
    members: Vec<Member>,
    tls: Arc<ClientConfig>,
}

struct Member {
    address: SocketAddr,
    arguments: Vec<String>,
    process: Option<Process>,
}

impl Etcd {
    /// Starts members and waits until they serve.
    pub(super) async fn start(program: &Path, folder: &Path, count: usize) -> Result<Self> {
        std::fs::create_dir(folder)?;
        let authority = Authority::open_or_create(&folder.join("pki"))?;
        let server = authority.issue_server(&["127.0.0.1".into()])?;
        let client = authority.issue_client("bench", None)?;
        let file = |name: &str, text: &str| -> Result<String> {
            let path = folder.join(name);
            std::fs::write(&path, text)?;
            Ok(path.to_string_lossy().into_owned())
        };
        let ca = file("ca.crt", authority.ca_pem())?;
        let (certificate, key) =
            (file("server.crt", &server.chain_pem)?, file("server.key", &server.key_pem)?);
        let peer = (file("client.crt", &client.chain_pem)?, file("client.key", &client.key_pem)?);
        let mut addresses = Vec::new();
        for index in 0..count {
            addresses.push((format!("member-{index}"), free_address()?, free_address()?));
        }
        let cluster: Vec<_> =
            addresses.iter().map(|(name, _, peer)| format!("{name}=https://{peer}")).collect();
        let mut members = Vec::new();
        for (name, address, peer_address) in &addresses {
            let flags = [
                ("name", name.clone()),
                ("data-dir", folder.join(name).to_string_lossy().into_owned()),
                ("listen-client-urls", format!("https://{address}")),
                ("advertise-client-urls", format!("https://{address}")),
                ("cert-file", certificate.clone()),
                ("key-file", key.clone()),
                ("trusted-ca-file", ca.clone()),
                ("client-cert-auth", "true".into()),
                ("listen-peer-urls", format!("https://{peer_address}")),
                ("initial-advertise-peer-urls", format!("https://{peer_address}")),
                ("peer-cert-file", certificate.clone()),
                ("peer-key-file", key.clone()),
                ("peer-client-cert-file", peer.0.clone()),
                ("peer-client-key-file", peer.1.clone()),
                ("peer-trusted-ca-file", ca.clone()),
                ("peer-client-cert-auth", "true".into()),
                ("initial-cluster", cluster.join(",")),
                // It would be a client of the server with the server's certificate, which is for a server only.
                ("enable-grpc-gateway", "false".into()),
                ("log-level", "error".into()),
            ];
            let arguments = flags.iter().map(|(name, value)| format!("--{name}={value}")).collect();
            members.push(Member { address: address.parse()?, arguments, process: None });
        }
        let mut etcd = Self { program: program.to_owned(), members, tls: tls(authority.ca_pem(), &client)? };
        for index in 0..count {
            etcd.run(index)?;
        }
        for index in 0..count {
            etcd.serves(index).await?;
        }
        Ok(etcd)
    }

    fn run(&mut self, index: usize) -> Result<()> {
        let member = self.members.get_mut(index).context("no such member")?;
        let arguments: Vec<&OsStr> = member.arguments.iter().map(OsStr::new).collect();
        member.process = Some(Process::spawn(&self.program, &arguments)?);
        Ok(())
    }

    /// Waits until a member takes a write.
    async fn serves(&self, index: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let tried = async {
                let mut connection = self.connect(index).await?;
                self.put(&mut connection, 0, String::new()).await
            };
            match tried.await {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error).context("etcd does not serve"),
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
            }
        }
    }
}

impl Api for Etcd {
    type Watch = Messages;
    const NAME: &'static str = "etcd";

    fn processes(&self) -> Vec<&Process> {
        self.members.iter().filter_map(|member| member.process.as_ref()).collect()
    }

    async fn connect(&self, member: usize) -> Result<Connection> {
        let member = self.members.get(member).context("no such member")?;
        Connection::open(member.address, self.tls.clone()).await
    }

    async fn create(&self, connection: &mut Connection, index: usize, value: String) -> Result<()> {
        self.put(connection, index, value).await
    }

    async fn put(&self, connection: &mut Connection, index: usize, value: String) -> Result<()> {
        let mut message = Vec::with_capacity(value.len() + 64);
        put_bytes(&mut message, 1, key(index).as_bytes());
        put_bytes(&mut message, 2, value.as_bytes());
        call(connection, PUT, &message).await.map(drop)
    }

    async fn get(&self, connection: &mut Connection, index: usize) -> Result<()> {
        let mut message = Vec::new();
        put_bytes(&mut message, 1, key(index).as_bytes());
        let reply = call(connection, RANGE, &message).await?;
        match Fields(&reply).find(2)? {
            Some(Value::Bytes(_)) => Ok(()),
            _ => bail!("etcd has no {}", key(index)),
        }
    }

    async fn watch(&self, connection: &mut Connection) -> Result<Messages> {
        let mut create = Vec::new();
        put_bytes(&mut create, 1, b"bench-");
        put_bytes(&mut create, 2, b"bench.");
        let mut message = Vec::new();
        put_bytes(&mut message, 1, &create);
        let (mut sender, body) = http_body_util::channel::Channel::<Bytes, std::convert::Infallible>::new(1);
        sender.send(Frame::data(framed(&message))).await?;
        let reply = connection.send(request(WATCH, body.boxed_unsync())?).await?;
        let mut messages = Messages { body: reply.into_body(), arrived: BytesMut::new(), _request: sender };
        // The first says that the watch is there.
        messages.message().await?;
        Ok(messages)
    }

    async fn leader(&self) -> Result<usize> {
        for index in 0..self.members.len() {
            let Ok(mut connection) = self.connect(index).await else { continue };
            let status = call(&mut connection, STATUS, &[]).await?;
            let Some(Value::Bytes(header)) = Fields(&status).find(1)? else {
                bail!("a status without a header")
            };
            // The member that is asked, and the one that leads.
            if Fields(header).find(2)? == Fields(&status).find(4)? {
                return Ok(index);
            }
        }
        bail!("no member of etcd leads")
    }

    async fn kill(&mut self, member: usize) -> Result<()> {
        let member = self.members.get_mut(member).context("no such member")?;
        member.process.take().context("the member does not run")?.stop().await
    }

    async fn restart(&mut self, member: usize) -> Result<()> {
        self.run(member)?;
        self.serves(member).await
    }
}

fn request(path: &str, body: Body) -> Result<Request<Body>> {
    Ok(Request::builder()
        .method(Method::POST)
        .uri(format!("https://127.0.0.1{path}"))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .body(body)?)
}

/// A call of one message each way.
async fn call(connection: &mut Connection, path: &str, message: &[u8]) -> Result<Bytes> {
    let reply: Response<Incoming> = connection.send(request(path, full(framed(message)))?).await?;
    let (head, body) = reply.into_parts();
    let body = body.collect().await?;
    // A call that fails at once has its status in the head.
    status(body.trailers().unwrap_or(&head.headers))?;
    let mut arrived = BytesMut::from(body.to_bytes());
    unframed(&mut arrived)?.context("an answer without a message")
}

fn status(headers: &HeaderMap) -> Result<()> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match text("grpc-status") {
        "0" => Ok(()),
        code => bail!("etcd answers {code}: {}", text("grpc-message")),
    }
}

/// A watch of etcd's.
pub(super) struct Messages {
    body: Incoming,
    arrived: BytesMut,
    /// The watch ends when the request does.
    _request: http_body_util::channel::Sender<Bytes, std::convert::Infallible>,
}

impl Messages {
    async fn message(&mut self) -> Result<Bytes> {
        loop {
            if let Some(message) = unframed(&mut self.arrived)? {
                return Ok(message);
            }
            let frame = self.body.frame().await.context("the watch has ended")??;
            if let Some(data) = frame.data_ref() {
                self.arrived.extend_from_slice(data);
            }
        }
    }
}

impl Events for Messages {
    async fn next(&mut self) -> Result<usize> {
        let message = self.message().await?;
        let mut events = 0;
        for field in Fields(&message) {
            events += usize::from(field?.0 == 11);
        }
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_there_is_answered_with_where_to_get_it() {
        let error = find(Some(Path::new("/nowhere/etcd"))).unwrap_err().to_string();
        assert!(error.contains("/nowhere/etcd") && error.contains("apt-get install etcd-server"), "{error}");
        // A program that says nothing of a version.
        let error = find(Some(Path::new("/bin/true"))).unwrap_err().to_string();
        assert!(error.contains("3.5 or newer"), "{error}");
    }
}
