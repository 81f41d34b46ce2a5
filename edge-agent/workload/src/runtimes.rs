//! All runtimes of a node as one: what a container's artifact is decides which of them runs it, container by container.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::broadcast;

use crate::container::{Artifact, ContainerId, ContainerSpec, Event, Exit, Handler, State, Stats};
use crate::logs::{LogOptions, LogStream};
use crate::oci::{OciConfig, OciRuntime};
use crate::runtime::{EVENT_QUEUE_MAX, ExecRequest, ExecSession, Runtime, RuntimeError};
use crate::wasm::{WasmConfig, WasmRuntime};

/// Components and OCI containers.
#[derive(Clone)]
pub struct Runtimes {
    wasm: WasmRuntime,
    oci: OciRuntime,
    events: broadcast::Sender<Event>,
}

impl Runtimes {
    /// Starts the runtime for components. OCI containers need no more than what the node has once the first is wanted.
    pub fn new(
        wasm: &WasmConfig,
        oci: OciConfig,
        clock: impl Fn() -> SystemTime + Send + Sync + 'static,
    ) -> Result<Self, RuntimeError> {
        let clock: Arc<dyn Fn() -> SystemTime + Send + Sync> = Arc::new(clock);
        let (events, _) = broadcast::channel(EVENT_QUEUE_MAX);
        let wasm = WasmRuntime::with_events(wasm, clock.clone(), events.clone())?;
        let oci = OciRuntime::with_events(oci, clock, events.clone());
        Ok(Self { wasm, oci, events })
    }

    fn of(&self, handler: Handler) -> &dyn Runtime {
        match handler {
            Handler::Wasm => &self.wasm,
            Handler::Oci => &self.oci,
        }
    }

    /// The runtime that has a container of this id. What none has is the first one's to say so.
    fn with(&self, id: &ContainerId) -> &dyn Runtime {
        if self.oci.state(id).is_ok() { &self.oci } else { &self.wasm }
    }
}

impl Runtime for Runtimes {
    fn offers(&self, handler: Handler) -> Result<(), RuntimeError> {
        self.of(handler).offers(handler)
    }

    fn adopt(&self) -> BoxFuture<'_, Result<(), RuntimeError>> {
        async {
            self.wasm.adopt().await?;
            self.oci.adopt().await
        }
        .boxed()
    }

    fn prepare<'a>(&'a self, artifact: &'a Artifact) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.of(artifact.handler()).prepare(artifact)
    }

    fn create(&self, spec: ContainerSpec) -> BoxFuture<'_, Result<(), RuntimeError>> {
        self.of(spec.artifact.handler()).create(spec)
    }

    fn start<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.with(id).start(id)
    }

    fn stop<'a>(&'a self, id: &'a ContainerId, grace: Duration) -> BoxFuture<'a, Result<Exit, RuntimeError>> {
        self.with(id).stop(id, grace)
    }

    fn remove<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.with(id).remove(id)
    }

    fn exec<'a>(
        &'a self,
        id: &'a ContainerId,
        request: ExecRequest,
    ) -> BoxFuture<'a, Result<ExecSession, RuntimeError>> {
        self.with(id).exec(id, request)
    }

    fn logs(&self, id: &ContainerId, options: LogOptions) -> Result<LogStream, RuntimeError> {
        self.with(id).logs(id, options)
    }

    fn stats(&self, id: &ContainerId) -> Result<Stats, RuntimeError> {
        self.with(id).stats(id)
    }

    fn state(&self, id: &ContainerId) -> Result<State, RuntimeError> {
        self.with(id).state(id)
    }

    fn list(&self) -> Vec<(ContainerId, State)> {
        let mut all = self.wasm.list();
        all.extend(self.oci.list());
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}
