//! Runs controllers and scheduler on the member that leads.
//!
//! One task holds the view, the work queue and the scheduler, and decides; what it decides is written by tasks of its
//! own. Everything is written under the leader's term: a member that was deposed without knowing writes nothing.
//! While nothing changes, the task sleeps until the next timer, if there is one.

use std::time::Duration;

use lichen_api::view::{Change, ObjectId};
use lichen_controllers::{RECONCILERS, Reconciler};
use lichen_registry::Registry;
use lichen_store::{Leadership, Term, WatchError};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cache::{Cache, CacheError};
use crate::executor::{Executor, Report};
use crate::recorder::Recorder;
use crate::scheduling::Scheduling;
use crate::workqueue::WorkQueue;

/// Keys whose steps are being taken at once.
const RUNNING_MAX: usize = 256;
/// Changes taken in before keys are reconciled, so that a flood of changes does not hold everything up.
const CHANGES_MAX: usize = 1024;
/// How long to wait before a view that could not be opened is tried again.
const REOPEN_WAIT: Duration = Duration::from_millis(100);

/// A reconciler, by its place in the table, and a key of it.
type Work = (usize, ObjectId);

/// Why leading ended.
enum End {
    /// The server shuts down.
    Stopped,
    /// Another member leads, or the term changed.
    Deposed,
    /// The view has to be built anew.
    Reopen(CacheError),
}

