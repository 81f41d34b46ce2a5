//! Waiting for a descriptor of the kernel's without a thread.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// A descriptor whose readiness can be awaited.
#[expect(
    deprecated,
    reason = "its successor is unsafe because a type may close its descriptor behind tokio's back; an OwnedFd does not"
)]
pub(crate) fn awaitable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}
