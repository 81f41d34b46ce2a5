//! Changing an object: update, patch, and the loop that both share.

use lichen_api::{FieldError, Resource, Status, managed, patch};
use lichen_store::{CommitError, Draft, Key, Precondition, Record, Revision, Txn};
use serde_json::{Value, json};

use crate::allocate::{keep_allocated, release};
use crate::error::from_commit;
use crate::metadata::{
    Undecodable, check_kind, decode, finalizers, is_terminating, keep_system_fields, metadata_mut,
    set_namespace, text,
};
use crate::registry::{draft_of, key_of, object_of};
use crate::{Identity, Patch, Registry, WriteOptions, Written};

/// Times that a write is tried on a newer version of the object before the client is told of the conflict.
const ATTEMPTS: usize = 10;

/// What an attempt to write came to.
///
/// It is made on what this member knows, which may be behind the leader: what is written then carries preconditions, and
/// whatever else was decided is decided again after [`Registry::barrier`]. So a write that succeeds costs no read of the
/// leader's, and none is refused for what is no longer true.
pub(crate) enum Outcome<T> {
    /// The store has decided.
    Stored(Result<T, Status>),
    /// It was decided by what this member has read.
    Read(Result<T, Status>),
    /// What the attempt was made on has changed.
    Conflict,
}

/// What a change is about.
pub(crate) struct Target<'a> {
    pub(crate) identity: &'a Identity,
    pub(crate) resource: &'static Resource,
    pub(crate) namespace: Option<&'a str>,
    pub(crate) name: &'a str,
    pub(crate) sub: Option<&'a str>,
    /// Whether the new object comes with its managedFields, as an applied one does.
    pub(crate) applies: bool,
    pub(crate) options: &'a WriteOptions,
}

impl Registry {
    /// Replaces an object, or one of its subresources (`status`, `finalize`).
    ///
    /// With a resourceVersion in the object it is replaced at that version only; without, whatever it is now.
    #[allow(clippy::too_many_arguments, reason = "each is one part of the request")]
    pub async fn update(
        &self,
        identity: &Identity,
        resource: &'static Resource,
        namespace: Option<&str>,
        name: &str,
        object: Value,
        sub: Option<&str>,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        check_kind(resource, &object)?;
        let mut warnings = Vec::new();
        let mut object = decode(resource, object, options, &mut warnings)
            .map_err(|error| error.into_bad_request(resource))?;
        match text(&object, "name") {
            "" => {
                return Err(Status::bad_request(format!(
                    "the name of the object ({name}) must be given in the object"
                )));
            }
            own if own != name => {
                return Err(Status::bad_request(format!(
                    "the name of the object ({own}) does not match the name on the URL ({name})"
                )));
            }
            _ => {}
        }
        set_namespace(resource, &mut object, namespace)?;
        let versioned = !text(&object, "resourceVersion").is_empty();
        if resource.create_on_update
            && sub.is_none()
            && matches!(self.get(resource, namespace, name).await, Err(status) if status.code == 404)
        {
            if versioned {
                return Err(Status::not_found(resource, name));
            }
            return self.create(identity, resource, namespace, object, options).await;
        }
        if !versioned && resource.update_needs_version {
            return Err(unversioned(resource, name));
        }
        let target = Target { identity, resource, namespace, name, sub, applies: false, options };
        let mut written = self
            .modify(&target, |old, _| {
                let (asked, own) = (text(&object, "uid"), text(old, "uid"));
                if !asked.is_empty() && asked != own {
                    let why = format!(
                        "Precondition failed: UID in precondition: {asked}, UID in object meta: {own}"
                    );
                    return Err(Status::conflict(resource, name, &why));
                }
                Ok(object.clone())
            })
            .await?;
        written.warnings.splice(0..0, warnings);
        Ok(written)
    }

    /// Patches an object, or its `status`. Tried anew when the object changes meanwhile, unless the patch itself names
    /// a resourceVersion.
    #[allow(clippy::too_many_arguments, reason = "each is one part of the request")]
    pub async fn patch(
        &self,
        identity: &Identity,
        resource: &'static Resource,
        namespace: Option<&str>,
        name: &str,
        patch: &Patch,
        sub: Option<&str>,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        let target = Target { identity, resource, namespace, name, sub, applies: false, options };
        self.modify(&target, |old, warnings| {
            let patched = apply(patch, old, resource)?;
            check_kind(resource, &patched)?;
            let mut object = decode(resource, patched, options, warnings)
                .map_err(|error| error.into_bad_patch(&patch_text(patch)))?;
            set_namespace(resource, &mut object, namespace)?;
            if text(&object, "name") != name {
                return Err(Status::bad_request(format!(
                    "the name of the object ({}) does not match the name on the URL ({name})",
                    text(&object, "name")
                )));
            }
            Ok(object)
        })
        .await
    }

