//! Errors, as the OCI specification words them.

use hyper::{Method, Response, StatusCode};
use serde_json::json;

use super::reply::{Body, json_response};
use crate::repositories::{ManifestError, Selector};
use crate::upload::UploadError;
use crate::{BlobError, CopyError, ResolveError};

/// An error as the specification words it.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl Failure {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl ToString) -> Failure {
        Failure { status, code, message: message.to_string() }
    }

    pub(super) fn digest_invalid(message: impl ToString) -> Failure {
        Failure::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message)
    }

    pub(super) fn name_unknown(name: &str) -> Failure {
        Failure::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", format!("there is no repository {name}"))
    }

    pub(super) fn manifest_unknown(selector: &Selector) -> Failure {
        let what = match selector {
            Selector::Digest(digest) => digest.to_string(),
            Selector::Tag(tag) => tag.clone(),
        };
        Failure::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", format!("there is no manifest {what}"))
    }

    pub(super) fn upload_unknown() -> Failure {
        Failure::new(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "there is no such upload; start over")
    }

    pub(super) fn unsupported(method: &Method) -> Failure {
        let message = format!("{method} is not supported here");
        Failure::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message)
    }

    /// The disk failed: the caller learns that it did, the log learns how.
    fn internal(error: &(dyn std::error::Error + 'static)) -> Failure {
        tracing::error!(error, "the artifact store failed");
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", error)
    }

    pub(super) fn response(self) -> Response<Body> {
        let body = json!({ "errors": [{ "code": self.code, "message": self.message }] });
        json_response(self.status, "application/json", &body)
    }
}

impl From<BlobError> for Failure {
    fn from(e: BlobError) -> Failure {
        match e {
            BlobError::Unknown(_) => Failure::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", e),
            BlobError::Damaged { .. } | BlobError::Io { .. } => Failure::internal(&e),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Failure {
        Failure::internal(&e)
    }
}

impl From<ResolveError> for Failure {
    fn from(e: ResolveError) -> Failure {
        match e {
            ResolveError::Blob(e) => e.into(),
            e => Failure::internal(&e),
        }
    }
}

impl From<CopyError> for Failure {
    fn from(e: CopyError) -> Failure {
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", e)
    }
}

impl From<UploadError> for Failure {
    fn from(e: UploadError) -> Failure {
        match e {
            UploadError::TooLarge => Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", e),
            UploadError::Digest { .. } => Failure::digest_invalid(e),
            UploadError::Blob(e) => e.into(),
            UploadError::Io(_) => Failure::internal(&e),
        }
    }
}

impl From<ManifestError> for Failure {
    fn from(e: ManifestError) -> Failure {
        match e {
            ManifestError::Invalid(_) => Failure::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", e),
            ManifestError::Digest { .. } => Failure::digest_invalid(e),
            ManifestError::BlobUnknown(_) => {
                Failure::new(StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN", e)
            }
            ManifestError::Blob(e) => e.into(),
            ManifestError::Io(_) => Failure::internal(&e),
        }
    }
}
