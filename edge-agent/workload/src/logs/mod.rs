//! Container logs: files of lines in the CRI format, written within a bound, read back whole, from the end, or as they grow.
//!
//! Invariants:
//! - A container's log never takes more than twice [`LogLimits::bytes_max`] of the disk: the file, and the one before it
//!   under the name `<file>.1`.
//! - No disk is touched on an async thread: one thread writes for all components, an OCI container's shim for that
//!   container, and reads go to the blocking pool. A container that prints faster than the disk takes it waits, and loses nothing.
//! - A follower is woken by the writer, or by the kernel where that is another process; nothing polls.
//!
//! Absent on purpose: shipping logs elsewhere, compression, and anything that knows whose container it is.

mod follow;
mod line;
mod read;
mod write;

use std::path::Path;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::stream::BoxStream;

pub(crate) use follow::follow;
pub(crate) use line::time_text;
pub use line::{LogLine, Stream};
pub use read::read;
pub(crate) use write::Disk;
pub use write::{LogFile, LogLimits, LogWriter, PENDING_BYTES_MAX};

/// Which part of a log is wanted, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Go on with what is written from now on, until the container has ended.
    pub follow: bool,
    /// Only this many of the last lines.
    pub tail_lines: Option<u64>,
    /// Only lines written at or after this time.
    pub since: Option<SystemTime>,
    /// Put each line's time before it.
    pub timestamps: bool,
    /// End after this many bytes.
    pub limit_bytes: Option<u64>,
}

/// The bytes of a log, as a client of `kubectl logs` gets them.
pub type LogStream = BoxStream<'static, Result<Bytes, LogError>>;

/// Why a log could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file is not there or the disk failed.
    #[error("log {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What went wrong.
        source: std::io::Error,
    },
}

impl LogError {
    fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.display().to_string(), source }
    }
}

/// The name that a full log file gets when the next one is begun.
fn previous(path: &Path) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}
