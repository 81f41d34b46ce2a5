//! What only a node can answer, asked through the registry's users without knowing who carries it.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::{Stream, future::BoxFuture};
use jiff::Timestamp;
use lichen_api::Status;

/// A container's log as it comes, in pieces of any size.
pub type LogStream = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// Which part of a container's log is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogRequest {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid: the log of a namesake is no answer.
    pub uid: String,
    /// The container.
    pub container: String,
    /// Whether to stay for what is written later.
    pub follow: bool,
    /// Only the last lines.
    pub tail_lines: Option<u64>,
    /// Only what was written since.
    pub since: Option<Timestamp>,
    /// Whether each line begins with its time.
    pub timestamps: bool,
    /// The log of the attempt before the current one.
    pub previous: bool,
    /// At most so many bytes.
    pub limit_bytes: Option<u64>,
}

/// The way to the nodes.
///
/// Obligations: a node that is not connected is a `Status` at once, not a wait; dropping the stream ends it on the
/// node too; a stream that breaks ends with an error, never silently.
pub trait NodeStreams: Send + Sync + 'static {
    /// Opens a container's log on a node.
    fn logs<'a>(&'a self, node: &'a str, request: LogRequest) -> BoxFuture<'a, Result<LogStream, Status>>;
}
