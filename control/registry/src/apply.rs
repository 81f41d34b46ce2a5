//! Server-side apply: creates the object, or changes what the manager wants of it.

use lichen_api::apply::{self, Applier, Config};
use lichen_api::{Resource, Status};

use crate::metadata::{decode, set_namespace, text};
use crate::modify::Target;
use crate::registry::key_of;
use crate::{Configuration, FieldValidation, Identity, Registry, WriteOptions, Written};

/// Times that an object may come or go between the look at it and the write.
const ATTEMPTS: usize = 5;

impl Registry {
    /// Applies a configuration to an object, or to its `status`; an object that is not there is created.
    ///
    /// The manager is [`WriteOptions::field_manager`]. Fields that the kind does not know are refused, whatever the options say.
    #[allow(clippy::too_many_arguments, reason = "each is one part of the request")]
    pub async fn apply(
        &self,
        identity: &Identity,
        resource: &'static Resource,
        namespace: Option<&str>,
        name: &str,
        configuration: &Configuration,
        sub: Option<&str>,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        let warnings = duplicates(options)?;
        // The reader of the configuration has judged its fields; the object it becomes has no others.
        let options = WriteOptions {
            field_validation: FieldValidation::Ignore,
            duplicate_fields: Vec::new(),
            ..options.clone()
        };
        let subresource = sub.unwrap_or_default();
        let config = Config::read(resource, name, subresource, configuration.value.clone())?;
        let by = Applier {
            manager: options.field_manager.as_deref().unwrap_or_else(|| identity.default_manager()),
            force: configuration.force,
            subresource,
            now: self.now(),
        };
        let target = Target { identity, resource, namespace, name, sub, applies: true, options: &options };
        let mut attempt = 0;
        let mut written = loop {
            attempt += 1;
            self.barrier().await?;
            let absent = sub.is_none() && self.inner.store.get(&key_of(resource, namespace, name)).is_none();
            let done = if absent {
                self.create_applied(&target, &config, &by).await
            } else {
                self.modify(&target, |old, warnings| {
                    let merged = apply::apply(resource, Some(old), &config, &by)?;
                    let mut object = decode(resource, merged, &options, warnings)
                        .map_err(|error| error.into_bad_request(resource))?;
                    set_namespace(resource, &mut object, namespace)?;
                    Ok(object)
                })
                .await
            };
            match done {
                Ok(written) => break written,
                // It went, or somebody else made it, since it was looked for.
                Err(status)
                    if attempt < ATTEMPTS
                        && sub.is_none()
                        && status.reason == if absent { "AlreadyExists" } else { "NotFound" } => {}
                Err(status) => return Err(status),
            }
        };
        written.warnings.splice(0..0, warnings);
        Ok(written)
    }

    async fn create_applied(
        &self,
        target: &Target<'_>,
        config: &Config,
        by: &Applier<'_>,
    ) -> Result<Written, Status> {
        let Target { identity, resource, namespace, name, options, .. } = *target;
        let uid = text(config.value(), "uid");
        if !uid.is_empty() {
            let why = format!(
                "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            );
            return Err(Status::conflict(resource, name, &why));
        }
        if !text(config.value(), "resourceVersion").is_empty() {
            return Err(Status::not_found(resource, name));
        }
        if text(config.value(), "name").is_empty() {
            return Err(Status::bad_request(
                "the name of the object (based on URL) was undeterminable: name must be provided",
            ));
        }
        let object = apply::apply(resource, None, config, by)?;
        let managers = object["metadata"]["managedFields"].clone();
        self.create_owned(identity, resource, namespace, object, Some(&managers), options).await
    }
}

/// Refuses fields that were given twice, or warns of them, as the options say.
fn duplicates(options: &WriteOptions) -> Result<Vec<String>, Status> {
    let all: Vec<String> =
        options.duplicate_fields.iter().map(|path| format!("duplicate field \"{path}\"")).collect();
    match options.field_validation {
        FieldValidation::Strict if !all.is_empty() => {
            Err(Status::bad_request(format!("error strict decoding YAML: {}", all.join(", "))))
        }
        FieldValidation::Warn => Ok(all),
        FieldValidation::Strict | FieldValidation::Ignore => Ok(Vec::new()),
    }
}
