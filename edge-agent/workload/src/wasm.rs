//! The Wasm adapter: components in this process as containers.
//!
//! A component cannot outlive this process, so nothing is ever adopted: what an earlier agent ran is lost. A request handler
//! is served on the addresses of [`ContainerSpec::serve`], which are bound when it starts.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::future::Future;
use std::net::TcpListener;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lichen_runtime::{
    ComponentHost, Guest, GuestExit, GuestMount, GuestSpec, HostConfig, HostError, LineSink, Loaded, Output,
    World,
};
use tokio::sync::{broadcast, watch};

use crate::container::{Artifact, ContainerId, ContainerSpec, Event, Exit, Handler, State, Stats};
use crate::logs::{LogFile, LogLimits, LogOptions, LogStream, LogWriter, Stream};
use crate::runtime::{EVENT_QUEUE_MAX, ExecRequest, ExecSession, Runtime, RuntimeError, off_thread};

const NAME: &str = "wasm";

/// The program's name that a component sees as its first argument.
const PROGRAM: &str = "main";

/// How the adapter is set up.
#[derive(Clone, Debug, Default)]
pub struct WasmConfig {
    /// The component host's threads.
    pub host: HostConfig,
    /// The bound of each container's log.
    pub logs: LogLimits,
}

/// Runs components. Clones share one state.
#[derive(Clone)]
pub struct WasmRuntime {
    inner: Arc<Inner>,
}

struct Inner {
    host: ComponentHost,
    logs: LogWriter,
    log_limits: LogLimits,
    clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    containers: Mutex<BTreeMap<ContainerId, Container>>,
    events: broadcast::Sender<Event>,
}

struct Container {
    spec: Arc<ContainerSpec>,
    /// Changes from created to running to exited, and back never.
    state: watch::Sender<State>,
    /// What [`Runtime::create`] got ready; absent for a moment while it does.
    ready: Option<Ready>,
    guest: Option<Arc<Guest>>,
}

#[derive(Clone)]
struct Ready {
    component: Arc<Loaded>,
    log: LogFile,
}

impl WasmRuntime {
    /// Starts the host and the thread that writes logs.
    pub fn new(
        config: &WasmConfig,
        clock: impl Fn() -> SystemTime + Send + Sync + 'static,
    ) -> Result<Self, RuntimeError> {
        Self::with_events(config, Arc::new(clock), broadcast::channel(EVENT_QUEUE_MAX).0)
    }

    pub(crate) fn with_events(
        config: &WasmConfig,
        clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
        events: broadcast::Sender<Event>,
    ) -> Result<Self, RuntimeError> {
        let stamp = Arc::clone(&clock);
        let logs = LogWriter::spawn(move || stamp())
            .map_err(|source| RuntimeError::Io { context: "starting the logs' thread".to_owned(), source })?;
        let host = ComponentHost::new(&config.host).map_err(|error| from_host(error, ""))?;
        let inner =
            Inner { host, logs, log_limits: config.logs, clock, containers: Mutex::default(), events };
        Ok(Self { inner: Arc::new(inner) })
    }
}

