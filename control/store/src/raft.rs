//! Raft around the log and the state machine: starting it, proposing, leading, stopping.
//!
//! Nothing here assumes one member. What a lone member does for itself is to elect itself at once, and to keep no clock
//! ticking, since it has nobody to hear from.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{
    ClientWriteError, LinearizableReadError, RPCError, RaftError, ReplicationClosed, StreamingError,
    Unreachable,
};
use openraft::network::{NetSnapshot, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{BasicNode, OptionalSend, Raft, ReadPolicy, ServerState, SnapshotPolicy};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::log::LogStore;
use crate::machine::Machine;
use crate::snapshot::SnapshotData;
use crate::types::{Command, CommittedLeaderId, Reply, Types, Vote};
use crate::{CommitError, Committed, Leadership, Term, Txn};

/// Log entries after which the state is brought to rest and the log before it may go.
const SNAPSHOT_ENTRIES: u64 = 10_000;
/// Log entries that are kept all the same, so that a member that was away for a moment needs no snapshot.
const KEPT_ENTRIES: u64 = 1_000;
/// The same as `SNAPSHOT_ENTRIES`, in bytes: large objects must not fill the disk with history.
const SNAPSHOT_BYTES: usize = 64 * 1024 * 1024;
/// Beyond this a member that lags is sent a snapshot. Must exceed `SNAPSHOT_ENTRIES`.
const LAG_ENTRIES: u64 = 12_000;
const HEARTBEAT_MS: u64 = 200;
const ELECTION_MS_MIN: u64 = 900;
const ELECTION_MS_MAX: u64 = 1_800;
/// How long a lone member may take to lead and to apply its log before opening fails.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Raft, running.
pub(crate) struct Replica {
    raft: Raft<Types, Machine>,
    leading: JoinHandle<()>,
    /// Bytes proposed since the log was last made shorter for their sake.
    logged: AtomicUsize,
}

impl Replica {
    /// Starts raft. A store that is new becomes a cluster of itself.
    pub(crate) async fn start<N>(
        id: u64,
        network: N,
        log: LogStore,
        machine: Machine,
        leadership: watch::Sender<Leadership>,
    ) -> Result<Self, String>
    where
        N: RaftNetworkFactory<Types>,
        N::Network: NetSnapshot<Types, SnapshotData = SnapshotData>,
    {
        let config = openraft::Config {
            cluster_name: "lichen".into(),
            heartbeat_interval: HEARTBEAT_MS,
            election_timeout_min: ELECTION_MS_MIN,
            election_timeout_max: ELECTION_MS_MAX,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_ENTRIES),
            max_in_snapshot_log_to_keep: KEPT_ENTRIES,
            replication_lag_threshold: LAG_ENTRIES,
            enable_pre_vote: Some(true),
            // Every start is a term of its own: what was fenced by an earlier one is refused.
            enable_leader_restore: Some(false),
            // Switched on by `lead` as soon as there is another member.
            enable_tick: false,
            ..openraft::Config::default()
        };
        let config = Arc::new(config.validate().map_err(|error| error.to_string())?);
        let raft = Raft::new(id, config, network, log, machine).await.map_err(|error| error.to_string())?;
        let leading = tokio::spawn(lead(raft.clone(), leadership.clone()));
        let replica = Self { raft, leading, logged: AtomicUsize::new(0) };
        let raft = &replica.raft;
        let known = |state: &openraft::RaftState<Types>| -> Vec<u64> {
            state.membership_state.effective().nodes().map(|(member, _)| *member).collect()
        };
        let members = raft.with_raft_state(known).await.map_err(|error| error.to_string())?;
        if members.is_empty() {
            let alone = BTreeMap::from([(id, BasicNode::default())]);
            raft.initialize(alone).await.map_err(|error| error.to_string())?;
        } else if members == [id] {
            raft.trigger().elect(false).await.map_err(|error| error.to_string())?;
        }
        if members.is_empty() || members == [id] {
            let mut leads = leadership.subscribe();
            let leads = leads.wait_for(|leadership| leadership.leader);
            match tokio::time::timeout(START_TIMEOUT, leads).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => return Err("the log could not be applied in time".into()),
            }
        }
        Ok(replica)
    }

    pub(crate) async fn propose(&self, txn: Txn) -> Result<Committed, CommitError> {
        let size = txn.size();
        if self.logged.fetch_add(size, Ordering::Relaxed) + size >= SNAPSHOT_BYTES {
            self.logged.store(0, Ordering::Relaxed);
            // Fails only when raft has ended, which the proposal will tell.
            let _ = self.raft.trigger().snapshot().await;
        }
        match self.raft.client_write(Command(Arc::new(txn))).await {
            Ok(response) => match response.data {
                Reply::Applied(revision) => Ok(Committed { revision }),
                Reply::Rejected(rejection) => Err(rejection.into()),
                Reply::Nothing => Err(CommitError::Closed("raft answered for another entry".into())),
            },
            // Raft says the same whether it never took the entry or took it and then lost the lead.
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Err(CommitError::Unknown),
            Err(error) => Err(CommitError::Closed(error.to_string())),
        }
    }

    pub(crate) fn leader(&self) -> Option<u64> {
        self.raft.server_metrics().borrow_watched().current_leader
    }

    pub(crate) async fn barrier(&self) -> Result<(), CommitError> {
        barrier(&self.raft).await
    }

    /// Brings the state to rest and drops the log before it.
    #[cfg(test)]
    pub(crate) async fn compact(&self) {
        let applied = self.raft.metrics().borrow_watched().last_applied;
        let done = |metrics: &openraft::RaftMetrics<Types>| metrics.snapshot >= applied;
        let purged = |metrics: &openraft::RaftMetrics<Types>| metrics.purged >= applied;
        // While the state can't be saved a request for a snapshot is dropped.
        loop {
            self.raft.trigger().snapshot().await.unwrap();
            let wait = self.raft.wait(Some(Duration::from_millis(200)));
            if wait.metrics(done, "the snapshot").await.is_ok() {
                break;
            }
        }
        self.raft.trigger().purge_log(applied.unwrap().index).await.unwrap();
        self.raft.wait(Some(Duration::from_secs(20))).metrics(purged, "the purge").await.unwrap();
    }

    /// Stops everything that was started here.
    pub(crate) async fn stop(&self) {
        self.leading.abort();
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(%error, "raft ended badly");
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.leading.abort();
    }
}

