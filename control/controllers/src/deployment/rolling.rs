//! The arithmetic of a rolling update: never more pods than wanted and surge, never fewer available ones than wanted
//! less unavailable.

use lichen_api::view::View;

use super::sets::Sets;
use super::{margins, told};
use crate::meta::uid;
use crate::pods;

/// How many replicas the current ReplicaSet may have now, if it has `current`.
///
/// An old ReplicaSet that was scaled down counts with the pods it still tells of. Kubernetes counts what was asked
/// for, and so has, for a moment, more pods than the surge allows; a small node may not have room for these.
pub(super) fn new_replicas(sets: &Sets<'_>, current: i32) -> i32 {
    let (surge, _) = margins(sets.spec);
    let old: i32 = sets.old().map(|set| set.replicas.max(told(&set.set).0)).sum();
    let room = sets.wanted().saturating_add(surge) - old - current;
    current + room.min(sets.wanted() - current).max(0)
}

/// Scales the current ReplicaSet; says whether that changed it.
pub(super) fn scale_new(sets: &mut Sets<'_>) -> bool {
    let Some(current) = sets.new_set().map(|set| set.replicas) else { return false };
    let wanted = sets.wanted();
    let target = if current > wanted { wanted } else { new_replicas(sets, current) };
    if let Some(set) = sets.new_mut() {
        set.replicas = target;
    }
    target != current
}

/// Scales the other ReplicaSets down as far as availability allows, those first whose pods are not available.
pub(super) fn scale_old(sets: &mut Sets<'_>) {
    if sets.old().all(|set| set.replicas == 0) {
        return;
    }
    let (_, unavailable) = margins(sets.spec);
    let min_available = sets.wanted() - unavailable;
    let coming = sets.new_set().map_or(0, |set| (set.replicas - told(&set.set).2).max(0));
    let spare = sets.planned() - min_available - coming;
    if spare <= 0 {
        return;
    }
    let available = sets.available();
    remove_unavailable(sets, spare);
    let mut spare = available - min_available;
    for set in sets.old_mut() {
        let fewer = set.replicas.min(spare);
        if fewer > 0 {
            set.replicas -= fewer;
            spare -= fewer;
        }
    }
}

/// Pods that are not available serve nobody, so they go first.
fn remove_unavailable(sets: &mut Sets<'_>, mut spare: i32) {
    for set in sets.old_mut() {
        let fewer = (set.replicas - told(&set.set).2).min(spare);
        if fewer > 0 {
            set.replicas -= fewer;
            spare -= fewer;
        }
    }
}

/// Whether a pod of another template has not ended yet.
pub(super) fn old_pods_remain(view: &View, sets: &Sets<'_>) -> bool {
    sets.old().any(|set| view.pods_of(uid(&set.set.metadata)).any(|pod| !pods::is_terminal(pod)))
}
