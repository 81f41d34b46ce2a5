//! What the store's refusals mean to a client.

use lichen_api::{Resource, Status};
use lichen_store::CommitError;

/// A refusal that is about the store, not about one object.
pub(crate) fn from_commit(error: &CommitError) -> Status {
    match error {
        CommitError::Fenced { .. } => Status::new(409, "Conflict", "the writer no longer leads"),
        CommitError::TooLarge { bytes, ops } => Status::new(
            413,
            "RequestEntityTooLarge",
            format!("the write is too large: {bytes} bytes in {ops} operations"),
        ),
        CommitError::NotLeader { .. } | CommitError::Unavailable(_) => {
            Status::service_unavailable(error.to_string())
        }
        // Kubernetes' word for a request that may have happened. A store that closes may do so over a write.
        CommitError::Unknown | CommitError::Stalled(_) | CommitError::Closed(_) => {
            Status::new(504, "Timeout", error.to_string())
        }
        CommitError::Conflict { .. } | CommitError::Repeated { .. } | CommitError::Membership(_) => {
            Status::internal(error)
        }
    }
}

/// A stored object that cannot be parsed: the store's checksums make that a bug, not an accident.
pub(crate) fn unreadable(resource: &Resource, name: &str, error: &serde_json::Error) -> Status {
    // The error's text could quote the object, which could be a Secret.
    tracing::error!(
        resource = resource.plural,
        name,
        line = error.line(),
        "a stored object cannot be parsed"
    );
    Status::internal(format!("the stored object {} \"{name}\" cannot be parsed", resource.qualified_plural()))
}

#[cfg(test)]
mod tests {
    use lichen_store::Term;

    use super::*;

    #[test]
    fn what_may_have_happened_is_told_as_such() {
        let check = |error: CommitError, code: u16| assert_eq!(from_commit(&error).code, code, "{error:?}");
        check(CommitError::Unknown, 504);
        check(CommitError::Stalled("the disk is slow".into()), 504);
        check(CommitError::Closed("it is shut down".into()), 504);
        check(CommitError::NotLeader { leader: None }, 503);
        check(CommitError::Unavailable("the disk is full".into()), 503);
        check(CommitError::Fenced { term: Term(1) }, 409);
    }
}
