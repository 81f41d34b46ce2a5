//! Raft around the log and the state machine: starting it, proposing, leading, stopping.
//!
//! Nothing here assumes one member. What a lone member does for itself is to elect itself at once, and to keep no clock
//! ticking, since it has nobody to hear from.

mod membership;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ChangeMembershipError, ClientWriteError, Fatal, LinearizableReadError, RaftError};
use openraft::type_config::TypeConfigExt as _;
use openraft::{BasicNode, Instant as _, Raft, ReadPolicy, ServerState, SnapshotPolicy};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::flush::Flusher;
use crate::health::{Faults, Health};
use crate::log::LogStore;
use crate::machine::Machine;
use crate::peers::Peers;
#[cfg(feature = "simulation")]
use crate::simulation::plant;
use crate::types::{Command, Reply, Types};
use crate::{CommitError, Committed, Leadership, Term, Txn};

/// How long a lone member may take to lead and to apply its log before opening fails.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a write that the others have not confirmed may take before its outcome is called unknown.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the others may take to confirm that this member leads.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a snapshot may take before it is asked for again.
const COMPACT_AGAIN: Duration = Duration::from_millis(200);
/// How often a leader that can't write tries to hand over.
const YIELD_INTERVAL: Duration = Duration::from_millis(500);
/// How long another member may take to lead when this one ends.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(1);

/// How soon members miss each other. All members need the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    heartbeat: Duration,
}

impl Default for Pace {
    /// A lost leader is followed by another within a second.
    fn default() -> Self {
        Self { heartbeat: Duration::from_millis(125) }
    }
}

impl Pace {
    /// The shortest and the longest interval between heartbeats.
    pub const BOUNDS: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

    /// The pace of a leader that lets the others hear from it this often, within [`Pace::BOUNDS`].
    #[must_use]
    pub fn new(heartbeat: Duration) -> Self {
        let [shortest, longest] = Self::BOUNDS;
        Self { heartbeat: heartbeat.clamp(shortest, longest) }
    }

    /// Milliseconds between heartbeats.
    fn heartbeat_ms(self) -> u64 {
        // A second at most.
        u64::try_from(self.heartbeat.as_millis()).unwrap_or(u64::MAX)
    }

    /// The bounds of how long a member that hears of no leader waits until it stands for election, in milliseconds,
    /// beyond the longer one, for which it believes in the leader that it last heard.
    fn election_ms(self) -> [u64; 2] {
        [self.heartbeat_ms() * 2, self.heartbeat_ms() * 18 / 5]
    }

    /// A voter that has not answered for this long is not asked to lead.
    fn answered_max(self) -> Duration {
        self.heartbeat * 8
    }

    /// A leader that no majority answered for this long takes itself for deposed. Longer than the others take to follow
    /// it.
    fn unheard_max(self) -> Duration {
        self.heartbeat * 16
    }
}

/// How long the log may be.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "simulation"), allow(unreachable_pub, reason = "only a simulation sets them"))]
pub struct LogBounds {
    /// Entries after which the state is brought to rest and the log before it may go.
    pub snapshot_entries: u64,
    /// Entries that are kept all the same, so that a member that was away for a moment needs no snapshot.
    pub kept_entries: u64,
    /// Beyond this a member that lags is sent a snapshot. Must exceed `snapshot_entries`.
    pub lag_entries: u64,
}

impl LogBounds {
    const DEFAULT: Self = Self { snapshot_entries: 100_000, kept_entries: 1_000, lag_entries: 102_000 };

    /// In a simulation a log is short, so that what happens at its end happens often.
    fn now() -> Self {
        #[cfg(feature = "simulation")]
        if let Some(process) = crate::simulation::Process::current() {
            return process.log_bounds();
        }
        Self::DEFAULT
    }
}

/// Whom a store that is new begins with.
pub(crate) enum Origin {
    /// It becomes a cluster of itself, reached at this address.
    Alone(String),
    /// A cluster will take it in.
    Joins,
}

/// Raft, running.
pub(crate) struct Replica {
    raft: Raft<Types, Machine>,
    pace: Pace,
    tasks: [JoinHandle<()>; 3],
    /// Held by a change of the members.
    changing: tokio::sync::Mutex<()>,
}

