//! Container logs: files of lines in the CRI format, `<RFC 3339 time with nanoseconds> <stdout|stderr> <F|P> <text>`.

use std::time::SystemTime;

use bytes::Bytes;
use futures_util::stream::BoxStream;

/// Which of a container's outputs a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line of a log file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// When it was written.
    pub time: SystemTime,
    /// Where to.
    pub stream: Stream,
    /// Whether the line goes on in the next entry of the same stream.
    pub partial: bool,
    /// The text without its line end.
    pub text: Bytes,
}

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
