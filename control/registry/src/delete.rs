//! Deleting an object, at once or when what holds it back is gone.

use jiff::SignedDuration;
use lichen_api::{Resource, Status, names};
use lichen_store::{CommitError, Precondition, Record, Revision, Txn};
use serde_json::{Value, json};

use crate::allocate::release;
use crate::error::from_commit;
use crate::metadata::{finalizers, is_terminating, metadata_mut};
use crate::modify::{Outcome, may_go};
use crate::registry::{draft_of, key_of, name_of, namespace_of, object_of};
use crate::{DeleteOptions, Deleted, Filter, Identity, List, ListOptions, Propagation, Registry};

/// Times that a deletion is tried on a newer version of the object.
const ATTEMPTS: usize = 10;
/// Namespaces that the cluster cannot be without.
const IMMORTAL_NAMESPACES: [&str; 3] = ["default", "kube-system", "kube-public"];
/// Seconds that a pod gets to end when neither it nor the deletion says so.
const DEFAULT_GRACE_SECONDS: i64 = 30;
/// The finalizer of an object whose dependents go first.
const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of an object whose dependents stay.
const ORPHAN: &str = "orphan";

impl Registry {
    /// Deletes an object, or marks it so that it goes when its node and its finalizers allow.
    pub async fn delete(
        &self,
        identity: &Identity,
        resource: &'static Resource,
        namespace: Option<&str>,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.delete_once(resource, namespace, name, options).await {
                Outcome::Stored(outcome) => {
                    if let Ok(Deleted { gone, .. }) = &outcome {
                        tracing::debug!(
                            resource = resource.plural,
                            name,
                            user = identity.user,
                            gone,
                            "deleted"
                        );
                    }
                    return outcome;
                }
                Outcome::Read(outcome) if attempt > 1 => return outcome,
                Outcome::Conflict if attempt >= ATTEMPTS => return Err(Status::stale(resource, name)),
                Outcome::Read(_) | Outcome::Conflict => self.barrier().await?,
            }
        }
    }

    async fn delete_once(
        &self,
        resource: &'static Resource,
        namespace: Option<&str>,
        name: &str,
        options: &DeleteOptions,
    ) -> Outcome<Deleted> {
        let key = key_of(resource, namespace, name);
        let found = || {
            let record = self.inner.store.get(&key).ok_or_else(|| Status::not_found(resource, name))?;
            check(resource, name, &record, options)?;
            let old = object_of(resource, &record)?;
            Ok((record, old))
        };
        let (record, old) = match found() {
            Ok(found) => found,
            Err(status) => return Outcome::Read(Err(status)),
        };
        let pre = Precondition::Revision(record.revision());
        let mut txn = Txn::new().fenced(options.fence);
        let (draft, gone) = match self.end_of(resource, &old, options) {
            End::Waiting => return Outcome::Read(Ok(Deleted { record, gone: false })),
            End::Marked(object) => {
                let draft = draft_of(resource, &object);
                txn = txn.put(key.clone(), pre, draft.clone());
                (draft, false)
            }
            End::Now => {
                txn = txn.delete(key.clone(), pre);
                txn.ops.extend(release(resource, &old));
                (record.draft().clone(), true)
            }
        };
        if options.dry_run {
            return Outcome::Read(Ok(Deleted {
                record: draft.at(record.revision(), record.created()),
                gone,
            }));
        }
        match self.commit(txn).await {
            Ok(committed) => {
                Outcome::Stored(Ok(Deleted { record: draft.at(committed.revision, record.created()), gone }))
            }
            Err(CommitError::Conflict { .. }) => Outcome::Conflict,
            Err(error) => Outcome::Stored(Err(from_commit(&error))),
        }
    }

    /// Deletes every object that a filter selects. One that goes meanwhile by itself is no error.
    pub async fn delete_collection(
        &self,
        identity: &Identity,
        resource: &'static Resource,
        namespace: Option<&str>,
        filter: &Filter,
        options: &DeleteOptions,
    ) -> Result<List, Status> {
        let list = ListOptions { filter: filter.clone(), ..ListOptions::default() };
        let mut all = self.list(resource, namespace, &list).await?;
        for record in &mut all.items {
            match self.delete(identity, resource, namespace_of(record), name_of(record), options).await {
                Ok(deleted) => *record = deleted.record,
                Err(status) if status.code == 404 => {}
                Err(status) => return Err(status),
            }
        }
        Ok(all)
    }

    /// What a deletion makes of an object.
    fn end_of(&self, resource: &Resource, old: &Value, options: &DeleteOptions) -> End {
        let now = self.now();
        let mut new = old.clone();
        set_finalizers(&mut new, options.propagation);
        let grace = grace_seconds(resource, old, options);
        if is_terminating(old) {
            let left = old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
            if grace.is_some_and(|grace| grace < left) {
                mark(&mut new, now, grace);
            }
        } else {
            if (resource.group, resource.kind) == ("", "Namespace") {
                new["status"]["phase"] = json!("Terminating");
                mark(&mut new, now, None);
            } else {
                mark(&mut new, now, Some(grace.unwrap_or(0)));
            }
            if let Some(generation) =
                new["metadata"]["generation"].as_i64().filter(|generation| *generation > 0)
            {
                new["metadata"]["generation"] = json!(generation + 1);
            }
        }
        if may_go(resource, &new) {
            End::Now
        } else if new == *old {
            End::Waiting
        } else {
            End::Marked(new)
        }
    }
}

