//! Empties a namespace that is being deleted, then lets it go.
//!
//! Pods go first, so that nothing they need disappears under them; everything else goes when the last pod is gone.

use jiff::Timestamp;
use lichen_api::k8s::api::core::v1::Namespace;
use lichen_api::view::{Change, Kind, Object, ObjectId, View};

use crate::meta::{is_deleting, value};
use crate::{Action, Interest, Outcome, Propagation, Reconciler};

/// The finalizer, in `spec.finalizers`, by which a namespace waits for this controller.
const FINALIZER: &str = "kubernetes";

/// See the module.
pub(crate) struct NamespaceController;

impl Reconciler for NamespaceController {
    fn name(&self) -> &'static str {
        "namespace-controller"
    }

    fn interest(&self, view: &View, change: &Change) -> Vec<Interest> {
        if change.id.kind == Kind::NAMESPACE {
            let ends = |object: &Object| is_deleting(object.metadata());
            return change
                .new
                .as_ref()
                .filter(|o| ends(o))
                .map(|_| change.id.clone().into())
                .into_iter()
                .collect();
        }
        // What goes may be the last of a namespace; what comes while it ends has to go too.
        let namespace = &change.id.key.namespace;
        let ends = view.namespaces.get("", namespace).is_some_and(|object| is_deleting(&object.metadata));
        let counts = change.is_removal() || change.old.is_none();
        if ends && counts { vec![ObjectId::new(Kind::NAMESPACE, "", namespace).into()] } else { Vec::new() }
    }

    fn reconcile(&self, view: &View, id: &ObjectId, _: Timestamp) -> Outcome {
        let Some(namespace) = view.namespaces.by_key(&id.key) else { return Outcome::done() };
        if !is_deleting(&namespace.metadata) || !finalizers(namespace).any(|f| f == FINALIZER) {
            return Outcome::done();
        }
        let mut outcome = Outcome::done();
        if namespace.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Terminating") {
            let mut object = (**namespace).clone();
            object.status.get_or_insert_default().phase = Some("Terminating".to_owned());
            outcome.push(Action::Update {
                id: id.clone(),
                object: value(&object),
                subresource: Some("status"),
            });
            return outcome;
        }
        let content = view.in_namespace(&id.key.name);
        if content.is_empty() {
            let mut object = (**namespace).clone();
            let kept: Vec<String> = finalizers(namespace).filter(|f| *f != FINALIZER).cloned().collect();
            object.spec.get_or_insert_default().finalizers = Some(kept);
            outcome.push(Action::Update {
                id: id.clone(),
                object: value(&object),
                subresource: Some("finalize"),
            });
            return outcome;
        }
        let pods_remain = content.iter().any(|object| object.kind() == Kind::POD);
        for object in content {
            let waits = pods_remain && object.kind() != Kind::POD;
            if !waits && !is_deleting(object.metadata()) {
                outcome.push(Action::Delete {
                    id: object.id(),
                    uid: object.uid().to_owned(),
                    resource_version: None,
                    propagation: Some(Propagation::Background),
                    grace_seconds: None,
                });
            }
        }
        outcome
    }
}

fn finalizers(namespace: &Namespace) -> impl Iterator<Item = &String> {
    namespace.spec.iter().flat_map(|spec| spec.finalizers.iter().flatten())
}
