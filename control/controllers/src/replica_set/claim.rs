//! Adopting what a selector matches and nobody controls, and releasing what it no longer matches.

use std::sync::Arc;

use lichen_api::k8s::api::apps::v1::ReplicaSet;
use lichen_api::k8s::api::core::v1::Pod;
use lichen_api::k8s::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use lichen_api::labels::Selector;
use lichen_api::view::{Kind, owners_of};

use crate::Action;
use crate::meta::{controller_ref, id_of, is_deleting, owners_patch, uid};

/// Anything with metadata that can be claimed.
pub(crate) trait HasMetadata {
    /// Its metadata.
    fn meta(&self) -> &ObjectMeta;
}

impl HasMetadata for Pod {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl HasMetadata for ReplicaSet {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

/// What belongs to a controller's object, and the writes that make it so.
pub(crate) struct Claimed<T> {
    /// What belongs to it, adoptions included.
    pub(crate) kept: Vec<Arc<T>>,
    /// Adoptions and releases.
    pub(crate) actions: Vec<Action>,
}

/// Sorts out what belongs to `owner`: of `owned` what the selector matches, and of the unowned `candidates` too.
/// An owner that is being deleted neither adopts nor releases.
pub(crate) fn claim<T: HasMetadata>(
    owner_kind: Kind,
    owner: &ObjectMeta,
    selector: &Selector,
    kind: Kind,
    owned: Vec<Arc<T>>,
    candidates: Vec<Arc<T>>,
) -> Claimed<T> {
    let mut claimed = Claimed { kept: Vec::new(), actions: Vec::new() };
    let matches = |object: &T| selector.matches(&object.meta().labels);
    let settled = is_deleting(owner);
    for object in owned {
        if matches(&object) {
            claimed.kept.push(object);
        } else if !settled && !is_deleting(object.meta()) {
            let meta = object.meta();
            let kept: Vec<&OwnerReference> = owners_of(meta).iter().filter(|o| o.uid != uid(owner)).collect();
            claimed.actions.push(Action::Patch { id: id_of(kind, meta), patch: owners_patch(meta, &kept) });
        }
    }
    for object in candidates {
        let meta = object.meta();
        if settled || is_deleting(meta) || !matches(&object) {
            continue;
        }
        let ours = controller_ref(owner_kind, owner);
        let mut owners: Vec<&OwnerReference> = owners_of(meta).iter().filter(|o| o.uid != ours.uid).collect();
        owners.push(&ours);
        claimed.actions.push(Action::Patch { id: id_of(kind, meta), patch: owners_patch(meta, &owners) });
        claimed.kept.push(object);
    }
    claimed
}
