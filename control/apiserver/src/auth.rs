//! Who asks, by TLS client certificate, and whether they may.

use hyper::header::{AUTHORIZATION, HeaderMap};
use lichen_api::kinds::review;
use lichen_api::{Resource, Status};
use lichen_registry::Identity;
use rustls::pki_types::CertificateDer;

use crate::path::{Path, Target};

/// The user that a request without credentials is.
const ANONYMOUS: &str = "system:anonymous";
/// The group of everybody who has credentials.
pub(crate) const AUTHENTICATED_GROUP: &str = "system:authenticated";
/// What everybody with credentials may ask about themselves.
pub(crate) const OWN_REVIEWS: [&Resource; 3] =
    [&review::SELF_SUBJECT, &review::SELF_SUBJECT_ACCESS, &review::SELF_SUBJECT_RULES];
/// What everybody may read.
pub(crate) const OPEN_URLS: &[&str] = &["/healthz", "/livez", "/readyz", "/version", "/version/"];

/// The identity of a connection: its certificate's, which TLS has verified.
pub(crate) fn identify(certificates: Option<&[CertificateDer<'_>]>) -> Identity {
    let anonymous = || Identity::new(ANONYMOUS, ["system:unauthenticated"]);
    let Some(leaf) = certificates.and_then(<[_]>::first) else { return anonymous() };
    match lichen_pki::Identity::from_certificate(leaf) {
        Ok(peer) => {
            let mut groups = peer.groups;
            groups.push(AUTHENTICATED_GROUP.to_owned());
            Identity { user: peer.user, groups }
        }
        Err(error) => {
            tracing::warn!(%error, "a client certificate names nobody");
            anonymous()
        }
    }
}

/// Refuses credentials that this server does not know, and impersonation: neither may fall back to the identity of the
/// connection.
pub(crate) fn check_headers(headers: &HeaderMap) -> Result<(), Status> {
    if headers.contains_key(AUTHORIZATION) {
        return Err(Status::unauthorized());
    }
    if headers.keys().any(|name| name.as_str().starts_with("impersonate-")) {
        return Err(Status::new(403, "Forbidden", "impersonation is not supported yet"));
    }
    Ok(())
}

/// Whether an identity may do this. Decided before anything else is said about the path.
pub(crate) fn authorize(identity: &Identity, path: &Path, verb: &str, raw_path: &str) -> Result<(), Status> {
    if identity.is_master() || matches!(path, Path::Version | Path::Health) {
        return Ok(());
    }
    match path {
        Path::Resource(target) if is_own_review(target, verb) && is_authenticated(identity) => Ok(()),
        Path::Resource(target) => Err(forbidden(identity, target, verb)),
        _ => Err(Status::forbidden_path(&identity.user, verb, raw_path)),
    }
}

fn is_authenticated(identity: &Identity) -> bool {
    identity.groups.iter().any(|group| group == AUTHENTICATED_GROUP)
}

fn is_own_review(target: &Target, verb: &str) -> bool {
    let named = |review: &&Resource| review.group == target.group && review.plural == target.plural;
    verb == "create" && target.sub.is_none() && OWN_REVIEWS.iter().any(named)
}

fn forbidden(identity: &Identity, target: &Target, verb: &str) -> Status {
    let Target { group, plural, .. } = target;
    let qualified = if group.is_empty() { plural.clone() } else { format!("{plural}.{group}") };
    let name = target.name.as_deref().unwrap_or_default();
    let object = if name.is_empty() { String::new() } else { format!(" \"{name}\"") };
    let resource = match &target.sub {
        Some(sub) => format!("{plural}/{sub}"),
        None => plural.clone(),
    };
    // A namespace is asked for inside itself.
    let namespace = match (&target.namespace, plural.as_str()) {
        (Some(namespace), _) => Some(namespace.as_str()),
        (None, "namespaces") if !name.is_empty() => Some(name),
        _ => None,
    };
    let place = match namespace {
        Some(namespace) => format!("in the namespace \"{namespace}\""),
        None => "at the cluster scope".to_owned(),
    };
    let user = &identity.user;
    let mut status = Status::new(
        403,
        "Forbidden",
        format!(
            "{qualified}{object} is forbidden: User \"{user}\" cannot {verb} resource \"{resource}\" in API group \"{group}\" {place}"
        ),
    );
    let details = status.details_mut();
    details.name = name.to_owned();
    details.group = group.clone();
    details.kind = plural.clone();
    status
}
