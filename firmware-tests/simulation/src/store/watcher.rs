//! A watch that outlives the member that it is served by.

use std::time::Duration;

use lichen_firmware_tests::history::{Change, End, Operation, Recorder, Revision, Told, Watched};
use lichen_store::simulation::Process;
use lichen_store::{Event, RangeOptions, Store, Watch, WatchError};
use tokio::time::timeout;

use super::cluster::Cluster;
use super::{Finish, WATCH_MAX, client};
use crate::dice::Dice;
use crate::trace::{Trace, note};

/// How long it waits for a member to be up.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// The longest that a slow one sleeps.
const SLOW_MS: u64 = 3_000;

pub(super) struct Watcher {
    pub(super) who: String,
    pub(super) prefix: String,
    /// Whether it falls behind at times.
    pub(super) slow: bool,
    pub(super) dice: Dice,
    pub(super) trace: Trace,
    pub(super) recorder: Recorder,
    pub(super) cluster: Cluster,
}

/// Why a watch went on no longer.
enum Ended {
    /// The member is gone, or was left.
    Cut,
    Compacted(Revision),
    Complete,
}

fn heard(event: &Event) -> Told {
    match event {
        Event::Change(change) => Told::Change(Change {
            revision: change.revision.0,
            key: change.key.to_string(),
            value: change.new.as_ref().map(client::value),
        }),
        Event::Progress(revision) => Told::Progress(revision.0),
    }
}

/// Sees everything that happens on a member from its start to its end, so that nothing happens which nobody saw.
pub(super) struct Observer {
    pub(super) who: String,
    pub(super) recorder: Recorder,
    pub(super) process: Process,
    pub(super) store: Store,
}

impl Observer {
    pub(super) async fn work(self) {
        let Self { who, recorder, process, store } = self;
        let prefix = String::from("/");
        while process.is_alive() {
            let (revision, mut told) = (store.revision(), Vec::new());
            let end = match store.watch(&prefix, revision) {
                Ok(mut watch) => loop {
                    let event = tokio::select! {
                        biased;
                        // Even what the process did in its last moment, and what it did before it was paused.
                        event = watch.next() => event,
                        () = process.killed() => break End::Cut,
                    };
                    match event {
                        Ok(event) => told.push(heard(&event)),
                        Err(WatchError::Lagged) => break End::Compacted(store.revision().0),
                        Err(WatchError::Closed) => break End::Cut,
                    }
                },
                Err(_) => End::Compacted(store.revision().0),
            };
            let (who, prefix) = (who.clone(), prefix.clone());
            recorder.watch(Watched { who, prefix, from: revision.0, told, end });
        }
    }
}

impl Watcher {
    /// Watches until it has told everything up to the revision at which it shall finish.
    pub(super) async fn work(self, finish: Finish) {
        loop {
            let (from, mut told) = (self.list().await, Vec::new());
            let mut at = from;
            let end = loop {
                let (_, process, store) = self.member().await;
                let ended = match store.watch(&self.prefix, lichen_store::Revision(at)) {
                    Ok(watch) => self.follow(watch, &process, &store, &mut at, &mut told, &finish).await,
                    Err(_) => Ended::Compacted(store.revision().0),
                };
                match ended {
                    // What was told of the revision behind is told again.
                    Ended::Cut => told.retain(|told| match told {
                        Told::Change(change) => change.revision <= at,
                        Told::Progress(_) => true,
                    }),
                    Ended::Compacted(newest) => break End::Compacted(newest),
                    Ended::Complete => break End::Complete(finish.get().unwrap_or_default()),
                }
            };
            note!(self.trace, "{} was told {} things from {from} to {at}: {end:?}", self.who, told.len());
            let (who, prefix) = (self.who.clone(), self.prefix.clone());
            self.recorder.watch(Watched { who, prefix, from, told, end });
            if matches!(end, End::Complete(_)) {
                return;
            }
        }
    }

    async fn member(&self) -> (String, Process, Store) {
        loop {
            if let Some(member) = self.cluster.pick(&self.dice) {
                return member;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Begins with what a member has, which may be behind the others.
    async fn list(&self) -> Revision {
        loop {
            let (_, _, store) = self.member().await;
            if let Ok(page) = store.range(&self.prefix, &RangeOptions::default()) {
                let did = client::listed(&self.prefix, &page);
                // No matter how old it is: as if it had been asked for at the beginning of time.
                let operation = Operation { began: 0, ended: self.recorder.now(), did };
                self.recorder.history().operations.push(operation);
                return page.revision.0;
            }
        }
    }

    async fn follow(
        &self,
        mut watch: Watch,
        process: &Process,
        store: &Store,
        at: &mut Revision,
        told: &mut Vec<Told>,
        finish: &Finish,
    ) -> Ended {
        loop {
            match watch.progress() {
                Ok(progress) if progress.0 > *at => {
                    *at = progress.0;
                    told.push(Told::Progress(*at));
                }
                Ok(_) => {}
                Err(WatchError::Lagged) => return Ended::Compacted(store.revision().0),
                Err(WatchError::Closed) => return Ended::Cut,
            }
            let last = finish.get();
            if last.is_some_and(|last| *at >= last) {
                return Ended::Complete;
            }
            let next = async {
                tokio::select! {
                    biased;
                    () = process.killed() => None,
                    event = process.run(watch.next()) => Some(event),
                    () = finish.known(), if last.is_none() => None,
                }
            };
            let event = match last {
                Some(_) => match timeout(WATCH_MAX, next).await {
                    Ok(event) => event,
                    // It was told too little: the checker will say what.
                    Err(_) => return Ended::Complete,
                },
                None => next.await,
            };
            match event {
                Some(Ok(event)) => told.push(heard(&event)),
                Some(Err(WatchError::Lagged)) => return Ended::Compacted(store.revision().0),
                Some(Err(WatchError::Closed)) => return Ended::Cut,
                None if !process.is_alive() => return Ended::Cut,
                None => {}
            }
            if self.slow && self.dice.chance(100) {
                tokio::time::sleep(Duration::from_millis(self.dice.between(0, SLOW_MS))).await;
            }
            if last.is_none() && self.dice.chance(20) {
                return Ended::Cut;
            }
        }
    }
}
