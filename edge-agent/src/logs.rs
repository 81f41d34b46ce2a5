//! Container logs, served on streams that the gateway opens.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use lichen_wire::stream::{StreamError, StreamErrorCode, StreamRequest};
use lichen_workload::{ContainerId, LogOptions, LogStream, Runtime, RuntimeError};
use tracing::debug;

use crate::uplink::ByteStream;

/// A log that can be served.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) id: ContainerId,
    pub(crate) path: PathBuf,
    pub(crate) options: LogOptions,
}

/// A request for logs, taken off the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) key: String,
    pub(crate) uid: String,
    pub(crate) container: String,
    pub(crate) previous: bool,
    pub(crate) options: LogOptions,
}

/// An error that a stream ends with.
pub(crate) type Refusal = (StreamErrorCode, String);

/// Reads a request.
pub(crate) fn read(request: &[u8]) -> Result<Request, Refusal> {
    let invalid = |text: &str| (StreamErrorCode::Invalid, text.to_owned());
    match StreamRequest::read(request) {
        Ok(StreamRequest::Logs {
            namespace,
            pod,
            uid,
            container,
            follow,
            tail_lines,
            since_unix_ms,
            timestamps,
            previous,
            limit_bytes,
        }) => {
            let since = since_unix_ms
                .map(|ms| SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).unwrap_or(0)));
            Ok(Request {
                key: format!("{namespace}/{pod}"),
                uid: uid.to_owned(),
                container: container.to_owned(),
                previous,
                options: LogOptions { follow, tail_lines, since, timestamps, limit_bytes },
            })
        }
        Ok(StreamRequest::Artifact { .. }) => Err(invalid("a node serves no artifacts")),
        Err(_) => Err(invalid("the request can't be read")),
    }
}

/// Writes a log to a stream until it ends, or its reader does.
pub(crate) async fn serve(wanted: Wanted, runtime: Arc<dyn Runtime>, mut stream: Box<dyn ByteStream>) {
    let mut log = match open(&wanted, runtime.as_ref()) {
        Ok(log) => log,
        Err((code, message)) => return refuse(stream, code, &message),
    };
    let mut listening = true;
    loop {
        tokio::select! {
            chunk = log.next() => match chunk {
                Some(Ok(bytes)) => {
                    if let Err(error) = stream.write(&bytes).await {
                        debug!(%error, "a log's reader is gone");
                        return;
                    }
                }
                Some(Err(error)) => return refuse(stream, StreamErrorCode::Internal, &error.to_string()),
                None => {
                    // A reader that is gone needs no end.
                    let _ = stream.finish().await;
                    return;
                }
            },
            said = stream.read(), if listening => match said {
                // The reader says nothing more, and still reads.
                Ok(None) => listening = false,
                Ok(Some(_)) => {}
                Err(_) => return,
            },
        }
    }
}

fn open(wanted: &Wanted, runtime: &dyn Runtime) -> Result<LogStream, Refusal> {
    match runtime.logs(&wanted.id, wanted.options.clone()) {
        Ok(log) => Ok(log),
        // It ended before this run of the agent; its file is still there.
        Err(RuntimeError::NotFound(_)) if wanted.path.exists() => {
            Ok(lichen_workload::logs::read(wanted.path.clone(), wanted.options.clone()))
        }
        Err(RuntimeError::NotFound(_)) => {
            Err((StreamErrorCode::NotFound, "the container's log is no longer on the node".to_owned()))
        }
        Err(error) => Err((StreamErrorCode::Internal, error.to_string())),
    }
}

/// Ends a stream with an error.
pub(crate) fn refuse(stream: Box<dyn ByteStream>, code: StreamErrorCode, message: &str) {
    stream.reset(&StreamError { code, message }.to_string());
}
