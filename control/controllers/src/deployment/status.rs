//! What a Deployment tells of its rollout.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use lichen_api::k8s::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};
use lichen_api::view::Kind;

use super::sets::Sets;
use super::{margins, told};
use crate::meta::{id_of, name, time, value};
use crate::{Action, Outcome};

const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const COMPLETE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

/// Writes the status of a Deployment that is not rolling.
pub(super) fn sync(sets: &Sets<'_>, now: Timestamp, outcome: &mut Outcome) {
    let mut status = calculate(sets, now);
    note_pause(sets, &mut status, now);
    write(sets, status, outcome);
}

/// Writes the status of a Deployment that rolls, or has rolled out.
pub(super) fn sync_rollout(sets: &Sets<'_>, now: Timestamp, outcome: &mut Outcome) {
    let mut status = calculate(sets, now);
    note_pause(sets, &mut status, now);
    let Some(deadline) = deadline(sets) else {
        conditions(&mut status).retain(|condition| condition.type_ != PROGRESSING);
        write(sets, status, outcome);
        return;
    };
    let current = find(&status, PROGRESSING).cloned();
    let reason =
        current.as_ref().and_then(|condition| condition.reason.as_deref()).unwrap_or_default().to_owned();
    let was_complete = status.replicas == status.updated_replicas && reason == COMPLETE;
    let subject = match sets.new_set() {
        Some(new) => format!("ReplicaSet \"{}\"", name(&new.set.metadata)),
        None => format!("Deployment \"{}\"", name(&sets.deployment.metadata)),
    };
    if !was_complete {
        if is_complete(sets, Some(&status)) {
            set(
                &mut status,
                PROGRESSING,
                "True",
                COMPLETE,
                format!("{subject} has successfully progressed."),
                now,
            );
        } else if has_progressed(sets, &status) {
            let message = format!("{subject} is progressing.");
            let mut condition = condition(PROGRESSING, "True", "ReplicaSetUpdated", message, now);
            if let Some(current) = current.filter(|current| current.status == "True") {
                condition.last_transition_time = current.last_transition_time;
            }
            // Replaced even if only the time differs: the deadline counts from the last progress.
            replace(&mut status, condition);
        } else if current.is_none() {
            let message = format!("Found new replica set {}", subject.trim_start_matches("ReplicaSet "));
            set(&mut status, PROGRESSING, "True", "FoundNewReplicaSet", message, now);
        } else if is_timed_out(current.as_ref(), deadline, now) {
            set(
                &mut status,
                PROGRESSING,
                "False",
                TIMED_OUT,
                format!("{subject} has timed out progressing."),
                now,
            );
        }
    }
    if let Some(wait) = wait_for_deadline(sets, &status, deadline, now) {
        outcome.requeue(wait);
    }
    write(sets, status, outcome);
}

/// Tells that a ReplicaSet of a new template is on its way.
pub(super) fn created(
    sets: &Sets<'_>,
    set_name: &str,
    collisions: i32,
    now: Timestamp,
    outcome: &mut Outcome,
) {
    let mut status = calculate(sets, now);
    if collisions > 0 {
        status.collision_count = Some(collisions);
    }
    note_pause(sets, &mut status, now);
    if deadline(sets).is_some() {
        let message = format!("Created new replica set \"{set_name}\"");
        set(&mut status, PROGRESSING, "True", "NewReplicaSetCreated", message, now);
    }
    write(sets, status, outcome);
}

/// Whether a status tells that everything asked for is there, up to date and available, and nothing else is.
pub(super) fn is_complete(sets: &Sets<'_>, status: Option<&DeploymentStatus>) -> bool {
    let Some(status) = status else { return false };
    let wanted = sets.wanted();
    status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.observed_generation.unwrap_or(0) >= sets.deployment.metadata.generation.unwrap_or(0)
}

