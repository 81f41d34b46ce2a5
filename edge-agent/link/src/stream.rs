//! A stream within the session, as a reader and a writer.

use bytes::Bytes;
use thiserror::Error;

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

/// A stream in both directions. Dropping it resets it unless both directions have ended.
#[derive(Debug)]
pub struct LinkStream {}

impl LinkStream {
    /// The next bytes; `None` after the last. Reading is what grants the other side more.
    ///
    /// # Errors
    /// If the stream ended early.
    pub async fn read(&mut self) -> Result<Option<Bytes>, StreamError> {
        Err(StreamError::Lost)
    }

    /// Writes all of the bytes, waiting for the other side to take them.
    ///
    /// # Errors
    /// If the stream ended early.
    pub async fn write(&mut self, _data: &[u8]) -> Result<(), StreamError> {
        Err(StreamError::Lost)
    }

    /// Ends this side's direction.
    ///
    /// # Errors
    /// If the stream ended early.
    pub async fn finish(&mut self) -> Result<(), StreamError> {
        Err(StreamError::Lost)
    }

    /// Ends the stream in both directions and tells the other side why.
    pub fn reset(self, _error: &str) {}
}
