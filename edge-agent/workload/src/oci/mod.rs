//! The OCI adapter: images as processes, through the command line of crun, runc or youki.
//!
//! Each container has a directory (`decided.json`, `made.json`, `ended.json`: see `record`) and a shim, which outlives the
//! agent and writes down how the container ends. An agent that starts anew reads the directories and goes on.
//!
//! Invariants:
//! - a directory is made once and removed with its container, so an id lives once, whoever the agent is;
//! - a process is held by a descriptor or known by number, start time and boot, so that no signal hits another one;
//! - an exit is durable before anybody hears of it; nothing polls.
//!
//! Deliberately absent: networks of several containers (a container has a loopback of its own, or the node's network),
//! terminals, and removing images.

mod adopt;
mod bundle;
mod cgroup;
mod engine;
mod exec;
pub mod image;
mod record;
mod rootfs;
pub mod shim;
mod signal;
pub mod unpack;
mod user;
mod watched;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustix::process::{Signal, pidfd_send_signal};
use tokio::sync::{broadcast, watch};

use self::bundle::Context;
use self::engine::Engine;
use self::image::Image;
use self::record::{Decided, Dir, Ended, Made, ProcessId};
use self::shim::SpawnError;
use self::watched::{Watched, wait};
use crate::container::{Artifact, ContainerId, ContainerSpec, Event, Exit, Handler, State, Stats};
use crate::logs::{LogLimits, LogOptions, LogStream, follow, read};
use crate::runtime::{EVENT_QUEUE_MAX, ExecRequest, ExecSession, Runtime, RuntimeError, off_thread};

const NAME: &str = "oci";
/// Where the engine keeps what it knows, beside the containers' directories. No container's id begins with a dot.
const ENGINE_DIR: &str = ".engine";

/// How the adapter is set up.
#[derive(Clone, Debug)]
pub struct OciConfig {
    /// Where containers' directories lie.
    pub dir: PathBuf,
    /// The program, with its first arguments, that runs [`shim::run`] on the directory that is its last argument.
    pub shim: Vec<OsString>,
    /// The OCI runtime to use; found by itself if absent.
    pub engine: Option<PathBuf>,
    /// The bound of each container's log.
    pub logs: LogLimits,
}

impl OciConfig {
    /// The defaults for everything that has one. This program is its own shim, under the command `oci-shim`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            // The program as it runs, also if its file was replaced meanwhile.
            shim: vec!["/proc/self/exe".into(), "oci-shim".into()],
            engine: None,
            logs: LogLimits::default(),
        }
    }
}

/// Runs OCI containers. Clones share one state.
#[derive(Clone)]
pub struct OciRuntime {
    inner: Arc<Inner>,
}

struct Inner {
    config: OciConfig,
    clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    /// Once one was found. Until then it is looked for each time, so that installing one is all it takes.
    engine: Mutex<Option<Engine>>,
    containers: Mutex<BTreeMap<ContainerId, Container>>,
    events: broadcast::Sender<Event>,
}

struct Container {
    /// Changes from created to running to exited, and back never.
    state: watch::Sender<State>,
    /// Absent for a moment while the container is created.
    ready: Option<Ready>,
}

#[derive(Clone)]
struct Ready {
    dir: Dir,
    decided: Decided,
    /// Absent once it ended before this agent was there.
    made: Option<Made>,
}

impl OciRuntime {
    /// A runtime over what lies in the configuration's directory. Nothing is looked for before it is needed.
    pub fn new(config: OciConfig, clock: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self::with_events(config, Arc::new(clock), broadcast::channel(EVENT_QUEUE_MAX).0)
    }

    pub(crate) fn with_events(
        config: OciConfig,
        clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
        events: broadcast::Sender<Event>,
    ) -> Self {
        let inner = Inner { config, clock, engine: Mutex::default(), containers: Mutex::default(), events };
        Self { inner: Arc::new(inner) }
    }
}

