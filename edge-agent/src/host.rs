//! What a node's core uses of its machine beside the runtime: a trait, so that a simulation can stand in for the
//! machine.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use lichen_net::AddressMode;
use lichen_pods::ProbeTarget;
use tokio::sync::oneshot;

use crate::clock;
use crate::node::Machine;
use crate::probe;

/// A machine.
pub trait Host: Send + Sync + 'static {
    /// The present moment.
    fn now(&self) -> Timestamp;

    /// What the machine has; `dir` tells which disk counts.
    fn look(&self, dir: &Path) -> Machine;

    /// Does what blocks on the disk without blocking whoever waits for it.
    fn block(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()>;

    /// Whether somebody listens on an address already.
    fn in_use(&self, address: SocketAddr) -> bool;

    /// Asks a container, as a probe tells; the error is what the event says.
    fn probe<'a>(
        &'a self,
        target: &'a ProbeTarget,
        pod_ip: &'a str,
        mode: AddressMode,
        time: Duration,
    ) -> BoxFuture<'a, Result<(), String>>;
}

/// What was to be done on the disk panicked.
#[derive(Debug, thiserror::Error)]
#[error("the work on the disk did not end")]
pub(crate) struct Panicked;

impl dyn Host {
    /// Does what blocks on the disk, and answers with what came of it.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Panicked> {
        let (done, result) = oneshot::channel();
        // Whoever waited may be gone by then.
        self.block(Box::new(move || drop(done.send(work())))).await;
        result.await.map_err(|_| Panicked)
    }
}

/// The machine that this process runs on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Local;

impl Host for Local {
    fn now(&self) -> Timestamp {
        clock::now()
    }

    fn look(&self, dir: &Path) -> Machine {
        Machine::look(dir)
    }

    fn block(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        // A panic shows in that the work has no result.
        tokio::task::spawn_blocking(work).map(drop).boxed()
    }

    fn in_use(&self, address: SocketAddr) -> bool {
        let bound = TcpListener::bind(address);
        bound.is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
    }

    fn probe<'a>(
        &'a self,
        target: &'a ProbeTarget,
        pod_ip: &'a str,
        mode: AddressMode,
        time: Duration,
    ) -> BoxFuture<'a, Result<(), String>> {
        probe::run(target, pod_ip, mode, time).boxed()
    }
}
