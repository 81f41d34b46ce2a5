//! The way to the control plane, as the agent sees it: reports out, streams both ways. A trait, so that tests
//! stand in for the link.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lichen_link::{LinkError, LinkHandle, LinkStream, StreamError};
use tokio::sync::Notify;
use tracing::warn;

/// Most reports that wait to be taken by the link. Levels of pods and of the node are one each, so only events
/// can reach this; those beyond it are dropped.
const WAITING_MAX: usize = 2048;

/// Reports and opens streams.
pub trait Uplink: Send + Sync + 'static {
    /// Queues a report until it is durable; waits for room.
    fn report<'a>(
        &'a self,
        kind: &'a str,
        key: &'a str,
        uid: &'a str,
        body: Vec<u8>,
    ) -> BoxFuture<'a, Result<(), LinkError>>;

    /// Opens a stream.
    fn open(&self, request: Vec<u8>) -> BoxFuture<'_, Result<Box<dyn ByteStream>, LinkError>>;
}

/// A stream in both directions.
pub trait ByteStream: Send {
    /// The next bytes; none after the last.
    fn read(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, StreamError>>;
    /// Writes all of the bytes.
    fn write<'a>(&'a mut self, data: &'a [u8]) -> BoxFuture<'a, Result<(), StreamError>>;
    /// Ends this side's direction.
    fn finish(&mut self) -> BoxFuture<'_, Result<(), StreamError>>;
    /// Ends both directions and says why.
    fn reset(self: Box<Self>, error: &str);
}

impl Uplink for LinkHandle {
    fn report<'a>(
        &'a self,
        kind: &'a str,
        key: &'a str,
        uid: &'a str,
        body: Vec<u8>,
    ) -> BoxFuture<'a, Result<(), LinkError>> {
        LinkHandle::report(self, kind, key, uid, body).boxed()
    }

    fn open(&self, request: Vec<u8>) -> BoxFuture<'_, Result<Box<dyn ByteStream>, LinkError>> {
        async move { Ok(Box::new(self.open_stream(request).await?) as Box<dyn ByteStream>) }.boxed()
    }
}

impl ByteStream for LinkStream {
    fn read(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, StreamError>> {
        LinkStream::read(self).boxed()
    }

    fn write<'a>(&'a mut self, data: &'a [u8]) -> BoxFuture<'a, Result<(), StreamError>> {
        LinkStream::write(self, data).boxed()
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<(), StreamError>> {
        LinkStream::finish(self).boxed()
    }

    fn reset(self: Box<Self>, error: &str) {
        LinkStream::reset(*self, error);
    }
}

/// Kind, key and UID of a report.
type ReportId = (&'static str, String, String);

/// Reports on their way to the link: deciding what to report never waits for it. A report that still waits is
/// replaced by a later one of the same kind, key and UID.
#[derive(Clone, Default)]
pub(crate) struct Outbox {
    waiting: Arc<Mutex<Waiting>>,
    wake: Arc<Notify>,
}

#[derive(Default)]
struct Waiting {
    reports: BTreeMap<ReportId, (u64, Vec<u8>)>,
    next: u64,
}

impl Outbox {
    /// Takes a report.
    pub(crate) fn put(&self, kind: &'static str, key: &str, uid: &str, body: Vec<u8>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let id = (kind, key.to_owned(), uid.to_owned());
        if waiting.reports.len() >= WAITING_MAX && !waiting.reports.contains_key(&id) {
            warn!(kind, key, "too many reports wait; one is dropped");
            return;
        }
        let order = waiting.next;
        waiting.next += 1;
        // A report keeps its place in the queue when it is replaced, so that a lively one can't starve.
        let order = waiting.reports.get(&id).map_or(order, |(order, _)| *order);
        waiting.reports.insert(id, (order, body));
        drop(waiting);
        self.wake.notify_one();
    }

    fn take(&self) -> Option<(ReportId, Vec<u8>)> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let id = waiting.reports.iter().min_by_key(|(_, (order, _))| *order).map(|(id, _)| id.clone())?;
        let (_, body) = waiting.reports.remove(&id)?;
        Some((id, body))
    }

    /// Hands reports to the link until it is shut down.
    pub(crate) async fn run(self, uplink: Arc<dyn Uplink>) {
        loop {
            let Some(((kind, key, uid), body)) = self.take() else {
                self.wake.notified().await;
                continue;
            };
            match uplink.report(kind, &key, &uid, body).await {
                Ok(()) => {}
                Err(LinkError::Closed) => return,
                Err(error) => warn!(kind, key, %error, "a report cannot be sent"),
            }
        }
    }
}
