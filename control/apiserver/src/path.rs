//! What a path asks for.

use crate::query::percent_decode;

/// A path of the resource API, whether or not such a resource exists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Target {
    /// API group; empty for core.
    pub(crate) group: String,
    /// API version.
    pub(crate) version: String,
    /// The resource's plural name.
    pub(crate) plural: String,
    /// The namespace, if the path has one.
    pub(crate) namespace: Option<String>,
    /// The object's name, if the path has one.
    pub(crate) name: Option<String>,
    /// The subresource, if the path has one.
    pub(crate) sub: Option<String>,
    /// The deprecated `/watch/` prefix.
    pub(crate) watch: bool,
}

/// A path, by its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// `/`
    Root,
    /// `/api`
    CoreVersions,
    /// `/apis`
    Groups,
    /// `/apis/<group>`
    Group(String),
    /// `/api/v1`, `/apis/<group>/<version>`
    GroupVersion(String, String),
    /// Something in a group version.
    Resource(Target),
    /// `/openapi/v3`
    OpenApiIndex,
    /// `/openapi/v3/<path>`
    OpenApi(String),
    /// `/version`
    Version,
    /// `/healthz`, `/livez`, `/readyz`
    Health,
    /// Anything else.
    Other,
}

/// Reads a path. `None` for one that is not percent-encoded text.
pub(crate) fn parse(path: &str) -> Option<Path> {
    let mut segments = Vec::new();
    for segment in path.split('/').filter(|segment| !segment.is_empty()) {
        segments.push(percent_decode(segment, false)?);
    }
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    Some(match segments.as_slice() {
        [] => Path::Root,
        ["api"] => Path::CoreVersions,
        ["apis"] => Path::Groups,
        ["apis", group] => Path::Group((*group).to_owned()),
        ["api", version] => Path::GroupVersion(String::new(), (*version).to_owned()),
        ["apis", group, version] => Path::GroupVersion((*group).to_owned(), (*version).to_owned()),
        ["api", version, rest @ ..] => resource("", version, rest),
        ["apis", group, version, rest @ ..] => resource(group, version, rest),
        ["openapi", "v3"] => Path::OpenApiIndex,
        ["openapi", "v3", rest @ ..] => Path::OpenApi(rest.join("/")),
        ["version"] => Path::Version,
        ["healthz" | "livez" | "readyz", ..] => Path::Health,
        _ => Path::Other,
    })
}

fn resource(group: &str, version: &str, mut rest: &[&str]) -> Path {
    let mut target = Target { group: group.to_owned(), version: version.to_owned(), ..Target::default() };
    let own = |text: &&str| Some((*text).to_owned());
    if let ["watch", after @ ..] = rest
        && !after.is_empty()
    {
        target.watch = true;
        rest = after;
    }
    match rest {
        // A namespace is an object too, with subresources of its own.
        ["namespaces", name, sub @ ("status" | "finalize")] => {
            target.plural = "namespaces".to_owned();
            target.name = own(name);
            target.sub = own(sub);
        }
        ["namespaces", namespace, plural, more @ ..] => {
            target.namespace = own(namespace);
            target.plural = (*plural).to_owned();
            target.name = more.first().and_then(own);
            target.sub = (more.len() > 1).then(|| more[1..].join("/"));
        }
        [plural, more @ ..] => {
            target.plural = (*plural).to_owned();
            target.name = more.first().and_then(own);
            target.sub = (more.len() > 1).then(|| more[1..].join("/"));
        }
        [] => return Path::Other,
    }
    Path::Resource(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(group: &str, plural: &str, namespace: &str, name: &str, sub: &str) -> Path {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Path::Resource(Target {
            group: group.into(),
            version: "v1".into(),
            plural: plural.into(),
            namespace: some(namespace),
            name: some(name),
            sub: some(sub),
            watch: false,
        })
    }

    #[test]
    fn paths() {
        let cases = [
            ("/", Some(Path::Root)),
            ("/api", Some(Path::CoreVersions)),
            ("/api/", Some(Path::CoreVersions)),
            ("/apis/apps", Some(Path::Group("apps".into()))),
            ("/api/v1", Some(Path::GroupVersion(String::new(), "v1".into()))),
            ("/api/v1/pods", Some(target("", "pods", "", "", ""))),
            ("/api/v1/namespaces", Some(target("", "namespaces", "", "", ""))),
            ("/api/v1/namespaces/a", Some(target("", "namespaces", "", "a", ""))),
            ("/api/v1/namespaces/a/finalize", Some(target("", "namespaces", "", "a", "finalize"))),
            ("/api/v1/namespaces/a/pods", Some(target("", "pods", "a", "", ""))),
            ("/api/v1/namespaces/a/pods/p%20q/log", Some(target("", "pods", "a", "p q", "log"))),
            (
                "/apis/apps/v1/namespaces/a/deployments/d/scale",
                Some(target("apps", "deployments", "a", "d", "scale")),
            ),
            ("/openapi/v3/apis/apps/v1", Some(Path::OpenApi("apis/apps/v1".into()))),
            ("/livez/ping", Some(Path::Health)),
            ("/nothing", Some(Path::Other)),
            ("/api/v1/pods/%zz", None),
        ];
        for (path, expect) in cases {
            assert_eq!(parse(path), expect, "{path}");
        }
    }

    #[test]
    fn the_deprecated_watch_prefix() {
        let Some(Path::Resource(target)) = parse("/api/v1/watch/namespaces/a/pods") else {
            panic!("no resource")
        };
        assert!(target.watch);
        assert_eq!((target.plural.as_str(), target.namespace.as_deref()), ("pods", Some("a")));
    }
}
