//! The ReplicaSets of a Deployment, and what is planned for them.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use lichen_api::k8s::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet, ReplicaSetSpec};
use lichen_api::k8s::api::core::v1::PodTemplateSpec;
use lichen_api::k8s::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lichen_api::view::{Kind, ObjectId, View};

use super::{margins, revision, status, told};
use crate::meta::{
    controller_ref, created, id_of, is_deleting, name, namespace, normal, regarding, uid, value, warning,
};
use crate::replica_set::replicas;
use crate::{Action, Outcome, Step, hash};

const TEMPLATE_HASH: &str = "pod-template-hash";
/// Letters of a template's hash in the name of its ReplicaSet.
const HASH_LETTERS: usize = 10;
/// How many old ReplicaSets are kept if the Deployment does not say.
const HISTORY_DEFAULT: i32 = 10;

/// One ReplicaSet and what is planned for it.
pub(super) struct Planned {
    pub(super) set: Arc<ReplicaSet>,
    /// Replicas after this run.
    pub(super) replicas: i32,
    annotations: BTreeMap<String, String>,
    min_ready_seconds: Option<i32>,
}

/// Every ReplicaSet of a Deployment, oldest first.
pub(super) struct Sets<'a> {
    pub(super) deployment: &'a Deployment,
    pub(super) spec: &'a DeploymentSpec,
    all: Vec<Planned>,
    new: Option<usize>,
}

