//! Who belongs to the cluster, and how that changes: one change after the other, each refused when it means nobody. Only a
//! leader that the others have confirmed judges that: one that was deposed may know members that are none, and lack others.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{BasicNode, ChangeMembers, Instant as _, Raft};

use super::{Pace, Replica, WRITE_TIMEOUT, refusal};
use crate::machine::Machine;
use crate::types::Types;
use crate::{CommitError, MemberStatus, Role};

/// Log entries that a member may lack and become a voter all the same: it has them in a moment.
const PROMOTE_LAG_MAX: u64 = 1_000;

impl Replica {
    /// The members of the cluster.
    pub(crate) fn members(&self) -> Vec<MemberStatus> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
        let status = |(id, node): (&u64, &BasicNode)| {
            let role = match voters.contains(id) {
                true if metrics.current_leader == Some(*id) => Role::Leader,
                true => Role::Voter,
                false => Role::Learner,
            };
            MemberStatus { id: *id, address: node.addr.clone(), role }
        };
        metrics.membership_config.nodes().map(status).collect()
    }

    /// Takes in a member that only receives.
    pub(crate) async fn add_learner(&self, id: u64, address: &str) -> Result<(), CommitError> {
        self.barrier().await?;
        if let Ok(MemberStatus { address, .. }) = self.known(id) {
            return Err(CommitError::Membership(format!("member {id:016x} at {address} is there already")));
        }
        self.free(id, address)?;
        self.change(self.raft.add_learner(id, BasicNode::new(address), false)).await
    }

    /// Lets a member vote that has what the leader has.
    pub(crate) async fn promote(&self, id: u64) -> Result<(), CommitError> {
        self.barrier().await?;
        self.known(id)?;
        let caught_up = has_caught_up(&self.raft.metrics().borrow_watched(), id);
        if self.raft.is_leader() && !caught_up {
            return Err(CommitError::Membership(format!(
                "member {id:016x} has not caught up yet: try again when it has"
            )));
        }
        let change = ChangeMembers::AddVoterIds(BTreeSet::from([id]));
        self.change(self.raft.change_membership(change, true)).await
    }

    /// How long ago each other member last answered this one, if this one leads.
    pub(crate) fn silent_for(&self) -> BTreeMap<u64, Duration> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let answered = metrics.heartbeat.iter().flatten();
        answered.filter_map(|(id, at)| Some((*id, at.as_ref()?.elapsed()))).collect()
    }

    /// Waits until a member may be promoted.
    pub(crate) async fn caught_up(&self, id: u64) {
        let mut metrics = self.raft.metrics();
        loop {
            if has_caught_up(&metrics.borrow_and_update(), id) {
                return;
            }
            if metrics.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Waits until the members are others than they were.
    pub(crate) async fn members_changed(&self, seen: &[MemberStatus]) {
        let mut metrics = self.raft.server_metrics();
        loop {
            drop(metrics.borrow_and_update());
            if self.members() != seen {
                return;
            }
            if metrics.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Gives a member another address.
    pub(crate) async fn set_address(&self, id: u64, address: &str) -> Result<(), CommitError> {
        self.barrier().await?;
        if self.known(id)?.address == address {
            return Ok(());
        }
        self.free(id, address)?;
        let node = BTreeMap::from([(id, BasicNode::new(address))]);
        self.change(self.raft.change_membership(ChangeMembers::SetNodes(node), true)).await
    }

    /// Removes a member for good.
    pub(crate) async fn remove(&self, id: u64) -> Result<(), CommitError> {
        self.barrier().await?;
        let member = self.known(id)?;
        let ids = BTreeSet::from([id]);
        let voters = self.members().iter().filter(|member| member.role != Role::Learner).count();
        match member.role {
            Role::Leader | Role::Voter if voters == 1 => {
                Err(CommitError::Membership("the last voter can't be removed".into()))
            }
            Role::Leader | Role::Voter => {
                self.change(self.raft.change_membership(ChangeMembers::RemoveVoters(ids), false)).await
            }
            Role::Learner => {
                self.change(self.raft.change_membership(ChangeMembers::RemoveNodes(ids), false)).await
            }
        }
    }

    /// The member that would lose least if it led instead of this one.
    pub(crate) fn successor(&self) -> Option<u64> {
        successor(&self.raft, self.pace)
    }

    /// Lets another member lead.
    pub(crate) async fn transfer_leader(&self, id: u64) -> Result<(), CommitError> {
        if self.known(id)?.role == Role::Learner {
            return Err(CommitError::Membership(format!("member {id:016x} does not vote: promote it first")));
        }
        let trigger = self.raft.trigger();
        trigger.transfer_leader(id).await.map_err(|error| CommitError::Closed(error.to_string()))
    }

    /// Refuses an address that another member has.
    fn free(&self, id: u64, address: &str) -> Result<(), CommitError> {
        match self.members().into_iter().find(|member| member.id != id && member.address == address) {
            Some(MemberStatus { id, .. }) => {
                Err(CommitError::Membership(format!("member {id:016x} at {address} is there already")))
            }
            None => Ok(()),
        }
    }

    fn known(&self, id: u64) -> Result<MemberStatus, CommitError> {
        let unknown = || CommitError::Membership(format!("there is no member {id:016x}"));
        self.members().into_iter().find(|member| member.id == id).ok_or_else(unknown)
    }

    /// Makes one change after the other: raft refuses a second one while a first is under way.
    async fn change<T>(
        &self,
        change: impl Future<Output = Result<T, RaftError<Types, ClientWriteError<Types>>>>,
    ) -> Result<(), CommitError> {
        let turn = tokio::time::timeout(WRITE_TIMEOUT, self.changing.lock()).await;
        let late = |_| CommitError::Unavailable("another change of the members takes too long".into());
        let _turn = turn.map_err(late)?;
        // The last change may have removed this very member, which leads on until the others know of that.
        self.known(self.raft.server_metrics().borrow_watched().id)
            .map_err(|_| CommitError::NotLeader { leader: None })?;
        let changed = tokio::time::timeout(WRITE_TIMEOUT, change).await.map_err(|_| CommitError::Unknown)?;
        changed.map(drop).map_err(refusal)
    }
}

/// Whether a member has what this one, which leads, has, closely enough to vote.
fn has_caught_up(metrics: &openraft::RaftMetrics<Types>, id: u64) -> bool {
    let reached = metrics.replication.as_ref().and_then(|reached| reached.get(&id).copied().flatten());
    let last = metrics.last_log_index.unwrap_or_default();
    reached.is_some_and(|reached| last.saturating_sub(reached.index) <= PROMOTE_LAG_MAX)
}

/// Of the voters that answer, the one that has most of what this member, which leads, has.
pub(super) fn successor(raft: &Raft<Types, Machine>, pace: Pace) -> Option<u64> {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
    let answers = |id: &u64| {
        let answered = metrics.heartbeat.as_ref().and_then(|answered| answered.get(id).copied().flatten());
        answered.is_some_and(|at| at.elapsed() < pace.answered_max())
    };
    let reached = metrics.replication.iter().flatten();
    let others = reached.filter(|(id, _)| **id != metrics.id && voters.contains(id) && answers(id));
    others.max_by_key(|(_, reached)| **reached).map(|(id, _)| *id)
}
