//! A member: raft with its files, whoever leads. It proposes by itself or through the leader, reads after the leader, and
//! answers the others.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::disk::DirLock;
use crate::health::{Faults, Health};
use crate::log::LogStore;
use crate::machine::Machine;
use crate::messages::{Envelope, Request, encode_reply};
use crate::peers::{Incoming, Peers};
use crate::raft::Replica;
use crate::runner::Owner;
#[cfg(feature = "simulation")]
use crate::simulation::plant;
use crate::snapshot::Snapshot;
use crate::storage::Counters;
use crate::{CommitError, Committed, Leadership, Txn};

/// KiB of transactions that may be under way at once; more wait.
const PROPOSALS_KIB_MAX: usize = 64 * 1024;
/// Bytes of the log that may wait for a state file that can't be written before nothing more is committed: twice as many
/// as it is when all is well.
const BACKLOG_BYTES_MAX: usize = 128 * 1024 * 1024;
/// How many forwarded proposals are known: more than can be sent while one of them is on its way.
const FORWARDED_MAX: usize = 64 * 1024;
/// How long a request may look for a leader, and wait for what it says. Longer than two elections.
const LEADER_TIMEOUT: Duration = Duration::from_secs(8);
/// How long a request waits before it looks again who leads, when nothing tells that this has changed.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What a member is to its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It leads.
    Leader,
    /// It votes.
    Voter,
    /// It only receives.
    Learner,
}

/// A member as another one sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its id: never used again once it is removed.
    pub id: u64,
    /// Where it is reached.
    pub address: String,
    /// What it is.
    pub role: Role,
}

/// A member with its files and what owns them.
pub(crate) struct Member {
    pub(crate) replica: Replica,
    pub(crate) log: LogStore,
    pub(crate) machine: Machine,
    pub(crate) health: Arc<Health>,
    pub(crate) running: Mutex<Option<Running>>,
    /// Bytes of transactions that may be under way, in KiB.
    proposals: Semaphore,
    leadership: watch::Receiver<Leadership>,
    peers: Peers,
    incoming: tokio::sync::Mutex<Option<Incoming>>,
    forwarded: Mutex<Forwarded>,
}

/// The proposals that others forwarded, by number, in the term that they belong to.
#[derive(Debug, Default)]
struct Forwarded {
    term: u64,
    known: BTreeSet<u64>,
    /// The same, oldest first.
    order: VecDeque<u64>,
}

