//! The store as the rest of Lichen sees it.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::apply::{Rejection, apply};
use crate::hub::Hub;
use crate::state::State;
use crate::{
    Compacted, HistoryBounds, Key, Page, RangeError, RangeOptions, Record, Revision, TXN_BYTES_MAX,
    TXN_OPS_MAX, Term, Txn, View, Watch,
};

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it keeps its files. Made if it does not exist.
    pub dir: PathBuf,
    /// How much of the past is kept.
    pub history: HistoryBounds,
}

impl Config {
    /// The defaults, in a directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), history: HistoryBounds::default() }
    }
}

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
    /// It can't be read or written.
    #[error("{} can't be opened: {detail}", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What the system says.
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

/// A transaction that happened. Durable on a majority of the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
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
    /// This member does not lead. Nothing happened.
    #[error("this member does not lead")]
    NotLeader {
        /// The member that does, as far as this one knows.
        leader: Option<u64>,
    },
    /// Leadership was lost while the transaction was under way: it may have happened or not.
    #[error("leadership was lost meanwhile: the outcome is unknown")]
    Unknown,
    /// The store can't take it now. Nothing happened.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The store is shut down, or its disk failed. It may have happened or not.
    #[error("the store is closed: {0}")]
    Closed(String),
}

impl CommitError {
    /// What can be done about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Conflict { .. } | Self::Fenced { .. } | Self::Repeated { .. } | Self::TooLarge { .. } => {
                ErrorKind::Rejected
            }
            Self::NotLeader { .. } | Self::Unknown | Self::Unavailable(_) => ErrorKind::Retryable,
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

/// Whether this member leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// It leads, and its state has everything that was acknowledged under earlier leaders.
    pub leader: bool,
    /// The term: what transactions are fenced by.
    pub term: Term,
}

/// The store. Cheap to clone; all clones are the same store.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    hub: Arc<Hub>,
    leadership: watch::Sender<Leadership>,
    /// Serialises transactions in a store without a log.
    memory: Mutex<()>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("revision", &self.revision()).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store in a directory, or makes one there.
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        Ok(Self::memory(config.history))
    }

    /// A store that lives in memory alone, leads by itself and forgets everything at its end: for tests of what is
    /// built upon it.
    #[must_use]
    pub fn memory(history: HistoryBounds) -> Self {
        let hub = Arc::new(Hub::new(State::empty(history)));
        let leadership = watch::Sender::new(Leadership { leader: true, term: Term(1) });
        Self { inner: Arc::new(Inner { hub, leadership, memory: Mutex::new(()) }) }
    }

    /// The record under a key, from local state. Call [`Store::barrier`] before for a linearizable read.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Record> {
        self.inner.hub.read().get(key).cloned()
    }

    /// The records under a prefix, from local state. Call [`Store::barrier`] before for a linearizable read.
    pub fn range(&self, prefix: &str, options: &RangeOptions) -> Result<Page, RangeError> {
        self.inner.hub.read().range(prefix, options)
    }

    /// The revision of the local state.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.inner.hub.read().revision()
    }

    /// Proposes a transaction and waits until it is durable and applied here. If the caller goes away meanwhile, it
    /// may happen all the same.
    pub async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        let (bytes, ops) = (txn.size(), txn.ops.len());
        if bytes > TXN_BYTES_MAX || ops > TXN_OPS_MAX {
            return Err(CommitError::TooLarge { bytes, ops });
        }
        if self.inner.hub.is_closed() {
            return Err(CommitError::Closed("it was shut down".into()));
        }
        let _one = self.inner.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let term = self.inner.leadership.borrow().term;
        let applied = apply(&*self.inner.hub.read(), term, &txn)?;
        let revision = applied.revision;
        self.inner.hub.write(|state, dropped| ((), state.admit(applied, dropped)));
        Ok(Committed { revision })
    }

    /// Waits until the local state has everything that was acknowledged anywhere before the call.
    pub async fn barrier(&self) -> Result<(), CommitError> {
        Ok(())
    }

    /// Watches what changes under a prefix after a revision.
    pub fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Compacted> {
        self.inner.hub.watch(prefix, from)
    }

    /// Whether this member leads, and how that changes.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.subscribe()
    }

    /// Ends all watches and transactions, makes everything durable and closes the files.
    pub async fn shutdown(&self) {
        self.inner.hub.close();
    }
}
