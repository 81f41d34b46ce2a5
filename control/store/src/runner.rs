//! How a store's work on its files is run: on threads of its own, for disks take their time, or all in the tasks of one
//! runtime, where a simulation decides what time is.

use std::io;
use std::sync::Arc;
use std::thread;

use tokio::runtime::{self, Handle};
use tokio::task;

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
    /// Starts what owns a file.
    pub(crate) fn start(
        &self,
        name: &str,
        run: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<Owner> {
        match self {
            Self::Threads => {
                // A runtime of its own, so that it can end in good order when that of the callers is gone.
                let own = runtime::Builder::new_current_thread().enable_time().build()?;
                let thread = thread::Builder::new().name(name.into());
                Ok(Owner::Thread(thread.spawn(move || own.block_on(run))?))
            }
            Self::Tasks(_) => Ok(Owner::Task(tokio::spawn(run))),
        }
    }

    /// Runs work that has no owner, where it may block.
    pub(crate) async fn lend<T: Send + 'static>(
        &self,
        run: impl Future<Output = T> + Send + 'static,
    ) -> io::Result<T> {
        match self {
            Self::Threads => {
                let here = Handle::current();
                task::spawn_blocking(move || here.block_on(run)).await.map_err(io::Error::other)
            }
            Self::Tasks(_) => Ok(run.await),
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
