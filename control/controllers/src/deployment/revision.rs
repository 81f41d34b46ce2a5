//! Which version of its template a Deployment is at, and which ReplicaSet is which version.

use std::collections::BTreeMap;

use lichen_api::k8s::api::apps::v1::ReplicaSet;
use lichen_api::k8s::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lichen_api::view::Kind;

use super::sets::Sets;
use crate::Action;
use crate::meta::{annotation, id_of, value};

pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(super) const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const ROLLBACK_TO: &str = "deprecated.deployment.rollback.to";

/// Annotations of a Deployment that its ReplicaSets do not take over.
const OWN: [&str; 6] =
    [LAST_APPLIED, REVISION, REVISION_HISTORY, DESIRED_REPLICAS, MAX_REPLICAS, ROLLBACK_TO];

/// The revision of a ReplicaSet; 0 if it has none.
pub(super) fn of(set: &ReplicaSet) -> i64 {
    annotation(&set.metadata, REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Gives the annotations of a new, or newly current, ReplicaSet: the Deployment's, and the revision after all others.
/// A set that comes back keeps the revisions it had in its history.
pub(super) fn annotate(
    deployment: &ObjectMeta,
    annotations: &mut BTreeMap<String, String>,
    newest_other: i64,
    is_new: bool,
) {
    for (key, value) in
        deployment.annotations.iter().flatten().filter(|(key, _)| !OWN.contains(&key.as_str()))
    {
        annotations.insert(key.clone(), value.clone());
    }
    let current: i64 = annotations.get(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0);
    let revision = newest_other + 1;
    if current >= revision {
        return;
    }
    if !is_new && current > 0 {
        let history = annotations.get(REVISION_HISTORY).filter(|text| !text.is_empty());
        let history = history.map_or(current.to_string(), |text| format!("{text},{current}"));
        annotations.insert(REVISION_HISTORY.to_owned(), history);
    }
    annotations.insert(REVISION.to_owned(), revision.to_string());
}

/// The write by which a Deployment takes over the revision of its current ReplicaSet.
pub(super) fn adopt(sets: &Sets<'_>) -> Option<Action> {
    let current = annotation(&sets.new_set()?.set.metadata, REVISION)?;
    let deployment = sets.deployment;
    if annotation(&deployment.metadata, REVISION) == Some(current) {
        return None;
    }
    let mut object = deployment.clone();
    let annotations = object.metadata.annotations.get_or_insert_default();
    annotations.insert(REVISION.to_owned(), current.to_owned());
    let id = id_of(Kind::DEPLOYMENT, &deployment.metadata);
    Some(Action::Update { id, object: value(&object), subresource: None })
}
