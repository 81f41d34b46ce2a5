//! What the system allows this process.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Takes as many file descriptors as the system allows: each node is a connection, and the usual 1024 are few.
pub(crate) fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the number of file descriptors stays as it is");
    }
}