/// What a deletion comes to.
enum End {
    /// The object goes at once.
    Now,
    /// It stays, with its end written on it.
    Marked(Value),
    /// It waits already, and nothing changes that.
    Waiting,
}

fn mark(object: &mut Value, now: jiff::Timestamp, grace: Option<i64>) {
    let at = now.checked_add(SignedDuration::from_secs(grace.unwrap_or(0))).unwrap_or(now);
    let metadata = metadata_mut(object);
    metadata.insert("deletionTimestamp".to_owned(), json!(names::rfc3339(at)));
    if let Some(grace) = grace {
        metadata.insert("deletionGracePeriodSeconds".to_owned(), json!(grace));
    }
}

/// Seconds until the end; `None` for what has no such time.
fn grace_seconds(resource: &Resource, old: &Value, options: &DeleteOptions) -> Option<i64> {
    if (resource.group, resource.kind) != ("", "Pod") {
        return None;
    }
    let spec = &old["spec"];
    let bound = spec["nodeName"].as_str().is_some_and(|node| !node.is_empty());
    let over = matches!(old["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if !bound || over {
        return Some(0);
    }
    let grace = match options.grace_seconds {
        Some(grace) => grace,
        // A second deletion that names no time changes none.
        None if is_terminating(old) => return old["metadata"]["deletionGracePeriodSeconds"].as_i64(),
        None => spec["terminationGracePeriodSeconds"].as_i64().unwrap_or(DEFAULT_GRACE_SECONDS),
    };
    Some(if grace < 0 { 1 } else { grace })
}

fn set_finalizers(object: &mut Value, propagation: Option<Propagation>) {
    let wanted = match propagation {
        None => return,
        Some(Propagation::Background) => None,
        Some(Propagation::Foreground) => Some(FOREGROUND),
        Some(Propagation::Orphan) => Some(ORPHAN),
    };
    let kept = finalizers(object).into_iter().filter(|name| ![FOREGROUND, ORPHAN].contains(name));
    let list: Vec<&str> = kept.chain(wanted).collect();
    let list = (!list.is_empty()).then(|| json!(list));
    let metadata = metadata_mut(object);
    match list {
        Some(list) => metadata.insert("finalizers".to_owned(), list),
        None => metadata.remove("finalizers"),
    };
}

fn check(resource: &Resource, name: &str, record: &Record, options: &DeleteOptions) -> Result<(), Status> {
    if (resource.group, resource.kind) == ("", "Namespace") && IMMORTAL_NAMESPACES.contains(&name) {
        return Err(Status::forbidden(resource, name, "this namespace may not be deleted"));
    }
    let refuse = |why: String| {
        let kind = resource.kind;
        let message = format!("Operation cannot be fulfilled on {kind} \"{name}\": {why}");
        let mut status = Status::new(409, "Conflict", message);
        let details = status.details_mut();
        details.name = name.to_owned();
        details.group = resource.group.to_owned();
        details.kind = kind.to_owned();
        Err(status)
    };
    if let Some(uid) = options.uid.as_deref().filter(|uid| *uid != record.uid()) {
        return refuse(format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been \
             deleted and then recreated",
            record.uid()
        ));
    }
    let current: Revision = record.revision();
    if let Some(revision) = options.revision.filter(|revision| *revision != current) {
        return refuse(format!(
            "the ResourceVersion in the precondition ({revision}) does not match the ResourceVersion in record \
             ({current}). The object might have been modified"
        ));
    }
    Ok(())
}
