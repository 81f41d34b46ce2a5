//! What opening a store and proposing to it may end in.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk::DiskError;
use crate::{Rejection, Revision, Term};

/// Why a store does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{} is in use by another process", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// Something in it is not what was written.
    #[error("{} is corrupt: {detail}", dir.display())]
    Corrupt {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with what.
        detail: String,
    },
    /// It was written by another version of Lichen.
    #[error("{} has {detail}", dir.display())]
    Version {
        /// The directory.
        dir: PathBuf,
        /// Which format was found where.
        detail: String,
    },
    /// It is encrypted with another key than the one that was given, or one was given for nothing.
    #[error("{}: {detail}", dir.display())]
    Key {
        /// The directory.
        dir: PathBuf,
        /// Which key is wanted.
        detail: String,
    },
    /// It can't be read or written.
    #[error("{} can't be opened: {detail}", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What the system says.
        detail: String,
    },
    /// Its disk can be read, but not written.
    #[error("{detail}")]
    Disk {
        /// The directory, what the system says, and what can be done.
        detail: String,
    },
    /// The replication does not start.
    #[error("{} can't be started: {detail}", dir.display())]
    Start {
        /// The directory.
        dir: PathBuf,
        /// Why not.
        detail: String,
    },
}

impl OpenError {
    pub(crate) fn disk(dir: &Path, error: DiskError) -> Self {
        let dir = dir.to_owned();
        let advice = error.advice().map(|advice| format!(": {advice}")).unwrap_or_default();
        let detail = format!("{error}{advice}");
        match error {
            DiskError::InUse { .. } => Self::InUse { dir },
            DiskError::Corrupt { .. } => Self::Corrupt { dir, detail },
            DiskError::Version { .. } => Self::Version { dir, detail },
            DiskError::Key { .. } => Self::Key { dir, detail },
            DiskError::Io { .. } | DiskError::Closed { .. } => Self::Io { dir, detail },
        }
    }
}

/// A transaction that happened. Durable on a majority of the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// The revision of everything that it put or deleted; if it changed nothing, the revision it was decided at.
    pub revision: Revision,
}

/// What can be done about a [`CommitError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The transaction was decided against; the same one will be again, unless the state changes.
    Rejected,
    /// It may be proposed again, here or at the leader. It may have happened: preconditions tell.
    Retryable,
    /// The store does not work any more.
    Fatal,
}

/// Why a transaction is not known to have happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum CommitError {
    /// A precondition does not hold. Nothing happened.
    #[error("operation {index}: its precondition does not hold")]
    Conflict {
        /// The operation.
        index: usize,
        /// The revision that its key has; `None` if it does not exist.
        actual: Option<Revision>,
    },
    /// The leader has changed since the fence was taken. Nothing happened.
    #[error("fenced: the term is {term} now")]
    Fenced {
        /// The term in which it was proposed.
        term: Term,
    },
    /// Two operations change the same key. Nothing happened.
    #[error("operation {index} changes a key that an earlier one changes too")]
    Repeated {
        /// The second of them.
        index: usize,
    },
    /// The transaction exceeds [`TXN_BYTES_MAX`] or [`TXN_OPS_MAX`]. Nothing happened.
    #[error("the transaction is too large: {bytes} bytes in {ops} operations")]
    TooLarge {
        /// Its bytes.
        bytes: usize,
        /// Its operations.
        ops: usize,
    },
    /// The members can't be changed like that. Nothing happened.
    #[error("{0}")]
    Membership(String),
    /// This member does not lead. Nothing happened.
    #[error("no member is known to lead: fewer than a majority may be running")]
    NotLeader {
        /// The member that does, as far as this one knows.
        leader: Option<u64>,
    },
    /// Leadership was lost while the transaction was under way: it may have happened or not.
    #[error("leadership was lost meanwhile: the outcome is unknown")]
    Unknown,
    /// The disk failed while the transaction was under way: it may have happened or not, or may yet happen when the disk
    /// works again.
    #[error("the outcome is unknown: {0}")]
    Stalled(String),
    /// The store can't take it now, for instance because its disk is full. Nothing happened.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The store is shut down, or its files are damaged. It may have happened or not.
    #[error("the store is closed: {0}")]
    Closed(String),
}

impl CommitError {
    /// What can be done about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Conflict { .. }
            | Self::Fenced { .. }
            | Self::Repeated { .. }
            | Self::TooLarge { .. }
            | Self::Membership(_) => ErrorKind::Rejected,
            Self::NotLeader { .. } | Self::Unknown | Self::Stalled(_) | Self::Unavailable(_) => {
                ErrorKind::Retryable
            }
            Self::Closed(_) => ErrorKind::Fatal,
        }
    }
}

impl From<Rejection> for CommitError {
    fn from(rejection: Rejection) -> Self {
        match rejection {
            Rejection::Conflict { index, actual } => Self::Conflict { index, actual },
            Rejection::Fenced { term } => Self::Fenced { term },
            Rejection::Repeated { index } => Self::Repeated { index },
        }
    }
}