impl Inner {
    fn containers(&self) -> MutexGuard<'_, BTreeMap<ContainerId, Container>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, id: &ContainerId, read: impl FnOnce(&Container) -> T) -> Result<T, RuntimeError> {
        self.containers().get(id).map(read).ok_or_else(|| RuntimeError::NotFound(id.clone()))
    }

    fn tell(&self, event: Event) {
        // Nobody listening is fine: the state says the same.
        let _ = self.events.send(event);
    }

    /// Reads the artifact, so it may block.
    fn load(&self, artifact: &Artifact) -> Result<Arc<Loaded>, RuntimeError> {
        match artifact {
            Artifact::Component { path, digest } => {
                self.host.load(digest, path).map_err(|error| from_host(error, &path.display().to_string()))
            }
            Artifact::Image { .. } => {
                Err(RuntimeError::Unsupported { runtime: NAME, what: "be started from an OCI image" })
            }
        }
    }

    /// Takes the id, so that no two creations of it run at the same time.
    fn reserve(&self, spec: &Arc<ContainerSpec>) -> Result<(), RuntimeError> {
        match self.containers().entry(spec.id.clone()) {
            Entry::Occupied(_) => Err(RuntimeError::Exists(spec.id.clone())),
            Entry::Vacant(vacant) => {
                let state = watch::channel(State::Created).0;
                vacant.insert(Container { spec: Arc::clone(spec), state, ready: None, guest: None });
                Ok(())
            }
        }
    }

    fn get_ready(&self, spec: &ContainerSpec) -> Result<Ready, RuntimeError> {
        let component = self.load(&spec.artifact)?;
        if component.world() == World::Http && spec.serve.is_empty() {
            return Err(RuntimeError::InvalidSpec(
                "a component that serves HTTP needs a port to serve on".to_owned(),
            ));
        }
        Ok(Ready { component, log: self.logs.open(&spec.log, self.log_limits)? })
    }

    fn create(&self, spec: ContainerSpec) -> Result<(), RuntimeError> {
        let spec = Arc::new(spec);
        self.reserve(&spec)?;
        let ready = self.get_ready(&spec);
        let mut containers = self.containers();
        match ready {
            Ok(ready) => {
                if let Some(container) = containers.get_mut(&spec.id) {
                    container.ready = Some(ready);
                }
                Ok(())
            }
            Err(error) => {
                containers.remove(&spec.id);
                Err(error)
            }
        }
    }

    /// Starts the container and answers what to watch it with.
    fn start(&self, id: &ContainerId) -> Result<(Arc<Guest>, LogFile), RuntimeError> {
        let mut containers = self.containers();
        let container = containers.get_mut(id).ok_or_else(|| RuntimeError::NotFound(id.clone()))?;
        let state = container.state.borrow().name();
        let ready = match &container.ready {
            Some(ready) if state == "created" => ready.clone(),
            _ => return Err(RuntimeError::WrongState { id: id.clone(), state }),
        };
        let spec = guest_spec(&container.spec);
        let sink: Arc<dyn LineSink> = Arc::new(LogSink(ready.log.clone()));
        let started = match ready.component.world() {
            World::Command => self.host.run(&ready.component, spec, sink),
            World::Http => self.host.serve(&ready.component, spec, sink, bind(&container.spec)?),
        };
        let guest = Arc::new(started.map_err(|error| from_host(error, ready.component.digest()))?);
        container.guest = Some(Arc::clone(&guest));
        container.state.send_replace(State::Running { started: (self.clock)() });
        drop(containers);
        self.tell(Event::Started { id: id.clone() });
        Ok((guest, ready.log))
    }

    fn ended(&self, id: &ContainerId, exit: Exit) {
        let finished = (self.clock)();
        let told = self.with(id, |container| {
            container.state.send_modify(|state| {
                if let State::Running { started } = *state {
                    *state = State::Exited { started, finished, exit: exit.clone() };
                }
            });
        });
        if told.is_ok() {
            self.tell(Event::Exited { id: id.clone(), exit });
        }
    }

    fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let mut containers = self.containers();
        let Some(container) = containers.get(id) else { return Ok(()) };
        let state = container.state.borrow().clone();
        // One without anything ready is being created at this moment.
        if matches!(state, State::Running { .. }) || container.ready.is_none() {
            return Err(RuntimeError::WrongState { id: id.clone(), state: state.name() });
        }
        if let Some(ready) = &container.ready {
            ready.log.close();
        }
        containers.remove(id);
        Ok(())
    }
}

impl Runtime for WasmRuntime {
    fn offers(&self, handler: Handler) -> Result<(), RuntimeError> {
        match handler {
            Handler::Wasm => Ok(()),
            Handler::Oci => Err(RuntimeError::Unavailable("this node runs components only".to_owned())),
        }
    }

