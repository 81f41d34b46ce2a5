//! One client's connection: HTTP/2 over TLS, the same for both stores.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lichen_pki::{ClientTrust, Credentials};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;

/// The body of a request.
pub(super) type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// A body that is there as a whole.
pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

/// The TLS settings of a client of either store.
pub(super) fn tls(ca_pem: &str, credentials: &Credentials) -> Result<Arc<ClientConfig>> {
    let trust = ClientTrust::Authority(ca_pem.to_owned());
    let mut config = lichen_pki::client_config(&trust, Some(credentials))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// A connection. It ends with its owner.
pub(super) struct Connection {
    sender: SendRequest<Body>,
    /// Of the one that was opened.
    driver: Option<AbortHandle>,
}

impl Connection {
    /// Connects to a server.
    pub(super) async fn open(address: SocketAddr, tls: Arc<ClientConfig>) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        let name = ServerName::IpAddress(address.ip().into());
        let stream = TlsConnector::from(tls).connect(name, stream).await?;
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = handshake.await?;
        // How it ended is told to whoever has a request on it.
        let driver = tokio::spawn(async { drop(connection.await) }).abort_handle();
        Ok(Self { sender, driver: Some(driver) })
    }

    /// The same connection, for a request beside others. It ends with the one that was opened.
    pub(super) fn another(&self) -> Self {
        Self { sender: self.sender.clone(), driver: None }
    }

    /// Sends a request and waits for the head of the answer.
    pub(super) async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>> {
        self.sender.ready().await?;
        Ok(self.sender.send_request(request).await?)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(driver) = &self.driver {
            driver.abort();
        }
    }
}
