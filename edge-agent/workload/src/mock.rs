//! A runtime that runs nothing: each container does what the test says, when the test says it.
//!
//! Deterministic: no thread, no timer, no clock of its own. A container ends when [`MockRuntime::exit`] is called or when it
//! is stopped; its stop answers at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use tokio::sync::{broadcast, watch};

use crate::container::{Artifact, ContainerId, ContainerSpec, Event, Exit, Handler, State, Stats};
use crate::logs::{LogOptions, LogStream, time_text};
use crate::runtime::{EVENT_QUEUE_MAX, ExecRequest, ExecSession, Runtime, RuntimeError};

/// What was asked of the mock, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// [`Runtime::prepare`].
    Prepare(Artifact),
    /// [`Runtime::create`].
    Create(ContainerId),
    /// [`Runtime::start`].
    Start(ContainerId),
    /// [`Runtime::stop`] with its grace.
    Stop(ContainerId, Duration),
    /// [`Runtime::remove`].
    Remove(ContainerId),
}

/// Makes an error for each call that should fail.
pub type Fault = Arc<dyn Fn() -> RuntimeError + Send + Sync>;

/// How containers of an artifact behave.
#[derive(Clone, Default)]
pub struct Script {
    /// The error that [`Runtime::prepare`] gives.
    pub prepare: Option<Fault>,
    /// The error that [`Runtime::start`] gives.
    pub start: Option<Fault>,
    /// Ends as soon as it was started.
    pub exit_at_start: Option<Exit>,
    /// How it ends when it is stopped; without this with [`Exit::Killed`].
    pub exit_at_stop: Option<Exit>,
    /// What its log says.
    pub output: Vec<String>,
}

struct Container {
    spec: ContainerSpec,
    state: watch::Sender<State>,
}

impl Container {
    fn new(spec: ContainerSpec, state: State) -> Self {
        Self { spec, state: watch::channel(state).0 }
    }

    fn state(&self) -> State {
        self.state.borrow().clone()
    }
}

#[derive(Default)]
struct Inner {
    containers: BTreeMap<ContainerId, Container>,
    /// What an earlier agent left and this one has not taken back.
    left: BTreeMap<ContainerId, Container>,
    /// What it answers when it is asked what it offers.
    unavailable: BTreeMap<Handler, String>,
    /// By the text of the artifact's path.
    scripts: BTreeMap<String, Script>,
    calls: Vec<Call>,
}

/// A runtime for tests. Clones share one state.
#[derive(Clone)]
pub struct MockRuntime {
    inner: Arc<Mutex<Inner>>,
    events: broadcast::Sender<Event>,
    clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    heard: Arc<dyn Fn(&Call) + Send + Sync>,
}

impl Default for MockRuntime {
    fn default() -> Self {
        Self::new(|| SystemTime::UNIX_EPOCH)
    }
}

impl MockRuntime {
    /// A mock whose times are the clock's.
    pub fn new(clock: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self::heard(clock, |_| {})
    }

    /// A mock that tells of each call as it comes.
    pub fn heard(
        clock: impl Fn() -> SystemTime + Send + Sync + 'static,
        heard: impl Fn(&Call) + Send + Sync + 'static,
    ) -> Self {
        let (events, _) = broadcast::channel(EVENT_QUEUE_MAX);
        Self { inner: Arc::default(), events, clock: Arc::new(clock), heard: Arc::new(heard) }
    }

    /// Sets how containers of the artifact at this path behave.
    pub fn script(&self, artifact_path: impl Into<String>, script: Script) {
        self.lock().scripts.insert(artifact_path.into(), script);
    }

    /// Makes this node unable to run what is for a handler.
    pub fn lack(&self, handler: Handler, why: impl Into<String>) {
        self.lock().unavailable.insert(handler, why.into());
    }