fn calculate(sets: &Sets<'_>, now: Timestamp) -> DeploymentStatus {
    let before = sets.deployment.status.clone().unwrap_or_default();
    let (mut total, mut ready, mut available, mut terminating, mut asked) = (0, 0, 0, 0, 0);
    for planned in sets.all() {
        let (has, is_ready, is_available) = told(&planned.set);
        total += has;
        ready += is_ready;
        available += is_available;
        terminating += planned.set.status.as_ref().and_then(|s| s.terminating_replicas).unwrap_or(0);
        asked += crate::replica_set::replicas(&planned.set);
    }
    let updated = sets.new_set().map_or(0, |new| told(&new.set).0);
    let number = |number: i32| Some(number).filter(|number| *number != 0);
    let mut status = DeploymentStatus {
        available_replicas: number(available),
        collision_count: before.collision_count,
        conditions: before.conditions,
        observed_generation: sets.deployment.metadata.generation,
        ready_replicas: number(ready),
        replicas: number(total),
        terminating_replicas: Some(terminating),
        unavailable_replicas: number((asked - available).max(0)),
        updated_replicas: number(updated),
    };
    let (_, unavailable) = margins(sets.spec);
    let (state, reason, message) = if available >= sets.wanted() - unavailable {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set(&mut status, AVAILABLE, state, reason, message.to_owned(), now);
    status
}

/// Tells in the Progressing condition that a Deployment is paused, and that it no longer is. A deadline that passed
/// stays told.
fn note_pause(sets: &Sets<'_>, status: &mut DeploymentStatus, now: Timestamp) {
    let reason = find(status, PROGRESSING).and_then(|condition| condition.reason.clone()).unwrap_or_default();
    if deadline(sets).is_none() || reason == TIMED_OUT {
        return;
    }
    match (sets.spec.paused == Some(true), reason == PAUSED) {
        (true, false) => set(status, PROGRESSING, "Unknown", PAUSED, "Deployment is paused".to_owned(), now),
        (false, true) => {
            set(status, PROGRESSING, "Unknown", "DeploymentResumed", "Deployment is resumed".to_owned(), now);
        }
        _ => {}
    }
}

fn deadline(sets: &Sets<'_>) -> Option<SignedDuration> {
    let seconds = sets.spec.progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX)?;
    Some(SignedDuration::from_secs(i64::from(seconds)))
}

fn has_progressed(sets: &Sets<'_>, now: &DeploymentStatus) -> bool {
    let before = sets.deployment.status.clone().unwrap_or_default();
    let number = |number: Option<i32>| number.unwrap_or(0);
    let old = |status: &DeploymentStatus| number(status.replicas) - number(status.updated_replicas);
    number(now.updated_replicas) > number(before.updated_replicas)
        || old(now) < old(&before)
        || number(now.ready_replicas) > number(before.ready_replicas)
        || number(now.available_replicas) > number(before.available_replicas)
}

fn is_timed_out(current: Option<&DeploymentCondition>, deadline: SignedDuration, now: Timestamp) -> bool {
    let Some(current) = current else { return false };
    match current.reason.as_deref() {
        Some(COMPLETE | PAUSED) => false,
        Some(TIMED_OUT) => true,
        _ => end(current, deadline).is_some_and(|end| end < now),
    }
}

fn end(current: &DeploymentCondition, deadline: SignedDuration) -> Option<Timestamp> {
    current.last_update_time.as_ref()?.0.checked_add(deadline).ok()
}

/// How long until the deadline has surely passed, while one runs.
fn wait_for_deadline(
    sets: &Sets<'_>,
    status: &DeploymentStatus,
    deadline: SignedDuration,
    now: Timestamp,
) -> Option<Duration> {
    let current = find(status, PROGRESSING)?;
    let settled = matches!(current.reason.as_deref(), Some(TIMED_OUT | COMPLETE | PAUSED));
    if settled || is_complete(sets, Some(status)) {
        return None;
    }
    let left =
        end(current, deadline)?.duration_since(now).max(SignedDuration::ZERO) + SignedDuration::from_secs(1);
    Duration::try_from(left).ok()
}

fn write(sets: &Sets<'_>, status: DeploymentStatus, outcome: &mut Outcome) {
    let before = sets.deployment.status.clone().unwrap_or_default();
    let normal = |status: DeploymentStatus| DeploymentStatus {
        terminating_replicas: Some(status.terminating_replicas.unwrap_or(0)),
        ..status
    };
    if normal(before) == normal(status.clone()) {
        return;
    }
    let object = Deployment { status: Some(status), ..sets.deployment.clone() };
    let id = id_of(Kind::DEPLOYMENT, &sets.deployment.metadata);
    outcome.push(Action::Update { id, object: value(&object), subresource: Some("status") });
}

fn conditions(status: &mut DeploymentStatus) -> &mut Vec<DeploymentCondition> {
    status.conditions.get_or_insert_default()
}

fn find<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

fn condition(kind: &str, state: &str, reason: &str, message: String, now: Timestamp) -> DeploymentCondition {
    DeploymentCondition {
        last_transition_time: Some(time(now)),
        last_update_time: Some(time(now)),
        message: Some(message),
        reason: Some(reason.to_owned()),
        status: state.to_owned(),
        type_: kind.to_owned(),
    }
}

/// Sets a condition. With the state and the reason it has, it stays as it is; with the state alone, it keeps the time
/// of its transition.
fn set(
    status: &mut DeploymentStatus,
    kind: &str,
    state: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let mut new = condition(kind, state, reason, message, now);
    if let Some(current) = find(status, kind).filter(|current| current.status == state) {
        if current.reason.as_deref() == Some(reason) {
            return;
        }
        new.last_transition_time = current.last_transition_time.clone();
    }
    replace(status, new);
}

fn replace(status: &mut DeploymentStatus, new: DeploymentCondition) {
    let all = conditions(status);
    all.retain(|condition| condition.type_ != new.type_);
    all.push(new);
}
