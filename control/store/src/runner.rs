//! How a store's work on its files is run: on threads of its own, for disks take their time, or all in the tasks of one
//! runtime, where a simulation decides what time is.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use openraft::type_config::TypeConfigExt as _;
use tokio::runtime::{self, Handle};
use tokio::sync::Semaphore;
use tokio::task;

use crate::disk::DirLock;
use crate::types::Types;
use crate::volume::Volume;

/// Runs what touches files.
#[derive(Clone, Debug)]
pub(crate) enum Runner {
    /// On threads, away from all that is asynchronous.
    Threads,
    /// In tasks, which let pass the time that the volume says its work took.
    Tasks(Arc<dyn Volume>),
}

/// What owns a file and works on it, until it is told to end.
#[derive(Debug)]
pub(crate) enum Owner {
    Thread(thread::JoinHandle<()>),
    Task(task::JoinHandle<()>),
}

impl Runner {
    /// Starts what owns a file, and lets nobody else into the directory before it has ended.
    pub(crate) fn start(
        &self,
        name: &str,
        lock: Option<Arc<DirLock>>,
        run: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<Owner> {
        let run = async move {
            run.await;
            drop(lock);
        };
        match self {
            Self::Threads => {
                // A runtime of its own, so that it can end in good order when that of the callers is gone.
                let own = runtime::Builder::new_current_thread().enable_time().build()?;
                let thread = thread::Builder::new().name(name.into());
                Ok(Owner::Thread(thread.spawn(move || own.block_on(run))?))
            }
            Self::Tasks(_) => Ok(Owner::Task(Types::spawn(run))),
        }
    }

    /// Runs work that has no owner, where it may block. On a thread it begins at once, in a task when it is waited for.
    pub(crate) fn lend<T: Send + 'static>(
        &self,
        run: impl Future<Output = T> + Send + 'static,
    ) -> BoxFuture<'static, io::Result<T>> {
        match self {
            Self::Threads => {
                let here = Handle::current();
                let thread = task::spawn_blocking(move || here.block_on(run));
                thread.map(|ended| ended.map_err(io::Error::other)).boxed()
            }
            Self::Tasks(_) => run.map(Ok).boxed(),
        }
    }

    /// How much may be handed to or from what was lent before that has to wait.
    pub(crate) fn ahead(&self, threads: usize) -> usize {
        match self {
            Self::Threads => threads,
            // In a task nobody can wait within what blocks.
            Self::Tasks(_) => Semaphore::MAX_PERMITS,
        }
    }

    /// Waits, within what was lent, for what is handed to it or from it.
    pub(crate) fn wait<T>(&self, handed: impl Future<Output = T>) -> Option<T> {
        match self {
            Self::Threads => Some(park_until(handed)),
            Self::Tasks(_) => handed.now_or_never(),
        }
    }

    /// Does work on a file, within what was started or lent.
    pub(crate) async fn work<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let done = work();
        if let Self::Tasks(volume) = self {
            let took = volume.took();
            if !took.is_zero() {
                tokio::time::sleep(took).await;
            }
        }
        done
    }
}

impl Owner {
    /// Waits for its end, which it has been told of.
    pub(crate) async fn end(self) {
        let ended = match self {
            Self::Thread(thread) => {
                let joined = task::spawn_blocking(move || thread.join().is_ok()).await;
                joined.is_ok_and(|ended| ended)
            }
            Self::Task(task) => task.await.is_ok(),
        };
        if !ended {
            tracing::error!("what owned a file of the store panicked");
        }
    }
}

/// Waits on a thread that may be blocked, within a future that is. A runtime does not wait within itself.
fn park_until<T>(handed: impl Future<Output = T>) -> T {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut handed = pin!(handed);
    loop {
        match handed.as_mut().poll(&mut context) {
            Poll::Ready(out) => return out,
            Poll::Pending => thread::park(),
        }
    }
}
