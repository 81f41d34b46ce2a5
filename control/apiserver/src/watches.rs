//! Watches: a stream of JSON lines that ends by its timeout, by the client, or when the server drains.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::Response;
use lichen_api::{Resource, Status, table};
use lichen_registry::{Watch, WatchEvent, WatchOptions, WatchStart, object_of};
use lichen_store::{Record, Revision};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::lists::as_stored;
use crate::negotiate::{Encoding, Format, REPLY_TYPES, Shape};
use crate::options;
use crate::respond::{self, Body, BodyError};
use crate::router::{App, Call};

/// How long a watch lasts that names no timeout; clients then begin another.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(45 * 60);
/// How long a watch lasts at most.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How long before its end a watch tells how far it has come.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);
/// Bytes of events that are sent at once.
const BATCH_BYTES: usize = 32 * 1024;

/// Answers a watch, of one object if a name is given.
pub(crate) async fn answer(call: Call, name: Option<String>) -> Result<Response<Body>, Status> {
    let format = call.format()?;
    if format.encoding == Encoding::Yaml {
        return Err(Status::not_acceptable(&REPLY_TYPES[..1]));
    }
    let asked = options::list(&call.query, true)?;
    let registry = &call.app.registry;
    let mut filter = asked.list.filter;
    filter.name = name;
    match (asked.start, options::revision(&call.query)?) {
        // A watch after a revision that this member has yet to see waits for what comes after it.
        (WatchStart::After(_), _) => {}
        (_, Some(revision)) => registry.reach(Revision(revision)).await?,
        (_, None) => registry.barrier().await?,
    }
    let timeout =
        asked.timeout_seconds.filter(|seconds| *seconds > 0).map_or(TIMEOUT_DEFAULT, Duration::from_secs);
    let end = Instant::now() + timeout.min(TIMEOUT_MAX);
    let options = WatchOptions { filter, start: asked.start };
    let mut writer = Writer {
        resource: call.resource,
        format,
        bookmarks: asked.bookmarks,
        mark_initial_end: asked.mark_initial_end,
        columns_sent: false,
        app: call.app.clone(),
    };
    let watch = match registry.watch(call.resource, call.namespace(), &options) {
        Ok(watch) => watch,
        // A revision that is gone is told inside the stream.
        Err(status) if status.code == 410 => {
            return Ok(respond::full(200, "application/json", writer.error(&status)));
        }
        Err(status) => return Err(status),
    };
    let state =
        Stream { watch, writer, end, bookmark_due: asked.bookmarks, draining: call.app.draining.clone() };
    let pieces = futures_util::stream::unfold(Some(state), |state| async move {
        let mut state = state?;
        let (piece, over) = state.next().await;
        if piece.is_empty() && over {
            return None;
        }
        Some((Ok::<_, BodyError>(piece), (!over).then_some(state)))
    });
    Ok(respond::stream(200, "application/json", pieces))
}

struct Stream {
    watch: Watch,
    writer: Writer,
    end: Instant,
    /// Whether the bookmark before the end is still to be sent.
    bookmark_due: bool,
    draining: watch::Receiver<bool>,
}

impl Stream {
    /// The next piece of the stream, and whether it is the last.
    async fn next(&mut self) -> (Bytes, bool) {
        let mut out = Vec::new();
        while out.is_empty() {
            let pause = if self.bookmark_due { self.end - LAST_BOOKMARK } else { self.end };
            tokio::select! {
                biased;
                _ = self.draining.wait_for(|draining| *draining) => return (Bytes::new(), true),
                () = sleep_until(pause) => {
                    if !self.bookmark_due {
                        return (Bytes::new(), true);
                    }
                    self.bookmark_due = false;
                    match self.watch.progress() {
                        Ok(Some(revision)) => self.writer.bookmark(&mut out, revision, false),
                        Ok(None) => {}
                        Err(status) => return (self.writer.error(&status).into(), true),
                    }
                }
                event = self.watch.next() => match event.and_then(|event| self.writer.event(&mut out, &event)) {
                    Ok(()) => {}
                    Err(status) if status.code == 503 => return (Bytes::from(out), true),
                    Err(status) => {
                        out.extend(self.writer.error(&status));
                        return (Bytes::from(out), true);
                    }
                },
            }
        }
        // What is there already goes into the same piece.
        while out.len() < BATCH_BYTES {
            let ready = tokio::select! {
                biased;
                event = self.watch.next() => event,
                () = std::future::ready(()) => break,
            };
            match ready.and_then(|event| self.writer.event(&mut out, &event)) {
                Ok(()) => {}
                Err(status) => {
                    if status.code != 503 {
                        out.extend(self.writer.error(&status));
                    }
                    return (Bytes::from(out), true);
                }
            }
        }
        (Bytes::from(out), false)
    }
}

/// Writes events down as the client wants them.
struct Writer {
    resource: &'static Resource,
    format: Format,
    bookmarks: bool,
    mark_initial_end: bool,
    columns_sent: bool,
    app: Arc<App>,
}

impl Writer {
    fn event(&mut self, out: &mut Vec<u8>, event: &WatchEvent) -> Result<(), Status> {
        match event {
            WatchEvent::Added(record) => self.object(out, "ADDED", record),
            WatchEvent::Modified(record) => self.object(out, "MODIFIED", record),
            WatchEvent::Deleted(record) => self.object(out, "DELETED", record),
            WatchEvent::Bookmark { revision, initial_end } => {
                if self.bookmarks && (!initial_end || self.mark_initial_end) {
                    self.bookmark(out, *revision, *initial_end);
                }
                Ok(())
            }
        }
    }

    fn object(&mut self, out: &mut Vec<u8>, kind: &str, record: &Record) -> Result<(), Status> {
        let record = &self.app.shown(self.resource, record.clone());
        if as_stored(self.resource, self.format) {
            begin(out, kind);
            record.write_json(out, true);
        } else {
            let object = object_of(self.resource, record)?;
            let value = match self.format.shape {
                Shape::Object => object,
                Shape::Partial => table::partial(&object),
                Shape::Table => self.rows(&object, json!({"resourceVersion": record.revision().to_string()})),
            };
            begin(out, kind);
            out.extend_from_slice(value.to_string().as_bytes());
        }
        out.extend_from_slice(b"}\n");
        Ok(())
    }

    fn rows(&mut self, object: &Value, metadata: Value) -> Value {
        let with_columns = !std::mem::replace(&mut self.columns_sent, true);
        let objects = std::slice::from_ref(object);
        table::to_table(
            self.resource,
            objects,
            metadata,
            self.format.include,
            with_columns,
            self.app.registry.now(),
        )
    }

    fn bookmark(&mut self, out: &mut Vec<u8>, revision: Revision, initial_end: bool) {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = json!({
            "kind": self.resource.kind, "apiVersion": self.resource.api_version(), "metadata": metadata,
        });
        let value = match self.format.shape {
            Shape::Object => object,
            Shape::Partial => table::partial(&object),
            Shape::Table => self.rows(&object, json!({"resourceVersion": revision.to_string()})),
        };
        begin(out, "BOOKMARK");
        out.extend_from_slice(value.to_string().as_bytes());
        out.extend_from_slice(b"}\n");
    }

    fn error(&mut self, status: &Status) -> Vec<u8> {
        let mut out = Vec::new();
        begin(&mut out, "ERROR");
        out.extend_from_slice(status.to_json().to_string().as_bytes());
        out.extend_from_slice(b"}\n");
        out
    }
}

fn begin(out: &mut Vec<u8>, kind: &str) {
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
}
