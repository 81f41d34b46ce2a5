//! Container logs, served on streams that the gateway opens.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use lichen_wire::stream::{StreamError, StreamErrorCode, StreamRequest};
use lichen_workload::{ContainerId, LogOptions, LogStream, Runtime, RuntimeError};
use tracing::debug;

use crate::core::Core;
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
        Ok(
            StreamRequest::Artifact { .. }
            | StreamRequest::Image { .. }
            | StreamRequest::Blob { .. }
            | StreamRequest::Renew { .. },
        ) => Err(invalid("nodes serve logs")),
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

impl Core {
    /// The gateway opened a stream.
    pub(crate) fn on_stream(&mut self, request: &[u8], stream: Box<dyn ByteStream>) {
        match read(request).and_then(|request| self.wanted(request)) {
            Ok(wanted) => {
                let runtime = self.runtime.clone();
                self.tasks.spawn(serve(wanted, runtime, stream));
            }
            Err((code, message)) => refuse(stream, code, &message),
        }
    }

    fn wanted(&self, request: Request) -> Result<Wanted, Refusal> {
        let Request { key, uid, container, previous, options } = request;
        let name = key.split_once('/').map_or(key.as_str(), |(_, name)| name);
        let entry = self.entries.get(&uid).filter(|entry| entry.key == key);
        let entry = entry.ok_or_else(|| {
            (StreamErrorCode::NotFound, format!("pod {name:?} is not on this node any more"))
        })?;
        let state = entry.machine.container(&container).ok_or_else(|| {
            (StreamErrorCode::Invalid, format!("container {container} is not valid for pod {name}"))
        })?;
        let attempt = match (previous, state.starts) {
            (false, 0) => {
                let text = format!("container {container:?} in pod {name:?} is waiting to start");
                return Err((
                    StreamErrorCode::Invalid,
                    format!("{text}: {}", entry.machine.waiting(&container)),
                ));
            }
            (false, starts) => starts - 1,
            (true, starts @ 2..) => starts - 2,
            (true, _) => {
                let text = format!("previous terminated container {container:?} in pod {name:?} not found");
                return Err((StreamErrorCode::Invalid, text));
            }
        };
        let id = ContainerId::of_attempt(&uid, &container, attempt)
            .map_err(|error| (StreamErrorCode::Invalid, error.to_string()))?;
        let path = self.log_path(&uid, &container, attempt);
        Ok(Wanted { id, path, options })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    use lichen_wire::stream::REQUEST_BYTES_MAX;
    use lichen_workload::mock::{MockRuntime, Script};
    use lichen_workload::{Artifact, ContainerSpec};

    use super::*;
    use crate::testing::{FakeStream, Written};

    fn stream() -> (Box<dyn ByteStream>, Arc<Mutex<Written>>) {
        let written = Arc::<Mutex<Written>>::default();
        let stream = FakeStream { chunks: VecDeque::new(), end: Ok(()), written: written.clone() };
        (Box::new(stream), written)
    }

    fn wanted(dir: &std::path::Path) -> Wanted {
        Wanted {
            id: ContainerId::of_attempt("u", "c", 0).expect("an id"),
            path: dir.join("0.log"),
            options: LogOptions::default(),
        }
    }

    #[tokio::test]
    async fn a_log_is_served_from_the_runtime_or_from_its_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let wanted = wanted(dir.path());
        let runtime = MockRuntime::default();
        let (to, written) = stream();
        serve(wanted.clone(), Arc::new(runtime.clone()), to).await;
        let text = written.lock().expect("not poisoned").reset.clone().expect("was refused");
        assert_eq!(text, "NotFound: the container's log is no longer on the node");

        std::fs::write(&wanted.path, "2026-11-22T02:19:02.000000000Z stdout F from the file\n")
            .expect("writes");
        let (to, written) = stream();
        serve(wanted.clone(), Arc::new(runtime.clone()), to).await;
        let expect = Written { data: b"from the file\n".to_vec(), finished: true, reset: None };
        assert_eq!(*written.lock().expect("not poisoned"), expect);

        let artifact = Artifact::Component { path: "x".into(), digest: "d".into() };
        runtime.script("x", Script { output: vec!["from the runtime".into()], ..Script::default() });
        let spec = ContainerSpec::new(wanted.id.clone(), artifact, &wanted.path);
        runtime.create(spec).await.expect("creates");
        runtime.start(&wanted.id).await.expect("starts");
        let (to, written) = stream();
        serve(wanted, Arc::new(runtime), to).await;
        assert_eq!(written.lock().expect("not poisoned").data, b"from the runtime\n");
    }

    #[test]
    fn requests() {
        assert_eq!(read(b"nonsense").expect_err("is refused").0, StreamErrorCode::Invalid);
        let mut out = [0; REQUEST_BYTES_MAX];
        let request = StreamRequest::Artifact { image: "i", profile: "p", offset: 0 };
        let len = request.write(&mut out).expect("fits");
        assert_eq!(read(&out[..len]).expect_err("is refused").1, "nodes serve logs");
    }
}