/// Runs until `stop` turns true, leading whenever this member leads. What is under way is finished first.
pub async fn run(registry: Registry, mut stop: watch::Receiver<bool>) {
    let mut leadership = registry.store().leadership();
    loop {
        let Leadership { leader, term } = *leadership.borrow_and_update();
        if *stop.borrow_and_update() {
            return;
        }
        let wait = if leader {
            match lead(&registry, term, &mut leadership, &mut stop).await {
                End::Stopped => return,
                End::Deposed => {
                    tracing::info!(
                        term = term.0,
                        "controllers and scheduler rest: this member no longer leads"
                    );
                    continue;
                }
                End::Reopen(CacheError::Watch(WatchError::Closed)) => return,
                End::Reopen(error) => {
                    tracing::warn!(%error, "the view is built anew");
                    REOPEN_WAIT
                }
            }
        } else {
            Duration::MAX
        };
        tokio::select! {
            biased;
            changed = stop.changed() => if changed.is_err() { return },
            changed = leadership.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn lead(
    registry: &Registry,
    term: Term,
    leadership: &mut watch::Receiver<Leadership>,
    stop: &mut watch::Receiver<bool>,
) -> End {
    let cache = match Cache::open(registry.store()) {
        Ok(cache) => cache,
        Err(error) => return End::Reopen(error),
    };
    tracing::info!(term = term.0, revision = cache.view().revision(), "controllers and scheduler run");
    let (recorder, recording) = Recorder::start(registry.clone(), term);
    let executor = Executor::new(registry.clone(), term, recorder.clone());
    let scheduling = Scheduling::new(registry.clone(), term, recorder, cache.view());
    let mut manager = Manager {
        registry: registry.clone(),
        reconcilers: RECONCILERS,
        cache,
        executor,
        scheduling,
        queue: WorkQueue::default(),
        running: JoinSet::new(),
        start: Instant::now(),
    };
    manager.begin();
    let end = tokio::select! {
        biased;
        () = stopped(stop) => End::Stopped,
        () = deposed(leadership, term) => End::Deposed,
        error = manager.work() => End::Reopen(error),
    };
    manager.drain().await;
    if let Err(error) = recording.await {
        tracing::error!(%error, "the recorder of events ended without a result");
    }
    end
}

async fn deposed(leadership: &mut watch::Receiver<Leadership>, term: Term) {
    // An error means that the store is gone, which ends the term as well.
    let _ = leadership.wait_for(|now| !now.leader || now.term != term).await;
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that whoever could stop us is gone.
    let _ = stop.wait_for(|stop| *stop).await;
}

struct Manager {
    registry: Registry,
    reconcilers: &'static [&'static dyn Reconciler],
    cache: Cache,
    executor: Executor,
    scheduling: Scheduling,
    queue: WorkQueue<Work>,
    running: JoinSet<(Work, Report)>,
    start: Instant,
}

impl Manager {
    /// Puts everything in the queue that concerns anyone.
    fn begin(&mut self) {
        for object in self.cache.view().objects() {
            self.interest(&Change { id: object.id(), old: None, new: Some(object) });
        }
    }

    async fn work(&mut self) -> CacheError {
        loop {
            match self.turn() {
                Err(error) => return error,
                Ok(true) => tokio::task::yield_now().await,
                Ok(false) => {
                    if let Err(error) = self.wait().await {
                        return error;
                    }
                }
            }
        }
    }

    /// Takes in what happened and reconciles what that concerns. Says whether there is more to do at once.
    fn turn(&mut self) -> Result<bool, CacheError> {
        let mut more = true;
        for _ in 0..CHANGES_MAX {
            let Some(change) = self.cache.try_next()? else {
                more = false;
                break;
            };
            self.take(&change);
        }
        self.queue.saw(self.cache.view().revision());
        while self.running.len() < RUNNING_MAX {
            let Some(work) = self.queue.take(self.start.elapsed()) else { break };
            self.reconcile(work);
        }
        self.scheduling.turn(self.cache.view());
        Ok(more)
    }

    fn take(&mut self, change: &Change) {
        self.interest(change);
        self.scheduling.observe(change);
    }

    fn interest(&mut self, change: &Change) {
        for (index, reconciler) in self.reconcilers.iter().enumerate() {
            for interest in reconciler.interest(self.cache.view(), change) {
                let work = (index, interest.id);
                if interest.after.is_zero() {
                    self.queue.add(work);
                } else {
                    self.queue.add_at(work, self.start.elapsed() + interest.after);
                }
            }
        }
    }

    fn reconcile(&mut self, work: Work) {
        let reconciler = self.reconcilers[work.0];
        let outcome = reconciler.reconcile(self.cache.view(), &work.1, self.registry.now());
        let now = self.start.elapsed();
        if let Some(wait) = outcome.requeue_after {
            self.queue.add_at(work.clone(), now + wait);
        }
        if outcome.steps.is_empty() {
            self.queue.finish(work, 0, false, self.cache.view().revision(), now);
            return;
        }
        tracing::debug!(controller = reconciler.name(), key = %work.1, steps = outcome.steps.len(), "reconciles");
        let executor = self.executor.clone();
        self.running.spawn(async move {
            let report = executor.run(reconciler.name(), outcome.steps).await;
            (work, report)
        });
    }

    /// Sleeps until something happens.
    async fn wait(&mut self) -> Result<(), CacheError> {
        let now = self.start.elapsed();
        let full = self.running.len() >= RUNNING_MAX;
        // What waits for a free place is woken by the run that leaves one.
        let queued = self.queue.due().filter(|_| !full).map(|due| due.saturating_sub(now));
        let planned = self
            .scheduling
            .due()
            .map(|due| Duration::try_from(due.duration_since(self.registry.now())).unwrap_or(Duration::ZERO));
        let wait = queued.into_iter().chain(planned).min();
        let timer = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // In this order, so that the same changes are always decided alike; what can come in floods comes last.
            biased;
            Some(done) = self.running.join_next() => self.finish(done),
            () = self.scheduling.progress() => {}
            () = timer => {}
            change = self.cache.next() => {
                if let Some(change) = change? {
                    self.take(&change);
                }
            }
        }
        while let Some(done) = self.running.try_join_next() {
            self.finish(done);
        }
        Ok(())
    }

    fn finish(&mut self, done: Result<(Work, Report), tokio::task::JoinError>) {
        match done {
            Ok((work, report)) => {
                if let Some(status) = &report.failure {
                    let controller = self.reconcilers[work.0].name();
                    tracing::debug!(controller, key = %work.1, error = %status.message, "is tried again");
                }
                let seen = self.cache.view().revision();
                self.queue.finish(
                    work,
                    report.revision,
                    report.failure.is_some(),
                    seen,
                    self.start.elapsed(),
                );
            }
            // Its key stays taken: a step that panics would panic again.
            Err(error) => tracing::error!(%error, "steps ended without a result"),
        }
    }

    async fn drain(mut self) {
        while self.running.join_next().await.is_some() {}
        self.scheduling.drain().await;
    }
}

#[cfg(test)]
mod tests;
