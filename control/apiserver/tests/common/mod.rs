//! A real server on loopback over a store in a directory of its own, and a plain HTTPS client.

#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs of this module")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::HeaderMap;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use lichen_api::Status;
use lichen_apiserver::{Body, Config, boxed, build};
use lichen_firmware_tests::kubectl::Kubectl;
use lichen_pki::{Authority, ClientTrust, Credentials};
use lichen_registry::{
    AllocationRanges, Identity, LogRequest, LogStream, NodePresence, NodeStreams, Registry, Sources,
};
use lichen_store::{HistoryBounds, Store};
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A server with nodes that answer, and kubectl as its administrator. `None` where there is no kubectl.
pub async fn kubectl() -> Option<(Server, Kubectl)> {
    let server = Server::start_with(Some(Arc::new(Nodes::default())), HistoryBounds::default()).await;
    let kubectl = Kubectl::new(&server.kubeconfig(), server.folder.path());
    match kubectl {
        Some(kubectl) => Some((server, kubectl)),
        None => {
            server.stop().await;
            None
        }
    }
}

/// The one node that servers of the tests know to be there.
pub const HEARD_NODE: &str = "heard";
/// When it was heard of.
pub const HEARD_AT: &str = "2099-01-01T00:00:00Z";

struct Heard;

impl NodePresence for Heard {
    fn last_heard(&self, node: &str) -> Option<jiff::Timestamp> {
        (node == HEARD_NODE).then(|| HEARD_AT.parse().unwrap())
    }
}

/// A server that runs until it is stopped.
pub struct Server {
    pub address: SocketAddr,
    pub authority: Authority,
    pub registry: Registry,
    pub folder: tempfile::TempDir,
    credentials: Mutex<BTreeMap<String, Credentials>>,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<()>>,
}

impl Server {
    pub async fn start() -> Self {
        Self::start_with(None, HistoryBounds::default()).await
    }

    pub async fn start_with(streams: Option<Arc<dyn NodeStreams>>, history: HistoryBounds) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(&folder.path().join("pki")).unwrap();
        let mut config = lichen_store::Config::new(folder.path().join("store"));
        config.history = history;
        let store = Store::open(config).await.unwrap();
        let registry = Registry::new(store, AllocationRanges::default(), Sources::system());
        let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let own = authority.issue_server(&names).unwrap();
        let tls = lichen_pki::server_config(&own, authority.ca_pem(), &[b"h2", b"http/1.1"]).unwrap();
        let bound = build(Config {
            registry: registry.clone(),
            streams,
            presence: Some(Arc::new(Heard)),
            forward: None,
            tls: Arc::new(tls),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            mounts: vec![("/v2/".to_owned(), Arc::new(mounted))],
        })
        .await
        .unwrap();
        let address = bound.address();
        registry.bootstrap(address.port()).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(bound.run(async move {
            let _ = stopped.await;
        }));
        let credentials = Mutex::default();
        Self { address, authority, registry, folder, credentials, stop: Some(stop), task: Some(task) }
    }

    /// Ends the server and waits until it has drained.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        self.task.take().unwrap().await.unwrap();
        self.registry.store().shutdown().await;
    }

    pub fn credentials(&self, user: &str, group: Option<&str>) -> Credentials {
        let mut all = self.credentials.lock().unwrap();
        let own =
            all.entry(user.to_owned()).or_insert_with(|| self.authority.issue_client(user, group).unwrap());
        own.clone()
    }

    /// A client of `system:masters`.
    pub async fn admin(&self) -> Client {
        Client::connect(self, Some(&self.credentials("admin", Some("system:masters")))).await
    }

    /// A client without a certificate.
    pub async fn anonymous(&self) -> Client {
        Client::connect(self, None).await
    }

    pub async fn client(&self, user: &str, group: Option<&str>) -> Client {
        Client::connect(self, Some(&self.credentials(user, group))).await
    }

    /// A kubeconfig of the administrator, in the server's folder.
    pub fn kubeconfig(&self) -> std::path::PathBuf {
        let own = self.credentials("admin", Some("system:masters"));
        let file = |name: &str, text: &str| {
            let path = self.folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'https://{}', certificate-authority: {}}}}}]\n\
             users: [{{name: u, user: {{client-certificate: {}, client-key: {}}}}}]\n",
            self.address,
            file("ca.pem", self.authority.ca_pem()),
            file("cert.pem", &own.chain_pem),
            file("key.pem", &own.key_pem),
        );
        let path = self.folder.path().join("kubeconfig");
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Creates an object directly.
    pub async fn create(&self, namespace: Option<&str>, object: Value) {
        let resource =
            lichen_api::by_kind(object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap())
                .unwrap();
        let identity = Identity::component("test");
        let options = lichen_registry::WriteOptions::default();
        self.registry
            .create(&identity, resource, namespace, object.clone(), &options)
            .await
            .unwrap_or_else(|status| panic!("{status:?} for {object}"));
    }
}

/// Nodes of which one answers.
#[derive(Default)]
pub struct Nodes {
    pub asked: Mutex<Vec<LogRequest>>,
}

impl NodeStreams for Nodes {
    fn logs<'a>(&'a self, node: &'a str, request: LogRequest) -> BoxFuture<'a, Result<LogStream, Status>> {
        Box::pin(async move {
            if node != "n1" {
                return Err(Status::service_unavailable(format!("node {node} is not connected")));
            }
            let follow = request.follow;
            self.asked.lock().unwrap().push(request);
            let lines = [Ok(Bytes::from_static(b"one\n")), Ok(Bytes::from_static(b"two\n"))];
            let written = futures_util::stream::iter(lines);
            // Who follows stays until it is cut off.
            Ok(match follow {
                true => written.chain(futures_util::stream::pending()).boxed(),
                false => written.boxed(),
            })
        })
    }
}

/// What is mounted beside the API: it says who asked for what.
async fn mounted(identity: Identity, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.map(|body| body.to_bytes().len()).unwrap_or_default();
    boxed(Response::new(Full::new(Bytes::from(format!("{} {path} {body}", identity.user)))))
}

/// One connection.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    address: SocketAddr,
}

/// An answer, read to its end.
pub struct Answer {
    pub code: u16,
    pub headers: HeaderMap,
    pub bytes: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or(Value::Null)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    pub fn warnings(&self) -> Vec<String> {
        self.headers.get_all("warning").iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    }
}

impl Client {
    async fn connect(server: &Server, own: Option<&Credentials>) -> Self {
        let trust = ClientTrust::Authority(server.authority.ca_pem().to_owned());
        let config = lichen_pki::client_config(&trust, own).unwrap();
        let stream = TcpStream::connect(server.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Self { sender, address: server.address }
    }

    /// Sends a request and leaves the body to the caller.
    pub async fn open(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Response<Incoming> {
        let mut request =
            Request::builder().method(method).uri(path).header("host", self.address.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.sender.ready().await.unwrap();
        self.sender.send_request(request.body(Full::new(body.into())).unwrap()).await.unwrap()
    }

    pub async fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let response = self.open(method, path, headers, body).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer { code: parts.status.as_u16(), headers: parts.headers, bytes }
    }

    pub async fn get(&mut self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    pub async fn post(&mut self, path: &str, object: &Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], object.to_string()).await
    }

    pub async fn patch(&mut self, path: &str, kind: &str, patch: &Value) -> Answer {
        let media = format!("application/{kind}-patch+json");
        self.send("PATCH", path, &[("content-type", &media)], patch.to_string()).await
    }
}
