//! What the system allows this process, and how it serves it.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Takes as many file descriptors as the system allows: each node is a connection, and the usual 1024 are few.
pub(crate) fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the number of file descriptors stays as it is");
    }
}

/// Has glibc keep no lists of small free chunks beside those that each thread has. Whoever asks for a larger chunk, as every
/// request does, has those lists merged first: that was an eighth of the processor time of a put.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "a setting of the C library's allocator, for which there is no safe function")]
pub(crate) fn tune_allocator() {
    // SAFETY: it takes two numbers and sets a limit; nothing that was allocated before depends on it.
    if unsafe { libc::mallopt(libc::M_MXFAST, 0) } == 0 {
        tracing::debug!("the allocator stays as it is");
    }
}

/// Other allocators are left as they are.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn tune_allocator() {}
