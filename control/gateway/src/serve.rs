//! Artifacts and renewed certificates, written to a node through a stream of its session.

use std::io::{self, Read, Seek, SeekFrom};

use bytes::Bytes;
use lichen_artifacts::{
    Artifacts, BlobError, CompileError, CompiledArtifact, Digest, Reference, ResolveError, Resolved,
};
use lichen_wire::body::Blob;
use lichen_wire::session::{STREAM_ERROR_BYTES_MAX, StreamId};
use lichen_wire::stream::{ArtifactHead, ImageHead, REQUEST_BYTES_MAX, StreamError, StreamErrorCode};
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

    /// Ends the stream with what is wrong.
    async fn fail(&self, failure: Failure) {
        let Failure(code, mut message) = failure;
        message.truncate(message.floor_char_boundary(ERROR_BYTES_MAX));
        self.end(Some(StreamError { code, message: &message }.to_string())).await;
    }

    /// Ends the stream as its sending did; `what` was sent.
    async fn close(&self, sent: Result<(), Sending>, what: &str) {
        match sent {
            Ok(()) => self.end(None).await,
            Err(Sending::Gone) => {}
            Err(Sending::Failed(error)) => {
                tracing::error!(%error, what, "what a node asked for can't be read");
                self.fail(Failure(StreamErrorCode::Internal, format!("{what} can't be read"))).await;
            }
        }
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
        Err(failure) => {
            // That an image is for the other runtime is no failure of anybody.
            if failure.0 != StreamErrorCode::Image {
                let Failure(code, message) = &failure;
                tracing::warn!(node, image, profile, code = code.name(), message, "no artifact for a node");
            }
            return writer.fail(failure).await;
        }
    };
    tracing::debug!(node, image, profile, offset, bytes = compiled.len_bytes, "a node pulls an artifact");
    let sent = send(&resolved, &compiled, *offset, &writer).await;
    writer.close(sent, "the compiled artifact").await;
}

/// Says which manifest an image has for a platform.
pub(crate) async fn image(artifacts: Artifacts, image: String, platform: String, writer: StreamWriter) {
    let head = async {
        let reference: Reference = image
            .parse()
            .map_err(|error| Failure(StreamErrorCode::Invalid, format!("{image:?}: {error}")))?;
        let (manifest, len) = artifacts.image(&reference, &platform).await.map_err(unresolved)?;
        let mut out = vec![0; REQUEST_BYTES_MAX];
        let written = ImageHead { manifest: *manifest.as_bytes(), len }.write(&mut out);
        let written = written.map_err(|error| Failure(StreamErrorCode::Internal, error.to_string()))?;
        out.truncate(written);
        Ok(Bytes::from(out))
    };
    match head.await {
        Ok(head) => {
            let sent = writer.write(head).await.map_err(Sending::from);
            writer.close(sent, "the image").await;
        }
        Err(failure) => writer.fail(failure).await,
    }
}

/// Writes a blob from an offset on.
pub(crate) async fn blob(artifacts: Artifacts, digest: Digest, offset: u64, writer: StreamWriter) {
    match artifacts.open_blob(&digest).await {
        Ok((file, len)) => {
            let sent = send_file(file, len, offset, &writer).await;
            writer.close(sent, "the blob").await;
        }
        Err(error) => {
            let code = match &error {
                BlobError::Unknown(_) => StreamErrorCode::NotFound,
                BlobError::Damaged { .. } | BlobError::Io { .. } => StreamErrorCode::Internal,
            };
            writer.fail(Failure(code, with_sources(&error))).await;
        }
    }
}

/// Why a reference led to nothing that could be sent.
fn unresolved(error: ResolveError) -> Failure {
    let code = match &error {
        ResolveError::OtherRegistry(..) | ResolveError::NotFound(_) => StreamErrorCode::NotFound,
        ResolveError::NotWasm(..) | ResolveError::Platform(..) => StreamErrorCode::Unusable,
        ResolveError::Image(_) => StreamErrorCode::Image,
        ResolveError::Blob(_) | ResolveError::Io(_) => StreamErrorCode::Internal,
    };
    Failure(code, with_sources(&error))
}

async fn find(
    artifacts: &Artifacts,
    image: &str,
    profile: &str,
) -> Result<(Resolved, CompiledArtifact), Failure> {
    let invalid = |message: String| Failure(StreamErrorCode::Invalid, message);
    let reference: Reference = image.parse().map_err(|error| invalid(format!("{image:?}: {error}")))?;
    let resolved = artifacts.resolve(&reference).await.map_err(unresolved)?;
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
    let file = std::fs::File::open(&compiled.path).map_err(Sending::Failed)?;
    send_file(file, compiled.len_bytes, offset, writer).await
}

/// Writes a file of this length from an offset on.
async fn send_file(
    mut file: std::fs::File,
    len: u64,
    offset: u64,
    writer: &StreamWriter,
) -> Result<(), Sending> {
    let mut at = offset.min(len);
    file.seek(SeekFrom::Start(at)).map_err(Sending::Failed)?;
    while at < len {
        let want = usize::try_from(len - at).unwrap_or(usize::MAX).min(CHUNK_BYTES);
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