/// Whether there is anybody to hear from, or to elect.
fn has_peers(raft: &Raft<Types, Machine>) -> bool {
    let metrics = raft.server_metrics();
    let metrics = metrics.borrow_watched();
    metrics.membership_config.nodes().any(|(member, _)| *member != metrics.id)
}

async fn barrier(raft: &Raft<Types, Machine>) -> Result<(), CommitError> {
    match raft.ensure_linearizable(ReadPolicy::ReadIndex).await {
        Ok(_) => Ok(()),
        Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
            Err(CommitError::NotLeader { leader: forward.leader_id })
        }
        Err(RaftError::APIError(error)) => Err(CommitError::Unavailable(error.to_string())),
        Err(RaftError::Fatal(error)) => Err(CommitError::Closed(error.to_string())),
    }
}

/// Says who leads. A member that leads says so only when its state has everything from before its term.
async fn lead(raft: Raft<Types, Machine>, leadership: watch::Sender<Leadership>) {
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
                    tokio::time::sleep(Duration::from_millis(HEARTBEAT_MS)).await;
                    continue;
                }
            }
        }
        if metrics.changed().await.is_err() {
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

/// The network of a member that knows no other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoPeers;

impl RaftNetworkFactory<Types> for NoPeers {
    type Network = Self;

    async fn new_client(&mut self, _target: u64, _node: &BasicNode) -> Self::Network {
        *self
    }
}

fn unreachable() -> Unreachable<Types> {
    Unreachable::new(&io::Error::other("this member knows no other"))
}

type Snapshot = openraft::Snapshot<CommittedLeaderId, u64, BasicNode, SnapshotData>;

impl RaftNetworkV2<Types> for NoPeers {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        _rpc: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        Err(RPCError::Unreachable(unreachable()))
    }

    async fn vote(
        &mut self,
        _rpc: VoteRequest<Types>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        Err(RPCError::Unreachable(unreachable()))
    }

    async fn full_snapshot(
        &mut self,
        _vote: Vote,
        _snapshot: Snapshot,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        Err(StreamingError::Unreachable(unreachable()))
    }
}
