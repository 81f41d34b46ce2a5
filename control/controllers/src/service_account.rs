//! Gives every namespace the ServiceAccount `default`.

use jiff::Timestamp;
use lichen_api::view::{Change, Kind, ObjectId, View};
use serde_json::json;

use crate::meta::is_deleting;
use crate::{Action, Interest, Outcome, Reconciler};

const NAME: &str = "default";

/// See the module.
pub(crate) struct ServiceAccountController;

impl Reconciler for ServiceAccountController {
    fn name(&self) -> &'static str {
        "service-account-controller"
    }

    fn interest(&self, _: &View, change: &Change) -> Vec<Interest> {
        let key = &change.id.key;
        let namespace = match change.id.kind {
            Kind::NAMESPACE if !change.is_removal() => &key.name,
            Kind::SERVICE_ACCOUNT if change.is_removal() && key.name == NAME => &key.namespace,
            _ => return Vec::new(),
        };
        vec![ObjectId::new(Kind::NAMESPACE, "", namespace).into()]
    }

    fn reconcile(&self, view: &View, id: &ObjectId, _: Timestamp) -> Outcome {
        let namespace = &id.key.name;
        let Some(object) = view.namespaces.by_key(&id.key) else { return Outcome::done() };
        if is_deleting(&object.metadata) || view.service_accounts.get(namespace, NAME).is_some() {
            return Outcome::done();
        }
        Outcome::of(Action::Create {
            id: ObjectId::new(Kind::SERVICE_ACCOUNT, namespace, NAME),
            object: json!({
                "apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": { "namespace": namespace, "name": NAME },
            }),
        })
    }
}