    fn adopt(&self) -> BoxFuture<'_, Result<(), RuntimeError>> {
        async { Ok(()) }.boxed()
    }

    fn prepare<'a>(&'a self, artifact: &'a Artifact) -> BoxFuture<'a, Result<(), RuntimeError>> {
        let artifact = artifact.clone();
        off_thread(&self.inner, move |inner| inner.load(&artifact).map(drop))
    }

    fn create(&self, spec: ContainerSpec) -> BoxFuture<'_, Result<(), RuntimeError>> {
        off_thread(&self.inner, move |inner| inner.create(spec))
    }

    fn start<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        let id = id.clone();
        off_thread(&self.inner, move |inner| {
            let (guest, log) = inner.start(&id)?;
            let watched = Arc::downgrade(inner);
            // Here and not after the wait, so that nobody who drops the wait leaves a container unwatched. It ends with the
            // guest, and the guest ends at the latest when the host is dropped.
            tokio::spawn(watch_guest(watched, id, guest, log));
            Ok(())
        })
    }

    fn stop<'a>(&'a self, id: &'a ContainerId, grace: Duration) -> BoxFuture<'a, Result<Exit, RuntimeError>> {
        async move {
            let (guest, mut state) =
                self.inner.with(id, |container| (container.guest.clone(), container.state.subscribe()))?;
            let Some(guest) = guest else {
                return Err(RuntimeError::WrongState { id: id.clone(), state: "created" });
            };
            guest.stop(grace).await;
            let ended = state.wait_for(|state| matches!(state, State::Exited { .. })).await;
            match ended.as_deref() {
                Ok(State::Exited { exit, .. }) => Ok(exit.clone()),
                _ => Err(RuntimeError::Internal("the container was removed while it was stopped".to_owned())),
            }
        }
        .boxed()
    }

    fn remove<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        async move { self.inner.remove(id) }.boxed()
    }

    fn exec<'a>(
        &'a self,
        id: &'a ContainerId,
        _: ExecRequest,
    ) -> BoxFuture<'a, Result<ExecSession, RuntimeError>> {
        async move {
            self.inner.with(id, |_| ())?;
            Err(RuntimeError::Unsupported { runtime: NAME, what: "run another program" })
        }
        .boxed()
    }

    fn logs(&self, id: &ContainerId, options: LogOptions) -> Result<LogStream, RuntimeError> {
        self.inner.with(id, |container| match &container.ready {
            Some(ready) => Ok(ready.log.read(options)),
            None => Err(RuntimeError::WrongState { id: id.clone(), state: "created" }),
        })?
    }

    fn stats(&self, id: &ContainerId) -> Result<Stats, RuntimeError> {
        self.inner.with(id, |container| match &container.guest {
            None => Stats::default(),
            Some(guest) => {
                let usage = guest.usage();
                Stats {
                    memory_bytes: usage.memory_bytes,
                    memory_peak_bytes: usage.memory_peak_bytes,
                    cpu_ns: usage.cpu_ns,
                    requests: usage.requests,
                }
            }
        })
    }

    fn state(&self, id: &ContainerId) -> Result<State, RuntimeError> {
        self.inner.with(id, |container| container.state.borrow().clone())
    }

    fn list(&self) -> Vec<(ContainerId, State)> {
        let containers = self.inner.containers();
        containers.iter().map(|(id, container)| (id.clone(), container.state.borrow().clone())).collect()
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }
}

/// Tells how the guest ended, when its last line is in the log.
async fn watch_guest(inner: Weak<Inner>, id: ContainerId, guest: Arc<Guest>, log: LogFile) {
    let exit = exit_of(guest.wait().await);
    log.flush().await;
    if let Some(inner) = inner.upgrade() {
        inner.ended(&id, exit);
    }
    log.close();
}

/// A guest's lines go to its container's log.
struct LogSink(LogFile);

impl LineSink for LogSink {
    fn line(&self, output: Output, text: &[u8], partial: bool) {
        let stream = match output {
            Output::Stdout => Stream::Stdout,
            Output::Stderr => Stream::Stderr,
        };
        self.0.append(stream, text, partial);
    }

    fn room(&self) -> usize {
        self.0.room()
    }

    fn wait_for_room(&self) -> Pin<Box<dyn Future<Output = ()> + Send + 'static>> {
        let log = self.0.clone();
        Box::pin(async move { log.wait_for_room().await })
    }
}

fn guest_spec(spec: &ContainerSpec) -> GuestSpec {
    GuestSpec {
        args: std::iter::once(PROGRAM)
            .chain(spec.command.iter().skip(1).chain(&spec.args).map(String::as_str))
            .map(str::to_owned)
            .collect(),
        env: spec.env.clone(),
        mounts: spec
            .mounts
            .iter()
            .map(|mount| GuestMount {
                host: mount.host.clone(),
                guest: mount.guest.clone(),
                read_only: mount.read_only,
            })
            .collect(),
        memory_bytes: spec.limits.memory_bytes,
        ..GuestSpec::default()
    }
}

fn bind(spec: &ContainerSpec) -> Result<Vec<TcpListener>, RuntimeError> {
    let bind =
        |address| TcpListener::bind(address).map_err(|source| RuntimeError::Listen { address, source });
    spec.serve.iter().copied().map(bind).collect()
}

fn exit_of(exit: GuestExit) -> Exit {
    match exit {
        GuestExit::Code(code) => Exit::Code(code),
        GuestExit::Trap(trap) => Exit::Trap(trap),
        GuestExit::OutOfMemory => Exit::OutOfMemory,
        GuestExit::Killed => Exit::Killed,
    }
}

fn from_host(error: HostError, artifact: &str) -> RuntimeError {
    match error {
        HostError::Load(load) => RuntimeError::BadArtifact { path: load.path, reason: load.reason },
        HostError::MissingImport { name, .. } => RuntimeError::MissingImport(name),
        HostError::NothingToRun => RuntimeError::NothingToRun,
        HostError::Mount { path, reason } => {
            RuntimeError::InvalidSpec(format!("cannot mount {}: {reason}", Path::new(&path).display()))
        }
        HostError::WrongWorld { .. } => RuntimeError::InvalidSpec(format!("{artifact}: {error}")),
        HostError::Io { context, source } => RuntimeError::Io { context: context.to_owned(), source },
        HostError::Engine(_) | HostError::Closed => RuntimeError::Internal(error.to_string()),
    }
}
