//! Stores without a log of their own: something else decides which transactions are applied, and in which order.
//!
//! [`Store::memory`](crate::Store::memory) is one that is alone; a simulation stands in for raft with a log that delays,
//! repeats and loses its leader.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::apply::apply;
use crate::hub::Hub;
use crate::state::State;
use crate::{Change, CommitError, Committed, HistoryBounds, Leadership, Rejection, Term, Txn};

/// Orders the transactions of a store, in raft's place, and owes what raft does.
pub trait Order: Send + Sync + 'static {
    /// Waits until a transaction is decided and has been applied to the store that it was proposed to.
    fn propose(&self, txn: Txn) -> BoxFuture<'_, Result<Committed, CommitError>>;

    /// Waits until the store has everything that was acknowledged anywhere before the call.
    fn barrier(&self) -> BoxFuture<'_, Result<(), CommitError>>;
}

/// Applies transactions to a store. Clones apply to the same one.
#[derive(Clone, Debug)]
pub struct Applier {
    pub(crate) hub: Arc<Hub>,
    pub(crate) leadership: watch::Sender<Leadership>,
}

impl Applier {
    /// Applies to an empty store, which does not lead.
    #[must_use]
    pub fn new(history: HistoryBounds) -> Self {
        Self { hub: Arc::new(Hub::new(State::empty(history))), leadership: watch::Sender::default() }
    }

    /// Applies what the leader of a term proposed, and says what that changed.
    pub fn apply(&self, term: Term, txn: &Txn) -> Result<(Committed, Vec<Arc<Change>>), Rejection> {
        self.hub.write(|state, dropped| match apply(state, term, txn) {
            Ok(applied) => {
                let revision = applied.revision;
                let changes = state.admit(applied, dropped);
                (Ok((Committed { revision }, changes.clone())), changes)
            }
            Err(rejection) => (Err(rejection), Vec::new()),
        })
    }

    /// Tells the store whether it leads.
    pub fn lead(&self, leadership: Leadership) {
        self.leadership.send_replace(leadership);
    }
}

/// Decides by itself, at once.
pub(crate) struct Alone {
    pub(crate) applier: Applier,
    pub(crate) term: Term,
}

impl Order for Alone {
    fn propose(&self, txn: Txn) -> BoxFuture<'_, Result<Committed, CommitError>> {
        let applied = self.applier.apply(self.term, &txn);
        std::future::ready(applied.map(|(committed, _)| committed).map_err(CommitError::from)).boxed()
    }

    fn barrier(&self) -> BoxFuture<'_, Result<(), CommitError>> {
        std::future::ready(Ok(())).boxed()
    }
}
