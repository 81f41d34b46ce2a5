//! Drives the scheduler: carries plans out, and tells it how that went.

use std::collections::BTreeMap;

use jiff::Timestamp;
use lichen_api::kinds::pod::RESOURCE as POD;
use lichen_api::view::{Change, Kind, ObjectId, ObjectKey, View};
use lichen_api::{Status, k8s};
use lichen_controllers::{Event, Regarding, Severity};
use lichen_registry::{Binding, Identity, Patch, Registry, WriteOptions};
use lichen_scheduler::{PodInfo, Scheduler, Unschedulable};
use lichen_store::{Revision, Term};
use serde_json::json;
use tokio::task::JoinSet;

use crate::recorder::Recorder;

/// The name by which Kubernetes' scheduler tells its events.
const COMPONENT: &str = "default-scheduler";
const IDENTITY: &str = "system:kube-scheduler";
const FIELD_MANAGER: &str = "kube-scheduler";

/// What became of a binding that failed.
struct Failed {
    pod: ObjectKey,
    uid: String,
    /// Whether the pod changed meanwhile, so that looking at it again is all it takes.
    stale: bool,
    /// The revision that says how the pod is now.
    revision: u64,
}

/// The scheduler and what it has under way.
pub(crate) struct Scheduling {
    registry: Registry,
    term: Term,
    recorder: Recorder,
    scheduler: Scheduler,
    writes: JoinSet<Option<Failed>>,
    /// Failures that wait until the view shows why, by revision.
    failed: BTreeMap<u64, Vec<Failed>>,
}

impl Scheduling {
    pub(crate) fn new(registry: Registry, term: Term, recorder: Recorder, view: &View) -> Scheduling {
        let scheduler = Scheduler::from_view(view);
        Scheduling { registry, term, recorder, scheduler, writes: JoinSet::new(), failed: BTreeMap::new() }
    }

    /// Takes in a change.
    pub(crate) fn observe(&mut self, change: &Change) {
        if change.id.kind == Kind::POD || change.id.kind == Kind::NODE {
            self.scheduler.observe(change);
        }
    }

    /// Plans for the pods that are due, and begins to carry the plan out.
    pub(crate) fn turn(&mut self, view: &View) {
        let now = self.registry.now();
        while let Some(entry) = self.failed.first_entry().filter(|entry| *entry.key() <= view.revision()) {
            for failed in entry.remove() {
                if failed.stale {
                    self.scheduler.stale(&failed.pod, &failed.uid);
                } else {
                    self.scheduler.failed(&failed.pod, &failed.uid, now);
                }
            }
        }
        while self.scheduler.due().is_some_and(|due| due <= now) {
            let plan = self.scheduler.plan(view, now);
            if plan.is_empty() {
                break;
            }
            for binding in plan.bindings {
                let Some(pod) = view.pods.by_key(&binding.pod) else { continue };
                let event = event(&PodInfo::new(pod.clone()), Severity::Normal, "Scheduled", {
                    let ObjectKey { namespace, name } = &binding.pod;
                    format!("Successfully assigned {namespace}/{name} to {}", binding.node)
                });
                let (registry, recorder, term) = (self.registry.clone(), self.recorder.clone(), self.term);
                self.writes.spawn(async move { bind(&registry, &recorder, term, binding, event).await });
            }
            for refused in plan.unschedulable {
                self.refuse(refused, now);
            }
        }
    }

    /// Waits until something that is under way is done; forever if nothing is. Can be cancelled.
    pub(crate) async fn progress(&mut self) {
        match self.writes.join_next().await {
            None => std::future::pending().await,
            Some(Ok(Some(failed))) => self.failed.entry(failed.revision).or_default().push(failed),
            Some(Ok(None)) => {}
            Some(Err(error)) => tracing::error!(%error, "a binding ended without a result"),
        }
    }

    /// When there is something to plan.
    pub(crate) fn due(&self) -> Option<Timestamp> {
        self.scheduler.due()
    }

    /// Waits for everything under way.
    pub(crate) async fn drain(mut self) {
        while self.writes.join_next().await.is_some() {}
    }

    fn refuse(&mut self, refused: Unschedulable, now: Timestamp) {
        self.recorder.record(
            COMPONENT,
            event(&refused.pod, Severity::Warning, "FailedScheduling", refused.message.clone()),
        );
        if is_told(&refused) {
            return;
        }
        let (registry, term) = (self.registry.clone(), self.term);
        self.writes.spawn(async move {
            if let Err(status) = tell(&registry, term, &refused, now).await
                && status.code != 404
            {
                tracing::debug!(pod = %refused.pod.key, error = %status.message, "a condition was not written");
            }
            None
        });
    }
}

fn options(term: Term) -> WriteOptions {
    WriteOptions {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        fence: Some(term),
        ..WriteOptions::default()
    }
}

async fn bind(
    registry: &Registry,
    recorder: &Recorder,
    term: Term,
    binding: lichen_scheduler::Binding,
    event: Event,
) -> Option<Failed> {
    let lichen_scheduler::Binding { pod, uid, resource_version, node } = binding;
    let target = Binding {
        node,
        uid: Some(uid.clone()),
        revision: resource_version.parse().ok().map(Revision),
        ..Binding::default()
    };
    let identity = Identity::component(IDENTITY);
    match registry.bind(&identity, &pod.namespace, &pod.name, &target, &options(term)).await {
        Ok(_) => {
            recorder.record(COMPONENT, event);
            None
        }
        Err(status) => {
            tracing::debug!(%pod, code = status.code, error = %status.message, "a pod was not bound");
            let stale = matches!(status.code, 404 | 409);
            Some(Failed { pod, uid, stale, revision: registry.revision().0 })
        }
    }
}

/// Tells in the pod's conditions why it has no node.
async fn tell(
    registry: &Registry,
    term: Term,
    refused: &Unschedulable,
    now: Timestamp,
) -> Result<(), Status> {
    let time = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    // A message that only changed its counts is no transition.
    let since = condition(&refused.pod)
        .filter(|condition| condition.status == "False")
        .and_then(|condition| condition.last_transition_time.as_ref())
        .map_or(json!(time), |time| json!(time));
    let patch = json!({
        "metadata": { "uid": refused.pod.uid() },
        "status": { "conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": refused.message, "lastTransitionTime": since,
        }] },
    });
    let ObjectKey { namespace, name } = &refused.pod.key;
    let (identity, patch) = (Identity::component(IDENTITY), Patch::Strategic(patch));
    registry
        .patch(&identity, &POD, Some(namespace), name, &patch, Some("status"), &options(term))
        .await
        .map(drop)
}

fn condition(pod: &PodInfo) -> Option<&k8s::api::core::v1::PodCondition> {
    let conditions = pod.pod.status.as_ref()?.conditions.as_deref().unwrap_or_default();
    conditions.iter().find(|condition| condition.type_ == "PodScheduled")
}

fn is_told(refused: &Unschedulable) -> bool {
    condition(&refused.pod).is_some_and(|condition| {
        condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
            && condition.message.as_deref() == Some(&refused.message)
    })
}

fn event(pod: &PodInfo, severity: Severity, reason: &'static str, message: String) -> Event {
    let regarding = Regarding {
        id: ObjectId { kind: Kind::POD, key: pod.key.clone() },
        uid: pod.uid().to_owned(),
        resource_version: pod.pod.metadata.resource_version.clone().unwrap_or_default(),
    };
    Event { regarding, severity, reason, message }
}
