//! What a guest prints: bytes in, lines out.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// The longest piece of a line that is kept back until its end is there. A longer line is given on in parts.
pub const LINE_BYTES_MAX: usize = 16 * 1024;

/// The most a guest may write at once.
const WRITE_BYTES_MAX: usize = 64 * 1024;

/// Which of a guest's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Takes the lines that guests print. Called on guest threads, so it must not block; a sink that is full says so in
/// [`room`](Self::room), and the guests wait.
pub trait LineSink: Send + Sync + 'static {
    /// Takes a line without its line end. A partial one goes on in the next call for the same output.
    fn line(&self, output: Output, text: &[u8], partial: bool);

    /// How many bytes may be written now.
    fn room(&self) -> usize;

    /// Waits until there is room.
    fn wait_for_room(&self) -> Pin<Box<dyn Future<Output = ()> + Send + 'static>>;
}

/// One output of one instance. All streams that the instance opens on it share one unfinished line.
#[derive(Clone)]
pub(crate) struct GuestOutput {
    inner: Arc<Inner>,
}

struct Inner {
    output: Output,
    sink: Arc<dyn LineSink>,
    lines: Mutex<Lines>,
}

/// Makes lines of bytes, however they come. A line longer than [`LINE_BYTES_MAX`] is given on in parts, all of which but the
/// last are partial.
#[derive(Debug, Default)]
pub struct Lines {
    unfinished: Vec<u8>,
}

impl Lines {
    /// Takes bytes and gives on each line that is whole now, without its line end, and whether it is partial.
    pub fn push(&mut self, bytes: &[u8], mut line: impl FnMut(&[u8], bool)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            match piece.split_last() {
                Some((b'\n', text)) if self.unfinished.is_empty() => finished_line(text, &mut line),
                Some((b'\n', text)) => {
                    self.unfinished.extend_from_slice(text);
                    finished_line(&self.unfinished, &mut line);
                    self.unfinished.clear();
                }
                _ => {
                    self.unfinished.extend_from_slice(piece);
                    let whole = self.unfinished.len() / LINE_BYTES_MAX * LINE_BYTES_MAX;
                    for part in self.unfinished[..whole].chunks(LINE_BYTES_MAX) {
                        line(part, true);
                    }
                    self.unfinished.drain(..whole);
                }
            }
        }
    }

    /// Nothing more comes: what is left is a line without an end.
    pub fn finish(&mut self, mut line: impl FnMut(&[u8], bool)) {
        if !self.unfinished.is_empty() {
            line(&std::mem::take(&mut self.unfinished), false);
        }
    }
}

fn finished_line(text: &[u8], line: &mut impl FnMut(&[u8], bool)) {
    let mut parts = text.chunks(LINE_BYTES_MAX).peekable();
    if parts.peek().is_none() {
        line(b"", false);
    }
    while let Some(part) = parts.next() {
        line(part, parts.peek().is_some());
    }
}

impl GuestOutput {
    pub(crate) fn new(output: Output, sink: &Arc<dyn LineSink>) -> Self {
        Self { inner: Arc::new(Inner { output, sink: Arc::clone(sink), lines: Mutex::default() }) }
    }
}

impl Inner {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, bytes: &[u8]) {
        self.lines().push(bytes, |text, partial| self.sink.line(self.output, text, partial));
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.lines().finish(|text, partial| self.sink.line(self.output, text, partial));
    }
}

impl IsTerminal for GuestOutput {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for GuestOutput {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(AsyncOutput { inner: Arc::clone(&self.inner), waiting: Mutex::new(None) })
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(PollableOutput { inner: Arc::clone(&self.inner) })
    }
}

/// The output as WASI 0.2 sees it.
struct PollableOutput {
    inner: Arc<Inner>,
}

#[async_trait]
impl Pollable for PollableOutput {
    async fn ready(&mut self) {
        while self.inner.sink.room() == 0 {
            self.inner.sink.wait_for_room().await;
        }
    }
}

#[async_trait]
impl OutputStream for PollableOutput {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.inner.write(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(self.inner.sink.room().min(WRITE_BYTES_MAX))
    }
}

type Waiting = Pin<Box<dyn Future<Output = ()> + Send + 'static>>;

/// The output as WASI 0.3 sees it.
struct AsyncOutput {
    inner: Arc<Inner>,
    /// Behind a lock only because the stream must be `Sync`.
    waiting: Mutex<Option<Waiting>>,
}

impl AsyncWrite for AsyncOutput {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let room = self.inner.sink.room().min(WRITE_BYTES_MAX);
            if room > 0 {
                *waiting = None;
                let taken = bytes.len().min(room);
                self.inner.write(&bytes[..taken]);
                return Poll::Ready(Ok(taken));
            }
            let wait = waiting.get_or_insert_with(|| self.inner.sink.wait_for_room());
            match wait.as_mut().poll(context) {
                Poll::Ready(()) => *waiting = None,
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Collect(Mutex<Vec<(String, bool)>>);

    impl LineSink for Collect {
        fn line(&self, _: Output, text: &[u8], partial: bool) {
            self.0.lock().unwrap().push((String::from_utf8_lossy(text).into_owned(), partial));
        }

        fn room(&self) -> usize {
            usize::MAX
        }

        fn wait_for_room(&self) -> Pin<Box<dyn Future<Output = ()> + Send + 'static>> {
            Box::pin(std::future::ready(()))
        }
    }

    fn check(writes: &[&str], expect: &[(&str, bool)]) {
        let collect = Arc::new(Collect::default());
        let sink: Arc<dyn LineSink> = collect.clone();
        let output = GuestOutput::new(Output::Stdout, &sink);
        for write in writes {
            output.inner.write(write.as_bytes());
        }
        drop(output);
        let lines = collect.0.lock().unwrap();
        let lines: Vec<(&str, bool)> =
            lines.iter().map(|(text, partial)| (text.as_str(), *partial)).collect();
        assert_eq!(lines, expect, "{writes:?}");
    }

    #[test]
    fn bytes_become_lines() {
        check(&[], &[]);
        check(&["a\n"], &[("a", false)]);
        check(&["a\nb\n\n"], &[("a", false), ("b", false), ("", false)]);
        check(&["a", "b", "\nc"], &[("ab", false), ("c", false)]);
        let long = "x".repeat(LINE_BYTES_MAX);
        check(&[&long, "y\n"], &[(&long, true), ("y", false)]);
        check(&[&format!("{long}y\n")], &[(&long, true), ("y", false)]);
        check(&[&format!("{long}\n")], &[(&long, false)]);
    }
}
