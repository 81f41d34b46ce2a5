//! Handlers of WASI 0.3, whose instances answer several requests: wasmtime's dispatcher with our limits.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::{Request, Response};
use tokio::time::{Sleep, sleep, sleep_until};
use wasmtime::component::GuestTaskId;
use wasmtime::{Engine, Store, StoreContextMut};
use wasmtime_wasi_http::handler::{
    ExpirationError, HandlerState, Instance, InstantiationError, Proxy as Instantiated, ProxyHandler,
    ShouldAccept, WorkerExpiration, WorkerState, WorkerStatus,
};
use wasmtime_wasi_http::p3::bindings::ServicePre;
use wasmtime_wasi_http::{WasiBody, WasiHttpView};

use crate::context::GuestContext;
use crate::guest::{GuestExit, Shared, exit_of_error};
use crate::http::{AFTER_RESPONSE, Alive, Failure};
use crate::pool::Slots;

/// Requests that one instance works on at the same time.
const CONCURRENT_MAX: usize = 16;

/// Requests that one instance answers in its life.
const REUSE_MAX: usize = 128;

/// How long an instance without a request is kept.
const IDLE: Duration = Duration::from_secs(1);

pub(crate) type Proxy = ProxyHandler<Handler>;

pub(crate) struct Handler {
    shared: Arc<Shared>,
    engine: Engine,
    pre: ServicePre<GuestContext>,
    slots: Slots,
    /// The dispatcher keeps this handler for as long as an instance lives.
    _alive: Alive,
}

/// A dispatcher for the guest.
pub(crate) fn new(
    shared: Arc<Shared>,
    engine: Engine,
    pre: ServicePre<GuestContext>,
    slots: Slots,
    alive: Alive,
) -> Proxy {
    ProxyHandler::new(Handler { shared, engine, pre, slots, _alive: alive })
}

/// Answers one request.
pub(crate) async fn answer(proxy: &Proxy, request: Request<WasiBody>) -> Result<Response<WasiBody>, Failure> {
    proxy.handle((), request).await.map_err(|error| {
        if error.downcast_ref::<ExpirationError>().is_some() {
            return Failure::TimedOut;
        }
        match error.downcast_ref::<InstantiationError<()>>() {
            Some(instantiation) => Failure::Ended(exit_of_error(&instantiation.error)),
            None => Failure::Ended(exit_of_error(&error)),
        }
    })
}

impl HandlerState for Handler {
    type StoreData = GuestContext;
    type WorkerExpiration = Expiration;
    type WorkerState = Worker;

    async fn instantiate(&self) -> wasmtime::Result<Instance<GuestContext, Expiration, Worker>> {
        let slot = self.slots.take().await;
        let mut store = self.shared.store(&self.engine).map_err(wasmtime::Error::new)?;
        // The dispatcher polls its workers itself, so the epoch has to move for as long as the instance lives.
        store.data_mut().held = (Some(slot), Some(self.shared.ticker.enter()));
        let service = self.pre.instantiate_async(&mut store).await?;
        Ok(Instance {
            store,
            proxy: Instantiated::P3(service),
            view: GuestContext::http,
            expiration: Expiration::new(&self.shared),
            state: Worker { shared: Arc::clone(&self.shared) },
        })
    }
}

pub(crate) struct Worker {
    shared: Arc<Shared>,
}

impl WorkerState for Worker {
    type StoreData = GuestContext;
    type RequestData = ();

    fn should_accept_request(&self, concurrent: usize, total: usize) -> ShouldAccept {
        match (concurrent, total) {
            (_, REUSE_MAX..) => ShouldAccept::Never,
            (CONCURRENT_MAX.., _) => ShouldAccept::No,
            _ => ShouldAccept::Yes,
        }
    }

    fn on_request_start(
        &self,
        _: StoreContextMut<'_, GuestContext>,
        (): (),
        _: GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + Sync>> {
        Box::pin(sleep(self.shared.spec.request_timeout))
    }

    fn drop(&self, store: Store<GuestContext>, result: Result<(), wasmtime::Error>) {
        drop(store);
        if let Err(error) = result
            && let GuestExit::Trap(trap) = exit_of_error(&error)
        {
            let text = format!("an instance was dropped: {trap}");
            self.shared.sink.line(crate::output::Output::Stderr, text.as_bytes(), false);
        }
    }
}

/// Ends instances that are idle, late, or whose guest is aborted.
pub(crate) struct Expiration {
    request_timeout: Duration,
    timer: Option<(Instant, Pin<Box<Sleep>>)>,
    aborted: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
    /// Spent once the guest is to stop.
    stopping: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl Expiration {
    fn new(shared: &Arc<Shared>) -> Self {
        let (abort, stop) = (Arc::clone(shared), Arc::clone(shared));
        Self {
            request_timeout: shared.spec.request_timeout,
            timer: None,
            aborted: Box::pin(async move { abort.aborted().await }),
            stopping: Some(Box::pin(async move { stop.stopping().await })),
        }
    }
}

impl WorkerExpiration for Expiration {
    fn poll(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        status: WorkerStatus,
        start: Instant,
    ) -> Poll<()> {
        if self.aborted.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        if self.stopping.as_mut().is_some_and(|stopping| stopping.as_mut().poll(context).is_ready()) {
            self.stopping = None;
        }
        let allowed = match status {
            WorkerStatus::Idle if self.stopping.is_none() => return Poll::Ready(()),
            WorkerStatus::Idle => IDLE,
            WorkerStatus::Requests => self.request_timeout,
            WorkerStatus::PostReturn => AFTER_RESPONSE,
        };
        let deadline = start + allowed;
        if self.timer.as_ref().is_none_or(|(at, _)| *at != deadline) {
            self.timer = Some((deadline, Box::pin(sleep_until(deadline.into()))));
        }
        match &mut self.timer {
            Some((_, timer)) => timer.as_mut().poll(context),
            None => Poll::Pending,
        }
    }
}
