//! Measures the time that guest code runs, and keeps the epoch ticking exactly then.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::thread::{self, Thread};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use wasmtime::Engine;

/// How often guest code that computes without a pause yields its thread.
pub const EPOCH_TICK_MS: u64 = 10;

/// The thread that moves the engines' epochs on while any guest code runs, and sleeps otherwise.
#[derive(Clone)]
pub(crate) struct Ticker {
    shared: Arc<Shared>,
}

struct Shared {
    /// How many threads run guest code at this moment.
    running: AtomicUsize,
    /// Whether guest code ran since the last tick.
    ran: AtomicBool,
    parked: AtomicBool,
    closed: AtomicBool,
    engines: Mutex<Vec<Engine>>,
    thread: OnceLock<Thread>,
}

impl Ticker {
    /// Starts the thread, which goes to sleep at once.
    pub(crate) fn spawn() -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            running: AtomicUsize::new(0),
            ran: AtomicBool::new(false),
            parked: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            engines: Mutex::default(),
            thread: OnceLock::new(),
        });
        let owned = Arc::clone(&shared);
        let handle = thread::Builder::new().name("lichen-epoch".to_owned()).spawn(move || owned.tick())?;
        // Nothing else ever sets it.
        let _ = shared.thread.set(handle.thread().clone());
        Ok(Self { shared })
    }

    /// Moves this engine's epoch on too.
    pub(crate) fn add(&self, engine: &Engine) {
        self.shared.engines().push(engine.clone());
    }

    /// Ends the thread.
    pub(crate) fn close(&self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.shared.wake();
    }

    /// The epoch moves until the answer is dropped.
    pub(crate) fn enter(&self) -> Ticking {
        let shared = Arc::clone(&self.shared);
        shared.ran.store(true, Ordering::SeqCst);
        shared.running.fetch_add(1, Ordering::SeqCst);
        if shared.parked.load(Ordering::SeqCst) {
            shared.wake();
        }
        Ticking { shared }
    }
}

impl Shared {
    fn engines(&self) -> std::sync::MutexGuard<'_, Vec<Engine>> {
        self.engines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    fn tick(&self) {
        while !self.closed.load(Ordering::SeqCst) {
            // Sleeping a whole tick after each piece of guest code, instead of parking at once, means that a host with a
            // thousand short requests a second wakes this thread a hundred times a second, not a thousand.
            if self.running.load(Ordering::SeqCst) == 0 && !self.ran.swap(false, Ordering::SeqCst) {
                self.parked.store(true, Ordering::SeqCst);
                if self.running.load(Ordering::SeqCst) == 0 && !self.closed.load(Ordering::SeqCst) {
                    thread::park();
                }
                self.parked.store(false, Ordering::SeqCst);
                continue;
            }
            thread::sleep(Duration::from_millis(EPOCH_TICK_MS));
            for engine in self.engines().iter() {
                engine.increment_epoch();
            }
        }
    }
}

/// Guest code may run while this lives.
pub(crate) struct Ticking {
    shared: Arc<Shared>,
}

impl Drop for Ticking {
    fn drop(&mut self) {
        self.shared.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A future that runs guest code when it is polled: ticks and counts its CPU time meanwhile.
pub(crate) struct Metered<T> {
    inner: Pin<Box<dyn Future<Output = T> + Send>>,
    ticker: Ticker,
    cpu_ns: Arc<AtomicU64>,
}

impl<T> Metered<T> {
    pub(crate) fn new(
        ticker: &Ticker,
        cpu_ns: &Arc<AtomicU64>,
        inner: impl Future<Output = T> + Send + 'static,
    ) -> Self {
        Self { inner: Box::pin(inner), ticker: ticker.clone(), cpu_ns: Arc::clone(cpu_ns) }
    }
}

impl<T> Future for Metered<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let _ticking = self.ticker.enter();
        let before = thread_cpu_ns();
        let poll = self.inner.as_mut().poll(context);
        self.cpu_ns.fetch_add(thread_cpu_ns().saturating_sub(before), Ordering::Relaxed);
        poll
    }
}

fn thread_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // The clock starts at 0 with the thread, so neither part is ever negative.
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits for what the ticker's thread does by itself.
    fn until(condition: impl Fn() -> bool) {
        while !condition() {
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn the_ticker_sleeps_exactly_while_no_guest_runs() {
        let ticker = Ticker::spawn().unwrap();
        let parked = || ticker.shared.parked.load(Ordering::SeqCst);
        until(parked);
        let first = ticker.enter();
        let second = ticker.enter();
        until(|| !parked());
        drop(first);
        thread::sleep(Duration::from_millis(3 * EPOCH_TICK_MS));
        assert!(!parked(), "one still runs");
        drop(second);
        until(parked);
        ticker.close();
        until(|| Arc::strong_count(&ticker.shared) == 1);
    }
}
