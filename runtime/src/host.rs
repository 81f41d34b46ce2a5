//! The host: engines, the threads guests run on, and the components that are loaded.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::TcpListener;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use lichen_engine::{engine, running_config};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use wasmtime::Engine;
use wasmtime::component::Linker;

use crate::command;
use crate::component::{Loaded, World, linker};
use crate::context::GuestContext;
use crate::error::HostError;
use crate::guest::{Guest, GuestExit, GuestSpec, Shared};
use crate::http;
use crate::meter::Ticker;
use crate::output::LineSink;
use crate::pool::{Pool, Slots};

/// How many components that nobody runs stay loaded, so that a restart finds them.
const UNUSED_COMPONENTS_MAX: usize = 16;

/// How a host is set up.
#[derive(Clone, Debug, Default)]
pub struct HostConfig {
    /// Threads that guests run on; by default as many as the machine has.
    pub threads: Option<NonZeroUsize>,
}

/// Loads components and runs guests. Dropping it ends them all.
pub struct ComponentHost {
    engine: Engine,
    linker: Linker<GuestContext>,
    /// Made when the first request handler is loaded: a node that runs commands only never pays for it.
    pool: OnceLock<Option<Pool>>,
    ticker: Ticker,
    /// Taken when the host is dropped.
    guests: Option<Runtime>,
    loaded: Mutex<BTreeMap<String, Arc<Loaded>>>,
}

impl ComponentHost {
    /// Sets up the engine and the guests' threads.
    pub fn new(config: &HostConfig) -> Result<Self, HostError> {
        let engine = engine(&running_config()?)?;
        let linker = linker(&engine).map_err(|error| HostError::MissingImport {
            name: "the host's own interfaces".to_owned(),
            detail: format!("{error:#}"),
        })?;
        let ticker =
            Ticker::spawn().map_err(|source| HostError::Io { context: "starting a thread", source })?;
        ticker.add(&engine);
        let mut threads = Builder::new_multi_thread();
        if let Some(count) = config.threads {
            threads.worker_threads(count.get());
        }
        let guests = threads
            .thread_name("lichen-guest")
            .enable_all()
            .build()
            .map_err(|source| HostError::Io { context: "starting the guests' threads", source })?;
        Ok(Self {
            engine,
            linker,
            pool: OnceLock::new(),
            ticker,
            guests: Some(guests),
            loaded: Mutex::default(),
        })
    }

    /// Loads a compiled component, or finds it loaded. The digest is that of the file's bytes, and whoever calls vouches
    /// for it: see [`lichen_engine::load`]. Reads the file, so it may block for a moment.
    ///
    /// Everything that could be wrong with the component shows here, before anything is started.
    pub fn load(&self, digest: &str, path: &Path) -> Result<Arc<Loaded>, HostError> {
        if let Some(loaded) = self.components().get(digest) {
            return Ok(Arc::clone(loaded));
        }
        // Without holding the lock: two threads that load the same file at once both do, and the first to finish is kept.
        let loaded = Loaded::load(&self.engine, &self.linker, || self.pool(), digest, path)?;
        let mut components = self.components();
        let kept = Arc::clone(components.entry(digest.to_owned()).or_insert_with(|| Arc::new(loaded)));
        forget_unused(&mut components);
        Ok(kept)
    }

    /// Starts a command.
    pub fn run(
        &self,
        component: &Arc<Loaded>,
        spec: GuestSpec,
        sink: Arc<dyn LineSink>,
    ) -> Result<Guest, HostError> {
        if component.world() != World::Command {
            return Err(HostError::WrongWorld { found: component.world().name(), wanted: "run" });
        }
        let (shared, phase) = Shared::new(spec, sink, &self.ticker);
        // Mounts are opened here, so that a missing one is an error of the start and not an exit.
        let store = shared.store(&component.engine)?;
        let work = command::run(Arc::clone(&shared), component.entry.clone(), store);
        let exit = self.spawn(Arc::clone(component), work)?;
        Ok(Guest::new(phase, exit, shared, component.hears_stop))
    }

    /// Answers requests on the listeners with a request handler.
    pub fn serve(
        &self,
        component: &Arc<Loaded>,
        spec: GuestSpec,
        sink: Arc<dyn LineSink>,
        listeners: Vec<TcpListener>,
    ) -> Result<Guest, HostError> {
        if component.world() != World::Http {
            return Err(HostError::WrongWorld { found: component.world().name(), wanted: "served" });
        }
        let runtime = self.runtime()?;
        let fits_slot = spec.memory_bytes.is_none_or(|bytes| bytes <= Pool::MEMORY_BYTES_MAX);
        let (shared, phase) = Shared::new(spec, sink, &self.ticker);
        // A missing mount is an error of the start and not of each request.
        drop(shared.store(&component.engine)?);
        let place = match (self.pool(), component.pooled.clone()) {
            (Some(pool), Some(entry)) if fits_slot => {
                http::Place { engine: pool.engine.clone(), entry, slots: pool.slots() }
            }
            _ => http::Place {
                engine: component.engine.clone(),
                entry: component.entry.clone(),
                slots: Slots::without_pool(),
            },
        };
        let entered = runtime.enter();
        let listeners = http::adopt(listeners)?;
        drop(entered);
        let work = http::serve(Arc::clone(&shared), place, listeners);
        let exit = self.spawn(Arc::clone(component), work)?;
        Ok(Guest::new(phase, exit, shared, component.hears_stop))
    }

    /// Runs a guest's work on the guests' threads. The component stays loaded for as long.
    fn spawn(
        &self,
        component: Arc<Loaded>,
        work: impl Future<Output = GuestExit> + Send + 'static,
    ) -> Result<watch::Receiver<Option<GuestExit>>, HostError> {
        let runtime = self.runtime()?;
        let (sender, exit) = watch::channel(None);
        let task = runtime.spawn(work);
        runtime.spawn(async move {
            let ended = task.await.unwrap_or_else(|error| match error.is_panic() {
                true => GuestExit::Trap("the host failed while it ran the guest".to_owned()),
                false => GuestExit::Killed,
            });
            drop(component);
            sender.send_replace(Some(ended));
        });
        Ok(exit)
    }

    fn runtime(&self) -> Result<&Runtime, HostError> {
        self.guests.as_ref().ok_or(HostError::Closed)
    }

    fn pool(&self) -> Option<&Pool> {
        let make = || Pool::create().inspect(|pool| self.ticker.add(&pool.engine));
        self.pool.get_or_init(make).as_ref()
    }

    fn components(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Loaded>>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ComponentHost {
    fn drop(&mut self) {
        self.ticker.close();
        if let Some(guests) = self.guests.take() {
            // In the background, because the last owner may be an async task, which must not block.
            guests.shutdown_background();
        }
    }
}

fn forget_unused(components: &mut BTreeMap<String, Arc<Loaded>>) {
    let unused: Vec<String> = components
        .iter()
        .filter(|(_, loaded)| Arc::strong_count(loaded) == 1)
        .map(|(digest, _)| digest.clone())
        .collect();
    for digest in unused.iter().skip(UNUSED_COMPONENTS_MAX) {
        components.remove(digest);
    }
}
