//! A stream within the session, as a reader and a writer.

use bytes::Bytes;
use lichen_wire::session::StreamId;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use crate::driver::{Command, Control};

/// Most bytes that one command carries to the driver.
const WRITE_BYTES_MAX: usize = 64 * 1024;

/// Why a stream ended early.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StreamError {
    /// The session was lost, and its streams with it.
    #[error("the link was lost")]
    Lost,
    /// The other side ended it.
    #[error("{0}")]
    Remote(String),
    /// This side has ended it.
    #[error("the stream has ended")]
    Ended,
}

/// What the driver tells a stream. Credit bounds how much of it can wait.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// Bytes.
    Data(Bytes),
    /// The other side's end.
    End(Option<String>),
}

/// Which stream of which session; numbers begin anew with each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamKey {
    pub(crate) session: u64,
    pub(crate) id: StreamId,
}

/// A stream in both directions. Dropping it resets it unless both directions have ended.
#[derive(Debug)]
pub struct LinkStream {
    pub(crate) key: StreamKey,
    pub(crate) incoming: mpsc::UnboundedReceiver<Incoming>,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) control: mpsc::UnboundedSender<Control>,
    pub(crate) ended: Option<Result<(), StreamError>>,
    pub(crate) finished: bool,
}

impl LinkStream {
    /// The next bytes; `None` after the last. Reading is what grants the other side more.
    ///
    /// # Errors
    /// If the stream ended early.
    pub async fn read(&mut self) -> Result<Option<Bytes>, StreamError> {
        if let Some(ended) = &self.ended {
            return ended.clone().map(|()| None);
        }
        let ended = match self.incoming.recv().await {
            Some(Incoming::Data(data)) => {
                let _ = self.control.send(Control::Grant(self.key, data.len() as u64));
                return Ok(Some(data));
            }
            Some(Incoming::End(None)) => Ok(()),
            Some(Incoming::End(Some(error))) => Err(StreamError::Remote(error)),
            None => Err(StreamError::Lost),
        };
        self.ended = Some(ended.clone());
        ended.map(|()| None)
    }

    /// Writes all of the bytes, waiting for the other side to take them.
    ///
    /// # Errors
    /// If the stream ended early.
    pub async fn write(&mut self, data: &[u8]) -> Result<(), StreamError> {
        if self.finished {
            return Err(StreamError::Ended);
        }
        for piece in data.chunks(WRITE_BYTES_MAX) {
            let (reply, written) = oneshot::channel();
            let write = Command::Write(self.key, Bytes::copy_from_slice(piece), reply);
            self.commands.send(write).await.map_err(|_| StreamError::Lost)?;
            written.await.map_err(|_| StreamError::Lost)??;
        }
        Ok(())
    }

    /// Ends this side's direction.
    ///
    /// # Errors
    /// If the stream ended early.
    pub async fn finish(&mut self) -> Result<(), StreamError> {
        if self.finished {
            return Ok(());
        }
        self.finished = true;
        self.control.send(Control::Finish(self.key)).map_err(|_| StreamError::Lost)
    }

    /// Ends the stream in both directions and tells the other side why.
    pub fn reset(mut self, error: &str) {
        let _ = self.control.send(Control::Reset(self.key, error.to_owned()));
        self.finished = true;
        self.ended = Some(Ok(()));
    }
}

impl Drop for LinkStream {
    fn drop(&mut self) {
        // A stream that ended early is known to be over by both sides.
        let over = self.finished && self.ended.is_some() || matches!(self.ended, Some(Err(_)));
        if !over {
            let _ = self.control.send(Control::Reset(self.key, "the reader has gone".to_owned()));
        }
    }
}
