//! A client of the Kubernetes API: one HTTPS connection pool, JSON in and out, `Status` as errors.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{self, Poll};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode, Uri, header};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use lichen_api::Resource;
use lichen_pki::ClientTrust;
use serde_json::Value;
use tower_service::Service;

use crate::kubeconfig::Access;

const JSON: &str = "application/json";
/// What asks the server for a table rather than objects.
pub(crate) const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
/// How long a server may take to be reached, the handshake included, until the next one is tried: the kernel takes
/// connections for a server that stands still.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// The longest line of a watch; an object is at most 3 MiB.
const LINE_BYTES_MAX: usize = 8 << 20;

/// A refusal by the server: prints as kubectl prints it.
#[derive(Debug, thiserror::Error)]
#[error("Error from server ({reason}): {message}")]
pub(crate) struct Refused {
    /// The HTTP status.
    pub(crate) code: u16,
    reason: String,
    message: String,
}

/// The API of one cluster.
#[derive(Clone)]
pub(crate) struct Client {
    http: hyper_util::client::legacy::Client<Impatient, Full<Bytes>>,
    servers: Vec<String>,
    /// The server that answered last.
    current: Arc<AtomicUsize>,
    /// The cluster's authority, PEM.
    pub(crate) ca_pem: String,
    /// The namespace used where none is named.
    pub(crate) namespace: String,
}

impl Client {
    /// A client for the cluster; connects when it is first used.
    pub(crate) fn new(access: &Access) -> Result<Self> {
        Self::within(access, CONNECT_MAX)
    }

    /// The same, where each server may take so long to be reached.
    fn within(access: &Access, connect_max: Duration) -> Result<Self> {
        let trust = ClientTrust::Authority(access.ca_pem.clone());
        let tls = lichen_pki::client_config(&trust, Some(&access.credentials))?;
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_http1()
            .wrap_connector(connector);
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .build(Impatient(connector, connect_max));
        let Access { servers, ca_pem, namespace, .. } = access.clone();
        Ok(Self { http, servers, current: Arc::default(), ca_pem, namespace })
    }

    /// The URL of the server, `https://host:port`.
    pub(crate) fn server(&self) -> &str {
        let current = self.current.load(Ordering::Relaxed);
        self.servers.get(current).map_or("", String::as_str)
    }

    /// Sends a request as it is and returns the reply, whatever its status. A server that cannot be reached is passed
    /// over for the next one; so is one that breaks off, if the request may be made twice.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
        let (parts, body) = request.into_parts();
        let repeatable = matches!(parts.method, Method::GET | Method::HEAD);
        let first = self.current.load(Ordering::Relaxed);
        let mut failed = Vec::new();
        for index in (0..self.servers.len()).map(|tried| (first + tried) % self.servers.len()) {
            let server = &self.servers[index];
            let mut parts = parts.clone();
            parts.uri = format!("{server}{}", parts.uri).parse()?;
            let error = match self.http.request(Request::from_parts(parts, body.clone())).await {
                Ok(reply) => {
                    self.current.store(index, Ordering::Relaxed);
                    return Ok(reply);
                }
                Err(error) => error,
            };
            let again = error.is_connect() || repeatable;
            failed.push(server.as_str());
            if !again || failed.len() == self.servers.len() {
                return Err(error).with_context(|| format!("cannot reach {}", failed.join(", ")));
            }
        }
        bail!("the kubeconfig names no server")
    }

    /// Sends a request and returns the reply's body once the server has agreed.
    async fn open(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, Bytes)>,
    ) -> Result<Incoming> {
        let mut request = Request::builder().method(method).uri(path).header(header::ACCEPT, accept);
        if let Some((content_type, _)) = body {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        let body = body.map(|(_, bytes)| bytes).unwrap_or_default();
        let reply = self.send(request.body(Full::new(body))?).await?;
        for warning in reply.headers().get_all(header::WARNING) {
            eprintln!("Warning: {}", warning_text(warning.to_str().unwrap_or_default()));
        }
        if reply.status().is_success() {
            return Ok(reply.into_body());
        }
        let code = reply.status();
        Err(refusal(code, &reply.into_body().collect().await?.to_bytes()).into())
    }

    async fn json(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, Bytes)>,
    ) -> Result<Value> {
        let bytes = self.open(method, path, accept, body).await?.collect().await?.to_bytes();
        serde_json::from_slice(&bytes).with_context(|| format!("{path}: the reply is no JSON"))
    }

    /// GET, as objects or whatever `accept` asks for.
    pub(crate) async fn get(&self, path: &str, accept: Option<&str>) -> Result<Value> {
        self.json(Method::GET, path, accept.unwrap_or(JSON), None).await
    }

    /// GET, the reply's bytes as they come.
    pub(crate) async fn bytes(&self, path: &str) -> Result<Bytes> {
        Ok(self.open(Method::GET, path, JSON, None).await?.collect().await?.to_bytes())
    }

    /// GET of a body that arrives over time, whatever it is.
    pub(crate) async fn body(&self, path: &str) -> Result<Incoming> {
        self.open(Method::GET, path, "*/*", None).await
    }

    /// GET that answers `None` for an object that is not there.
    pub(crate) async fn find(&self, path: &str) -> Result<Option<Value>> {
        match self.get(path, None).await {
            Ok(value) => Ok(Some(value)),
            Err(error) => match error.downcast_ref::<Refused>() {
                Some(refused) if refused.code == 404 => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// POST of a new object.
    pub(crate) async fn create(&self, path: &str, object: &Value) -> Result<Value> {
        self.json(Method::POST, path, JSON, Some((JSON, serde_json::to_vec(object)?.into()))).await
    }

    /// POST without a body.
    pub(crate) async fn post(&self, path: &str) -> Result<Value> {
        self.json(Method::POST, path, JSON, None).await
    }

    /// PATCH with the media type of the patch.
    pub(crate) async fn patch(&self, path: &str, content_type: &str, patch: &Value) -> Result<Value> {
        self.json(Method::PATCH, path, JSON, Some((content_type, serde_json::to_vec(patch)?.into()))).await
    }

    /// DELETE.
    pub(crate) async fn delete(&self, path: &str) -> Result<Value> {
        self.json(Method::DELETE, path, JSON, None).await
    }

    /// GET of a body that arrives over time: a watch or a log.
    pub(crate) async fn stream(&self, path: &str) -> Result<Lines> {
        Ok(Lines { body: self.open(Method::GET, path, JSON, None).await?, buffer: BytesMut::new() })
    }
}

/// Connects in time, or not at all.
#[derive(Clone)]
struct Impatient(HttpsConnector<HttpConnector>, Duration);

impl Service<Uri> for Impatient {
    type Response = <HttpsConnector<HttpConnector> as Service<Uri>>::Response;
    type Error = <HttpsConnector<HttpConnector> as Service<Uri>>::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut task::Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let max = self.1;
        let connected = tokio::time::timeout(max, self.0.call(server));
        Box::pin(async move { connected.await.map_err(|_| format!("it does not answer within {max:?}"))? })
    }
}

/// The lines of a body that arrives over time.
pub(crate) struct Lines {
    body: Incoming,
    buffer: BytesMut,
}

impl Lines {
    /// The next line without its end; `None` after the last.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1).freeze();
                return Ok(Some(line.slice(..end)));
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                bail!("a line of the reply is longer than {LINE_BYTES_MAX} bytes");
            }
            match self.body.frame().await.transpose()? {
                Some(frame) => self.buffer.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new())),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Ok(Some(self.buffer.split().freeze())),
            }
        }
    }
}