    /// Reads, changes and writes until nobody else wrote in between. `change` gets the object as it is and yields it
    /// as it shall be; a resourceVersion in it that is not the current one is a conflict.
    pub(crate) async fn modify(
        &self,
        target: &Target<'_>,
        mut change: impl FnMut(&Value, &mut Vec<String>) -> Result<Value, Status>,
    ) -> Result<Written, Status> {
        let Target { resource, name, .. } = *target;
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.modify_once(target, &mut change).await {
                Outcome::Stored(outcome) => return outcome,
                Outcome::Read(outcome) if attempt > 1 => return outcome,
                Outcome::Conflict if attempt >= ATTEMPTS => return Err(Status::stale(resource, name)),
                Outcome::Read(_) | Outcome::Conflict => self.barrier().await?,
            }
        }
    }

    async fn modify_once(
        &self,
        target: &Target<'_>,
        change: &mut impl FnMut(&Value, &mut Vec<String>) -> Result<Value, Status>,
    ) -> Outcome<Written> {
        let Target { resource, namespace, name, .. } = *target;
        let key = key_of(resource, namespace, name);
        let (record, prepared, mut warnings) = match self.changed(target, &key, change) {
            Ok(changed) => changed,
            Err(status) => return Outcome::Read(Err(status)),
        };
        let (draft, gone, mut txn) = match prepared {
            Prepared::Same => {
                return Outcome::Read(Ok(Written { record, warnings, created: false, changed: false }));
            }
            Prepared::Put(draft, object, ops) => {
                warnings.extend(resource.strategy.warnings(&object));
                (draft, false, Txn { ops, fence: None })
            }
            Prepared::Delete(draft, ops) => (draft, true, Txn { ops, fence: None }),
        };
        if target.options.dry_run {
            let record = draft.at(record.revision(), record.created());
            return Outcome::Read(Ok(Written { record, warnings, created: false, changed: false }));
        }
        let pre = Precondition::Revision(record.revision());
        let write = if gone { Txn::new().delete(key, pre) } else { Txn::new().put(key, pre, draft.clone()) };
        txn.ops.splice(0..0, write.ops);
        if let Some((other, revision)) = target.options.only_while.clone() {
            txn = txn.check(other, Precondition::Revision(revision));
        }
        match self.commit(txn.fenced(target.options.fence)).await {
            Ok(committed) => {
                let record = draft.at(committed.revision, record.created());
                Outcome::Stored(Ok(Written { record, warnings, created: false, changed: true }))
            }
            Err(CommitError::Conflict { .. }) => Outcome::Conflict,
            Err(error) => Outcome::Stored(Err(from_commit(&error))),
        }
    }

    /// The object as this member has it, and what the change makes of it.
    fn changed(
        &self,
        target: &Target<'_>,
        key: &Key,
        change: &mut impl FnMut(&Value, &mut Vec<String>) -> Result<Value, Status>,
    ) -> Result<(Record, Prepared, Vec<String>), Status> {
        let Target { resource, name, .. } = *target;
        let record = self.inner.store.get(key).ok_or_else(|| Status::not_found(resource, name))?;
        if let Some((other, revision)) = &target.options.only_while
            && self.inner.store.get(other).map(|other| other.revision()) != Some(*revision)
        {
            let why = format!("{} has been modified since", other.as_str());
            return Err(Status::conflict(resource, name, &why));
        }
        let old = object_of(resource, &record)?;
        let mut warnings = Vec::new();
        let new = change(&old, &mut warnings)?;
        let asked = text(&new, "resourceVersion");
        if !asked.is_empty() {
            let asked: u64 = asked
                .parse()
                .map_err(|_| Status::bad_request(format!("resourceVersion: Invalid value: \"{asked}\"")))?;
            // 0 is how clients say that they do not care.
            if asked != 0 && Revision(asked) != record.revision() {
                return Err(Status::stale(resource, name));
            }
        }
        let prepared = self.prepare(target, &record, &old, new)?;
        Ok((record, prepared, warnings))
    }

    /// Turns what a client wants into what is written.
    fn prepare(
        &self,
        target: &Target<'_>,
        record: &Record,
        old: &Value,
        mut new: Value,
    ) -> Result<Prepared, Status> {
        let Target { resource, name, sub, applies, .. } = *target;
        if sub == Some("finalize") {
            let asked = new["spec"]["finalizers"].take();
            new = old.clone();
            new["spec"]["finalizers"] = asked;
        }
        new["metadata"]["resourceVersion"] = json!(record.revision().to_string());
        keep_system_fields(&mut new, old);
        let mut errors = Vec::new();
        // A binding and a finalization were made from the old object by this crate itself: rules about what a client
        // may change do not apply.
        if !matches!(sub, Some("binding" | "finalize")) {
            resource.strategy.prepare_update(&mut new, old, sub);
            keep_allocated(resource, &mut new, old);
            resource.strategy.default(&mut new);
            errors = resource.strategy.validate_update(&new, old, sub);
        }
        if is_terminating(old) {
            errors.extend(added_finalizers(&new, old));
        }
        if !errors.is_empty() {
            return Err(Status::invalid(resource, name, errors));
        }
        let (ops, errors) = self.allocate(resource, &mut new, Some(old));
        if !errors.is_empty() {
            return Err(Status::invalid(resource, name, errors));
        }
        if new == *old || (applies && only_times_differ(&mut new, old)) {
            return Ok(Prepared::Same);
        }
        if is_terminating(&new) && may_go(resource, &new) {
            let draft = draft_of(resource, &new);
            return Ok(Prepared::Delete(draft, release(resource, old)));
        }
        if !applies {
            let manager =
                target.options.field_manager.as_deref().unwrap_or_else(|| target.identity.default_manager());
            managed::update(resource, Some(old), &mut new, manager, self.now(), sub.unwrap_or_default());
        }
        let draft = draft_of(resource, &new);
        Ok(Prepared::Put(draft, new, ops))
    }
}

