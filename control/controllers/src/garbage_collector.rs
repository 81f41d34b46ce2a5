//! Removes what has lost its owners.
//!
//! An owner is the object with the UID of the reference, not the one that has its name now. An object goes when all
//! its owners are gone; with one owner left it loses only the references to the others. An owner that is deleted in
//! the foreground waits for its dependents, one that is deleted with orphaning lets them go first.

use jiff::Timestamp;
use lichen_api::k8s::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use lichen_api::view::{Change, Object, ObjectId, View, owners_of};

use crate::meta::{has_finalizer, is_deleting, namespace, owners_patch, without_finalizer};
use crate::{Action, Interest, Outcome, Propagation, Reconciler};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// See the module.
pub(crate) struct GarbageCollector;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// It is there.
    Solid,
    /// It is there, and waits for its dependents to go.
    Waiting,
    /// It is not there.
    Absent,
    /// Its kind is not known here, so nothing can be said.
    Unknown,
}

impl Reconciler for GarbageCollector {
    fn name(&self) -> &'static str {
        "generic-garbage-collector"
    }

    fn interest(&self, view: &View, change: &Change) -> Vec<Interest> {
        let mut keys = Vec::new();
        if let Some(new) = &change.new {
            let meta = new.metadata();
            let waits = is_deleting(meta) && (has_finalizer(meta, FOREGROUND) || has_finalizer(meta, ORPHAN));
            if waits {
                keys.extend(view.dependents(new.uid()).cloned());
            }
            if waits || !owners_of(meta).is_empty() {
                keys.push(change.id.clone());
            }
        }
        if let Some(old) = &change.old {
            // A name that was taken over is a removal of the object that had it.
            if change.new.as_ref().is_none_or(|new| new.uid() != old.uid()) {
                keys.extend(view.dependents(old.uid()).cloned());
            }
            // Owners that wait for this one, whether it is gone or only lost the reference.
            let owners = owners_of(old.metadata()).iter().filter_map(|owner| view.by_uid(&owner.uid));
            keys.extend(owners.filter(|owner| is_deleting(owner.metadata())).map(|owner| owner.id()));
        }
        keys.into_iter().map(Interest::from).collect()
    }

    fn reconcile(&self, view: &View, id: &ObjectId, _: Timestamp) -> Outcome {
        let Some(object) = view.get(id) else { return Outcome::done() };
        let meta = object.metadata();
        if is_deleting(meta) {
            if has_finalizer(meta, ORPHAN) {
                return orphan(view, &object);
            }
            if has_finalizer(meta, FOREGROUND) {
                return foreground(view, &object);
            }
            return Outcome::done();
        }
        collect(view, &object)
    }
}

/// Deletes an object without owners; strips references to owners that are gone from one that has others.
fn collect(view: &View, object: &Object) -> Outcome {
    let meta = object.metadata();
    let owners: Vec<(&OwnerReference, Owner)> =
        owners_of(meta).iter().map(|reference| (reference, state(view, meta, reference))).collect();
    let any = |wanted: Owner| owners.iter().any(|(_, state)| *state == wanted);
    if owners.is_empty() || any(Owner::Unknown) {
        return Outcome::done();
    }
    if any(Owner::Solid) {
        let kept: Vec<&OwnerReference> =
            owners.iter().filter(|(_, state)| *state == Owner::Solid).map(|(owner, _)| *owner).collect();
        if kept.len() == owners.len() {
            return Outcome::done();
        }
        return Outcome::of(Action::Patch { id: object.id(), patch: owners_patch(meta, &kept) });
    }
    let has_dependents = view.dependents(object.uid()).next().is_some();
    let propagation = if any(Owner::Waiting) && has_dependents || has_finalizer(meta, FOREGROUND) {
        Propagation::Foreground
    } else if has_finalizer(meta, ORPHAN) {
        Propagation::Orphan
    } else {
        Propagation::Background
    };
    Outcome::of(delete(object, propagation))
}

/// Deletes the dependents that hold an owner up, and frees the owner when there are none left.
fn foreground(view: &View, owner: &Object) -> Outcome {
    let dependents: Vec<Object> = view.dependents(owner.uid()).filter_map(|id| view.get(id)).collect();
    let blocking: Vec<&Object> = dependents
        .iter()
        .filter(|dependent| {
            let references = owners_of(dependent.metadata());
            references.iter().any(|r| r.uid == owner.uid() && r.block_owner_deletion == Some(true))
        })
        .collect();
    if blocking.is_empty() {
        let patch = without_finalizer(owner.metadata(), FOREGROUND);
        return Outcome::of(Action::Patch { id: owner.id(), patch });
    }
    // The dependents are keys of their own, and are deleted there, since they may have other owners.
    Outcome::done()
}

/// Takes the reference away from every dependent, then frees the owner.
fn orphan(view: &View, owner: &Object) -> Outcome {
    let mut outcome = Outcome::done();
    for dependent in view.dependents(owner.uid()).filter_map(|id| view.get(id)) {
        let meta = dependent.metadata();
        let kept: Vec<&OwnerReference> = owners_of(meta).iter().filter(|r| r.uid != owner.uid()).collect();
        outcome.push(Action::Patch { id: dependent.id(), patch: owners_patch(meta, &kept) });
    }
    if outcome.steps.is_empty() {
        outcome.push(Action::Patch { id: owner.id(), patch: without_finalizer(owner.metadata(), ORPHAN) });
    }
    outcome
}

fn state(view: &View, dependent: &ObjectMeta, reference: &OwnerReference) -> Owner {
    let Some(owner) = view.by_uid(&reference.uid) else {
        #[cfg(feature = "plant")]
        if crate::plant::BY_NAME.load(std::sync::atomic::Ordering::Relaxed)
            && view.objects().iter().any(|object| {
                object.kind().kind == reference.kind
                    && object.metadata().name.as_deref() == Some(&reference.name)
                    && namespace(object.metadata()) == namespace(dependent)
            })
        {
            return Owner::Solid;
        }
        let known = lichen_api::by_kind(&reference.api_version, &reference.kind).is_some();
        return if known { Owner::Absent } else { Owner::Unknown };
    };
    let meta = owner.metadata();
    // An owner in another namespace is none: names and rights do not reach across.
    let reachable = namespace(meta).is_empty() || namespace(meta) == namespace(dependent);
    if !reachable || owner.kind().kind != reference.kind || meta.name.as_deref() != Some(&reference.name) {
        return Owner::Absent;
    }
    // An owner that orphans its dependents takes the references away itself.
    if is_deleting(meta) && has_finalizer(meta, FOREGROUND) { Owner::Waiting } else { Owner::Solid }
}

fn delete(object: &Object, propagation: Propagation) -> Action {
    Action::Delete {
        id: object.id(),
        uid: object.uid().to_owned(),
        resource_version: object.metadata().resource_version.clone(),
        propagation: Some(propagation),
        grace_seconds: None,
    }
}
