//! A process that is played.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinHandle};

use super::LogBounds;

thread_local! {
    static CURRENT: RefCell<Option<Process>> = const { RefCell::new(None) };
}

/// How fast a clock goes by default, out of a thousand.
const TRUE_CLOCK: u64 = 1000;
/// Tasks that are known beyond those that were alive at the last look, before the next look.
const TASKS_SPARE: usize = 64;

/// A process: what is run in it belongs to it, and ends or stops with it. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Process {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    alive: AtomicBool,
    killed: Notify,
    /// How long a second of its clock takes, in thousandths.
    clock: AtomicU64,
    dice: AtomicU64,
    log_bounds: LogBounds,
    tasks: Mutex<Tasks>,
}

#[derive(Debug, Default)]
struct Tasks {
    aborts: Vec<AbortHandle>,
    look_at: usize,
    /// Who wants to go on, while the process is paused.
    paused: Option<Vec<Waker>>,
}

impl Process {
    /// A process that draws all its random numbers from a seed, and keeps a log within bounds.
    #[must_use]
    pub fn new(seed: u64, log_bounds: LogBounds) -> Self {
        let inner = Inner {
            alive: AtomicBool::new(true),
            killed: Notify::new(),
            clock: AtomicU64::new(TRUE_CLOCK),
            dice: AtomicU64::new(seed),
            log_bounds,
            tasks: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The one that is running, in this thread.
    pub(crate) fn current() -> Option<Self> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// Runs a future in the process. While that is paused it makes no step, and once that is killed never another one.
    pub fn run<F: Future + Send>(&self, future: F) -> impl Future<Output = F::Output> + Send + use<F> {
        Scoped { process: self.clone(), future: Box::pin(future) }
    }

    /// Kills it: nothing of it happens any more.
    pub fn kill(&self) {
        self.inner.alive.store(false, Ordering::Release);
        self.inner.killed.notify_waiters();
        let tasks = std::mem::take(&mut *self.tasks());
        tasks.aborts.iter().for_each(AbortHandle::abort);
    }

    /// Whether it was not killed.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.inner.alive.load(Ordering::Acquire)
    }

    /// Waits until it is killed.
    pub fn killed(&self) -> BoxFuture<'static, ()> {
        let process = self.clone();
        async move {
            let killed = process.inner.killed.notified();
            if process.is_alive() {
                killed.await;
            }
        }
        .boxed()
    }

    /// Stops it where it is.
    pub fn pause(&self) {
        self.tasks().paused.get_or_insert_default();
    }

    /// Lets it go on.
    pub fn resume(&self) {
        let wakers = self.tasks().paused.take();
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// Lets what it takes for a second last so many thousandths of one.
    pub fn set_clock(&self, permille: u64) {
        self.inner.clock.store(permille, Ordering::Relaxed);
    }

    /// How long a time of its clock really is.
    pub(super) fn lasts(&self, time: Duration) -> Duration {
        let permille = self.inner.clock.load(Ordering::Relaxed);
        if permille == TRUE_CLOCK { time } else { time.mul_f64(permille as f64 / TRUE_CLOCK as f64) }
    }

    pub(crate) fn log_bounds(&self) -> LogBounds {
        self.inner.log_bounds
    }

    /// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
    pub(crate) fn random(&self) -> u64 {
        let step = 0x9e37_79b9_7f4a_7c15_u64;
        let mut z = self.inner.dice.fetch_add(step, Ordering::Relaxed).wrapping_add(step);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Starts a task that belongs to the process.
    pub(crate) fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        let task = tokio::spawn(self.run(future));
        let mut tasks = self.tasks();
        if tasks.aborts.len() >= tasks.look_at {
            tasks.aborts.retain(|task| !task.is_finished());
            tasks.look_at = tasks.aborts.len() * 2 + TASKS_SPARE;
        }
        tasks.aborts.push(task.abort_handle());
        drop(tasks);
        if !self.is_alive() {
            task.abort();
        }
        task
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A future within a process.
struct Scoped<F> {
    process: Process,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if !self.process.is_alive() {
            return Poll::Pending;
        }
        if let Some(paused) = &mut self.process.tasks().paused {
            paused.push(context.waker().clone());
            return Poll::Pending;
        }
        let before = CURRENT.replace(Some(self.process.clone()));
        let polled = self.future.as_mut().poll(context);
        CURRENT.set(before);
        polled
    }
}
