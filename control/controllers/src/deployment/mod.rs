//! Brings a Deployment's pods to its template by way of ReplicaSets, one for each version of the template.
//!
//! The controller never touches a pod: it makes, scales and removes ReplicaSets, and reads from their status how far
//! they are.

mod revision;
mod rolling;
mod scale;
mod sets;
mod status;

use jiff::Timestamp;
use lichen_api::k8s::api::apps::v1::{DeploymentSpec, ReplicaSet};
use lichen_api::k8s::apimachinery::pkg::util::intstr::IntOrString;
use lichen_api::labels::Selector;
use lichen_api::view::{Change, Kind, Object, ObjectId, View, controller_of};

use crate::meta::{is_deleting, namespace, namespace_is_closed, uid};
use crate::replica_set::{Claimed, claim};
use crate::{Interest, Outcome, Reconciler, pods};

use sets::Sets;

/// See the module.
pub(crate) struct DeploymentController;

impl Reconciler for DeploymentController {
    fn name(&self) -> &'static str {
        "deployment-controller"
    }

    fn interest(&self, view: &View, change: &Change) -> Vec<Interest> {
        match change.object() {
            Some(Object::Deployment(_)) if !change.is_removal() => vec![change.id.clone().into()],
            Some(Object::ReplicaSet(_)) => interested(view, change),
            // Recreate waits for the last old pod to be gone.
            Some(Object::Pod(pod)) if change.is_removal() || pods::is_terminal(pod) => {
                let set = controller_of(&pod.metadata).and_then(|owner| view.by_uid(&owner.uid));
                let owner = set.as_ref().and_then(|set| controller_of(set.metadata()));
                let space = namespace(&pod.metadata);
                owner.map(|o| ObjectId::new(Kind::DEPLOYMENT, space, &o.name).into()).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    fn reconcile(&self, view: &View, id: &ObjectId, now: Timestamp) -> Outcome {
        let Some(deployment) = view.deployments.by_key(&id.key) else { return Outcome::done() };
        let Some(spec) = &deployment.spec else { return Outcome::done() };
        let Ok(selector) = Selector::from_typed(&spec.selector) else { return Outcome::done() };
        let owned = view.replica_sets_of(uid(&deployment.metadata)).cloned().collect();
        let loose = view.uncontrolled(Kind::REPLICA_SET, &id.key.namespace);
        let candidates = loose.filter_map(|key| view.replica_sets.by_key(key)).cloned().collect();
        let Claimed { kept, actions } =
            claim(Kind::DEPLOYMENT, &deployment.metadata, &selector, Kind::REPLICA_SET, owned, candidates);
        let mut outcome = Outcome::done();
        if !actions.is_empty() {
            // What is adopted can only be counted on once it is.
            for action in actions {
                outcome.push(action);
            }
            return outcome;
        }
        let mut sets = Sets::new(deployment, spec, kept);
        if is_deleting(&deployment.metadata) {
            status::sync(&sets, now, &mut outcome);
        } else if spec.paused == Some(true) || scale::is_due(&sets) {
            sets.annotate();
            scale::all(&mut sets);
            sets.emit(&mut outcome);
            if outcome.steps.is_empty() && spec.paused == Some(true) {
                sets.clean_up(&mut outcome);
            }
            finish(&sets, now, &mut outcome, status::sync);
        } else {
            roll(view, &mut sets, now, &mut outcome);
        }
        outcome
    }
}

/// One step of a rollout.
fn roll(view: &View, sets: &mut Sets<'_>, now: Timestamp, outcome: &mut Outcome) {
    let recreate = sets.spec.strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("Recreate");
    if recreate && sets.old().any(|set| set.replicas > 0) {
        sets.annotate();
        sets.old_mut().for_each(|set| set.replicas = 0);
    } else if recreate && rolling::old_pods_remain(view, sets) {
        // The new ones start when the last old one has ended.
    } else if sets.new_set().is_none() {
        if !namespace_is_closed(view, namespace(&sets.deployment.metadata)) {
            let replicas = if recreate { sets.wanted() } else { rolling::new_replicas(sets, 0) };
            sets.create(view, replicas, now, outcome);
            return;
        }
    } else {
        sets.annotate();
        if recreate {
            let wanted = sets.wanted();
            sets.new_mut().into_iter().for_each(|set| set.replicas = wanted);
        } else if !rolling::scale_new(sets) {
            rolling::scale_old(sets);
        }
    }
    sets.emit(outcome);
    if outcome.steps.is_empty() && status::is_complete(sets, sets.deployment.status.as_ref()) {
        sets.clean_up(outcome);
    }
    finish(sets, now, outcome, status::sync_rollout);
}

/// Writes the Deployment itself: its revision or, if that stands, its status. Not both, since the second write would
/// meet the version that the first one made.
fn finish(
    sets: &Sets<'_>,
    now: Timestamp,
    outcome: &mut Outcome,
    sync_status: fn(&Sets<'_>, Timestamp, &mut Outcome),
) {
    if let Some(action) = revision::adopt(sets) {
        outcome.push(action);
    } else {
        sync_status(sets, now, outcome);
    }
}

/// The Deployments that a ReplicaSet's change concerns.
fn interested(view: &View, change: &Change) -> Vec<Interest> {
    let mut keys: Vec<ObjectId> = Vec::new();
    for set in change.states() {
        let space = namespace(set.metadata());
        match controller_of(set.metadata()) {
            Some(owner) if owner.kind == Kind::DEPLOYMENT.kind => {
                keys.push(ObjectId::new(Kind::DEPLOYMENT, space, &owner.name));
            }
            Some(_) => {}
            None => keys.extend(matching(view, space, set)),
        }
    }
    keys.sort();
    keys.dedup();
    keys.into_iter().map(Interest::from).collect()
}

fn matching(view: &View, space: &str, set: &Object) -> Vec<ObjectId> {
    let labels = &set.metadata().labels;
    let deployments = view.deployments.in_namespace(space);
    let matching = deployments.filter(|(_, deployment)| {
        let selector = deployment.spec.as_ref().and_then(|spec| Selector::from_typed(&spec.selector).ok());
        selector.is_some_and(|selector| selector.matches(labels))
    });
    matching.map(|(key, _)| ObjectId { kind: Kind::DEPLOYMENT, key: key.clone() }).collect()
}

/// How many pods a Deployment may have above, and below, what it asks for while it rolls.
fn margins(spec: &DeploymentSpec) -> (i32, i32) {
    let wanted = spec.replicas.unwrap_or(1);
    let strategy = spec.strategy.as_ref();
    if strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate") {
        return (0, 0);
    }
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let default = IntOrString::String("25%".to_owned());
    let surge = scaled(rolling.and_then(|r| r.max_surge.as_ref()).unwrap_or(&default), wanted, true);
    let unavailable =
        scaled(rolling.and_then(|r| r.max_unavailable.as_ref()).unwrap_or(&default), wanted, false);
    // With neither, nothing could ever move.
    let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
    (surge, unavailable.min(wanted))
}

/// A number, or a percentage of `total` rounded up or down.
fn scaled(value: &IntOrString, total: i32, up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => (*number).max(0),
        IntOrString::String(text) => {
            let percent =
                text.strip_suffix('%').and_then(|number| number.parse::<i64>().ok()).unwrap_or(0).max(0);
            let product = percent * i64::from(total);
            let share = if up { (product + 99) / 100 } else { product / 100 };
            i32::try_from(share).unwrap_or(i32::MAX)
        }
    }
}

/// Replicas that a ReplicaSet's status tells.
fn told(set: &ReplicaSet) -> (i32, i32, i32) {
    let status = set.status.as_ref();
    let number = |of: Option<i32>| of.unwrap_or(0);
    (
        status.map_or(0, |s| s.replicas),
        number(status.and_then(|s| s.ready_replicas)),
        number(status.and_then(|s| s.available_replicas)),
    )
}

#[cfg(test)]
mod tests;