    /// The runtime of an agent that starts after this one was killed: everything is left for it to take back.
    pub fn successor(&self) -> Self {
        let next = Self {
            inner: Arc::default(),
            events: broadcast::channel(EVENT_QUEUE_MAX).0,
            clock: self.clock.clone(),
            heard: self.heard.clone(),
        };
        let inner = self.lock();
        let left = inner.containers.iter().chain(&inner.left);
        next.lock().left =
            left.map(|(id, one)| (id.clone(), Container::new(one.spec.clone(), one.state()))).collect();
        next.lock().scripts.clone_from(&inner.scripts);
        drop(inner);
        next
    }

    /// Ends a running container, also one that was not taken back yet: nobody hears of it then.
    pub fn exit(&self, id: &ContainerId, exit: Exit) -> Result<(), RuntimeError> {
        let mut inner = self.lock();
        let seen = inner.containers.contains_key(id);
        let Inner { containers, left, .. } = &mut *inner;
        let container = containers.get_mut(id).or_else(|| left.get_mut(id));
        let container = container.ok_or_else(|| RuntimeError::NotFound(id.clone()))?;
        let State::Running { started } = container.state() else {
            return Err(RuntimeError::WrongState { id: id.clone(), state: container.state().name() });
        };
        container.state.send_replace(State::Exited { started, finished: (self.clock)(), exit: exit.clone() });
        drop(inner);
        if seen {
            self.tell(Event::Exited { id: id.clone(), exit });
        }
        Ok(())
    }

    /// Everything asked so far.
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// The specification a container was created with.
    pub fn spec(&self, id: &ContainerId) -> Option<ContainerSpec> {
        self.lock().containers.get(id).map(|container| container.spec.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, inner: &mut Inner, call: Call) {
        (self.heard)(&call);
        inner.calls.push(call);
    }

    fn tell(&self, event: Event) {
        // Nobody listening is fine: the state says the same.
        let _ = self.events.send(event);
    }

    fn start_now(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let mut inner = self.lock();
        self.note(&mut inner, Call::Start(id.clone()));
        let container = inner.containers.get(id).ok_or_else(|| RuntimeError::NotFound(id.clone()))?;
        if container.state() != State::Created {
            return Err(RuntimeError::WrongState { id: id.clone(), state: container.state().name() });
        }
        let script = inner.scripts.get(&artifact_path(&container.spec.artifact)).cloned().unwrap_or_default();
        if let Some(fault) = script.start {
            return Err(fault());
        }
        if let Some(container) = inner.containers.get_mut(id) {
            container.state.send_replace(State::Running { started: (self.clock)() });
        }
        drop(inner);
        self.tell(Event::Started { id: id.clone() });
        match script.exit_at_start {
            Some(exit) => self.exit(id, exit),
            None => Ok(()),
        }
    }

    fn stop_now(&self, id: &ContainerId, grace: Duration) -> Result<Exit, RuntimeError> {
        let mut inner = self.lock();
        self.note(&mut inner, Call::Stop(id.clone(), grace));
        let container = inner.containers.get(id).ok_or_else(|| RuntimeError::NotFound(id.clone()))?;
        match container.state() {
            State::Exited { exit, .. } => Ok(exit),
            State::Created => Err(RuntimeError::WrongState { id: id.clone(), state: "created" }),
            State::Running { .. } => {
                let script = inner.scripts.get(&artifact_path(&container.spec.artifact));
                let exit = script.and_then(|script| script.exit_at_stop.clone()).unwrap_or(Exit::Killed);
                drop(inner);
                self.exit(id, exit.clone())?;
                Ok(exit)
            }
        }
    }
}

/// What a reader of this log gets. All its lines are as old as the clock says now.
fn log_text(lines: &[String], now: SystemTime, options: &LogOptions) -> String {
    let tail = options.tail_lines.map_or(usize::MAX, |tail| usize::try_from(tail).unwrap_or(usize::MAX));
    let wanted = lines.iter().skip(lines.len().saturating_sub(tail));
    let stamp = if options.timestamps { time_text(now) + " " } else { String::new() };
    let mut text: String = wanted.map(|line| format!("{stamp}{line}\n")).collect();
    text.truncate(
        options.limit_bytes.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)),
    );
    text
}