impl Replica {
    /// Starts raft.
    #[allow(clippy::too_many_arguments, reason = "each is one part of a member")]
    pub(crate) async fn start(
        id: u64,
        origin: Origin,
        pace: Pace,
        peers: Peers,
        log: LogStore,
        machine: Machine,
        health: &Health,
        leadership: watch::Sender<Leadership>,
    ) -> Result<Self, String> {
        let LogBounds { snapshot_entries, kept_entries, lag_entries } = LogBounds::now();
        let [election_timeout_min, election_timeout_max] = pace.election_ms();
        let config = openraft::Config {
            cluster_name: "lichen".into(),
            heartbeat_interval: pace.heartbeat_ms(),
            election_timeout_min,
            election_timeout_max,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(snapshot_entries),
            max_in_snapshot_log_to_keep: kept_entries,
            replication_lag_threshold: lag_entries,
            enable_pre_vote: Some(true),
            // Every start is a term of its own: what was fenced by an earlier one is refused.
            enable_leader_restore: Some(false),
            // Switched on by `lead` as soon as there is another member.
            enable_tick: false,
            ..openraft::Config::default()
        };
        let config = Arc::new(config.validate().map_err(|error| error.to_string())?);
        let flusher = machine.flusher().clone();
        let raft = Raft::new(id, config, peers, log, machine).await.map_err(|error| error.to_string())?;
        let tasks = [
            Types::spawn(lead(raft.clone(), pace, leadership.clone())),
            Types::spawn(yield_lead(raft.clone(), pace, health.faults())),
            Types::spawn(shorten(raft.clone(), flusher)),
        ];
        let replica = Self { raft, pace, tasks, changing: Default::default() };
        let raft = &replica.raft;
        let known = |state: &openraft::RaftState<Types>| -> Vec<u64> {
            state.membership_state.effective().nodes().map(|(member, _)| *member).collect()
        };
        let members = raft.with_raft_state(known).await.map_err(|error| error.to_string())?;
        let alone = match origin {
            Origin::Alone(address) if members.is_empty() => {
                let alone = BTreeMap::from([(id, BasicNode::new(address))]);
                raft.initialize(alone).await.map_err(|error| error.to_string())?;
                true
            }
            _ if members == [id] => {
                raft.trigger().elect(false).await.map_err(|error| error.to_string())?;
                true
            }
            _ => false,
        };
        if alone {
            let mut leads = leadership.subscribe();
            let leads = leads.wait_for(|leadership| leadership.leader);
            match tokio::time::timeout(START_TIMEOUT, leads).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => return Err("the log could not be applied in time".into()),
            }
        }
        Ok(replica)
    }

    pub(crate) fn raft(&self) -> &Raft<Types, Machine> {
        &self.raft
    }

    /// Proposes a transaction; tells its place in the log, too.
    pub(crate) async fn propose(&self, txn: Arc<Txn>) -> Result<(Committed, u64), CommitError> {
        let write = self.raft.client_write(Command(txn));
        // A lone member waits for nobody but its disk.
        let written = if self.has_peers() {
            tokio::time::timeout(WRITE_TIMEOUT, write).await.map_err(|_| CommitError::Unknown)?
        } else {
            write.await
        };
        match written {
            Ok(response) => match response.data {
                Reply::Applied(revision) => Ok((Committed { revision }, response.log_id.index)),
                Reply::Rejected(rejection) => Err(rejection.into()),
                Reply::Nothing => Err(CommitError::Closed("raft answered for another entry".into())),
            },
            Err(error) => Err(refusal(error)),
        }
    }

    /// The member that leads, as far as this one knows, its address, and its term.
    pub(crate) fn leader(&self) -> Option<(u64, String, u64)> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader?;
        let node = metrics.membership_config.membership().get_node(&leader)?;
        Some((leader, node.addr.clone(), metrics.vote.leader_id.term))
    }

    /// The term in which this member is.
    pub(crate) fn term(&self) -> u64 {
        self.raft.server_metrics().borrow_watched().vote.leader_id.term
    }

    pub(crate) fn has_peers(&self) -> bool {
        has_peers(&self.raft)
    }

    /// Whether this member is the whole cluster.
    pub(crate) fn is_alone(&self) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.nodes().map(|(member, _)| *member).eq([metrics.id])
    }

    pub(crate) fn is_member(&self, id: u64) -> bool {
        let metrics = self.raft.server_metrics();
        metrics.borrow_watched().membership_config.membership().get_node(&id).is_some()
    }

    /// The entry that has to be applied before a read, if this member leads.
    pub(crate) async fn read_index(&self) -> Result<u64, CommitError> {
        read_index(&self.raft).await
    }

    /// The same, and waits until it is, if this member leads.
    pub(crate) async fn barrier(&self) -> Result<(), CommitError> {
        #[cfg(feature = "simulation")]
        if plant::is(&plant::STALE_READ) && self.raft.is_leader() {
            return Ok(());
        }
        barrier(&self.raft).await
    }

    /// Waits until an entry is applied here.
    pub(crate) async fn applied(&self, index: u64, timeout: Duration) -> Result<(), ()> {
        applied(&self.raft, index, timeout).await
    }

    /// Brings the state to rest and drops the log before it. While the state can't be saved, it waits.
    pub(crate) async fn compact(&self) -> Result<(), CommitError> {
        let Some(applied) = self.raft.metrics().borrow_watched().last_applied else { return Ok(()) };
        let done = |metrics: &openraft::RaftMetrics<Types>| metrics.snapshot >= Some(applied);
        let purged = |metrics: &openraft::RaftMetrics<Types>| metrics.purged >= Some(applied);
        let ended = |error: Fatal<Types>| CommitError::Closed(error.to_string());
        // A request for a snapshot is dropped while the state can't be saved.
        loop {
            self.raft.trigger().snapshot().await.map_err(ended)?;
            let wait = self.raft.wait(Some(COMPACT_AGAIN));
            if wait.metrics(done, "the snapshot").await.is_ok() {
                break;
            }
        }
        self.raft.trigger().purge_log(applied.index).await.map_err(ended)?;
        let wait = self.raft.wait(None).metrics(purged, "the purge").await;
        wait.map(drop).map_err(|error| CommitError::Closed(error.to_string()))
    }

    /// Lets another member lead, if this one does, so that nobody has to find out that it has gone.
    pub(crate) async fn hand_over(&self) {
        if !self.raft.is_leader() {
            return;
        }
        let Some(best) = self.successor() else { return };
        if self.raft.trigger().transfer_leader(best).await.is_ok() {
            let led = |metrics: &openraft::RaftMetrics<Types>| metrics.state != ServerState::Leader;
            // Whoever is late stands for election by itself.
            let _ = self.raft.wait(Some(HAND_OVER_TIMEOUT)).metrics(led, "another leader").await;
        }
    }

    /// Stops everything that was started here.
    pub(crate) async fn stop(&self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(%error, "raft ended badly");
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Whether there is anybody to hear from, or to elect.
fn has_peers(raft: &Raft<Types, Machine>) -> bool {
    let metrics = raft.server_metrics();
    let metrics = metrics.borrow_watched();
    metrics.membership_config.nodes().any(|(member, _)| *member != metrics.id)
}

fn refusal(error: RaftError<Types, ClientWriteError<Types>>) -> CommitError {
    match error {
        // Raft did not take the entry.
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            CommitError::NotLeader { leader: forward.leader_id }
        }
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => CommitError::Unknown,
        // One that an earlier leader began.
        RaftError::APIError(ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(
            _,
        ))) => CommitError::Unavailable("another change of the members is under way".into()),
        RaftError::APIError(error) => CommitError::Membership(error.to_string()),
        RaftError::Fatal(error) => CommitError::Closed(error.to_string()),
    }
}

