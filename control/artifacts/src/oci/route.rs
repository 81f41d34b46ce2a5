//! Paths and queries of the OCI distribution API.

/// How many names a listing has when the client doesn't say.
const LIST_DEFAULT: usize = 1000;

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route<'a> {
    Base,
    Catalog,
    Tags(&'a str),
    Manifest(&'a str, &'a str),
    Blob(&'a str, &'a str),
    Uploads(&'a str),
    Upload(&'a str, &'a str),
    Referrers(&'a str, &'a str),
}

impl Route<'_> {
    /// Repositories have slashes in their names, so paths are read from their end.
    pub(super) fn parse(path: &str) -> Option<Route<'_>> {
        let path = path.strip_prefix("/v2")?;
        let Some(path) = path.strip_prefix('/').filter(|p| !p.is_empty()) else {
            return (path.is_empty() || path == "/").then_some(Route::Base);
        };
        if path == "_catalog" {
            return Some(Route::Catalog);
        }
        if let Some(name) = path.strip_suffix("/tags/list") {
            return Some(Route::Tags(name));
        }
        if let Some(name) =
            path.strip_suffix("/blobs/uploads").or_else(|| path.strip_suffix("/blobs/uploads/"))
        {
            return Some(Route::Uploads(name));
        }
        let (rest, last) = path.rsplit_once('/')?;
        if let Some(name) = rest.strip_suffix("/blobs/uploads") {
            return Some(Route::Upload(name, last));
        }
        let (name, kind) = rest.rsplit_once('/')?;
        match kind {
            "manifests" => Some(Route::Manifest(name, last)),
            "blobs" => Some(Route::Blob(name, last)),
            "referrers" => Some(Route::Referrers(name, last)),
            _ => None,
        }
    }

    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Route::Base | Route::Catalog => None,
            Route::Tags(name) | Route::Uploads(name) => Some(name),
            Route::Manifest(name, _)
            | Route::Blob(name, _)
            | Route::Upload(name, _)
            | Route::Referrers(name, _) => Some(name),
        }
    }
}

/// A query string. Names and digests need no escapes but the colon, which some clients write as `%3A`.
pub(super) struct Query<'a>(pub(super) &'a str);

impl Query<'_> {
    pub(super) fn get(&self, key: &str) -> Option<String> {
        let pairs = self.0.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .filter(|(name, _)| *name == key)
            .map(|(_, value)| {
                value.replace("%3A", ":").replace("%3a", ":").replace("%2F", "/").replace("%2f", "/")
            })
            .next()
    }

    /// The part of a sorted listing that was asked for, and the query for the next part.
    pub(super) fn page(&self, all: Vec<String>) -> (Vec<String>, Option<String>) {
        let limit = self.get("n").and_then(|n| n.parse().ok()).unwrap_or(LIST_DEFAULT);
        let last = self.get("last").unwrap_or_default();
        let mut rest = all.into_iter().filter(|name| *name > last);
        let page: Vec<String> = rest.by_ref().take(limit).collect();
        let next = rest.next().and_then(|_| page.last()).map(|last| format!("n={limit}&last={last}"));
        (page, next)
    }
}