fn artifact_path(artifact: &Artifact) -> String {
    artifact.path().display().to_string()
}

impl Runtime for MockRuntime {
    fn offers(&self, handler: Handler) -> Result<(), RuntimeError> {
        match self.lock().unavailable.get(&handler) {
            Some(why) => Err(RuntimeError::Unavailable(why.clone())),
            None => Ok(()),
        }
    }

    fn adopt(&self) -> BoxFuture<'_, Result<(), RuntimeError>> {
        async {
            let mut inner = self.lock();
            let left = std::mem::take(&mut inner.left);
            inner.containers.extend(left);
            Ok(())
        }
        .boxed()
    }

    fn prepare<'a>(&'a self, artifact: &'a Artifact) -> BoxFuture<'a, Result<(), RuntimeError>> {
        async move {
            let mut inner = self.lock();
            self.note(&mut inner, Call::Prepare(artifact.clone()));
            match inner.scripts.get(&artifact_path(artifact)).and_then(|script| script.prepare.clone()) {
                Some(fault) => Err(fault()),
                None => Ok(()),
            }
        }
        .boxed()
    }

    fn create(&self, spec: ContainerSpec) -> BoxFuture<'_, Result<(), RuntimeError>> {
        async move {
            let mut inner = self.lock();
            self.note(&mut inner, Call::Create(spec.id.clone()));
            if inner.containers.contains_key(&spec.id) {
                return Err(RuntimeError::Exists(spec.id));
            }
            inner.containers.insert(spec.id.clone(), Container::new(spec, State::Created));
            Ok(())
        }
        .boxed()
    }

    fn start<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        async move { self.start_now(id) }.boxed()
    }

    fn stop<'a>(&'a self, id: &'a ContainerId, grace: Duration) -> BoxFuture<'a, Result<Exit, RuntimeError>> {
        async move { self.stop_now(id, grace) }.boxed()
    }

    fn remove<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        async move {
            let mut inner = self.lock();
            self.note(&mut inner, Call::Remove(id.clone()));
            match inner.containers.get(id) {
                Some(container) if matches!(container.state(), State::Running { .. }) => {
                    Err(RuntimeError::WrongState { id: id.clone(), state: "running" })
                }
                _ => {
                    inner.containers.remove(id);
                    Ok(())
                }
            }
        }
        .boxed()
    }

    fn exec<'a>(
        &'a self,
        _: &'a ContainerId,
        _: ExecRequest,
    ) -> BoxFuture<'a, Result<ExecSession, RuntimeError>> {
        async move { Err(RuntimeError::Unsupported { runtime: "mock", what: "run another program" }) }.boxed()
    }

    fn logs(&self, id: &ContainerId, options: LogOptions) -> Result<LogStream, RuntimeError> {
        let inner = self.lock();
        let container = inner.containers.get(id).ok_or_else(|| RuntimeError::NotFound(id.clone()))?;
        let script = inner.scripts.get(&artifact_path(&container.spec.artifact)).cloned().unwrap_or_default();
        let text = log_text(&script.output, (self.clock)(), &options);
        let printed = stream::iter((!text.is_empty()).then(|| Ok(text.into())));
        if !options.follow {
            return Ok(printed.boxed());
        }
        let mut state = container.state.subscribe();
        let end = stream::once(async move {
            // A container that is removed has ended too.
            let _ = state.wait_for(|state| matches!(state, State::Exited { .. })).await;
        });
        Ok(printed.chain(end.filter_map(|()| std::future::ready(None))).boxed())
    }

    fn stats(&self, id: &ContainerId) -> Result<Stats, RuntimeError> {
        self.state(id).map(|_| Stats::default())
    }

    fn state(&self, id: &ContainerId) -> Result<State, RuntimeError> {
        let inner = self.lock();
        let container = inner.containers.get(id).ok_or_else(|| RuntimeError::NotFound(id.clone()))?;
        Ok(container.state())
    }

    fn list(&self) -> Vec<(ContainerId, State)> {
        self.lock().containers.iter().map(|(id, container)| (id.clone(), container.state())).collect()
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}
