//! A running component, whatever its kind: how it is described, stopped, and how it ended.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use wasmtime::Trap;
use wasmtime_wasi::I32Exit;

use crate::limits::{MemoryBudget, OutOfMemory};
use crate::meter::Ticker;
use crate::output::LineSink;

/// How long a request may take until its response begins, if nobody says otherwise.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// A directory of this machine that a guest sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestMount {
    /// The directory here.
    pub host: PathBuf,
    /// The path that the guest opens.
    pub guest: String,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// What a guest is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestSpec {
    /// The program's name and its arguments.
    pub args: Vec<String>,
    /// The environment; nothing of this process's own is added.
    pub env: Vec<(String, String)>,
    /// The directories it sees.
    pub mounts: Vec<GuestMount>,
    /// The memory that all its instances may use together.
    pub memory_bytes: Option<u64>,
    /// How long a request may take until its response begins. A handler that takes longer is ended.
    pub request_timeout: Duration,
}

impl Default for GuestSpec {
    fn default() -> Self {
        Self {
            args: vec!["main".to_owned()],
            env: Vec::new(),
            mounts: Vec::new(),
            memory_bytes: None,
            request_timeout: REQUEST_TIMEOUT,
        }
    }
}

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestExit {
    /// It returned or exited. A handler that was stopped and drained exits with 0.
    Code(i32),
    /// It broke a rule of its machine; the text says which.
    Trap(String),
    /// It would have exceeded its memory.
    OutOfMemory,
    /// It was ended from outside.
    Killed,
}

/// What a guest has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Linear memories and tables now.
    pub memory_bytes: u64,
    /// The most there ever were.
    pub memory_peak_bytes: u64,
    /// CPU time of guest code and of the host functions it called. Handlers of WASI 0.3 are not counted.
    pub cpu_ns: u64,
    /// Requests answered, well or not.
    pub requests: u64,
}

/// What the owner of a guest wants of it. It only ever moves on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Run,
    Stopping,
    Abort,
}

/// What all instances of a guest share.
pub(crate) struct Shared {
    pub(crate) spec: GuestSpec,
    pub(crate) sink: Arc<dyn LineSink>,
    pub(crate) memory: Arc<MemoryBudget>,
    pub(crate) cpu_ns: Arc<AtomicU64>,
    pub(crate) requests: AtomicU64,
    pub(crate) phase: watch::Receiver<Phase>,
    pub(crate) ticker: Ticker,
}

impl Shared {
    pub(crate) fn new(
        spec: GuestSpec,
        sink: Arc<dyn LineSink>,
        ticker: &Ticker,
    ) -> (Arc<Self>, watch::Sender<Phase>) {
        let (sender, phase) = watch::channel(Phase::Run);
        let shared = Self {
            memory: MemoryBudget::new(spec.memory_bytes),
            spec,
            sink,
            cpu_ns: Arc::default(),
            requests: AtomicU64::new(0),
            phase,
            ticker: ticker.clone(),
        };
        (Arc::new(shared), sender)
    }

    /// Waits until the guest is to be ended by force; its owner being gone means the same.
    pub(crate) async fn aborted(&self) {
        let mut phase = self.phase.clone();
        let _ = phase.wait_for(|phase| *phase == Phase::Abort).await;
    }

    /// Waits until the guest is to end.
    pub(crate) async fn stopping(&self) {
        let mut phase = self.phase.clone();
        let _ = phase.wait_for(|phase| *phase != Phase::Run).await;
    }
}

/// A running guest. Dropping it ends the guest.
pub struct Guest {
    phase: watch::Sender<Phase>,
    exit: watch::Receiver<Option<GuestExit>>,
    shared: Arc<Shared>,
    hears_stop: bool,
}

impl Guest {
    pub(crate) fn new(
        phase: watch::Sender<Phase>,
        exit: watch::Receiver<Option<GuestExit>>,
        shared: Arc<Shared>,
        hears_stop: bool,
    ) -> Self {
        Self { phase, exit, shared, hears_stop }
    }

    /// Waits until the guest has ended. All it printed has reached its sink.
    pub async fn wait(&self) -> GuestExit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone().unwrap_or(GuestExit::Killed),
            // The task is gone without a word: the host was shut down around it.
            Err(_) => GuestExit::Killed,
        }
    }

    /// Asks the guest to end, waits for at most `grace`, then ends it. A command that does not import
    /// `lichen:workload/lifecycle` cannot hear the request, so it is ended at once.
    pub async fn stop(&self, grace: Duration) -> GuestExit {
        self.advance(Phase::Stopping);
        if self.hears_stop
            && let Ok(exit) = tokio::time::timeout(grace, self.wait()).await
        {
            return exit;
        }
        self.advance(Phase::Abort);
        self.wait().await
    }

    /// What it used so far.
    pub fn usage(&self) -> Usage {
        Usage {
            memory_bytes: self.shared.memory.used_bytes(),
            memory_peak_bytes: self.shared.memory.peak_bytes(),
            cpu_ns: self.shared.cpu_ns.load(Ordering::Relaxed),
            requests: self.shared.requests.load(Ordering::Relaxed),
        }
    }

    fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let on = *phase < to;
            *phase = to.max(*phase);
            on
        });
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.advance(Phase::Abort);
    }
}

/// What an error out of guest code means.
pub(crate) fn exit_of_error(error: &wasmtime::Error) -> GuestExit {
    if let Some(exit) = error.downcast_ref::<I32Exit>() {
        return GuestExit::Code(exit.0);
    }
    if error.downcast_ref::<OutOfMemory>().is_some() {
        return GuestExit::OutOfMemory;
    }
    match error.downcast_ref::<Trap>() {
        Some(trap) => GuestExit::Trap(trap.to_string()),
        None => GuestExit::Trap(format!("{error:#}")),
    }
}
