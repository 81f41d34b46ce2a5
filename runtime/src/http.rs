//! Serves requests with a `wasi:http` handler: connections in, an instance per request, responses out.

use std::convert::Infallible;
use std::net::TcpListener as StdTcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::select_all;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use wasmtime::{Engine, Store};
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::{Error, WasiBody, WasiHttpView, p2};

use crate::component::Entry;
use crate::context::GuestContext;
use crate::error::HostError;
use crate::guest::{GuestExit, Shared, exit_of_error};
use crate::meter::Metered;
use crate::output::Output;
use crate::pool::Slots;
use crate::proxy;

/// Open connections of one guest. More wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 1024;

/// Streams of one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;

/// How long a client may take to send its request's head.
const REQUEST_HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a handler may go on after its response is sent.
pub(crate) const AFTER_RESPONSE: Duration = Duration::from_secs(10);

/// How long to wait when the system has no descriptor left for a connection.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Where a guest's instances are made.
pub(crate) struct Place {
    pub(crate) engine: Engine,
    pub(crate) entry: Entry,
    pub(crate) slots: Slots,
}

/// Hands listeners over to the guests' threads. Called on the guests' runtime.
pub(crate) fn adopt(listeners: Vec<StdTcpListener>) -> Result<Vec<TcpListener>, HostError> {
    let adopt = |listener: StdTcpListener| {
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    let adopted: Result<Vec<_>, _> = listeners.into_iter().map(adopt).collect();
    adopted.map_err(|source| HostError::Io { context: "taking over a listener", source })
}

struct Server {
    shared: Arc<Shared>,
    engine: Engine,
    slots: Slots,
    handler: Handler,
    alive: Alive,
}

/// Whoever runs instances of a guest holds one of these; when all are dropped, the guest has ended.
pub(crate) type Alive = mpsc::Sender<Infallible>;

enum Handler {
    /// An instance per request.
    P2(p2::bindings::ProxyPre<GuestContext>),
    /// Instances that several requests share.
    P3(proxy::Proxy),
}

/// Serves until the guest is stopped or aborted.
pub(crate) async fn serve(shared: Arc<Shared>, place: Place, listeners: Vec<TcpListener>) -> GuestExit {
    // One instance is made for nothing, so that a component that cannot even start, or not within its memory, fails now
    // and not at each request.
    if let Err(exit) = rehearse(&shared, &place).await {
        return exit;
    }
    let (alive, mut ended) = mpsc::channel(1);
    let handler = match place.entry {
        Entry::HttpP2(pre) => Handler::P2(pre),
        Entry::HttpP3(pre) => {
            let (engine, slots) = (place.engine.clone(), place.slots.clone());
            Handler::P3(proxy::new(Arc::clone(&shared), engine, pre, slots, alive.clone()))
        }
        Entry::CommandP2(_) | Entry::CommandP3(_) => {
            return GuestExit::Trap("a command cannot be served".to_owned());
        }
    };
    let server = Arc::new(Server {
        shared: Arc::clone(&shared),
        engine: place.engine,
        slots: place.slots,
        handler,
        alive,
    });
    let exit = tokio::select! {
        () = accept(&server, listeners) => GuestExit::Code(0),
        () = shared.aborted() => GuestExit::Killed,
    };
    // Instances go on for a moment after their responses. They hear an abort by themselves.
    drop(server);
    while ended.recv().await.is_some() {}
    exit
}

async fn rehearse(shared: &Arc<Shared>, place: &Place) -> Result<(), GuestExit> {
    let store = shared.store(&place.engine).map_err(|error| GuestExit::Trap(error.to_string()))?;
    let entry = place.entry.clone();
    let slots = place.slots.clone();
    let instantiate = async move {
        let _slot = slots.take().await;
        let mut store = store;
        match entry {
            Entry::HttpP2(pre) => pre.instantiate_async(&mut store).await.map(drop),
            Entry::HttpP3(pre) => pre.instantiate_async(&mut store).await.map(drop),
            Entry::CommandP2(_) | Entry::CommandP3(_) => Ok(()),
        }
    };
    let instantiated = Metered::new(&shared.ticker, &shared.cpu_ns, instantiate);
    tokio::select! {
        result = instantiated => result.map_err(|error| exit_of_error(&error)),
        () = shared.aborted() => Err(GuestExit::Killed),
    }
}

/// Accepts until the guest is to stop, then lets the open connections finish.
async fn accept(server: &Arc<Server>, listeners: Vec<TcpListener>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = next_connection(&listeners, &permits) => accepted,
            Some(_) = connections.join_next() => continue,
            () = server.shared.stopping() => break,
        };
        match accepted {
            Ok((stream, permit)) => {
                connections.spawn(connection(Arc::clone(server), stream, permit, graceful.watcher()));
            }
            Err(error) => {
                tracing::debug!(%error, "accept");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
    drop(listeners);
    graceful.shutdown().await;
    while connections.join_next().await.is_some() {}
}

async fn next_connection(
    listeners: &[TcpListener],
    permits: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, Option<OwnedSemaphorePermit>)> {
    // Nobody closes it, so there is a permit in the end.
    let permit = Arc::clone(permits).acquire_owned().await.ok();
    let ((stream, _), ..) = match listeners {
        // A handler nobody can reach is odd but harmless.
        [] => std::future::pending().await,
        [listener] => (listener.accept().await?, 0),
        _ => {
            let (accepted, index, _) =
                select_all(listeners.iter().map(|listener| listener.accept().boxed())).await;
            (accepted?, index)
        }
    };
    if let Err(error) = stream.set_nodelay(true) {
        // The client is gone already, which the connection will find out by itself.
        tracing::debug!(%error, "set_nodelay");
    }
    Ok((stream, permit))
}

async fn connection(
    server: Arc<Server>,
    stream: TcpStream,
    permit: Option<OwnedSemaphorePermit>,
    watcher: hyper_util::server::graceful::Watcher,
) {
    let _permit = permit;
    let service = service_fn(move |request| {
        let server = Arc::clone(&server);
        async move { Ok::<_, Infallible>(answer(&server, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(REQUEST_HEAD_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(STREAMS_MAX);
    let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%error, "connection");
    }
}

async fn answer(server: &Arc<Server>, request: Request<Incoming>) -> Response<Guarded> {
    server.shared.requests.fetch_add(1, Ordering::Relaxed);
    let answered = match &server.handler {
        Handler::P2(pre) => answer_p2(server, pre, request).await,
        Handler::P3(proxy) => {
            proxy::answer(proxy, request.map(|body| body.map_err(Error::from).boxed_unsync()))
                .await
                .map(|response| response.map(|inner| Guarded { inner, _done: None }))
        }
    };
    answered.unwrap_or_else(|failure| failure.into_response(&server.shared))
}

/// Why a request has no response of the guest's.
pub(crate) enum Failure {
    /// The guest's time was over.
    TimedOut,
    /// The guest answered that it failed.
    Refused(String),
    /// The guest ended without an answer.
    Ended(GuestExit),
    /// The request itself cannot be given to a guest.
    BadRequest(String),
}

impl Failure {
    fn into_response(self, shared: &Shared) -> Response<Guarded> {
        let (status, text) = match self {
            Self::TimedOut => (StatusCode::GATEWAY_TIMEOUT, "the handler took too long".to_owned()),
            Self::Refused(code) => (StatusCode::BAD_GATEWAY, format!("the handler failed: {code}")),
            Self::Ended(GuestExit::OutOfMemory) => {
                (StatusCode::SERVICE_UNAVAILABLE, "the handler ran out of memory".to_owned())
            }
            Self::Ended(GuestExit::Killed) => {
                (StatusCode::SERVICE_UNAVAILABLE, "the handler is shutting down".to_owned())
            }
            Self::Ended(GuestExit::Trap(trap)) => {
                (StatusCode::INTERNAL_SERVER_ERROR, format!("the handler trapped: {trap}"))
            }
            Self::Ended(GuestExit::Code(code)) => {
                (StatusCode::INTERNAL_SERVER_ERROR, format!("the handler exited with code {code}"))
            }
            Self::BadRequest(reason) => (StatusCode::BAD_REQUEST, reason),
        };
        if status != StatusCode::BAD_REQUEST {
            // The guest's owner reads the guest's log; the client is told no details.
            shared.sink.line(Output::Stderr, text.as_bytes(), false);
        }
        let told = if status == StatusCode::BAD_REQUEST { text } else { short(status).to_owned() };
        let body = Full::new(Bytes::from(told + "\n")).map_err(|never| match never {}).boxed_unsync();
        let mut response = Response::new(Guarded { inner: body, _done: None });
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        response
    }
}

fn short(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or("error")
}

/// A response body. When it is sent or dropped, the instance that makes it has [`AFTER_RESPONSE`] left.
struct Guarded {
    inner: WasiBody,
    _done: Option<oneshot::Sender<Infallible>>,
}

impl hyper::body::Body for Guarded {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Error>>> {
        std::pin::Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.inner.size_hint()
    }
}

type Head = Result<Response<WasiBody>, ErrorCode>;

async fn answer_p2(
    server: &Arc<Server>,
    pre: &p2::bindings::ProxyPre<GuestContext>,
    request: Request<Incoming>,
) -> Result<Response<Guarded>, Failure> {
    let shared = &server.shared;
    let failed = |reason: String| Failure::Ended(GuestExit::Trap(reason));
    let late = tokio::time::Instant::now() + shared.spec.request_timeout;
    let slot = tokio::time::timeout_at(late, server.slots.take()).await.map_err(|_| Failure::TimedOut)?;
    let mut store = shared.store(&server.engine).map_err(|error| failed(error.to_string()))?;
    store.data_mut().held.0 = Some(slot);
    let (head_sender, head) = oneshot::channel::<Head>();
    let (done, gone) = oneshot::channel();
    let incoming = store.data_mut().http().new_incoming_request(Scheme::Http, request);
    let incoming = incoming.map_err(|error| Failure::BadRequest(format!("{error:#}")))?;
    let out = store.data_mut().http().new_response_outparam(head_sender);
    let out = out.map_err(|error| failed(format!("{error:#}")))?;
    let handle = handle_p2(pre.clone(), store, incoming, out);
    let handle = Metered::new(&shared.ticker, &shared.cpu_ns, handle);
    let (owned, alive) = (Arc::clone(shared), server.alive.clone());
    let mut task = JoinSet::new();
    task.spawn(async move {
        let _alive = alive;
        tokio::select! {
            result = handle => result.map_err(|error| exit_of_error(&error)),
            () = after_response(gone) => Ok(()),
            () = owned.aborted() => Err(GuestExit::Killed),
        }
    });
    // Until the head is there, dropping this future, as hyper does when the client goes, drops the set and ends the task.
    match tokio::time::timeout_at(late, head).await {
        Err(_) => Err(Failure::TimedOut),
        Ok(Ok(Ok(response))) => {
            task.detach_all();
            Ok(response.map(|inner| Guarded { inner, _done: Some(done) }))
        }
        Ok(Ok(Err(code))) => Err(Failure::Refused(code.to_string())),
        Ok(Err(_)) => Err(match task.join_next().await {
            Some(Ok(Err(exit))) => Failure::Ended(exit),
            _ => failed("it ended without a response".to_owned()),
        }),
    }
}

/// The sender is never used: it is dropped with the response's body.
async fn after_response(gone: oneshot::Receiver<Infallible>) {
    let _ = gone.await;
    tokio::time::sleep(AFTER_RESPONSE).await;
}

async fn handle_p2(
    pre: p2::bindings::ProxyPre<GuestContext>,
    mut store: Store<GuestContext>,
    request: wasmtime::component::Resource<p2::types::HostIncomingRequest>,
    out: wasmtime::component::Resource<p2::types::HostResponseOutparam>,
) -> wasmtime::Result<()> {
    let proxy = pre.instantiate_async(&mut store).await?;
    proxy.wasi_http_incoming_handler().call_handle(&mut store, request, out).await
}