impl Forwarded {
    fn is_fresh(&mut self, term: u64, number: u64) -> bool {
        #[cfg(feature = "simulation")]
        if plant::is(&plant::REPEAT) {
            return true;
        }
        if self.term != term {
            *self = Self { term, ..Self::default() };
        }
        if !self.known.insert(number) {
            return false;
        }
        self.order.push_back(number);
        if self.order.len() > FORWARDED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

/// What ends with the store.
pub(crate) struct Running {
    pub(crate) owners: Vec<Owner>,
    pub(crate) _lock: Option<Arc<DirLock>>,
}

impl Drop for Member {
    /// For a store that goes away without a shutdown: the log's writer ends with the last who appends to it, but the
    /// owner of the state has to be told.
    fn drop(&mut self) {
        self.health.end();
        self.machine.flusher().stop();
    }
}

impl Member {
    pub(crate) fn new(
        replica: Replica,
        log: LogStore,
        machine: Machine,
        health: Arc<Health>,
        running: Running,
        leadership: watch::Receiver<Leadership>,
        peers: Peers,
    ) -> Self {
        Self {
            replica,
            log,
            machine,
            health,
            running: Mutex::new(Some(running)),
            proposals: Semaphore::new(PROPOSALS_KIB_MAX),
            leadership,
            peers,
            incoming: tokio::sync::Mutex::default(),
            forwarded: Mutex::default(),
        }
    }

    pub(crate) fn counters(&self) -> [&Counters; 2] {
        [self.log.files().counters(), self.machine.file().disk().counters()]
    }

    /// Lets no more transactions in.
    pub(crate) fn close(&self) {
        self.proposals.close();
    }

    /// Proposes a transaction here if this member leads, else through the one that does, and waits until it is applied
    /// here.
    pub(crate) async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        let txn = Arc::new(txn);
        if self.leadership.borrow().leader {
            match self.propose(txn.clone()).await {
                // Nothing happened, and somebody else leads.
                Err(CommitError::NotLeader { .. }) => {}
                outcome => return outcome.map(|(committed, _)| committed),
            }
        }
        let until = Instant::now() + LEADER_TIMEOUT;
        loop {
            let outcome = match self.replica.leader() {
                Some((id, ..)) if id == self.log.member_id() => self.propose(txn.clone()).await,
                Some((id, address, term)) => {
                    let number = uuid::Uuid::new_v4().as_u64_pair().0;
                    let request = Request::Commit { term, number, txn: txn.clone() };
                    match self.peers.ask(id, &address, request, LEADER_TIMEOUT).await {
                        Ok(outcome) => outcome,
                        Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                            Err(CommitError::NotLeader { leader: Some(id) })
                        }
                        // Whoever was asked and does not answer may have done it.
                        Err(_) => Err(CommitError::Unknown),
                    }
                }
                None => Err(CommitError::NotLeader { leader: None }),
            };
            match outcome {
                Ok((committed, index)) => {
                    // It happened, however long it takes to arrive here.
                    let _ = self.replica.applied(index, LEADER_TIMEOUT).await;
                    return Ok(committed);
                }
                Err(error @ CommitError::NotLeader { .. }) => self.look_again(until, error).await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until the state here has everything that was acknowledged anywhere before.
    pub(crate) async fn barrier(&self) -> Result<(), CommitError> {
        if self.leadership.borrow().leader {
            match self.replica.barrier().await {
                Err(CommitError::NotLeader { .. }) => {}
                outcome => return outcome,
            }
        }
        let until = Instant::now() + LEADER_TIMEOUT;
        loop {
            let index = match self.replica.leader() {
                Some((id, address, _)) if id != self.log.member_id() => {
                    let asked = self.peers.ask(id, &address, Request::ReadIndex, LEADER_TIMEOUT).await;
                    asked.unwrap_or_else(|error| Err(CommitError::Unavailable(error.to_string())))
                }
                _ => self.replica.read_index().await,
            };
            match index {
                Ok(index) => {
                    let late = || CommitError::Unavailable("this member lags behind the leader".into());
                    return self.replica.applied(index, LEADER_TIMEOUT).await.map_err(|()| late());
                }
                Err(error) if error.kind() == crate::ErrorKind::Retryable => {
                    self.look_again(until, error).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Sees to it that all at rest is encrypted with a key of this generation or a later one, and that no older key is
    /// left.
    pub(crate) async fn rotate_key(&self, generation: u64) -> Result<(), CommitError> {
        let failed = |error: io::Error| CommitError::Unavailable(error.to_string());
        let runner = self.machine.runner();
        let (machine, log) = (self.machine.clone(), self.log.clone());
        let rotate = async move {
            let vault = machine.file().vault();
            if vault.generation().is_none_or(|done| done < generation) {
                vault.rotate(generation)?;
            }
            // Whatever the log has taken in by now may have been encrypted before.
            vault.bound(log.next_index())?;
            if vault.is_pending() { machine.flusher().encrypt_anew().await } else { Ok(()) }
        };
        runner.lend(rotate).await.map_err(failed)?.map_err(|error| failed(error.into()))?;
        if self.machine.file().vault().retired_until().is_none() {
            return Ok(());
        }
        self.replica.compact().await?;
        // A crash must not bring back what only an old key reads.
        self.log.flush().await.map_err(failed)?;
        let (machine, log) = (self.machine.clone(), self.log.clone());
        let forget = async move { machine.file().vault().forget(log.first_index()) };
        runner.lend(forget).await.map_err(failed)?.map_err(|error| failed(error.into()))
    }

    /// Waits for another leader, or a little; not for ever, and not at all where there can be no other. A member that has
    /// just joined and was told of nobody yet waits as well.
    async fn look_again(&self, until: Instant, error: CommitError) -> Result<(), CommitError> {
        if Instant::now() >= until || self.replica.is_alone() || self.proposals.is_closed() {
            return Err(error);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        Ok(())
    }

    /// Proposes a transaction here, unless it would have to wait for a disk that fails. Tells its place in the log, too.
    async fn propose(&self, txn: Arc<Txn>) -> Result<(Committed, u64), CommitError> {
        let mut faults = self.health.faults();
        {
            let faults = faults.borrow_and_update();
            let full = self.machine.flusher().backlog() > BACKLOG_BYTES_MAX;
            if let Some(fault) = faults.log.as_ref().or(faults.state.as_ref().filter(|_| full)) {
                return Err(CommitError::Unavailable(fault.clone()));
            }
        }
        // TXN_BYTES_MAX in KiB fits.
        let permits = u32::try_from(txn.size() / 1024 + 1).unwrap_or(u32::MAX);
        let closed = |_| CommitError::Closed("it is shut down".into());
        let _permits = self.proposals.acquire_many(permits).await.map_err(closed)?;
        tokio::select! {
            biased;
            outcome = self.replica.propose(txn) => outcome,
            fault = log_fault(&mut faults) => Err(CommitError::Stalled(fault)),
        }
    }

    /// Proposes what another member forwarded, unless that has arrived before: a network may repeat it. One that was
    /// meant for an earlier term is refused, so that only those of this term need to be known; every start is one.
    async fn propose_once(
        &self,
        term: u64,
        number: u64,
        txn: Arc<Txn>,
    ) -> Result<(Committed, u64), CommitError> {
        if term != self.replica.term() {
            return Err(CommitError::NotLeader { leader: None });
        }
        let fresh = self.forwarded.lock().unwrap_or_else(PoisonError::into_inner).is_fresh(term, number);
        if fresh { self.propose(txn).await } else { Err(CommitError::Unknown) }
    }

    /// Answers another member.
    pub(crate) async fn serve(&self, asks: u64, request: &[u8]) -> Bytes {
        let refused = |why: String| encode_reply::<()>(&Err(CommitError::Unavailable(why)));
        let Envelope { from, to, request } = match Envelope::decode(request) {
            Ok(envelope) => envelope,
            Err(error) => return refused(format!("a request that can't be read: {error}")),
        };
        if from != asks {
            return refused(format!("a request of member {from:016x} came from member {asks:016x}"));
        }
        let own = self.log.member_id();
        if to != own {
            return refused(format!("this is member {own:016x}, not {to:016x}: that one is gone"));
        }
        let raft = self.replica.raft();
        match request {
            Request::Append(rpc) => encode_reply(&raft.append_entries(rpc).await.map_err(unavailable)),
            Request::Vote(rpc) => encode_reply(&raft.vote(rpc).await.map_err(unavailable)),
            Request::PreVote(rpc) => encode_reply(&raft.pre_vote(rpc).await.map_err(unavailable)),
            Request::Transfer(rpc) => {
                encode_reply(&raft.handle_transfer_leader(rpc).await.map_err(unavailable))
            }
            Request::Commit { .. } | Request::ReadIndex if !self.replica.is_member(from) => {
                refused(format!("member {from:016x} does not belong to the cluster"))
            }
            Request::Commit { term, number, txn } => {
                encode_reply(&self.propose_once(term, number, txn).await)
            }
            Request::ReadIndex => encode_reply(&self.replica.read_index().await),
            Request::Piece { transfer, number, bytes } => {
                let mut incoming = self.incoming.lock().await;
                if number == 0 && incoming.as_ref().is_none_or(|incoming| incoming.transfer() != transfer) {
                    *incoming = Some(self.peers.incoming(transfer));
                }
                match incoming.as_mut().filter(|incoming| incoming.transfer() == transfer) {
                    Some(incoming) => encode_reply(&incoming.take(number, bytes).await.map_err(unavailable)),
                    None => refused("another snapshot has taken its place".into()),
                }
            }
            Request::Install { transfer, pieces, vote, meta } => {
                let incoming = self.incoming.lock().await.take_if(|incoming| incoming.transfer() == transfer);
                let Some(incoming) = incoming else {
                    return refused("another snapshot has taken its place".into());
                };
                match incoming.finish(pieces).await {
                    Ok(snapshot) => {
                        let snapshot = Snapshot { meta, snapshot };
                        encode_reply(&raft.install_full_snapshot(vote, snapshot).await.map_err(unavailable))
                    }
                    Err(error) => refused(error.to_string()),
                }
            }
        }
    }
}

fn unavailable(error: impl ToString) -> CommitError {
    CommitError::Unavailable(error.to_string())
}

/// Waits until the log can't be written, and tells why.
pub(crate) async fn log_fault(faults: &mut watch::Receiver<Faults>) -> String {
    if let Ok(faults) = faults.wait_for(|faults| faults.log.is_some()).await {
        return faults.log.clone().unwrap_or_default();
    }
    // Nobody is left who could find a fault.
    std::future::pending().await
}