impl Inner {
    fn containers(&self) -> MutexGuard<'_, BTreeMap<ContainerId, Container>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, id: &ContainerId, read: impl FnOnce(&Container) -> T) -> Result<T, RuntimeError> {
        self.containers().get(id).map(read).ok_or_else(|| RuntimeError::NotFound(id.clone()))
    }

    fn ready(&self, id: &ContainerId) -> Result<(State, Ready), RuntimeError> {
        let (state, ready) =
            self.with(id, |container| (container.state.borrow().clone(), container.ready.clone()))?;
        let ready = ready.ok_or_else(|| wrong_state(id, &state))?;
        Ok((state, ready))
    }

    fn tell(&self, event: Event) {
        // Nobody listening is fine: the state says the same.
        let _ = self.events.send(event);
    }

    fn engine(&self) -> Result<Engine, RuntimeError> {
        let mut known = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(engine) = &*known {
            return Ok(engine.clone());
        }
        let engine = Engine::detect(self.config.engine.as_deref(), self.config.dir.join(ENGINE_DIR))
            .map_err(RuntimeError::Unavailable)?;
        *known = Some(engine.clone());
        Ok(engine)
    }

    fn image(&self, artifact: &Artifact) -> Result<Image, RuntimeError> {
        match artifact {
            Artifact::Image { path } => Image::open(path),
            Artifact::Component { .. } => {
                Err(RuntimeError::Unsupported { runtime: NAME, what: "be started from a component" })
            }
        }
    }

    /// Takes the id, here and on the disk, so that nobody creates a second container of it.
    fn reserve(&self, id: &ContainerId) -> Result<Dir, RuntimeError> {
        let dir = Dir(self.config.dir.join(id.as_str()));
        match self.containers().entry(id.clone()) {
            Entry::Occupied(_) => return Err(RuntimeError::Exists(id.clone())),
            Entry::Vacant(vacant) => {
                fs::create_dir_all(&self.config.dir).map_err(io_error("making the containers' directory"))?;
                match fs::create_dir(&dir.0) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                        return Err(RuntimeError::Exists(id.clone()));
                    }
                    Err(error) => return Err(io_error("making the container's directory")(error)),
                }
                vacant.insert(Container { state: watch::channel(State::Created).0, ready: None });
            }
        }
        Ok(dir)
    }

    fn create(self: &Arc<Self>, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        let image = self.image(&spec.artifact)?;
        let engine = self.engine()?;
        let dir = self.reserve(&spec.id)?;
        let made = self.make(spec, &image, &engine, &dir);
        let made = made.and_then(|(ready, shim, child)| {
            self.watch(&spec.id, &dir, &shim, Some(child))?;
            Ok(ready)
        });
        match made {
            Ok(ready) => {
                if let Some(container) = self.containers().get_mut(&spec.id) {
                    container.ready = Some(ready);
                }
                Ok(())
            }
            Err(error) => {
                if let Err(left) = self.clean(&spec.id, &dir, Some(&engine)) {
                    tracing::warn!(id = %spec.id, error = %left, "what a failed creation left cannot be removed");
                }
                self.containers().remove(&spec.id);
                Err(error)
            }
        }
    }

    fn make(
        &self,
        spec: &ContainerSpec,
        image: &Image,
        engine: &Engine,
        dir: &Dir,
    ) -> Result<(Ready, ProcessId, Child), RuntimeError> {
        rootfs::prepare(dir, &image.root)?;
        let context = Context {
            image: &image.config,
            user: user::find(&spec.process, image.config.user.as_deref(), &image.root)?,
            files: rootfs::files(dir, &spec.process)
                .map_err(io_error("writing the container's own files"))?,
            swap_counted: rootfs::swap_is_counted(),
        };
        let config = bundle::config(spec, &context)?;
        let stop = image.config.stop_signal.as_deref().and_then(signal::parse).unwrap_or(Signal::TERM);
        let decided = Decided {
            engine: engine.clone(),
            log: spec.log.clone(),
            log_bytes_max: self.config.logs.bytes_max,
            stop_signal: stop.as_raw(),
        };
        let write = |name, result: io::Result<()>| result.map_err(io_error(name));
        write("writing the bundle", dir.write("config.json", &config))?;
        write("writing down the decision", dir.write(Dir::DECIDED, &decided))?;
        let child = shim::spawn(&self.config.shim, dir).map_err(|error| match error {
            SpawnError::Refused(why) => RuntimeError::InvalidSpec(why),
            SpawnError::Io(error) => io_error("running the container's shim")(error),
        })?;
        let gone = || RuntimeError::Internal("the container's shim ended at once".to_owned());
        let made: Made = dir.read(Dir::MADE).ok_or_else(gone)?;
        let shim: ProcessId = dir.read(Dir::SHIM).ok_or_else(gone)?;
        Ok((Ready { dir: dir.clone(), decided, made: Some(made) }, shim, child))
    }

    /// Sees to it that the end of a container is heard of. `child` is the shim if it is this process's to wait for.
    fn watch(
        self: &Arc<Self>,
        id: &ContainerId,
        dir: &Dir,
        shim: &ProcessId,
        child: Option<Child>,
    ) -> Result<(), RuntimeError> {
        let process = shim.open().map_err(io_error("holding the container's shim"))?;
        let state = self.with(id, |container| container.state.subscribe())?;
        let watched = Watched { id: id.clone(), dir: dir.clone(), child, state };
        // It ends with the shim, and the shim ends with the container.
        tokio::spawn(watched.run(process, Arc::downgrade(self)));
        Ok(())
    }

    fn start(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let (state, ready) = self.ready(id)?;
        if state != State::Created {
            return Err(wrong_state(id, &state));
        }
        let started = (self.clock)();
        ready.dir.write(Dir::STARTED, &started).map_err(io_error("writing down the start"))?;
        ready.decided.engine.start(id, &ready.dir)?;
        // Told under the lock that the state changes under, so that no exit comes before its start.
        self.with(id, |container| {
            self.tell(Event::Started { id: id.clone() });
            container.state.send_replace(State::Running { started });
        })
    }

    fn ended(&self, id: &ContainerId, ended: &Ended) {
        let told = self.with(id, |container| {
            container.state.send_if_modified(|state| {
                let State::Running { started } = *state else { return false };
                let finished = ended.finished.max(started);
                *state = State::Exited { started, finished, exit: ended.exit.clone() };
                true
            })
        });
        if told.unwrap_or(false) {
            self.tell(Event::Exited { id: id.clone(), exit: ended.exit.clone() });
        }
    }

    /// Removes whatever there is of a container. Its log stays.
    fn clean(&self, id: &ContainerId, dir: &Dir, engine: Option<&Engine>) -> Result<(), RuntimeError> {
        if let Some(engine) = engine {
            engine.delete(id.as_str())?;
        }
        if let Some(shim) = dir.read::<ProcessId>(Dir::SHIM)
            && let Some(shim) = shim.open().map_err(io_error("looking for the container's shim"))?
        {
            // Its container is gone, so it ends by itself. One that hangs has nothing left to do.
            wait(&shim);
            let _ = pidfd_send_signal(&shim, Signal::KILL);
        }
        rootfs::remove(dir).map_err(io_error("removing the container's directory"))
    }

    fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let (state, ready) = match self.ready(id) {
            Err(RuntimeError::NotFound(_)) => return Ok(()),
            found => found?,
        };
        if matches!(state, State::Running { .. }) {
            return Err(wrong_state(id, &state));
        }
        self.clean(id, &ready.dir, Some(&ready.decided.engine))?;
        self.containers().remove(id);
        Ok(())
    }

    fn signal(&self, ready: &Ready, signal: Signal) -> Result<(), RuntimeError> {
        let Some(made) = &ready.made else { return Ok(()) };
        let process = made.init.open().map_err(io_error("looking for the container's process"))?;
        match process.map(|process| pidfd_send_signal(&process, signal)) {
            // What has ended needs no signal.
            None | Some(Ok(()) | Err(rustix::io::Errno::SRCH)) => Ok(()),
            Some(Err(error)) => Err(io_error("sending a signal to the container")(error.into())),
        }
    }
}

