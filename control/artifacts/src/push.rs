//! Pushing a component to a registry: the client's half of the OCI distribution API, over whatever sends requests.
//!
//! The manifest follows the Wasm OCI artifact layout: one layer `application/wasm`, a config that names the layer and
//! the component's imports and exports. Its creation time is left at zero on purpose: the same component pushed twice is
//! the same manifest.

use std::future::Future;

use bytes::Bytes;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;

use crate::{
    Component, ComponentError, DEFAULT_TAG, Digest, MANIFEST_MEDIA_TYPE, Reference, WASM_CONFIG_MEDIA_TYPE,
    WASM_LAYER_MEDIA_TYPE,
};

/// What went wrong on the way to a registry.
pub type TransportError = Box<dyn std::error::Error + Send + Sync>;

/// Whatever sends a request to the registry. URIs have a path and a query only; the transport knows the host.
pub trait Transport {
    /// Sends `request` and waits for the whole response.
    fn send(
        &self,
        request: Request<Bytes>,
    ) -> impl Future<Output = Result<Response<Bytes>, TransportError>> + Send;
}

/// What was pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The manifest.
    pub manifest: Digest,
    /// The component.
    pub layer: Digest,
    /// Whether the registry already had the component's bytes.
    pub layer_existed: bool,
}

/// Why a push did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The file is no component.
    #[error(transparent)]
    NotComponent(#[from] ComponentError),
    /// A push names a tag, not a digest, and no other registry.
    #[error("cannot push to {0}: want NAME:TAG, without a host and without a digest")]
    Reference(Reference),
    /// The registry could not be reached.
    #[error("cannot reach the registry")]
    Transport(#[source] TransportError),
    /// The registry refused.
    #[error("the registry refused {what}: {status}{message}")]
    Refused {
        /// Which step.
        what: &'static str,
        /// The HTTP status.
        status: StatusCode,
        /// What it said, with a separator before it.
        message: String,
    },
    /// The registry answered with something that makes no sense.
    #[error("the registry's answer to {0} makes no sense")]
    Answer(&'static str),
}

/// Pushes `component` and tags it as `reference` says. Nothing is sent unless it is a component.
pub async fn push(
    transport: &impl Transport,
    reference: &Reference,
    component: Bytes,
) -> Result<Pushed, PushError> {
    let outside = Component::parse(&component)?;
    if reference.host.is_some() || reference.digest.is_some() {
        return Err(PushError::Reference(reference.clone()));
    }
    let name = &reference.repository;
    let layer = Digest::of(&component);
    let layer_len = component.len();
    let config = json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": "wasm",
        "os": "wasip2",
        "layerDigests": [layer.to_string()],
        "component": { "imports": outside.imports, "exports": outside.exports },
    });
    let config = Bytes::from(config.to_string());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_MEDIA_TYPE,
        "config": descriptor(WASM_CONFIG_MEDIA_TYPE, &Digest::of(&config), config.len()),
        "layers": [descriptor(WASM_LAYER_MEDIA_TYPE, &layer, layer_len)],
    });
    let manifest = Bytes::from(manifest.to_string());
    let layer_existed = push_blob(transport, name, &layer, component).await?;
    push_blob(transport, name, &Digest::of(&config), config).await?;
    let tag = reference.tag.as_deref().unwrap_or(DEFAULT_TAG);
    let digest = Digest::of(&manifest);
    let request =
        request(Method::PUT, &format!("/v2/{name}/manifests/{tag}"), Some(MANIFEST_MEDIA_TYPE), manifest)
            .ok_or(PushError::Answer("the manifest"))?;
    let response = transport.send(request).await.map_err(PushError::Transport)?;
    expect(&response, StatusCode::CREATED, "the manifest")?;
    Ok(Pushed { manifest: digest, layer, layer_existed })
}

fn descriptor(media_type: &str, digest: &Digest, len: usize) -> serde_json::Value {
    json!({ "mediaType": media_type, "digest": digest.to_string(), "size": len })
}

/// Pushes one blob unless the registry has it; says whether it had.
async fn push_blob(
    transport: &impl Transport,
    name: &str,
    digest: &Digest,
    content: Bytes,
) -> Result<bool, PushError> {
    let what = "a blob";
    let answer = || PushError::Answer(what);
    let head = request(Method::HEAD, &format!("/v2/{name}/blobs/{digest}"), None, Bytes::new())
        .ok_or_else(answer)?;
    if transport.send(head).await.map_err(PushError::Transport)?.status() == StatusCode::OK {
        return Ok(true);
    }
    let start = request(Method::POST, &format!("/v2/{name}/blobs/uploads/"), None, Bytes::new())
        .ok_or_else(answer)?;
    let response = transport.send(start).await.map_err(PushError::Transport)?;
    expect(&response, StatusCode::ACCEPTED, what)?;
    let location = response.headers().get(LOCATION).and_then(|l| l.to_str().ok()).ok_or_else(answer)?;
    // A location may be a whole URI; only its path and query matter to the transport.
    let location: hyper::Uri = location.parse().map_err(|_| answer())?;
    let path = location.path_and_query().map(|p| p.as_str()).ok_or_else(answer)?;
    let separator = if path.contains('?') { '&' } else { '?' };
    let put = format!("{path}{separator}digest={digest}");
    let put = request(Method::PUT, &put, Some("application/octet-stream"), content).ok_or_else(answer)?;
    let response = transport.send(put).await.map_err(PushError::Transport)?;
    expect(&response, StatusCode::CREATED, what)?;
    Ok(false)
}

fn request(method: Method, uri: &str, content_type: Option<&str>, content: Bytes) -> Option<Request<Bytes>> {
    let mut request = Request::builder().method(method).uri(uri).header(CONTENT_LENGTH, content.len());
    if let Some(content_type) = content_type {
        request = request.header(CONTENT_TYPE, content_type);
    }
    request.body(content).ok()
}

fn expect(response: &Response<Bytes>, want: StatusCode, what: &'static str) -> Result<(), PushError> {
    if response.status() == want {
        return Ok(());
    }
    let said = serde_json::from_slice::<serde_json::Value>(response.body()).ok();
    let said = said.as_ref().and_then(|body| {
        // An OCI registry's error, or a Kubernetes Status from what stands before it.
        body.pointer("/errors/0/message").or_else(|| body.get("message")).and_then(|m| m.as_str())
    });
    let message = said.map(|text| format!(": {text}")).unwrap_or_default();
    Err(PushError::Refused { what, status: response.status(), message })
}