/// The path of a collection, or of an object in it.
pub(crate) fn path(resource: &Resource, namespace: Option<&str>, name: Option<&str>) -> String {
    let mut path = match resource.group {
        "" => format!("/api/{}", resource.version),
        group => format!("/apis/{group}/{}", resource.version),
    };
    // Writing to a String cannot fail.
    if let Some(namespace) = namespace.filter(|_| resource.namespaced) {
        let _ = write!(path, "/namespaces/{namespace}");
    }
    let _ = write!(path, "/{}", resource.plural);
    if let Some(name) = name {
        let _ = write!(path, "/{name}");
    }
    path
}

fn refusal(code: StatusCode, body: &[u8]) -> Refused {
    let status: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |key: &str| status[key].as_str().map(str::to_owned);
    Refused {
        code: code.as_u16(),
        reason: text("reason").unwrap_or_else(|| code.to_string()),
        message: text("message").unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned()),
    }
}

/// The text between the quotes of `299 - "text"`.
fn warning_text(header: &str) -> &str {
    header.split_once('"').and_then(|(_, rest)| rest.rsplit_once('"')).map_or(header, |(text, _)| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_api() {
        let pods = lichen_api::by_plural("", "v1", "pods").unwrap();
        let nodes = lichen_api::by_plural("", "v1", "nodes").unwrap();
        let deployments = lichen_api::by_plural("apps", "v1", "deployments").unwrap();
        let cases = [
            (pods, Some("a"), Some("p"), "/api/v1/namespaces/a/pods/p"),
            (pods, None, None, "/api/v1/pods"),
            (nodes, Some("a"), Some("n"), "/api/v1/nodes/n"),
            (deployments, Some("a"), None, "/apis/apps/v1/namespaces/a/deployments"),
        ];
        for (resource, namespace, name, expect) in cases {
            assert_eq!(path(resource, namespace, name), expect);
        }
    }

    #[tokio::test]
    async fn a_server_that_stands_still_is_passed_over() {
        // The kernel takes the connection, and nobody answers.
        let still: Vec<_> = (0..2).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let servers: Vec<_> =
            still.iter().map(|still| format!("https://{}", still.local_addr().unwrap())).collect();
        let dir = tempfile::tempdir().unwrap();
        let authority = lichen_pki::Authority::open_or_create(dir.path()).unwrap();
        let access = Access {
            servers: servers.clone(),
            ca_pem: authority.ca_pem().to_owned(),
            credentials: authority.issue_client("admin", None).unwrap(),
            namespace: "default".into(),
        };
        let client = Client::within(&access, Duration::from_millis(20)).unwrap();
        let error = client.create("/api/v1/namespaces", &Value::Null).await.unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains(&servers.join(", ")), "{error}");
        assert!(error.contains("does not answer within 20ms"), "{error}");
    }

    #[test]
    fn refusals_read_as_kubectl_prints_them() {
        let status = br#"{"kind":"Status","reason":"NotFound","message":"pods \"a\" not found","code":404}"#;
        let refused = refusal(StatusCode::NOT_FOUND, status);
        assert_eq!(refused.to_string(), "Error from server (NotFound): pods \"a\" not found");
        assert_eq!(
            refusal(StatusCode::BAD_GATEWAY, b"oops\n").to_string(),
            "Error from server (502 Bad Gateway): oops"
        );
        assert_eq!(warning_text(r#"299 - "unknown field \"x\"""#), r#"unknown field \"x\""#);
    }
}