fn wrong_state(id: &ContainerId, state: &State) -> RuntimeError {
    RuntimeError::WrongState { id: id.clone(), state: state.name() }
}

fn io_error(context: &'static str) -> impl Fn(io::Error) -> RuntimeError {
    move |source| RuntimeError::Io { context: context.to_owned(), source }
}

impl Runtime for OciRuntime {
    fn offers(&self, handler: Handler) -> Result<(), RuntimeError> {
        match handler {
            Handler::Oci => self.inner.engine().map(drop),
            Handler::Wasm => Err(RuntimeError::Unavailable("this node runs OCI containers only".to_owned())),
        }
    }

    fn adopt(&self) -> BoxFuture<'_, Result<(), RuntimeError>> {
        off_thread(&self.inner, |inner| inner.adopt())
    }

    fn prepare<'a>(&'a self, artifact: &'a Artifact) -> BoxFuture<'a, Result<(), RuntimeError>> {
        let artifact = artifact.clone();
        off_thread(&self.inner, move |inner| {
            inner.image(&artifact)?;
            inner.engine().map(drop)
        })
    }

    fn create(&self, spec: ContainerSpec) -> BoxFuture<'_, Result<(), RuntimeError>> {
        off_thread(&self.inner, move |inner| inner.create(&spec))
    }

    fn start<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        let id = id.clone();
        off_thread(&self.inner, move |inner| inner.start(&id))
    }

    fn stop<'a>(&'a self, id: &'a ContainerId, grace: Duration) -> BoxFuture<'a, Result<Exit, RuntimeError>> {
        async move {
            let (state, ready) = self.inner.ready(id)?;
            match state {
                State::Created => return Err(wrong_state(id, &state)),
                State::Exited { exit, .. } => return Ok(exit),
                State::Running { .. } => {}
            }
            let mut state = self.inner.with(id, |container| container.state.subscribe())?;
            let asked = Signal::from_named_raw(ready.decided.stop_signal).unwrap_or(Signal::TERM);
            self.inner.signal(&ready, asked)?;
            let ended = |state: &State| matches!(state, State::Exited { .. });
            if tokio::time::timeout(grace, state.wait_for(ended)).await.is_err() {
                let dir = ready.dir.clone();
                off_thread(&self.inner, move |inner| {
                    dir.write(Dir::KILLED, &()).map_err(io_error("writing down that it is killed"))?;
                    inner.signal(&ready, Signal::KILL)
                })
                .await?;
            }
            match state.wait_for(ended).await.as_deref() {
                Ok(State::Exited { exit, .. }) => Ok(exit.clone()),
                _ => Err(RuntimeError::Internal("the container was removed while it was stopped".to_owned())),
            }
        }
        .boxed()
    }

    fn remove<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        let id = id.clone();
        off_thread(&self.inner, move |inner| inner.remove(&id))
    }

    fn exec<'a>(
        &'a self,
        id: &'a ContainerId,
        request: ExecRequest,
    ) -> BoxFuture<'a, Result<ExecSession, RuntimeError>> {
        async move {
            let (state, ready) = self.inner.ready(id)?;
            if !matches!(state, State::Running { .. }) {
                return Err(wrong_state(id, &state));
            }
            if request.tty {
                return Err(RuntimeError::Unsupported { runtime: NAME, what: "have a terminal" });
            }
            if request.command.is_empty() {
                return Err(RuntimeError::InvalidSpec("no program is named".to_owned()));
            }
            exec::exec(&ready, id, &request).map_err(io_error("running the OCI runtime"))
        }
        .boxed()
    }

    fn logs(&self, id: &ContainerId, options: LogOptions) -> Result<LogStream, RuntimeError> {
        let (state, ready) = self.inner.ready(id)?;
        if !options.follow || matches!(state, State::Exited { .. }) {
            return Ok(read(ready.decided.log, options));
        }
        let mut state = self.inner.with(id, |container| container.state.subscribe())?;
        let ended = async move {
            // A container that is removed has ended too.
            let _ = state.wait_for(|state| matches!(state, State::Exited { .. })).await;
        };
        Ok(follow(ready.decided.log, options, ended)?)
    }

    fn stats(&self, id: &ContainerId) -> Result<Stats, RuntimeError> {
        let (state, ready) = self.inner.ready(id)?;
        let runs = matches!(state, State::Running { .. });
        Ok(ready.made.filter(|_| runs).map(|made| made.cgroup.stats()).unwrap_or_default())
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
