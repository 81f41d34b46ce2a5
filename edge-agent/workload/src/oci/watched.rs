//! Hearing of a container's end, from its shim's.

use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::Weak;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::watch;

use super::Inner;
use super::record::{Decided, Dir, Ended};
use crate::container::{ContainerId, Exit, State};
use crate::descriptor::awaitable;

/// How long a shim may take to end once its container is gone.
const SHIM_END_MAX: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// Waits for a process to end, for as long as a shim may take.
pub(super) fn wait(process: &OwnedFd) {
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    // Whatever comes of it, the files say what there is.
    let _ = poll(&mut fds, Some(&SHIM_END_MAX));
}

/// A container whose shim is waited for.
pub(super) struct Watched {
    pub(super) id: ContainerId,
    pub(super) dir: Dir,
    /// The shim, if it is this process's to wait for.
    pub(super) child: Option<Child>,
    pub(super) state: watch::Receiver<State>,
}

impl Watched {
    pub(super) async fn run(mut self, process: Option<OwnedFd>, inner: Weak<Inner>) {
        match process.map(awaitable).transpose() {
            // A shim that is not there any more has written what it had to.
            Ok(None) => {}
            Ok(Some(process)) => {
                if let Err(error) = process.readable().await {
                    tracing::error!(id = %self.id, %error, "a container is no longer watched");
                    return;
                }
            }
            Err(error) => {
                tracing::error!(id = %self.id, %error, "a container cannot be watched");
                return;
            }
        }
        if let Some(child) = &mut self.child {
            // It has ended, so this takes its status and does not wait.
            let _ = child.wait();
        }
        // An exit follows its start. A container that is removed before needs none.
        if self.state.wait_for(|state| *state != State::Created).await.is_err() {
            return;
        }
        let Some(inner) = inner.upgrade() else { return };
        let done = tokio::task::spawn_blocking(move || {
            let ended = self.dir.read(Dir::ENDED).unwrap_or_else(|| self.lost(&inner));
            inner.ended(&self.id, &ended);
        });
        if let Err(error) = done.await {
            tracing::error!(%error, "the end of a container was not told");
        }
    }

    /// The shim was killed. Nobody reads what the container prints any more and nobody will know how it ends, so it ends now.
    fn lost(&self, inner: &Inner) -> Ended {
        let ended = Ended { exit: Exit::Lost, finished: (inner.clock)() };
        let deleted = match self.dir.read::<Decided>(Dir::DECIDED) {
            Some(decided) => decided.engine.delete(self.id.as_str()),
            None => Ok(()),
        };
        let written = self.dir.write(Dir::ENDED, &ended);
        tracing::warn!(id = %self.id, ?deleted, ?written, "a container's shim was killed, and the container with it");
        ended
    }
}
