//! Keeps as many pods of a ReplicaSet as it asks for.

mod claim;
mod rank;
mod status;

use jiff::Timestamp;
use lichen_api::k8s::api::apps::v1::ReplicaSet;
use lichen_api::k8s::api::core::v1::Pod;
use lichen_api::labels::Selector;
use lichen_api::view::{Change, Kind, Object, ObjectId, View, controller_of};
use std::sync::Arc;

use crate::meta::{
    controller_ref, id_of, is_deleting, name, namespace, namespace_is_closed, normal, regarding, uid, value,
    warning,
};
use crate::{Action, Interest, Outcome, Reconciler, Step, hash, pods};

pub(crate) use claim::{Claimed, claim};

/// Most pods that one run creates or deletes; the next run goes on.
const BURST_MAX: usize = 500;

/// See the module.
pub(crate) struct ReplicaSetController;

impl Reconciler for ReplicaSetController {
    fn name(&self) -> &'static str {
        "replicaset-controller"
    }

    fn interest(&self, view: &View, change: &Change) -> Vec<Interest> {
        match change.object() {
            Some(Object::ReplicaSet(_)) if !change.is_removal() => vec![change.id.clone().into()],
            Some(Object::Pod(_)) => interested(view, change).into_iter().map(Interest::from).collect(),
            _ => Vec::new(),
        }
    }

    fn reconcile(&self, view: &View, id: &ObjectId, now: Timestamp) -> Outcome {
        let Some(set) = view.replica_sets.by_key(&id.key) else { return Outcome::done() };
        let Some(spec) = &set.spec else { return Outcome::done() };
        let Ok(selector) = Selector::from_typed(&spec.selector) else { return Outcome::done() };
        let mut outcome = Outcome::done();
        let owned = view.pods_of(uid(&set.metadata)).cloned().collect();
        let loose = view.uncontrolled(Kind::POD, &id.key.namespace).filter_map(|key| view.pods.by_key(key));
        let candidates = loose.filter(|pod| pods::is_active(pod)).cloned().collect();
        let Claimed { kept, actions } =
            claim(Kind::REPLICA_SET, &set.metadata, &selector, Kind::POD, owned, candidates);
        for action in actions {
            outcome.push(action);
        }
        let (active, rest): (Vec<Arc<Pod>>, Vec<Arc<Pod>>) =
            kept.into_iter().partition(|pod| pods::is_active(pod));
        let terminating =
            rest.iter().filter(|pod| is_deleting(&pod.metadata) && !pods::is_terminal(pod)).count();
        if !is_deleting(&set.metadata) {
            manage(view, set, &active, now, &mut outcome);
        }
        status::update(set, &active, terminating, now, &mut outcome);
        outcome
    }
}

/// The ReplicaSets that a pod's change concerns: the controllers it has or had, or those that may adopt it.
fn interested(view: &View, change: &Change) -> Vec<ObjectId> {
    let mut keys = Vec::new();
    for pod in change.states() {
        if let Some(owner) =
            controller_of(pod.metadata()).filter(|owner| owner.kind == Kind::REPLICA_SET.kind)
        {
            keys.push(ObjectId::new(Kind::REPLICA_SET, namespace(pod.metadata()), &owner.name));
        }
    }
    let loose = change.new.as_ref().filter(|pod| controller_of(pod.metadata()).is_none());
    if let Some(pod) = loose {
        let labels = pod.metadata().labels.clone().unwrap_or_default();
        let sets = view.replica_sets.in_namespace(namespace(pod.metadata()));
        let matching = sets.filter(|(_, set)| {
            let selector = set.spec.as_ref().and_then(|spec| Selector::from_typed(&spec.selector).ok());
            selector.is_some_and(|selector| selector.matches(&labels))
        });
        keys.extend(matching.map(|(_, set)| id_of(Kind::REPLICA_SET, &set.metadata)));
    }
    keys.sort();
    keys.dedup();
    keys
}

fn manage(view: &View, set: &ReplicaSet, active: &[Arc<Pod>], now: Timestamp, outcome: &mut Outcome) {
    let wanted = usize::try_from(replicas(set)).unwrap_or(0);
    if active.len() < wanted {
        if !namespace_is_closed(view, namespace(&set.metadata)) {
            let missing = (wanted - active.len()).min(BURST_MAX);
            outcome.steps.extend((0..missing).filter_map(|index| create(view, set, index)));
        }
    } else {
        let surplus = (active.len() - wanted).min(BURST_MAX);
        let victims = rank::first_to_go(view, set, active, surplus, now);
        outcome.steps.extend(victims.iter().map(|pod| delete(set, pod)));
    }
}

/// What a ReplicaSet asks for; one if it does not say.
pub(crate) fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// A pod from the template. Its name follows from the set, the revision that is looked at and the index, so that the
/// same decision names the same pod, and a later one another.
fn create(view: &View, set: &ReplicaSet, index: usize) -> Option<Step> {
    let template = set.spec.as_ref()?.template.as_ref()?;
    let space = namespace(&set.metadata);
    let prefix = format!("{}-", name(&set.metadata));
    let revision = view.revision().to_be_bytes();
    let free = (0_u64..).map(|attempt| {
        let place = [(index as u64).to_be_bytes(), attempt.to_be_bytes()].concat();
        format!("{prefix}{}", hash::suffix(&[uid(&set.metadata).as_bytes(), &revision, &place]))
    });
    let chosen = free.into_iter().find(|name| view.pods.get(space, name).is_none())?;
    let mut metadata = template.metadata.clone().unwrap_or_default();
    metadata.name = Some(chosen.clone());
    metadata.generate_name = Some(prefix);
    metadata.namespace = Some(space.to_owned());
    metadata.owner_references = Some(vec![controller_ref(Kind::REPLICA_SET, &set.metadata)]);
    let pod = Pod { metadata, spec: template.spec.clone(), status: None };
    let about = regarding(Kind::REPLICA_SET, &set.metadata);
    Some(Step {
        action: Action::Create { id: ObjectId::new(Kind::POD, space, &chosen), object: value(&pod) },
        given: None,
        done: Some(normal(&about, "SuccessfulCreate", format!("Created pod: {chosen}"))),
        failed: Some(warning(&about, "FailedCreate", "Error creating".to_owned())),
    })
}

fn delete(set: &ReplicaSet, pod: &Pod) -> Step {
    let about = regarding(Kind::REPLICA_SET, &set.metadata);
    Step {
        action: Action::Delete {
            id: id_of(Kind::POD, &pod.metadata),
            uid: uid(&pod.metadata).to_owned(),
            resource_version: None,
            propagation: None,
            grace_seconds: None,
        },
        given: None,
        done: Some(normal(&about, "SuccessfulDelete", format!("Deleted pod: {}", name(&pod.metadata)))),
        failed: Some(warning(&about, "FailedDelete", "Error deleting".to_owned())),
    }
}