async fn read_index(raft: &Raft<Types, Machine>) -> Result<u64, CommitError> {
    let (id, _) = confirmed(raft, raft.get_read_log_id(ReadPolicy::ReadIndex)).await?;
    Ok(id.index())
}

/// What raft says once the others have confirmed that this member leads.
async fn confirmed<T>(
    raft: &Raft<Types, Machine>,
    ask: impl Future<Output = Result<T, RaftError<Types, LinearizableReadError<Types>>>>,
) -> Result<T, CommitError> {
    let unconfirmed = || CommitError::Unavailable("the other members do not confirm who leads".into());
    let said = if has_peers(raft) {
        tokio::time::timeout(READ_TIMEOUT, ask).await.map_err(|_| unconfirmed())?
    } else {
        ask.await
    };
    said.map_err(|error| match error {
        RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => {
            CommitError::NotLeader { leader: forward.leader_id }
        }
        RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => unconfirmed(),
        RaftError::Fatal(error) => CommitError::Closed(error.to_string()),
    })
}

async fn applied(raft: &Raft<Types, Machine>, index: u64, timeout: Duration) -> Result<(), ()> {
    if raft.data_metrics().borrow_watched().last_applied.is_some_and(|applied| applied.index >= index) {
        return Ok(());
    }
    let applied = raft.wait(Some(timeout)).applied_index_at_least(Some(index), "a read").await;
    applied.map(drop).map_err(drop)
}

