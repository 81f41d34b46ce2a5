//! The streams of a node's session: what the node asks for is served to it, and what is asked of it is read from it.

use bytes::{Buf, Bytes};
use lichen_api::Status;
use lichen_artifacts::Digest;
use lichen_wire::session::StreamId;
use lichen_wire::stream::{StreamError, StreamErrorCode, StreamRequest};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::NodeTask;
use crate::logs::{self, PipeIn};
use crate::serve::{self, ArtifactRequest, StreamWriter};

/// A stream of the session that stands.
pub(super) enum Stream {
    /// From the node to a reader.
    In(PipeIn),
    /// To the node.
    Out { task: AbortHandle, pending: Bytes, taken: Option<oneshot::Sender<()>>, end: bool },
}

impl NodeTask {
    pub(super) fn opened(&mut self, id: StreamId, request: &[u8]) {
        let artifacts = self.shared.artifacts.clone();
        let writer = StreamWriter { id, session: self.number, inputs: self.inputs.clone() };
        let task = match StreamRequest::read(request) {
            Ok(StreamRequest::Artifact { image, profile, offset }) => {
                let request = ArtifactRequest {
                    node: self.node.clone(),
                    image: image.to_owned(),
                    profile: profile.to_owned(),
                    offset,
                };
                tokio::spawn(serve::artifact(artifacts, request, writer))
            }
            Ok(StreamRequest::Image { image, platform }) => {
                tokio::spawn(serve::image(artifacts, image.to_owned(), platform.to_owned(), writer))
            }
            Ok(StreamRequest::Blob { sha256, offset }) => {
                tokio::spawn(serve::blob(artifacts, Digest::from_bytes(sha256), offset, writer))
            }
            Ok(StreamRequest::Logs { .. }) => {
                return self.reset(id, StreamErrorCode::Invalid, "nodes have logs");
            }
            Ok(StreamRequest::Renew { request }) => {
                let (joins, node) = (self.shared.joins.clone(), self.node.clone());
                tokio::spawn(serve::renewal(joins, node, Bytes::copy_from_slice(request.0), writer))
            }
            Err(error) => {
                tracing::warn!(node = self.node, %error, "a stream's request can't be read");
                return self.reset(id, StreamErrorCode::Invalid, "the request can't be read");
            }
        };
        let stream =
            Stream::Out { task: task.abort_handle(), pending: Bytes::new(), taken: None, end: false };
        self.streams.insert(id, stream);
    }

    /// Writes what waits for a stream, as far as it goes.
    pub(super) fn write_on(&mut self, id: StreamId) {
        let Some(Stream::Out { pending, taken, end, .. }) = self.streams.get_mut(&id) else { return };
        while !pending.is_empty() {
            match self.session.stream_write(id, pending) {
                Ok(0) => return,
                Ok(written) => pending.advance(written),
                Err(_) => return self.forget(id),
            }
        }
        if let Some(taken) = taken.take() {
            // Whoever wrote it may be gone.
            let _ = taken.send(());
        }
        if *end {
            let _ = self.session.stream_finish(id);
            self.forget(id);
        }
    }

    pub(super) fn ended(&mut self, id: StreamId, error: Option<String>) {
        if let (Some(Stream::In(pipe)), Some(error)) = (self.streams.get(&id), &error) {
            pipe.fail(logs::status_of(error));
        }
        match self.streams.get(&id) {
            Some(Stream::In(_)) => {
                if error.is_none() {
                    // This side has nothing to say on it either.
                    let _ = self.session.stream_finish(id);
                }
                self.forget(id);
            }
            // A node that has asked says no more; what it asked for is still on its way.
            Some(Stream::Out { .. }) if error.is_none() => {}
            Some(Stream::Out { .. }) | None => self.forget(id),
        }
    }

    /// Readers of streams have taken bytes or are gone.
    pub(super) fn readers_moved(&mut self) {
        let mut gone = Vec::new();
        for (id, stream) in &self.streams {
            let Stream::In(pipe) = stream else { continue };
            if pipe.is_closed() {
                gone.push(*id);
                continue;
            }
            let taken = pipe.taken();
            if taken > 0 {
                let _ = self.session.stream_grant(*id, taken);
            }
        }
        for id in gone {
            self.reset(id, StreamErrorCode::Unavailable, "the reader is gone");
        }
    }

    pub(super) fn reset(&mut self, id: StreamId, code: StreamErrorCode, message: &str) {
        // A stream that has ended meanwhile needs no end.
        let _ = self.session.stream_reset(id, &StreamError { code, message }.to_string());
        self.forget(id);
    }

    fn forget(&mut self, id: StreamId) {
        if let Some(Stream::Out { task, end, .. }) = self.streams.remove(&id)
            && !end
        {
            task.abort();
        }
    }

    /// The session is over, and its streams with it.
    pub(super) fn end_streams(&mut self) {
        for stream in std::mem::take(&mut self.streams).into_values() {
            match stream {
                Stream::In(pipe) => {
                    pipe.fail(Status::service_unavailable(format!("node {} was disconnected", self.node)));
                }
                Stream::Out { task, .. } => task.abort(),
            }
        }
    }
}