/// Whether an applied object is what it was, managers included, but for when they applied.
fn only_times_differ(new: &mut Value, old: &Value) -> bool {
    if !managed::same_owners(new, old) {
        return false;
    }
    let field = "managedFields";
    let managers = metadata_mut(new).remove(field);
    let mut before = old.clone();
    metadata_mut(&mut before).remove(field);
    let same = *new == before;
    if let Some(managers) = managers {
        metadata_mut(new).insert(field.to_owned(), managers);
    }
    same
}

/// The refusal of an update that has to say which version it is about. It names the resource where others name the
/// kind, as Kubernetes' own does.
fn unversioned(resource: &Resource, name: &str) -> Status {
    let error = FieldError::invalid("metadata.resourceVersion", 0, "must be specified for an update");
    let message = format!("{} \"{name}\" is invalid: {error}", resource.qualified_plural());
    let mut status = Status::invalid(resource, name, vec![error]);
    status.message = message;
    status.details_mut().kind = resource.plural.to_owned();
    status
}

/// What a change comes to.
enum Prepared {
    /// Nothing changes.
    Same,
    Put(Draft, Value, Vec<lichen_store::Op>),
    /// The last finalizer of a terminating object is gone, and so is the object.
    Delete(Draft, Vec<lichen_store::Op>),
}

/// Whether nothing holds a terminating object back any more.
pub(crate) fn may_go(resource: &Resource, object: &Value) -> bool {
    let waits = match (resource.group, resource.kind) {
        ("", "Namespace") => object["spec"]["finalizers"].as_array().is_some_and(|list| !list.is_empty()),
        // A pod ends when its node says so.
        ("", "Pod") => {
            object["metadata"]["deletionGracePeriodSeconds"].as_i64().is_some_and(|grace| grace != 0)
        }
        _ => false,
    };
    !waits && finalizers(object).is_empty()
}

fn added_finalizers(new: &Value, old: &Value) -> Option<FieldError> {
    let old = finalizers(old);
    let added: Vec<String> = finalizers(new)
        .into_iter()
        .filter(|name| !old.contains(name))
        .map(|name| format!("\"{name}\""))
        .collect();
    (!added.is_empty()).then(|| {
        let list = added.join(", ");
        FieldError::forbidden(
            "metadata.finalizers",
            format!("no new finalizers can be added if the object is being deleted, found new finalizers []string{{{list}}}"),
        )
    })
}

fn apply(patch: &Patch, old: &Value, resource: &Resource) -> Result<Value, Status> {
    let mut object = old.clone();
    let applied = match patch {
        Patch::Merge(value) => patch::merge(&mut object, value),
        Patch::Strategic(value) => patch::strategic(&mut object, value, resource),
        Patch::Json(value) => patch::json(&mut object, value),
    };
    match applied {
        Ok(()) => Ok(object),
        // A document that does not fit the object is told as a fault of the patch; an operation that fails is not.
        Err(status) if status.code == 422 && !matches!(patch, Patch::Json(_)) && status.details.is_none() => {
            Err(Undecodable::Shape(status.message).into_bad_patch(&patch_text(patch)))
        }
        Err(status) => Err(status),
    }
}

fn patch_text(patch: &Patch) -> String {
    let (Patch::Merge(value) | Patch::Strategic(value) | Patch::Json(value)) = patch;
    value.to_string()
}
