//! The trait that every way of running a container implements.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{broadcast, oneshot};

use crate::container::{Artifact, ContainerId, ContainerSpec, Event, Exit, Handler, State, Stats};
use crate::logs::{LogError, LogOptions, LogStream};

/// How many events a slow listener may lag behind before it must list instead.
pub const EVENT_QUEUE_MAX: usize = 1024;

/// Runs containers.
///
/// Obligations of every implementation, which [`conformance`](crate::conformance) checks:
/// - An id lives once: created, started at most once, exited exactly once if started, removed. An id in use is refused.
/// - [`Event::Started`] comes before [`Event::Exited`], each once; the exit in the event, in [`state`](Self::state) and
///   in the answer of [`stop`](Self::stop) are the same.
/// - `stop` and `remove` may be called again with the same result; `stop` returns when the container has ended and its
///   last log line is in the log file.
/// - Everything the container wrote before its exit is readable after it, until the caller deletes the log file.
/// - Where containers outlive the agent, a later runtime over the same state takes them back by [`adopt`](Self::adopt), each
///   as it is: what was created is started at most once, an exit that nobody saw is known with its code, logs go on.
/// - No call blocks the caller's thread on the container's work. Dropping a returned future cancels the wait, and never
///   leaves a container half created.
pub trait Runtime: Send + Sync + 'static {
    /// Whether this node can run what is for the handler at all; asked before anything is fetched. The error names what has
    /// to be done to the node.
    fn offers(&self, handler: Handler) -> Result<(), RuntimeError>;

    /// Takes back what containers an earlier agent left, those that run and those that ended: from then on they are listed
    /// and behave as if this runtime had made them. What is not listed then is lost. Called once, before all else.
    fn adopt(&self) -> BoxFuture<'_, Result<(), RuntimeError>>;

    /// Checks that the artifact can run here, and warms what can be shared between its containers. An error says what the
    /// artifact lacks before anything is started.
    fn prepare<'a>(&'a self, artifact: &'a Artifact) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Sets up a container without running it.
    fn create(&self, spec: ContainerSpec) -> BoxFuture<'_, Result<(), RuntimeError>>;

    /// Starts a created container. When this returns, what it serves is being listened to.
    fn start<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Asks the container to end, waits for at most `grace`, then ends it.
    fn stop<'a>(&'a self, id: &'a ContainerId, grace: Duration) -> BoxFuture<'a, Result<Exit, RuntimeError>>;

    /// Forgets a container that does not run. Its log file stays.
    fn remove<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Runs another program inside the container, where the runtime can.
    fn exec<'a>(
        &'a self,
        id: &'a ContainerId,
        request: ExecRequest,
    ) -> BoxFuture<'a, Result<ExecSession, RuntimeError>>;

    /// The container's log, as asked for.
    fn logs(&self, id: &ContainerId, options: LogOptions) -> Result<LogStream, RuntimeError>;

    /// What the container uses.
    fn stats(&self, id: &ContainerId) -> Result<Stats, RuntimeError>;

    /// The container's state.
    fn state(&self, id: &ContainerId) -> Result<State, RuntimeError>;

    /// All containers that are not removed, in the order of their ids.
    fn list(&self) -> Vec<(ContainerId, State)>;

    /// The changes from now on. A listener that lags more than [`EVENT_QUEUE_MAX`] events behind is told so and lists.
    fn events(&self) -> broadcast::Receiver<Event>;
}

/// What to run inside a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecRequest {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Whether stdin is given.
    pub stdin: bool,
    /// Whether a terminal is wanted.
    pub tty: bool,
}

/// A program that runs inside a container.
pub struct ExecSession {
    /// Its stdin, if it was asked for.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Its stdout.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// Its stderr; absent with a terminal.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// How it ends.
    pub exit: oneshot::Receiver<Exit>,
}

/// Why a runtime did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No container has this id.
    #[error("container {0} is not known")]
    NotFound(ContainerId),
    /// The id was used before.
    #[error("container {0} exists already")]
    Exists(ContainerId),
    /// The container is not in a state in which this can be done.
    #[error("container {id} is {state}")]
    WrongState {
        /// Which.
        id: ContainerId,
        /// Where it is: `created`, `running`, `exited`.
        state: &'static str,
    },
    /// The specification asks for something impossible: a fault of whoever wrote it, so trying again is no use.
    #[error("{0}")]
    InvalidSpec(String),
    /// The artifact cannot be loaded: it is damaged, or made for another profile.
    #[error("cannot load {path}: {reason}")]
    BadArtifact {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// This node can't run such containers as it is. The text names what has to be done to it.
    #[error("{0}")]
    Unavailable(String),
    /// The component imports what this host does not offer.
    #[error("the component imports {0}, which this node does not offer")]
    MissingImport(String),
    /// The component exports nothing that could be run.
    #[error("the component exports neither wasi:cli/run nor a wasi:http handler")]
    NothingToRun,
    /// An address to serve on could not be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// This runtime cannot do that at all.
    #[error("{runtime} containers cannot {what}")]
    Unsupported {
        /// The runtime's name.
        runtime: &'static str,
        /// What was asked for.
        what: &'static str,
    },
    /// The log could not be written or read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The node failed; trying again may help.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The runtime is shutting down, or its machinery failed; trying again may help.
    #[error("{0}")]
    Internal(String),
}

impl RuntimeError {
    /// Whether trying the same again could succeed.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Unavailable(_) | Self::Listen { .. } | Self::Log(_) | Self::Io { .. } | Self::Internal(_)
        )
    }
}

/// A piece of a log, as [`LogStream`] yields it.
pub type LogChunk = Result<Bytes, LogError>;

/// Does what blocks on the blocking pool. It runs to its end even if nobody waits any more, so that no container is left half
/// created.
pub(crate) fn off_thread<I: Send + Sync + 'static, T: Send + 'static>(
    inner: &Arc<I>,
    work: impl FnOnce(&Arc<I>) -> Result<T, RuntimeError> + Send + 'static,
) -> BoxFuture<'static, Result<T, RuntimeError>> {
    let inner = Arc::clone(inner);
    Box::pin(async move {
        let done = tokio::task::spawn_blocking(move || work(&inner)).await;
        done.unwrap_or_else(|error| Err(RuntimeError::Internal(error.to_string())))
    })
}