impl<'a> Sets<'a> {
    pub(super) fn new(
        deployment: &'a Deployment,
        spec: &'a DeploymentSpec,
        mut sets: Vec<Arc<ReplicaSet>>,
    ) -> Sets<'a> {
        sets.sort_by(|a, b| order(&a.metadata).cmp(&order(&b.metadata)));
        let new = sets.iter().position(|set| has_template(set, &spec.template));
        let all = sets
            .into_iter()
            .map(|set| Planned {
                replicas: replicas(&set),
                annotations: set.metadata.annotations.clone().unwrap_or_default(),
                min_ready_seconds: set.spec.as_ref().and_then(|spec| spec.min_ready_seconds),
                set,
            })
            .collect();
        Sets { deployment, spec, all, new }
    }

    /// What the Deployment asks for.
    pub(super) fn wanted(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Planned> {
        self.all.iter()
    }

    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Planned> {
        self.all.iter_mut()
    }

    /// The ReplicaSet of the current template.
    pub(super) fn new_set(&self) -> Option<&Planned> {
        self.new.map(|index| &self.all[index])
    }

    pub(super) fn new_mut(&mut self) -> Option<&mut Planned> {
        self.new.map(|index| &mut self.all[index])
    }

    /// The ReplicaSets of other templates, oldest first.
    pub(super) fn old(&self) -> impl Iterator<Item = &Planned> {
        let new = self.new;
        self.all.iter().enumerate().filter(move |(index, _)| Some(*index) != new).map(|(_, set)| set)
    }

    pub(super) fn old_mut(&mut self) -> impl Iterator<Item = &mut Planned> {
        let new = self.new;
        self.all.iter_mut().enumerate().filter(move |(index, _)| Some(*index) != new).map(|(_, set)| set)
    }

    /// Replicas planned, over all ReplicaSets.
    pub(super) fn planned(&self) -> i32 {
        self.all.iter().map(|set| set.replicas).sum()
    }

    /// Available replicas told, over all ReplicaSets.
    pub(super) fn available(&self) -> i32 {
        self.all.iter().map(|set| told(&set.set).2).sum()
    }

    fn newest_old_revision(&self) -> i64 {
        self.old().map(|set| revision::of(&set.set)).max().unwrap_or(0)
    }

    /// Plans the current ReplicaSet's annotations and minReadySeconds.
    pub(super) fn annotate(&mut self) {
        let newest = self.newest_old_revision();
        let deployment = &self.deployment.metadata;
        let min_ready_seconds = self.spec.min_ready_seconds;
        if let Some(set) = self.new.map(|index| &mut self.all[index]) {
            revision::annotate(deployment, &mut set.annotations, newest, false);
            set.min_ready_seconds = min_ready_seconds;
        }
    }

    /// Adds the writes by which the ReplicaSets become as planned.
    pub(super) fn emit(&self, outcome: &mut Outcome) {
        for planned in &self.all {
            outcome.steps.extend(self.update(planned));
        }
    }

    fn update(&self, planned: &Planned) -> Option<Step> {
        let set = &planned.set;
        let before = replicas(set);
        let mut annotations = planned.annotations.clone();
        // The sizes tell the next run of a change of the Deployment's size; only what is scaled, or current, is told.
        let is_new = self.new_set().is_some_and(|new| uid(&new.set.metadata) == uid(&set.metadata));
        if planned.replicas > 0 || planned.replicas != before || is_new {
            self.note_sizes(&mut annotations);
        }
        let known = set.metadata.annotations.clone().unwrap_or_default();
        let min_ready = set.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
        if is_deleting(&set.metadata)
            || planned.replicas == before
                && annotations == known
                && planned.min_ready_seconds.unwrap_or(0) == min_ready.unwrap_or(0)
        {
            return None;
        }
        let mut object = (**set).clone();
        object.metadata.annotations = Some(annotations);
        let spec = object.spec.get_or_insert_default();
        spec.replicas = Some(planned.replicas);
        spec.min_ready_seconds = planned.min_ready_seconds;
        let action = Action::Update {
            id: id_of(Kind::REPLICA_SET, &set.metadata),
            object: value(&object),
            subresource: None,
        };
        let direction = if planned.replicas > before { "up" } else { "down" };
        let message = format!(
            "Scaled {direction} replica set {} from {before} to {}",
            name(&set.metadata),
            planned.replicas
        );
        let about = regarding(Kind::DEPLOYMENT, &self.deployment.metadata);
        let done = (planned.replicas != before).then(|| normal(&about, "ScalingReplicaSet", message));
        Some(Step { action, given: None, done, failed: None })
    }

    fn note_sizes(&self, annotations: &mut BTreeMap<String, String>) {
        let (surge, _) = margins(self.spec);
        annotations.insert(revision::DESIRED_REPLICAS.to_owned(), self.wanted().to_string());
        annotations
            .insert(revision::MAX_REPLICAS.to_owned(), self.wanted().saturating_add(surge).to_string());
    }

    /// Adds the creation of the ReplicaSet of the current template, and tells of it in the Deployment's status.
    pub(super) fn create(&self, view: &View, replicas: i32, now: Timestamp, outcome: &mut Outcome) {
        let meta = &self.deployment.metadata;
        let space = namespace(meta);
        let collisions =
            self.deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
        // Whatever has the name is not ours, or it would have been found by its template.
        let chosen = (collisions..i32::MAX).find_map(|count| {
            let hash = template_hash(&self.spec.template, count);
            let chosen = format!("{}-{hash}", name(meta));
            view.replica_sets.get(space, &chosen).is_none().then_some((hash, chosen, count))
        });
        let Some((hash, chosen, collisions)) = chosen else { return };
        let mut template = self.spec.template.clone();
        let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
        labels.insert(TEMPLATE_HASH.to_owned(), hash.clone());
        let labels = labels.clone();
        let mut selector = self.spec.selector.clone();
        selector.match_labels.get_or_insert_default().insert(TEMPLATE_HASH.to_owned(), hash);
        let mut annotations = BTreeMap::new();
        revision::annotate(meta, &mut annotations, self.newest_old_revision(), true);
        self.note_sizes(&mut annotations);
        let set = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(chosen.clone()),
                namespace: Some(space.to_owned()),
                labels: Some(labels),
                annotations: Some(annotations),
                owner_references: Some(vec![controller_ref(Kind::DEPLOYMENT, meta)]),
                ..ObjectMeta::default()
            },
            spec: Some(ReplicaSetSpec {
                min_ready_seconds: self.spec.min_ready_seconds,
                replicas: Some(replicas),
                selector,
                template: Some(template),
            }),
            status: None,
        };
        let about = regarding(Kind::DEPLOYMENT, meta);
        let message = format!("Scaled up replica set {chosen} from 0 to {replicas}");
        outcome.steps.push(Step {
            action: Action::Create {
                id: ObjectId::new(Kind::REPLICA_SET, space, &chosen),
                object: value(&set),
            },
            given: None,
            done: (replicas > 0).then(|| normal(&about, "ScalingReplicaSet", message)),
            failed: Some(warning(
                &about,
                "ReplicaSetCreateError",
                format!("Failed to create new replica set \"{chosen}\""),
            )),
        });
        status::created(self, &chosen, collisions, now, outcome);
    }

    /// Adds the removal of the oldest ReplicaSets beyond the history that is kept.
    pub(super) fn clean_up(&self, outcome: &mut Outcome) {
        let kept = usize::try_from(self.spec.revision_history_limit.unwrap_or(HISTORY_DEFAULT)).unwrap_or(0);
        let mut old: Vec<&Planned> = self.old().filter(|set| !is_deleting(&set.set.metadata)).collect();
        old.sort_by_key(|set| revision::of(&set.set));
        let surplus = old.len().saturating_sub(kept);
        for planned in old.into_iter().take(surplus) {
            let meta = &planned.set.metadata;
            let status = planned.set.status.as_ref();
            let observed = status.and_then(|status| status.observed_generation).unwrap_or(0);
            if told(&planned.set).0 != 0 || planned.replicas != 0 || meta.generation.unwrap_or(0) > observed {
                continue;
            }
            outcome.push(Action::Delete {
                id: id_of(Kind::REPLICA_SET, meta),
                uid: uid(meta).to_owned(),
                resource_version: meta.resource_version.clone(),
                propagation: None,
                grace_seconds: None,
            });
        }
    }
}

fn order(meta: &ObjectMeta) -> (Timestamp, &str) {
    (created(meta), name(meta))
}

fn has_template(set: &ReplicaSet, template: &PodTemplateSpec) -> bool {
    set.spec.as_ref().and_then(|spec| spec.template.as_ref()).is_some_and(|own| bare(own) == bare(template))
}

/// A template without what a ReplicaSet adds to it, and without the empty maps that mean the same as none.
fn bare(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut bare = template.clone();
    let mut metadata = bare.metadata.take().unwrap_or_default();
    if let Some(labels) = &mut metadata.labels {
        labels.remove(TEMPLATE_HASH);
    }
    metadata.labels = metadata.labels.filter(|labels| !labels.is_empty());
    metadata.annotations = metadata.annotations.filter(|annotations| !annotations.is_empty());
    metadata.creation_timestamp = None;
    bare.metadata = Some(metadata);
    bare
}

fn template_hash(template: &PodTemplateSpec, collisions: i32) -> String {
    let text = value(&bare(template)).to_string();
    let mut parts = vec![text.as_bytes()];
    let count = collisions.to_be_bytes();
    if collisions > 0 {
        parts.push(&count);
    }
    hash::letters(hash::fnv(&parts), HASH_LETTERS)
}
