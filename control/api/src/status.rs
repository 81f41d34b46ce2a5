//! `Status`: Kubernetes' own error object, and the one error type of the API layer.
//!
//! Every constructor yields the exact code, reason and message that clients of a Kubernetes API server know. A `Status` never carries a
//! secret: callers put only names, paths and rejected values into it.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::field::FieldError;
use crate::resource::Resource;

/// An API error as clients see it. It is small, so that `Result<T, Status>` stays cheap.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// The HTTP status code.
    pub code: u16,
    /// The machine-readable reason, `NotFound` for example. Empty where Kubernetes leaves it out.
    pub reason: &'static str,
    /// What a person reads.
    pub message: String,
    /// What the error is about, where there is something to say.
    pub details: Option<Box<Details>>,
}

/// What a [`Status`] is about.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    /// Name of the object.
    pub name: String,
    /// API group of the object; empty for the core group.
    pub group: String,
    /// The plural resource name, or the kind where Kubernetes puts the kind (`Invalid`).
    pub kind: String,
    /// Uid of the object that a conflict is about.
    pub uid: String,
    /// The single reasons.
    pub causes: Vec<Cause>,
    /// Seconds after which a client may try again; 0 = unsaid.
    pub retry_after_seconds: u32,
    /// A fresh continue token that comes with an expired one.
    pub continue_token: String,
}

/// One reason of a [`Status`].
#[derive(Clone, Debug, PartialEq)]
pub struct Cause {
    /// Machine-readable, `FieldValueInvalid` for example; empty where Kubernetes leaves it out.
    pub reason: String,
    /// What a person reads.
    pub message: String,
    /// JSON path of the field, or empty.
    pub field: String,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

impl Status {
    /// A status of any code and reason, without details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None }
    }

    fn about(mut self, resource: &Resource, name: &str) -> Self {
        let details = self.details_mut();
        details.name = name.to_owned();
        details.group = resource.group.to_owned();
        details.kind = resource.plural.to_owned();
        self
    }

    /// The details, made on first use.
    pub fn details_mut(&mut self) -> &mut Details {
        self.details.get_or_insert_with(Box::default)
    }

    /// The object does not exist.
    pub fn not_found(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", resource.qualified_plural());
        Self::new(404, "NotFound", message).about(resource, name)
    }

    /// The path names nothing that this server serves.
    pub fn unknown_path() -> Self {
        let mut status = Self::new(404, "NotFound", "the server could not find the requested resource");
        status.details = Some(Box::default());
        status
    }

    /// An object of that name exists already.
    pub fn already_exists(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", resource.qualified_plural());
        Self::new(409, "AlreadyExists", message).about(resource, name)
    }