/// Waits until this member, which leads, has applied all that was acknowledged before.
async fn barrier(raft: &Raft<Types, Machine>) -> Result<(), CommitError> {
    confirmed(raft, raft.ensure_linearizable(ReadPolicy::ReadIndex)).await.map(drop)
}

/// Hands the lead over when this member can't write its log: the others would wait for it, and clients with them.
async fn yield_lead(raft: Raft<Types, Machine>, pace: Pace, mut faults: watch::Receiver<Faults>) {
    while faults.wait_for(|faults| faults.log.is_some()).await.is_ok() {
        if let Some(best) = membership::successor(&raft, pace) {
            tracing::warn!(
                to = format!("{best:016x}"),
                "handing over the lead: the log can't be written here"
            );
            if raft.trigger().transfer_leader(best).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(YIELD_INTERVAL).await;
    }
}

/// Has the log made shorter when large objects have made it long before it has many entries.
async fn shorten(raft: Raft<Types, Machine>, flusher: Flusher) {
    // A request that is dropped, since the state can't be saved just now, is made again when the log is long again.
    while flusher.until_long(true).await
        && raft.trigger().snapshot().await.is_ok()
        && flusher.until_long(false).await
    {}
}

/// Waits until no majority has answered this member, which leads, for so long that the others follow another one.
async fn unheard(raft: &Raft<Types, Machine>, pace: Pace) {
    loop {
        let heard = {
            let metrics = raft.metrics();
            let metrics = metrics.borrow_watched();
            let alone = metrics.membership_config.voter_ids().eq([metrics.id]);
            metrics.last_quorum_acked.filter(|_| !alone).map(|heard| heard.elapsed())
        };
        match heard {
            Some(silent) if silent >= pace.unheard_max() => return,
            heard => Types::sleep(pace.unheard_max() - heard.unwrap_or_default()).await,
        }
    }
}

/// Says who leads. A member that leads says so only when its state has everything from before its term, and only while a
/// majority answers it: raft itself would keep a leader that is cut off, and what it runs would keep its nodes.
async fn lead(raft: Raft<Types, Machine>, pace: Pace, leadership: watch::Sender<Leadership>) {
    let mut metrics = raft.server_metrics();
    let mut ticking = false;
    loop {
        let (state, term) = {
            let metrics = metrics.borrow_and_update();
            (metrics.state, Term(metrics.vote.leader_id.term))
        };
        let tick = has_peers(&raft);
        if tick != ticking {
            raft.runtime_config().tick(tick);
            ticking = tick;
        }
        let now = *leadership.borrow();
        let leads = state == ServerState::Leader;
        if !leads {
            publish(&leadership, Leadership { leader: false, term });
        } else if !now.leader || now.term != term {
            publish(&leadership, Leadership { leader: false, term });
            match barrier(&raft).await {
                Ok(()) => publish(&leadership, Leadership { leader: true, term }),
                Err(error) if error.kind() == crate::ErrorKind::Fatal => {}
                // The lead may be confirmed by the next heartbeat, or be lost, which is a change too.
                Err(_) => {
                    tokio::time::sleep(pace.heartbeat).await;
                    continue;
                }
            }
        }
        let leads = leadership.borrow().leader;
        let changed = tokio::select! {
            biased;
            changed = metrics.changed() => changed.is_ok(),
            () = unheard(&raft, pace), if leads => {
                tracing::warn!(term = term.0, "no majority of the members answers: this member leads no more");
                publish(&leadership, Leadership { leader: false, term });
                true
            }
        };
        if !changed {
            publish(&leadership, Leadership { leader: false, term });
            return;
        }
    }
}

fn publish(leadership: &watch::Sender<Leadership>, new: Leadership) {
    leadership.send_if_modified(|current| {
        let changed = *current != new;
        *current = new;
        changed
    });
}
