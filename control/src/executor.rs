//! Takes the steps of an outcome through the registry.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt};
use lichen_api::Status;
use lichen_api::view::ObjectId;
use lichen_controllers::{Action, Propagation, Regarding, Step};
use lichen_registry::{DeleteOptions, Identity, Patch, Registry, WriteOptions, key_of};
use lichen_store::{Key, Revision, Term};
use tokio::sync::Semaphore;

use crate::cache::resource_of;
use crate::recorder::Recorder;

/// Writes of all controllers at once.
const WRITES_MAX: usize = 128;
/// Creations in the first batch of an outcome. Each batch that succeeds allows twice as many, so that a cluster that
/// refuses is not asked five hundred times.
const CREATIONS_FIRST: usize = 8;
/// Creations in the largest batch.
const CREATIONS_MAX: usize = 64;

/// How a run went.
#[derive(Debug)]
pub(crate) struct Report {
    /// The first failure.
    pub(crate) failure: Option<Status>,
    /// The revision that has everything which was written.
    pub(crate) revision: u64,
}

/// What it takes to write. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Executor {
    registry: Registry,
    term: Term,
    recorder: Recorder,
    writes: Arc<Semaphore>,
}

impl Executor {
    /// Writes under the term of a leader: once another one leads, nothing is written any more.
    pub(crate) fn new(registry: Registry, term: Term, recorder: Recorder) -> Executor {
        Executor { registry, term, recorder, writes: Arc::new(Semaphore::new(WRITES_MAX)) }
    }

    /// Takes the steps in the name of a controller.
    pub(crate) async fn run(self, controller: &'static str, steps: Vec<Step>) -> Report {
        let identity = Identity::component(format!("system:controller:{controller}"));
        let (creations, others): (Vec<Step>, Vec<Step>) =
            steps.into_iter().partition(|step| matches!(step.action, Action::Create { .. }));
        let others = self.batch(controller, &identity, others);
        let creations = self.create_all(controller, &identity, creations);
        let (first, second) = futures_util::future::join(others, creations).await;
        Report { failure: first.or(second), revision: self.registry.revision().0 }
    }

    async fn create_all(
        &self,
        controller: &'static str,
        identity: &Identity,
        mut steps: Vec<Step>,
    ) -> Option<Status> {
        let mut size = CREATIONS_FIRST;
        while !steps.is_empty() {
            let rest = steps.split_off(size.min(steps.len()));
            if let Some(failure) = self.batch(controller, identity, steps).await {
                return Some(failure);
            }
            steps = rest;
            size = (size * 2).min(CREATIONS_MAX);
        }
        None
    }

    async fn batch(&self, controller: &'static str, identity: &Identity, steps: Vec<Step>) -> Option<Status> {
        let steps = stream::iter(steps).map(|step| self.step(controller, identity, step));
        let mut results = steps.buffer_unordered(CREATIONS_MAX);
        let mut failure = None;
        while let Some(result) = results.next().await {
            failure = failure.or(result.err());
        }
        failure
    }

    async fn step(&self, controller: &'static str, identity: &Identity, step: Step) -> Result<(), Status> {
        let id = step.action.id().clone();
        let permit = self.writes.acquire().await;
        let result = self.write(controller, identity, step.action, step.given.as_ref()).await;
        drop(permit);
        match &result {
            Ok(()) => step.done.into_iter().for_each(|event| self.recorder.record(controller, event)),
            Err(status) => {
                tracing::debug!(controller, object = %id, code = status.code, error = %status.message, "a write failed");
                // A conflict means only that the view was behind.
                if let Some(mut event) = step.failed.filter(|_| status.code != 409 && status.code != 503) {
                    event.message = format!("{}: {}", event.message, status.message);
                    self.recorder.record(controller, event);
                }
            }
        }
        result
    }

    async fn write(
        &self,
        controller: &'static str,
        identity: &Identity,
        action: Action,
        given: Option<&Regarding>,
    ) -> Result<(), Status> {
        let options = WriteOptions {
            field_manager: Some(controller.to_owned()),
            fence: Some(self.term),
            only_while: given.map(unchanged).transpose()?,
            ..WriteOptions::default()
        };
        match action {
            Action::Record(event) => {
                self.recorder.record(controller, event);
                Ok(())
            }
            Action::Create { id, object } => {
                let resource = resource(&id)?;
                self.registry.create(identity, resource, namespace(&id), object, &options).await.map(drop)
            }
            Action::Update { id, object, subresource } => {
                let (resource, namespace, name) = (resource(&id)?, namespace(&id), &id.key.name);
                let written = self
                    .registry
                    .update(identity, resource, namespace, name, object, subresource, &options)
                    .await;
                gone_is_done(written.map(drop))
            }
            Action::Patch { id, patch } => {
                let (resource, namespace, name) = (resource(&id)?, namespace(&id), &id.key.name);
                let patch = Patch::Merge(patch);
                let written =
                    self.registry.patch(identity, resource, namespace, name, &patch, None, &options).await;
                gone_is_done(written.map(drop))
            }
            Action::Delete { id, uid, resource_version, propagation, grace_seconds } => {
                let options = DeleteOptions {
                    uid: Some(uid),
                    revision: resource_version.and_then(|text| text.parse().ok()).map(Revision),
                    grace_seconds,
                    propagation: propagation.map(translate),
                    dry_run: false,
                    fence: Some(self.term),
                };
                let deleted = self
                    .registry
                    .delete(identity, resource(&id)?, namespace(&id), &id.key.name, &options)
                    .await;
                gone_is_done(deleted.map(drop))
            }
        }
    }
}

fn resource(id: &ObjectId) -> Result<&'static lichen_api::Resource, Status> {
    resource_of(id.kind).ok_or_else(|| Status::internal(format!("{} is no kind of this server", id.kind)))
}

/// An object as it was when something was decided by it.
fn unchanged(given: &Regarding) -> Result<(Key, Revision), Status> {
    let key = key_of(resource(&given.id)?, namespace(&given.id), &given.id.key.name);
    let revision = given.resource_version.parse().map_err(Status::internal)?;
    Ok((key, Revision(revision)))
}

fn namespace(id: &ObjectId) -> Option<&str> {
    Some(id.key.namespace.as_str()).filter(|namespace| !namespace.is_empty())
}

/// What is gone needs no change: the view will say so.
fn gone_is_done(result: Result<(), Status>) -> Result<(), Status> {
    match result {
        Err(status) if status.code == 404 => Ok(()),
        result => result,
    }
}

fn translate(propagation: Propagation) -> lichen_registry::Propagation {
    match propagation {
        Propagation::Background => lichen_registry::Propagation::Background,
        Propagation::Foreground => lichen_registry::Propagation::Foreground,
        Propagation::Orphan => lichen_registry::Propagation::Orphan,
    }
}
