//! Following a change of a Deployment's size, also in the middle of a rollout or while it is paused.

use super::revision::{DESIRED_REPLICAS, MAX_REPLICAS};
use super::sets::{Planned, Sets};
use super::{margins, told};
use crate::meta::{annotation, created, name};

/// Whether the size changed since the ReplicaSets were scaled last.
pub(super) fn is_due(sets: &Sets<'_>) -> bool {
    let wanted = sets.wanted();
    let mut active = sets.all().filter(|set| set.replicas > 0);
    active.any(|set| number(set, DESIRED_REPLICAS).is_some_and(|before| before != wanted))
}

/// Plans the size of every ReplicaSet.
pub(super) fn all(sets: &mut Sets<'_>) {
    let wanted = sets.wanted();
    let active = sets.all().filter(|set| set.replicas > 0).count();
    if active <= 1 {
        // One is active, or none: then it is the current one that follows or, without one, the latest.
        let latest = sets
            .all()
            .filter(|set| active == 0 || set.replicas > 0)
            .last()
            .map(|set| name_of(set).to_owned());
        let chosen = match (active, sets.new_set()) {
            (0, Some(new)) => Some(name_of(new).to_owned()),
            _ => latest,
        };
        let chosen = sets.all_mut().find(|set| Some(name_of(set)) == chosen.as_deref());
        chosen.into_iter().for_each(|set| set.replicas = wanted);
    } else if is_saturated(sets) {
        sets.old_mut().for_each(|set| set.replicas = 0);
    } else {
        proportionally(sets);
    }
}

fn name_of(set: &Planned) -> &str {
    name(&set.set.metadata)
}

fn number(set: &Planned, key: &str) -> Option<i32> {
    annotation(&set.set.metadata, key)?.parse().ok()
}

/// Whether the current ReplicaSet alone serves everything.
fn is_saturated(sets: &Sets<'_>) -> bool {
    let wanted = sets.wanted();
    sets.new_set().is_some_and(|set| {
        set.replicas == wanted && number(set, DESIRED_REPLICAS) == Some(wanted) && told(&set.set).2 == wanted
    })
}

/// Gives each active ReplicaSet its share of what comes or goes, so that a rollout that is under way stays about as
/// far as it was. What rounding leaves goes to the largest.
fn proportionally(sets: &mut Sets<'_>) {
    let (surge, _) = margins(sets.spec);
    let wanted = sets.wanted();
    let allowed = if wanted > 0 { wanted.saturating_add(surge) } else { 0 };
    let change = allowed - sets.planned();
    if change == 0 {
        return;
    }
    let told_replicas = sets.deployment.status.as_ref().and_then(|status| status.replicas).unwrap_or(0);
    let mut active: Vec<&mut Planned> = sets.all_mut().filter(|set| set.replicas > 0).collect();
    // By size; among equals the newest gets more, and the oldest loses more.
    active.sort_by(|a, b| {
        let age = |set: &Planned| (created(&set.set.metadata), name_of(set).to_owned());
        let by_age = if change > 0 { age(b).cmp(&age(a)) } else { age(a).cmp(&age(b)) };
        b.replicas.cmp(&a.replicas).then(by_age)
    });
    let mut given = 0;
    for set in &mut active {
        let share = share(set, wanted, allowed, told_replicas);
        let left = change - given;
        let part = if change > 0 { share.min(left) } else { share.max(left) };
        set.replicas += part;
        given += part;
    }
    if let Some(largest) = active.first_mut() {
        largest.replicas = (largest.replicas + change - given).max(0);
    }
}

fn share(set: &Planned, wanted: i32, allowed: i32, told_replicas: i32) -> i32 {
    if wanted == 0 {
        return -set.replicas;
    }
    let before = number(set, MAX_REPLICAS).filter(|before| *before != 0).unwrap_or(told_replicas);
    if before <= 0 {
        return 0;
    }
    let product = i64::from(set.replicas) * i64::from(allowed);
    let before = i64::from(before);
    let rounded = (2 * product + before) / (2 * before);
    i32::try_from(rounded).unwrap_or(i32::MAX) - set.replicas
}
