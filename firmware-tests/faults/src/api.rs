//! The API as any client has it, and what an answer, or its absence, says of what was asked.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, header};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use lichen_pki::{ClientTrust, Credentials};
use serde_json::Value;

/// The longest line of a watch that is taken.
const LINE_BYTES_MAX: usize = 1 << 20;

/// A client of all members, each of which is named by its URL.
#[derive(Clone)]
pub(crate) struct Api {
    http: hyper_util::client::legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It was answered, with this status and body.
    Said(u16, Value),
    /// Nobody was there to take it.
    Unreached,
    /// It was sent, or may have been, and that is all that is known.
    Unknown,
}

impl Api {
    /// A client with the credentials of a kubeconfig, as a server writes it.
    pub(crate) fn new(kubeconfig: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(kubeconfig)?;
        let config: Value = serde_json::from_str(&text).context("the kubeconfig is JSON")?;
        let pem = |value: &Value| -> Result<String> {
            let data = value.as_str().context("the kubeconfig has its certificates inline")?;
            Ok(String::from_utf8(STANDARD.decode(data)?)?)
        };
        let user = &config["users"][0]["user"];
        let credentials = Credentials {
            chain_pem: pem(&user["client-certificate-data"])?,
            key_pem: pem(&user["client-key-data"])?,
        };
        let trust =
            ClientTrust::Authority(pem(&config["clusters"][0]["cluster"]["certificate-authority-data"])?);
        let tls = lichen_pki::client_config(&trust, Some(&credentials))?;
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_http1()
            .wrap_connector(connector);
        Ok(Self { http: hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector) })
    }

    /// Sends a request to a member and waits so long for the whole of the answer.
    pub(crate) async fn call(
        &self,
        method: Method,
        url: &str,
        body: Option<&Value>,
        patience: Duration,
    ) -> Answer {
        let whole = async {
            let reply = match self.send(method, url, body).await {
                Ok(reply) => reply,
                Err(error) if error.is_connect() => return Answer::Unreached,
                Err(_) => return Answer::Unknown,
            };
            let status = reply.status().as_u16();
            let Ok(body) = reply.into_body().collect().await else { return Answer::Unknown };
            serde_json::from_slice(&body.to_bytes())
                .map_or(Answer::Unknown, |body| Answer::Said(status, body))
        };
        tokio::time::timeout(patience, whole).await.unwrap_or(Answer::Unknown)
    }

    /// What a member answers to a GET, if it agrees in time.
    pub(crate) async fn get(&self, url: &str, patience: Duration) -> Option<Value> {
        match self.call(Method::GET, url, None, patience).await {
            Answer::Said(200, body) => Some(body),
            _ => None,
        }
    }

    /// The lines of a body that arrives over time, if the member begins it in time.
    pub(crate) async fn lines(&self, url: &str, patience: Duration) -> Option<Lines> {
        let reply = tokio::time::timeout(patience, self.send(Method::GET, url, None)).await.ok()?.ok()?;
        reply.status().is_success().then(|| Lines { body: reply.into_body(), buffer: BytesMut::new() })
    }

    async fn send(
        &self,
        method: Method,
        url: &str,
        body: Option<&Value>,
    ) -> Result<hyper::Response<Incoming>, hyper_util::client::legacy::Error> {
        let bytes = body.map(ToString::to_string).unwrap_or_default();
        let request = Request::builder().method(method).uri(url);
        let request = request.header(header::CONTENT_TYPE, "application/json");
        let request = request.body(Full::from(bytes)).unwrap_or_else(|error| panic!("{url}: {error}"));
        self.http.request(request).await
    }
}

/// The lines of a body that arrives over time.
pub(crate) struct Lines {
    body: Incoming,
    buffer: BytesMut,
}

impl Lines {
    /// The next line that arrived whole; none once the body has ended or broken off. Cancelling it loses nothing.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                return Some(self.buffer.split_to(end + 1).freeze());
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                return None;
            }
            let frame = self.body.frame().await?.ok()?;
            self.buffer.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
        }
    }
}
