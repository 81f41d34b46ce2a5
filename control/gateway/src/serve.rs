//! Artifacts and renewed certificates, written to a node through a stream of its session.

use std::io::{self, Read, Seek, SeekFrom};

use bytes::Bytes;
use lichen_artifacts::{Artifacts, CompileError, CompiledArtifact, Reference, ResolveError, Resolved};
use lichen_wire::body::Blob;
use lichen_wire::session::{STREAM_ERROR_BYTES_MAX, StreamId};
use lichen_wire::stream::{ArtifactHead, REQUEST_BYTES_MAX, StreamError, StreamErrorCode};
use tokio::sync::{mpsc, oneshot};

use crate::join;
use crate::node::Input;

/// How much of a file is read in one go.
const CHUNK_BYTES: usize = 64 * 1024;
/// Longest message of an error that a node is sent: what a stream's error holds, less the code.
const ERROR_BYTES_MAX: usize = STREAM_ERROR_BYTES_MAX - 16;

/// Writes one stream of one session. Everything it does after the stream has ended has no effect.
pub(crate) struct StreamWriter {
    pub(crate) id: StreamId,
    pub(crate) session: u64,
    pub(crate) inputs: mpsc::Sender<Input>,
}

/// The stream, the session or the gateway has ended.
pub(crate) struct Gone;

impl StreamWriter {
    /// Writes bytes; returns when the session has taken all of them.
    async fn write(&self, data: Bytes) -> Result<(), Gone> {
        let (taken, wait) = oneshot::channel();
        let input = Input::StreamWrite { id: self.id, session: self.session, data, taken };
        self.inputs.send(input).await.map_err(|_| Gone)?;
        wait.await.map_err(|_| Gone)
    }

    async fn end(&self, error: Option<String>) {
        // Without a session there is nobody to tell.
        let _ = self.inputs.send(Input::StreamEnd { id: self.id, session: self.session, error }).await;
    }
}

/// What a node asked for.
pub(crate) struct ArtifactRequest {
    pub(crate) node: String,
    pub(crate) image: String,
    pub(crate) profile: String,
    pub(crate) offset: u64,
}

struct Failure(StreamErrorCode, String);

/// Finds, compiles and writes an artifact.
pub(crate) async fn artifact(artifacts: Artifacts, request: ArtifactRequest, writer: StreamWriter) {
    let ArtifactRequest { node, image, profile, offset } = &request;
    let found = find(&artifacts, image, profile).await;
    let (resolved, compiled) = match found {
        Ok(found) => found,
        Err(Failure(code, message)) => {
            tracing::warn!(node, image, profile, code = code.name(), message, "no artifact for a node");
            let mut message = message;
            message.truncate(message.floor_char_boundary(ERROR_BYTES_MAX));
            return writer.end(Some(StreamError { code, message: &message }.to_string())).await;
        }
    };
    tracing::debug!(node, image, profile, offset, bytes = compiled.len_bytes, "a node pulls an artifact");
    match send(&resolved, &compiled, *offset, &writer).await {
        Ok(()) => writer.end(None).await,
        Err(Sending::Gone) => {}
        Err(Sending::Failed(error)) => {
            tracing::error!(node, image, %error, "a compiled artifact can't be read");
            let message = "the compiled artifact can't be read";
            let error = StreamError { code: StreamErrorCode::Internal, message };
            writer.end(Some(error.to_string())).await;
        }
    }
}

async fn find(
    artifacts: &Artifacts,
    image: &str,
    profile: &str,
) -> Result<(Resolved, CompiledArtifact), Failure> {
    let invalid = |message: String| Failure(StreamErrorCode::Invalid, message);
    let reference: Reference = image.parse().map_err(|error| invalid(format!("{image:?}: {error}")))?;
    let resolved = artifacts.resolve(&reference).await.map_err(|error| {
        let code = match &error {
            ResolveError::OtherRegistry(..) | ResolveError::NotFound(_) => StreamErrorCode::NotFound,
            ResolveError::NotWasm(..) => StreamErrorCode::Unusable,
            ResolveError::Blob(_) | ResolveError::Io(_) => StreamErrorCode::Internal,
        };
        Failure(code, with_sources(&error))
    })?;
    let compiled = artifacts.compiled(&resolved.layer, profile).await.map_err(|error| {
        let code = match &error {
            CompileError::Profile(_) => StreamErrorCode::Invalid,
            CompileError::NotComponent { .. }
            | CompileError::Rejected { .. }
            | CompileError::Limit { .. } => StreamErrorCode::Unusable,
            CompileError::Worker { .. } | CompileError::Cache(_) => StreamErrorCode::Unavailable,
            CompileError::Blob(_) | CompileError::Sign(_) => StreamErrorCode::Internal,
        };
        // The node knows the digest and the profile; what it has room for is the reason.
        let why = match &error {
            CompileError::Rejected { message, .. } => message.clone(),
            CompileError::Limit { limit, .. } => format!("the compiler was stopped: more than {limit}"),
            CompileError::NotComponent { source, .. } => source.to_string(),
            other => with_sources(other),
        };
        Failure(code, format!("{image}: {why}"))
    })?;
    Ok((resolved, compiled))
}

enum Sending {
    Gone,
    Failed(io::Error),
}

impl From<Gone> for Sending {
    fn from(_: Gone) -> Sending {
        Sending::Gone
    }
}

async fn send(
    resolved: &Resolved,
    compiled: &CompiledArtifact,
    offset: u64,
    writer: &StreamWriter,
) -> Result<(), Sending> {
    let head = ArtifactHead {
        manifest: *resolved.manifest.as_bytes(),
        component: *resolved.layer.as_bytes(),
        sha256: *compiled.sha256.as_bytes(),
        len: compiled.len_bytes,
        signature: Blob(&compiled.signature),
    };
    let mut out = vec![0; REQUEST_BYTES_MAX];
    let len = head.write(&mut out).map_err(|error| Sending::Failed(io::Error::other(error)))?;
    out.truncate(len);
    writer.write(out.into()).await?;
    let mut file = std::fs::File::open(&compiled.path).map_err(Sending::Failed)?;
    let mut at = offset.min(compiled.len_bytes);
    file.seek(SeekFrom::Start(at)).map_err(Sending::Failed)?;
    while at < compiled.len_bytes {
        let want = usize::try_from(compiled.len_bytes - at).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let read = tokio::task::spawn_blocking(move || {
            let mut chunk = vec![0; want];
            file.read_exact(&mut chunk).map(|()| (chunk, file))
        });
        let (chunk, back) =
            read.await.map_err(io::Error::other).and_then(|read| read).map_err(Sending::Failed)?;
        file = back;
        at += chunk.len() as u64;
        writer.write(chunk.into()).await?;
    }
    Ok(())
}

/// Has a node's renewal answered, and writes the answer.
pub(crate) async fn renewal(
    joins: mpsc::Sender<join::Request>,
    node: String,
    payload: Bytes,
    writer: StreamWriter,
) {
    let (reply, answer) = oneshot::channel();
    let from = join::From::Session { node, reply };
    let answer = match joins.send(join::Request { from, payload }).await {
        Ok(()) => answer.await.ok(),
        Err(_) => None,
    };
    match answer {
        Some(answer) => {
            if writer.write(answer).await.is_ok() {
                writer.end(None).await;
            }
        }
        None => {
            let error =
                StreamError { code: StreamErrorCode::Invalid, message: "the renewal deserves no answer" };
            writer.end(Some(error.to_string())).await;
        }
    }
}

/// An error with everything that it was caused by, in one line.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