    /// A conflict with the reason given in `why`.
    pub fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} \"{name}\": {why}", resource.qualified_plural());
        Self::new(409, "Conflict", message).about(resource, name)
    }

    /// The resourceVersion that the client sent is no longer the current one.
    pub fn stale(resource: &Resource, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// The object does not pass validation.
    pub fn invalid(resource: &Resource, name: &str, errors: Vec<FieldError>) -> Self {
        let kind = match resource.group {
            "" => resource.kind.to_owned(),
            group => format!("{}.{group}", resource.kind),
        };
        let mut texts: Vec<String> = Vec::with_capacity(errors.len());
        for error in &errors {
            let text = error.to_string();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let why = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let mut status = Self::new(422, "Invalid", format!("{kind} \"{name}\" is invalid: {why}"));
        let details = status.details_mut();
        details.name = name.to_owned();
        details.group = resource.group.to_owned();
        details.kind = resource.kind.to_owned();
        details.causes = errors
            .into_iter()
            .map(|error| Cause {
                reason: error.kind.reason().to_owned(),
                message: error.body(),
                field: error.field,
            })
            .collect();
        status
    }

    /// The request cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// A well-formed body that cannot be processed, a patch for example.
    pub fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(422, "Invalid", message)
    }

    /// No valid credentials came with the request.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// The identity may not do this to the object; `why` is what Kubernetes says after the colon.
    pub fn forbidden(resource: &Resource, name: &str, why: &str) -> Self {
        let message = match name {
            "" => format!("{} is forbidden: {why}", resource.qualified_plural()),
            name => format!("{} \"{name}\" is forbidden: {why}", resource.qualified_plural()),
        };
        Self::new(403, "Forbidden", message).about(resource, name)
    }

    /// The identity may not use a path that is no resource.
    pub fn forbidden_path(user: &str, verb: &str, path: &str) -> Self {
        let mut status =
            Self::new(403, "Forbidden", format!("forbidden: User \"{user}\" cannot {verb} path \"{path}\""));
        status.details = Some(Box::default());
        status
    }

    /// The verb does not exist on this resource.
    pub fn method_not_allowed() -> Self {
        let mut status = Self::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        );
        status.details = Some(Box::default());
        status
    }

    /// None of the media types that the client accepts can be served.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        Self::new(
            406,
            "NotAcceptable",
            format!("only the following media types are accepted: {}", accepted.join(", ")),
        )
    }

    /// The body's media type cannot be read.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        Self::new(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                accepted.join(", ")
            ),
        )
    }

    /// The requested revision left the history window.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// The continue token is too old; `fresh` continues from the present.
    pub fn continue_expired(fresh: &str) -> Self {
        let mut status = Self::new(
            410,
            "Expired",
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without the \
             continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with \
             the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the \
             first chunk was returned and now may show up in the list.",
        );
        status.details_mut().continue_token = fresh.to_owned();
        status
    }

    /// The revision asked for lies in the future.
    pub fn future_revision(asked: u64, current: u64) -> Self {
        let mut status = Self::new(
            504,
            "Timeout",
            format!("Timeout: Too large resource version: {asked}, current: {current}"),
        );
        let details = status.details_mut();
        details.retry_after_seconds = 1;
        details.causes.push(Cause {
            reason: "ResourceVersionTooLarge".to_owned(),
            message: "Too large resource version".to_owned(),
            field: String::new(),
        });
        status
    }

    /// The body is bigger than the server takes.
    pub fn too_large(limit_bytes: usize) -> Self {
        Self::entity_too_large(format!("limit is {limit_bytes}"))
    }

    /// The request asks for too much at once.
    pub fn entity_too_large(why: impl fmt::Display) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: {why}"))
    }

    /// Something in the server failed. The message names the failure, never data.
    pub fn internal(message: impl fmt::Display) -> Self {
        let mut status = Self::new(500, "InternalError", format!("Internal error occurred: {message}"));
        status.details_mut().causes.push(Cause {
            reason: String::new(),
            message: message.to_string(),
            field: String::new(),
        });
        status
    }

    /// The operation took too long; the client may try again.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(504, "Timeout", format!("Timeout: {}", message.into()))
    }

    /// The server cannot serve this now.
    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// Too many requests, or an eviction that a budget forbids for now.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let mut status = Self::new(429, "TooManyRequests", message);
        if retry_after_seconds > 0 {
            status.details_mut().retry_after_seconds = retry_after_seconds;
        }
        status
    }

    /// The answer to a successful delete of an object that is gone at once.
    pub fn deleted(resource: &Resource, name: &str, uid: &str) -> Value {
        let mut details = Map::new();
        details.insert("name".to_owned(), json!(name));
        if !resource.group.is_empty() {
            details.insert("group".to_owned(), json!(resource.group));
        }
        details.insert("kind".to_owned(), json!(resource.plural));
        details.insert("uid".to_owned(), json!(uid));
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
    }

    /// The object that goes over the wire.
    pub fn to_json(&self) -> Value {
        let mut metadata = Map::new();
        let mut object = Map::new();
        if let Some(details) = &self.details {
            if !details.continue_token.is_empty() {
                metadata.insert("continue".to_owned(), json!(details.continue_token));
            }
            let only_token = !details.continue_token.is_empty() && details.kind.is_empty();
            if !only_token {
                object.insert("details".to_owned(), details.to_json());
            }
        }
        object.insert("kind".to_owned(), json!("Status"));
        object.insert("apiVersion".to_owned(), json!("v1"));
        object.insert("metadata".to_owned(), Value::Object(metadata));
        object.insert("status".to_owned(), json!("Failure"));
        object.insert("message".to_owned(), json!(self.message));
        if !self.reason.is_empty() {
            object.insert("reason".to_owned(), json!(self.reason));
        }
        object.insert("code".to_owned(), json!(self.code));
        Value::Object(object)
    }
}

impl Details {
    fn to_json(&self) -> Value {
        let mut object = Map::new();
        let texts = [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)];
        for (key, text) in texts {
            if !text.is_empty() {
                object.insert(key.to_owned(), json!(text));
            }
        }
        if !self.causes.is_empty() {
            object.insert("causes".to_owned(), self.causes.iter().map(Cause::to_json).collect());
        }
        if self.retry_after_seconds > 0 {
            object.insert("retryAfterSeconds".to_owned(), json!(self.retry_after_seconds));
        }
        Value::Object(object)
    }
}

impl Cause {
    fn to_json(&self) -> Value {
        let mut object = Map::new();
        for (key, text) in [("reason", &self.reason), ("message", &self.message), ("field", &self.field)] {
            if !text.is_empty() {
                object.insert(key.to_owned(), json!(text));
            }
        }
        Value::Object(object)
    }
}
