//! Raft's state machine: applies the log to the state in memory, and has it saved now and then.
//!
//! A snapshot is a view of the saved state: to make one is to save what is pending.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::{Stream, StreamExt as _};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{OptionalSend, RaftSnapshotBuilder};

use crate::Term;
use crate::apply::apply;
use crate::file::{Position, StateFile};
use crate::flush::Flusher;
use crate::health::Health;
use crate::hub::Hub;
use crate::runner::Runner;
use crate::snapshot::{Snapshot, SnapshotData};
use crate::state::State;
use crate::types::{Entry, LogId, Payload, Reply, SnapshotMeta, StoredMembership, Types, entry_bytes};
use crate::{HistoryBounds, View as _};

/// Entries that are applied under one lock.
const APPLY_BATCH: usize = 256;

/// Where the state in memory stands in the log.
#[derive(Clone, Debug, Default)]
struct Applied {
    log_id: Option<LogId>,
    membership: StoredMembership,
}

/// The state machine. Clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    hub: Arc<Hub>,
    file: Arc<StateFile>,
    flusher: Flusher,
    health: Arc<Health>,
    runner: Runner,
    applied: Arc<Mutex<Applied>>,
    bounds: HistoryBounds,
}

impl Machine {
    pub(crate) fn new(
        hub: Arc<Hub>,
        file: Arc<StateFile>,
        flusher: Flusher,
        health: Arc<Health>,
        runner: Runner,
        position: &Position,
        bounds: HistoryBounds,
    ) -> Self {
        let applied = Applied { log_id: position.applied, membership: position.membership.clone() };
        Self { hub, file, flusher, health, runner, applied: Arc::new(Mutex::new(applied)), bounds }
    }

    pub(crate) fn file(&self) -> &StateFile {
        &self.file
    }

    pub(crate) fn runner(&self) -> &Runner {
        &self.runner
    }

    pub(crate) fn flusher(&self) -> &Flusher {
        &self.flusher
    }

    fn applied(&self) -> MutexGuard<'_, Applied> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply_batch(&self, batch: Vec<(Entry, Option<ApplyResponder<Types>>)>) {
        let mut applied = self.applied().clone();
        let bytes = batch.iter().map(|(entry, _)| entry_bytes(entry)).sum();
        let (replies, changes, position) = self.hub.write(|state, dropped| {
            let mut replies = Vec::with_capacity(batch.len());
            let mut changes = Vec::new();
            for (entry, _) in &batch {
                let mut reply = Reply::Nothing;
                match &entry.payload {
                    Payload::Blank => {}
                    Payload::Membership(membership) => {
                        applied.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                    }
                    Payload::Normal(command) => {
                        reply = match apply(state, Term(entry.log_id.leader_id.term), &command.0) {
                            Ok(outcome) => {
                                let revision = outcome.revision;
                                changes.extend(state.admit(outcome, &mut *dropped));
                                Reply::Applied(revision)
                            }
                            Err(rejection) => Reply::Rejected(rejection),
                        };
                    }
                }
                applied.log_id = Some(entry.log_id);
                replies.push(reply);
            }
            let position = Position {
                applied: applied.log_id,
                membership: applied.membership.clone(),
                revision: state.revision(),
                floor: state.history().floor(),
                records: 0,
            };
            ((replies, changes.clone(), position), changes)
        });
        *self.applied() = applied;
        self.flusher.push(changes, position, bytes);
        for ((_, responder), reply) in batch.into_iter().zip(replies) {
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
    }

    /// The state at rest.
    async fn saved(&self) -> io::Result<Snapshot> {
        let (file, health, runner) = (self.file.clone(), self.health.clone(), self.runner.clone());
        let take = async move {
            let take = |_| {
                let view = file.disk().view()?;
                let position = file.position(&view)?;
                Ok((view, position))
            };
            let (view, position) = health.persist(None, &runner, &**file.disk(), take).await?;
            let meta = SnapshotMeta { last_log_id: position.applied, last_membership: position.membership };
            Ok(Snapshot { meta, snapshot: SnapshotData::View { file, view } })
        };
        self.runner.lend(take).await?
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let applied = self.applied();
        Ok((applied.log_id, applied.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut batch = Vec::new();
        while let Some(entry) = entries.next().await {
            batch.push(entry?);
            if batch.len() >= APPLY_BATCH {
                self.flusher.room().await;
                self.apply_batch(std::mem::take(&mut batch));
            }
        }
        if !batch.is_empty() {
            self.flusher.room().await;
            self.apply_batch(batch);
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Self::SnapshotBuilder> {
        // While the state can't be saved there is nothing that a snapshot could be, and the log must stay.
        (force || self.health.faults().borrow().state.is_none()).then(|| self.clone())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let (flusher, bounds, meta) = (self.flusher.clone(), self.bounds, meta.clone());
        let install = async move {
            let mut image = snapshot.into_image()?;
            image.position.applied = meta.last_log_id;
            image.position.membership = meta.last_membership;
            flusher.replace(&image).await?;
            let Position { applied, membership, .. } = image.position.clone();
            io::Result::Ok((State::restore(image, bounds), Applied { log_id: applied, membership }))
        };
        let (state, applied) = self.runner.lend(install).await??;
        self.hub.replace(state);
        *self.applied() = applied;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let snapshot = self.saved().await?;
        Ok(snapshot.meta.last_log_id.is_some().then_some(snapshot))
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        self.flusher.flush().await?;
        self.saved().await
    }
}
