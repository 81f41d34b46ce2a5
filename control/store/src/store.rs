//! The store as the rest of Lichen sees it.

mod open;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

pub(crate) use self::open::create;
pub use self::open::{Config, Peering, Simulated};
use crate::hub::Hub;
use crate::log::LogStore;
use crate::machine::Machine;
use crate::member::{Member, Running};
use crate::ordered::{Alone, Applier, Order};
use crate::storage::Counters;
use crate::{
    Backup, CommitError, Committed, Compacted, HistoryBounds, Key, MemberStatus, Page, RangeError,
    RangeOptions, Record, Revision, TXN_BYTES_MAX, TXN_OPS_MAX, Term, Txn, View, Watch,
};

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
    backend: Backend,
}

enum Backend {
    Ordered(Box<dyn Order>),
    Raft(Box<Member>),
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("revision", &self.revision()).finish_non_exhaustive()
    }
}

impl Store {
    /// A store that lives in memory alone, leads by itself and forgets everything at its end: for tests of what is
    /// built upon it.
    #[must_use]
    pub fn memory(history: HistoryBounds) -> Self {
        let term = Term(1);
        let applier = Applier::new(history);
        applier.lead(Leadership { leader: true, term });
        Self::ordered(applier.clone(), Alone { applier, term })
    }

    /// A store that something else orders the transactions of, and applies them to.
    #[must_use]
    pub fn ordered(applier: Applier, order: impl Order) -> Self {
        let Applier { hub, leadership } = applier;
        Self { inner: Arc::new(Inner { hub, leadership, backend: Backend::Ordered(Box::new(order)) }) }
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

    /// Everything there is at one revision, from local state. Call [`Store::barrier`] before to have every write that
    /// was acknowledged.
    #[must_use]
    pub fn backup(&self, taken_unix_s: u64, files: BTreeMap<String, Vec<u8>>) -> Backup {
        let (revision, records) = self.inner.hub.read().all();
        Backup { revision, taken_unix_s, files, records }
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
            return Err(closed());
        }
        match &self.inner.backend {
            Backend::Ordered(order) => order.propose(txn).await,
            Backend::Raft(member) => member.commit(txn).await,
        }
    }

