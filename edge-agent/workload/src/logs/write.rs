//! Writing logs: containers append to memory, one thread appends that to files.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::SystemTime;

use tokio::sync::{Notify, watch};

use super::line::{LogLine, Stream};
use super::read::read_live;
use super::{LogError, LogOptions, LogStream, previous};

/// What a container may have printed that is not in its file yet. At this much it waits.
pub const PENDING_BYTES_MAX: usize = 64 * 1024;

/// How much of the disk a log may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimits {
    /// A file that would become larger is put aside and a new one begun. The one put aside before is deleted.
    pub bytes_max: u64,
}

impl Default for LogLimits {
    fn default() -> Self {
        // The kubelet's default.
        Self { bytes_max: 10 << 20 }
    }
}

type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// The thread that writes logs. Dropping it writes what is pending and ends the thread.
pub struct LogWriter {
    queue: Arc<Queue>,
    clock: Clock,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Default)]
struct QueueState {
    /// Files with pending bytes, each once.
    dirty: VecDeque<Arc<Inner>>,
    closed: bool,
}

impl LogWriter {
    /// Starts the thread. The clock stamps the lines.
    pub fn spawn(clock: impl Fn() -> SystemTime + Send + Sync + 'static) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let owned = Arc::clone(&queue);
        let thread = thread::Builder::new().name("lichen-logs".to_owned()).spawn(move || owned.work())?;
        Ok(Self { queue, clock: Arc::new(clock), thread: Some(thread) })
    }

    /// Opens a log file for appending, and makes it if it is not there. Touches the disk.
    pub fn open(&self, path: &Path, limits: LogLimits) -> Result<LogFile, LogError> {
        let disk = Disk::open(path, limits).map_err(|error| LogError::io(path, error))?;
        let inner = Inner {
            path: path.to_owned(),
            clock: Arc::clone(&self.clock),
            queue: Arc::clone(&self.queue),
            pending: Mutex::default(),
            room: Notify::new(),
            progress: watch::channel(Progress::default()).0,
            disk: Mutex::new(disk),
        };
        Ok(LogFile { inner: Arc::new(inner) })
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes logs failed");
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        loop {
            let mut state = self.lock();
            let next = loop {
                if let Some(file) = state.dirty.pop_front() {
                    break file;
                }
                if state.closed {
                    return;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            };
            drop(state);
            next.write_pending();
        }
    }
}

/// How far a file has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Bytes that were given to the disk since the file was opened here.
    written: u64,
    /// Nothing comes any more.
    pub(super) closed: bool,
}

impl Progress {
    /// Something was written, by whomever and however much.
    pub(super) fn more(&mut self) {
        self.written += 1;
    }
}

#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    /// All bytes ever appended.
    appended: u64,
    queued: bool,
}

struct Inner {
    path: PathBuf,
    clock: Clock,
    queue: Arc<Queue>,
    pending: Mutex<Pending>,
    room: Notify,
    progress: watch::Sender<Progress>,
    /// Only the writing thread takes this.
    disk: Mutex<Disk>,
}

/// The log of one container. Clones share it.
#[derive(Clone)]
pub struct LogFile {
    inner: Arc<Inner>,
}

impl LogFile {
    /// Appends a line, stamped with the time. It is in the file soon; [`flush`](Self::flush) waits for that.
    pub fn append(&self, stream: Stream, text: &[u8], partial: bool) {
        let line = LogLine { time: (self.inner.clock)(), stream, partial, text };
        let mut pending = self.inner.pending();
        let before = pending.bytes.len();
        line.encode(&mut pending.bytes);
        pending.appended += (pending.bytes.len() - before) as u64;
        if !std::mem::replace(&mut pending.queued, true) {
            drop(pending);
            self.inner.queue.lock().dirty.push_back(Arc::clone(&self.inner));
            self.inner.queue.changed.notify_one();
        }
    }

    /// How many bytes may be appended before the disk has to catch up.
    pub fn room(&self) -> usize {
        PENDING_BYTES_MAX.saturating_sub(self.inner.pending().bytes.len())
    }

    /// Waits until there is room.
    pub async fn wait_for_room(&self) {
        loop {
            let woken = self.inner.room.notified();
            if self.room() > 0 {
                return;
            }
            woken.await;
        }
    }

    /// Waits until everything appended so far was given to the disk.
    pub async fn flush(&self) {
        let target = self.inner.pending().appended;
        let mut progress = self.inner.progress.subscribe();
        // The sender lives in `self`, so this only ends when the bytes are written.
        let _ = progress.wait_for(|progress| progress.written >= target).await;
    }

    /// Says that nothing more comes: whoever follows gets the rest and the end.
    pub fn close(&self) {
        self.inner.progress.send_modify(|progress| progress.closed = true);
    }

    /// Reads the log; following ends when it is closed.
    pub fn read(&self, options: LogOptions) -> LogStream {
        read_live(self.inner.path.clone(), options, self.inner.progress.subscribe())
    }
}

impl Inner {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_pending(&self) {
        let bytes = {
            let mut pending = self.pending();
            pending.queued = false;
            std::mem::take(&mut pending.bytes)
        };
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = disk.append(&self.path, &bytes) {
            // A full disk must not stop the container. What it printed meanwhile is lost, and said to be.
            tracing::warn!(path = %self.path.display(), %error, lost_bytes = bytes.len(), "cannot write a log");
        }
        drop(disk);
        self.progress.send_modify(|progress| progress.written += bytes.len() as u64);
        self.room.notify_waiters();
    }
}

/// The files of one log.
pub(crate) struct Disk {
    file: File,
    len: u64,
    bytes_max: u64,
}

impl Disk {
    pub(crate) fn open(path: &Path, limits: LogLimits) -> std::io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { file, len, bytes_max: limits.bytes_max })
    }

    /// Appends whole entries.
    pub(crate) fn append(&mut self, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = self.bytes_max.saturating_sub(self.len);
            let mut fit = whole_lines(rest, room);
            if fit == 0 {
                if self.len > 0 {
                    self.rotate(path)?;
                    continue;
                }
                // A single line longer than a file may be is written all the same.
                fit = whole_lines(rest, u64::MAX).min(first_line(rest));
            }
            self.file.write_all(&rest[..fit])?;
            self.len += fit as u64;
            rest = &rest[fit..];
        }
        Ok(())
    }

    fn rotate(&mut self, path: &Path) -> std::io::Result<()> {
        std::fs::rename(path, previous(path))?;
        self.file = OpenOptions::new().create(true).append(true).open(path)?;
        self.len = 0;
        Ok(())
    }
}

/// The length of the whole lines at the start that fit.
fn whole_lines(bytes: &[u8], room: u64) -> usize {
    let room = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
    bytes[..room].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1)
}

fn first_line(bytes: &[u8]) -> usize {
    bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |end| end + 1)
}
