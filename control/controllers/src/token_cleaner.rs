//! Removes bootstrap tokens that have expired, so that what no longer lets anyone in does not lie about.

use std::time::Duration;

use jiff::Timestamp;
use lichen_api::kinds::secret::BOOTSTRAP_TOKEN_NAMESPACE;
use lichen_api::view::{Change, Object, ObjectId, View};

use crate::meta::is_deleting;
use crate::{Action, Interest, Outcome, Reconciler};

/// See the module.
pub(crate) struct TokenCleaner;

impl Reconciler for TokenCleaner {
    fn name(&self) -> &'static str {
        "token-cleaner"
    }

    fn interest(&self, _: &View, change: &Change) -> Vec<Interest> {
        match change.new.as_ref().and_then(end_of_token) {
            Some(_) => vec![change.id.clone().into()],
            None => Vec::new(),
        }
    }

    fn reconcile(&self, view: &View, id: &ObjectId, now: Timestamp) -> Outcome {
        let Some(secret) = view.get(id).filter(|secret| !is_deleting(secret.metadata())) else {
            return Outcome::done();
        };
        let Some(expires) = end_of_token(&secret) else { return Outcome::done() };
        let left = Duration::try_from(expires.duration_since(now)).unwrap_or_default();
        if !left.is_zero() {
            let mut outcome = Outcome::done();
            outcome.requeue(left);
            return outcome;
        }
        // Its end may have been put off meanwhile, so only what was looked at goes.
        Outcome::of(Action::Delete {
            id: id.clone(),
            uid: secret.uid().to_owned(),
            resource_version: secret.metadata().resource_version.clone(),
            propagation: None,
            grace_seconds: None,
        })
    }
}

/// When a token ends; none for what is no token, or has no end.
fn end_of_token(object: &Object) -> Option<Timestamp> {
    let Object::Other(secret) = object else { return None };
    let counts = secret.metadata.namespace.as_deref() == Some(BOOTSTRAP_TOKEN_NAMESPACE);
    secret.expires.filter(|_| counts)
}