    /// Waits until the local state has everything that was acknowledged anywhere before the call.
    pub async fn barrier(&self) -> Result<(), CommitError> {
        if self.inner.hub.is_closed() {
            return Err(closed());
        }
        match &self.inner.backend {
            Backend::Ordered(order) => order.barrier().await,
            Backend::Raft(member) => member.barrier().await,
        }
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

    /// This member's id, for the others to know it by. `None` for a store without members.
    #[must_use]
    pub fn member_id(&self) -> Option<u64> {
        self.member().ok().map(|member| member.log.member_id())
    }

    /// Answers what another member asked, which the network knows to be `from`: see [`Network`].
    pub async fn serve(&self, from: u64, request: Bytes) -> Bytes {
        match &self.inner.backend {
            Backend::Ordered(_) => Bytes::new(),
            Backend::Raft(member) => member.serve(from, &request).await,
        }
    }

    /// The members of the cluster.
    pub fn members(&self) -> Result<Vec<MemberStatus>, CommitError> {
        Ok(self.member()?.replica.members())
    }

    /// Takes in a new member, which only receives until it is promoted. For the leader to do, as all that follow.
    pub async fn add_learner(&self, id: u64, address: &str) -> Result<(), CommitError> {
        self.member()?.replica.add_learner(id, address).await
    }

    /// Tells the members that one of them is reached at another address now.
    pub async fn set_address(&self, id: u64, address: &str) -> Result<(), CommitError> {
        self.member()?.replica.set_address(id, address).await
    }

    /// Waits until a member has what the leader has, closely enough to be promoted. For ever if it does not come to that.
    pub async fn caught_up(&self, id: u64) {
        match self.member() {
            Ok(member) => member.replica.caught_up(id).await,
            Err(_) => std::future::pending().await,
        }
    }

    /// How long ago each other member last answered this one, if this one leads.
    #[must_use]
    pub fn silent_for(&self) -> BTreeMap<u64, Duration> {
        self.member().map(|member| member.replica.silent_for()).unwrap_or_default()
    }

    /// The voter that would lose least if it led instead of this member, if this one leads.
    #[must_use]
    pub fn successor(&self) -> Option<u64> {
        self.member().ok()?.replica.successor()
    }

    /// Waits until members, their roles or the leader are others than they were.
    pub async fn members_changed(&self, seen: &[MemberStatus]) {
        match self.member() {
            Ok(member) => member.replica.members_changed(seen).await,
            Err(_) => std::future::pending().await,
        }
    }

    /// Lets a member vote, once it has what the leader has.
    pub async fn promote(&self, id: u64) -> Result<(), CommitError> {
        self.member()?.replica.promote(id).await
    }

    /// Removes a member for good: it can't come back under its id.
    pub async fn remove_member(&self, id: u64) -> Result<(), CommitError> {
        self.member()?.replica.remove(id).await
    }

    /// Asks another member to lead. It does a moment later, or not at all if it does not answer.
    pub async fn transfer_leader(&self, id: u64) -> Result<(), CommitError> {
        self.member()?.replica.transfer_leader(id).await
    }

    /// Lets another member lead before this one ends, if it leads, and waits a moment until it does.
    pub async fn hand_over(&self) {
        if let Ok(member) = self.member() {
            member.replica.hand_over().await;
        }
    }

    fn member(&self) -> Result<&Member, CommitError> {
        match &self.inner.backend {
            Backend::Ordered(_) => Err(CommitError::Membership("this store has no members".into())),
            Backend::Raft(member) => Ok(member),
        }
    }

    /// How many times the store has synced its files. An idle store never does.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        match &self.inner.backend {
            Backend::Ordered(_) => 0,
            Backend::Raft(member) => member.counters().map(Counters::syncs).iter().sum(),
        }
    }

    /// How many bytes the store has written to its files.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        match &self.inner.backend {
            Backend::Ordered(_) => 0,
            Backend::Raft(member) => member.counters().map(Counters::bytes).iter().sum(),
        }
    }

    /// How often a rotation of the data keys had been ordered when this member last carried one out. `None` if it encrypts
    /// nothing.
    #[must_use]
    pub fn key_generation(&self) -> Option<u64> {
        self.member().ok()?.machine.file().vault().generation()
    }

    /// Sees to it that what is encrypted in this member's files is so with a data key of this generation or a later one,
    /// and that no older key is left. `generation` is how often a rotation was ordered so far. What was done already is
    /// not done again; what was cancelled or failed is done by the next call.
    pub async fn rotate_key(&self, generation: u64) -> Result<(), CommitError> {
        self.member()?.rotate_key(generation).await
    }

    /// Why nothing can be written at present, if nothing can. It passes without a restart when the reason does.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        match &self.inner.backend {
            Backend::Ordered(_) => None,
            Backend::Raft(member) => member.health.faults().borrow().log.clone(),
        }
    }

    /// The same, or why the state can't be brought to rest.
    #[cfg(test)]
    pub(crate) fn any_fault(&self) -> Option<String> {
        let Backend::Raft(member) = &self.inner.backend else { return None };
        let faults = member.health.faults();
        let faults = faults.borrow();
        faults.log.clone().or(faults.state.clone())
    }

    /// Brings the state to rest.
    #[cfg(test)]
    pub(crate) async fn flush(&self) {
        if let Backend::Raft(member) = &self.inner.backend {
            member.machine.flusher().flush().await.unwrap();
        }
    }

    #[cfg(test)]
    pub(crate) async fn compact(&self) {
        if let Backend::Raft(member) = &self.inner.backend {
            member.replica.compact().await.unwrap();
        }
    }

    /// Ends all watches and transactions, makes everything durable and closes the files. The directory may be opened
    /// again afterwards.
    pub async fn shutdown(&self) {
        self.inner.hub.close();
        self.inner.leadership.send_modify(|leadership| leadership.leader = false);
        let Backend::Raft(member) = &self.inner.backend else { return };
        member.close();
        let running = member.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(running) = running else { return };
        // What the disk does not take now it will not take.
        member.health.end();
        member.replica.stop().await;
        close(&member.log, &member.machine, running).await;
    }
}

fn closed() -> CommitError {
    CommitError::Closed("it is shut down".into())
}

/// Ends the owners of the files and closes those.
async fn close(log: &LogStore, machine: &Machine, running: Running) {
    log.stop();
    machine.flusher().stop();
    for owner in running.owners {
        owner.end().await;
    }
    log.files().close();
    machine.file().disk().close();
}
