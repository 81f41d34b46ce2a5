//! Creating an object.

use lichen_api::managed;
use lichen_api::pod::defaults;
use lichen_api::{Resource, Status, names};
use lichen_store::{CommitError, Precondition, Revision, Txn};
use serde_json::{Value, json};

use crate::allocate::allocates;
use crate::error::from_commit;
use crate::metadata::{check_kind, clear_system_fields, decode, metadata_mut, set_namespace, text};
use crate::registry::{draft_of, key_of};
use crate::{Identity, Registry, WriteOptions, Written};

/// Times that a create is tried again when something that it depends on changed meanwhile.
const ATTEMPTS: usize = 8;

impl Registry {
    /// Creates an object.
    pub async fn create(
        &self,
        identity: &Identity,
        resource: &'static Resource,
        namespace: Option<&str>,
        object: Value,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        self.create_owned(identity, resource, namespace, object, None, options).await
    }

    /// Creates an object whose managedFields are known if `managers` is given.
    pub(crate) async fn create_owned(
        &self,
        identity: &Identity,
        resource: &'static Resource,
        namespace: Option<&str>,
        object: Value,
        managers: Option<&Value>,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        check_kind(resource, &object)?;
        let mut warnings = Vec::new();
        let mut object = decode(resource, object, options, &mut warnings)
            .map_err(|error| error.into_bad_request(resource))?;
        if !text(&object, "resourceVersion").is_empty() {
            return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
        }
        set_namespace(resource, &mut object, namespace)?;
        clear_system_fields(&mut object);

        let prefix = text(&object, "generateName").to_owned();
        let generated = text(&object, "name").is_empty() && !prefix.is_empty();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let mut object = object.clone();
            if generated {
                let name = names::generate(&prefix, &names::suffix(self.inner.sources.bits()));
                metadata_mut(&mut object).insert("name".to_owned(), json!(name));
            }
            let made = self.create_once(identity, resource, namespace, object, managers, options).await;
            match made {
                Ok(mut written) => {
                    written.warnings.splice(0..0, warnings);
                    return Ok(written);
                }
                // What it was refused for, or made on, may be what this member has yet to see.
                Err(Refused::Read(_)) if attempt == 1 => self.barrier().await?,
                Err(Refused::Retry(_)) if attempt < ATTEMPTS => self.barrier().await?,
                Err(Refused::Exists(_)) if generated && attempt < ATTEMPTS => {}
                Err(
                    Refused::Read(status)
                    | Refused::Retry(status)
                    | Refused::Exists(status)
                    | Refused::Final(status),
                ) => return Err(status),
            }
        }
    }

    async fn create_once(
        &self,
        identity: &Identity,
        resource: &'static Resource,
        namespace: Option<&str>,
        mut object: Value,
        managers: Option<&Value>,
        options: &WriteOptions,
    ) -> Result<Written, Refused> {
        let now = self.now();
        let metadata = metadata_mut(&mut object);
        metadata.insert("uid".to_owned(), json!(self.inner.sources.uid()));
        metadata.insert("creationTimestamp".to_owned(), json!(names::rfc3339(now)));
        // The client owns what it asked for and what that defaults to, but not what the server adds from here on.
        resource.strategy.default(&mut object);
        if let Some(managers) = managers {
            metadata_mut(&mut object).insert("managedFields".to_owned(), managers.clone());
        } else {
            let manager = options.field_manager.as_deref().unwrap_or_else(|| identity.default_manager());
            managed::update(resource, None, &mut object, manager, now, "");
        }
        if resource.kind == "Pod" && resource.group.is_empty() {
            defaults::tolerate(&mut object["spec"], self.patience);
        }
        resource.strategy.prepare_create(&mut object);
        let namespace_check = self.admit_create(resource, namespace, &mut object).map_err(Refused::Read)?;
        let name = text(&object, "name").to_owned();
        let _turn = match allocates(resource) {
            true => Some(self.inner.allocating.lock().await),
            false => None,
        };
        let (allocations, mut errors) = self.allocate(resource, &mut object, None);
        if errors.is_empty() {
            errors = resource.strategy.validate(&object);
        }
        if !errors.is_empty() {
            return Err(Refused::Read(Status::invalid(resource, &name, errors)));
        }
        let warnings = resource.strategy.warnings(&object);
        let key = key_of(resource, namespace, &name);
        let draft = draft_of(resource, &object);
        if options.dry_run {
            self.barrier().await.map_err(Refused::Final)?;
            if self.inner.store.get(&key).is_some() {
                return Err(Refused::Exists(Status::already_exists(resource, &name)));
            }
            let record = draft.at(Revision(0), Revision(0));
            return Ok(Written { record, warnings, created: true, changed: false });
        }
        let mut txn = Txn::new().fenced(options.fence).put(key, Precondition::Absent, draft.clone());
        if let Some((key, revision)) = namespace_check {
            txn = txn.check(key, Precondition::Revision(revision));
        }
        txn.ops.extend(allocations);
        match self.commit(txn).await {
            Ok(committed) => {
                let record = draft.at(committed.revision, committed.revision);
                Ok(Written { record, warnings, created: true, changed: true })
            }
            Err(CommitError::Conflict { index: 0, .. }) => {
                Err(Refused::Exists(Status::already_exists(resource, &name)))
            }
            Err(CommitError::Conflict { .. }) => Err(Refused::Retry(Status::stale(resource, &name))),
            Err(error) => Err(Refused::Final(from_commit(&error))),
        }
    }
}

/// Why a create did not happen.
enum Refused {
    /// The name is taken: another generated one may not be.
    Exists(Status),
    /// By what this member has read.
    Read(Status),
    /// The namespace or an allocation changed meanwhile.
    Retry(Status),
    /// It never will.
    Final(Status),
}
