//! A store in a temporary directory, and a client of it without a socket.
#![allow(dead_code, reason = "each test file uses its part")]

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::HeaderMap;
use hyper::{Method, Request, Response, StatusCode};
use lichen_artifacts::{
    Artifacts, CompileCommand, OpenError, Signer, SignerError, Transport, TransportError,
};

/// A real component.
pub(crate) const COMPONENT: &[u8] = include_bytes!("../../../../runtime/guests/hello.wasm");

/// Signs with a prefix: enough to tell a signature over one text from one over another.
pub(crate) struct Prefix;

impl Signer for Prefix {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        Ok([b"signed ", message].concat())
    }

    fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        signature.strip_prefix(b"signed ") == Some(message)
    }
}

/// A worker that runs a shell script; `$2` is the profile.
pub(crate) fn script(text: &str) -> CompileCommand {
    CompileCommand::new(["/bin/sh", "-c", text, "worker"].map(OsString::from).to_vec())
}

/// A worker that compiles by copying.
pub(crate) fn cat() -> CompileCommand {
    script("cat")
}

pub(crate) fn open(dir: &Path, worker: CompileCommand) -> Result<Artifacts, OpenError> {
    Artifacts::open(dir, worker, Arc::new(Prefix))
}

pub(crate) fn fixture() -> (tempfile::TempDir, Artifacts) {
    let dir = tempfile::tempdir().unwrap();
    let artifacts = open(dir.path(), cat()).unwrap();
    (dir, artifacts)
}

pub(crate) async fn send(
    artifacts: &Artifacts,
    method: Method,
    uri: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> (StatusCode, HeaderMap, Bytes) {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::copy_from_slice(body))).unwrap();
    let (parts, body) = artifacts.handle(request).await.into_parts();
    (parts.status, parts.headers, body.collect().await.unwrap().to_bytes())
}

pub(crate) async fn get(artifacts: &Artifacts, uri: &str) -> (StatusCode, HeaderMap, Bytes) {
    send(artifacts, Method::GET, uri, &[], b"").await
}

/// The client's transport, straight into the handler.
pub(crate) struct Local(pub(crate) Artifacts);

impl Transport for Local {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, TransportError> {
        let (parts, body) = self.0.handle(request.map(Full::new)).await.into_parts();
        Ok(Response::from_parts(parts, body.collect().await?.to_bytes()))
    }
}
