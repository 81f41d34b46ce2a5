//! What the server is and has: discovery, OpenAPI, version, health.

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CACHE_CONTROL, ETAG, HeaderValue, IF_NONE_MATCH, VARY};
use hyper::{Method, Request, Response, StatusCode};
use lichen_api::{Status, discovery, openapi};
use serde_json::{Value, json};

use crate::documents::Document;
use crate::negotiate::{self, Encoding};
use crate::path::Path;
use crate::respond::{self, Body};
use crate::router::{App, text};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
/// The version of Kubernetes whose API this is.
const KUBERNETES_VERSION: &str = "v1.36.0";

/// Answers a request that is not about a resource.
pub(crate) fn answer(app: &App, path: &Path, request: &Request<Incoming>) -> Result<Response<Body>, Status> {
    if request.method() != Method::GET {
        return match path {
            Path::Other => Ok(respond::page_not_found()),
            _ => Err(Status::method_not_allowed()),
        };
    }
    let accept = text(request.headers(), &ACCEPT);
    let known = text(request.headers(), &IF_NONE_MATCH);
    let json = |value: Value| Ok(respond::value(200, &value, Encoding::Json));
    match path {
        Path::CoreVersions | Path::Groups => {
            let core = *path == Path::CoreVersions;
            match negotiate::discovery(accept)? {
                true => Ok(document(app.documents.aggregated(core), AGGREGATED, known)),
                false if core => json(discovery::api_versions()),
                false => json(discovery::api_groups()),
            }
        }
        Path::Group(group) => discovery::api_group(group).map_or_else(|| Ok(respond::page_not_found()), json),
        Path::GroupVersion(group, version) => match discovery::api_resources(group, version) {
            Some(value) => json(value),
            None if group.is_empty() || discovery::api_group(group).is_some() => Err(Status::unknown_path()),
            None => Ok(respond::page_not_found()),
        },
        Path::OpenApiIndex => {
            Ok(respond::full(200, "text/plain; charset=utf-8", openapi::index().to_string()))
        }
        Path::OpenApi(name) => match openapi::document(name) {
            Some(value) => Ok(document(&Document::new(&value), "application/json", known)),
            None => Ok(respond::page_not_found()),
        },
        Path::Version => json(version()),
        Path::Root => json(json!({"paths": roots()})),
        Path::Health | Path::Resource(_) | Path::Other => Ok(respond::page_not_found()),
    }
}

/// A document that clients keep: 304 for who has it already.
fn document(document: &Document, media: &'static str, known: Option<&str>) -> Response<Body> {
    let same = known.is_some_and(|known| {
        known.split(',').any(|tag| tag.trim().trim_start_matches("W/") == document.etag)
    });
    let mut response = match same {
        true => {
            let mut response = respond::full(200, media, Bytes::new());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        }
        false => respond::full(200, media, document.bytes.clone()),
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("public"));
    headers.insert(VARY, HeaderValue::from_static("Accept"));
    if let Ok(tag) = HeaderValue::from_str(&document.etag) {
        headers.insert(ETAG, tag);
    }
    response
}

/// What `GET /version` says. Clients compare the numbers; people see the rest.
fn version() -> Value {
    let platform = format!("{}/{}", std::env::consts::OS, go_arch(std::env::consts::ARCH));
    json!({
        "major": "1",
        "minor": "36",
        "emulationMajor": "1",
        "emulationMinor": "36",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35",
        "gitVersion": format!("{KUBERNETES_VERSION}+lichen-{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "unknown",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": platform,
    })
}

/// The name that Kubernetes has for an architecture.
fn go_arch(arch: &str) -> &str {
    match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn roots() -> Vec<String> {
    let mut paths: Vec<String> =
        ["/api", "/apis", "/healthz", "/livez", "/openapi/v3", "/readyz", "/version"]
            .map(str::to_owned)
            .to_vec();
    for (group, version) in discovery::group_versions() {
        match group {
            "" => paths.push(format!("/api/{version}")),
            group => paths.extend([format!("/apis/{group}"), format!("/apis/{group}/{version}")]),
        }
    }
    paths.sort();
    paths.dedup();
    paths
}
