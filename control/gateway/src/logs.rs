//! Containers' logs, read off a node through a stream of its session.
//!
//! The node sends no more than the reader has made room for: what waits here is bounded by the stream's credit
//! (`Limits::stream_credit_bytes`), which is renewed by what was taken out of the pipe.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use lichen_api::Status;
use lichen_registry::{LogRequest, LogStream};
use lichen_wire::stream::{REQUEST_BYTES_MAX, StreamError, StreamErrorCode, StreamRequest};
use tokio::sync::{Notify, mpsc};

/// How long a log's first bytes are waited for before it counts as begun. What goes wrong until then is the answer to
/// the request; what goes wrong later breaks the stream.
const FIRST_WORD_MAX: Duration = Duration::from_secs(2);

/// The session's end of a pipe.
#[derive(Debug)]
pub(crate) struct PipeIn {
    sender: mpsc::UnboundedSender<Result<Bytes, Status>>,
    taken: Arc<AtomicU64>,
}

impl PipeIn {
    /// Passes on bytes; they count against the credit until the reader has taken them.
    pub(crate) fn data(&self, data: &[u8]) {
        // A reader that is gone is noticed by `is_closed`.
        let _ = self.sender.send(Ok(Bytes::copy_from_slice(data)));
    }

    /// Ends the pipe with an error.
    pub(crate) fn fail(&self, status: Status) {
        let _ = self.sender.send(Err(status));
    }

    /// Whether the reader is gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// How many bytes the reader has taken since this was last asked.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.swap(0, Ordering::Relaxed)
    }
}

/// The reader's end of a pipe. It wakes the session whenever it has taken something, and when it is dropped.
#[derive(Debug)]
pub(crate) struct PipeOut {
    receiver: mpsc::UnboundedReceiver<Result<Bytes, Status>>,
    taken: Arc<AtomicU64>,
    wake: Arc<Notify>,
}

/// A pipe between a session, which is woken through `wake`, and a reader.
pub(crate) fn pipe(wake: Arc<Notify>) -> (PipeIn, PipeOut) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let taken = Arc::new(AtomicU64::new(0));
    (PipeIn { sender, taken: taken.clone() }, PipeOut { receiver, taken, wake })
}

impl Stream for PipeOut {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.receiver.poll_recv(cx);
        if let Poll::Ready(Some(Ok(data))) = &next {
            self.taken.fetch_add(data.len() as u64, Ordering::Relaxed);
            self.wake.notify_one();
        }
        next
    }
}

impl Drop for PipeOut {
    fn drop(&mut self) {
        self.receiver.close();
        self.wake.notify_one();
    }
}

/// Waits for the log to begin, so that a log that does not exist is an error and not an empty log.
pub(crate) async fn begin(mut pipe: PipeOut) -> Result<LogStream, Status> {
    match tokio::time::timeout(FIRST_WORD_MAX, pipe.next()).await {
        Ok(Some(Err(status))) => Err(status),
        Ok(Some(first)) => Ok(Box::pin(stream::iter([first]).chain(pipe))),
        Ok(None) => Ok(Box::pin(stream::empty())),
        Err(_) => Ok(Box::pin(pipe)),
    }
}

/// Writes a request for the wire.
pub(crate) fn encode(request: &LogRequest) -> Result<Vec<u8>, Status> {
    let mut out = vec![0; REQUEST_BYTES_MAX];
    let wire = StreamRequest::Logs {
        namespace: &request.namespace,
        pod: &request.pod,
        uid: &request.uid,
        container: &request.container,
        follow: request.follow,
        tail_lines: request.tail_lines,
        since_unix_ms: request.since.map(|since| since.as_millisecond()),
        timestamps: request.timestamps,
        previous: request.previous,
        limit_bytes: request.limit_bytes,
    };
    let len = wire.write(&mut out).map_err(|_| Status::bad_request("the request for logs is too long"))?;
    out.truncate(len);
    Ok(out)
}

/// What a node's error is to the client.
pub(crate) fn status_of(error: &str) -> Status {
    let error = StreamError::parse(error);
    match error.code {
        StreamErrorCode::Invalid | StreamErrorCode::Unusable | StreamErrorCode::Image => {
            Status::bad_request(error.message)
        }
        StreamErrorCode::NotFound => Status::new(404, "NotFound", error.message),
        StreamErrorCode::Unavailable => Status::service_unavailable(error.message),
        StreamErrorCode::Internal => Status::internal(error.message),
    }
}
