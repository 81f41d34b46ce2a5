//! Every decoder of what is pushed to the registry or named in a pod, over the corpus in `tests/corpus`.

mod common;

use hyper::{Method, StatusCode};
use lichen_artifacts::{Component, Digest, MANIFEST_MEDIA_TYPE, Reference};
use lichen_fuzz::Fuzz;
use serde_json::json;

fn fuzz(name: &str) -> Fuzz {
    Fuzz::new(env!("CARGO_MANIFEST_DIR"), name)
}

#[test]
fn components_are_looked_at() {
    const PREAMBLE: &[u8] = b"\0asm\x0d\0\x01\0";
    let all = [
        PREAMBLE,
        b"\x00\x03\x01xy",
        b"\x0a\x0d\x02\x00\x03a:b\x05\x07\x00\x01r\x03\x01",
        b"\x0b\x0b\x01\x00\x03c:d\x05\x02\x01\x05\x01",
    ]
    .concat();
    let examples = [("empty", PREAMBLE.to_vec()), ("imports-and-exports", all)];
    fuzz("component").examples(examples).iterations(20_000).run(|bytes| {
        let Ok(component) = Component::parse(bytes) else { return false };
        let names: usize = component.imports.iter().chain(&component.exports).map(String::len).sum();
        assert!(names <= bytes.len(), "names out of nowhere");
        true
    });
}

#[test]
fn references_print_what_they_were_read_from() {
    let digest = Digest::of(b"x");
    let examples = [
        "hello".to_owned(),
        "team/hello:v1.2_3-rc".to_owned(),
        format!("hello:v1@{digest}"),
        "localhost:5000/a/b/c__d--e.f".to_owned(),
        "ghcr.io/team/hello".to_owned(),
        digest.to_string(),
    ];
    let examples = examples.into_iter().enumerate().map(|(index, text)| (index.to_string(), text));
    fuzz("reference").examples(examples).iterations(20_000).run(|bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        let reference = text.parse::<Reference>();
        if let Ok(reference) = &reference {
            assert_eq!(reference.to_string(), text);
            // It becomes a path below the registry's folder.
            let safe = |part: &str| !part.is_empty() && !part.starts_with(['.', '_']) && !part.contains('\0');
            assert!(reference.repository.split('/').all(safe), "{text:?}");
            assert!(!reference.selector().contains('/'), "{text:?}");
        }
        let digest = text.parse::<Digest>();
        assert!(digest.as_ref().is_ok_and(|digest| digest.to_string() == text) || digest.is_err());
        reference.is_ok() || digest.is_ok()
    });
}

#[test]
fn requests_are_answered() {
    let (_dir, artifacts) = common::fixture();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let config = Digest::of(b"{}");
    let layer = Digest::of(common::COMPONENT);
    let put = |path: String, body: &[u8]| {
        let headers = [("content-type", MANIFEST_MEDIA_TYPE)];
        runtime.block_on(common::send(&artifacts, Method::PUT, &path, &headers, body)).0
    };
    for (digest, content) in [(config, &b"{}"[..]), (layer, common::COMPONENT)] {
        let (status, headers, _) =
            runtime.block_on(common::send(&artifacts, Method::POST, "/v2/a/blobs/uploads/", &[], b""));
        assert_eq!(status, StatusCode::ACCEPTED);
        let location = headers["location"].to_str().unwrap();
        assert_eq!(put(format!("{location}?digest={digest}"), content), StatusCode::CREATED);
    }
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_MEDIA_TYPE,
        "config": { "mediaType": "application/vnd.wasm.config.v0+json", "digest": config.to_string(), "size": 2 },
        "layers": [
            { "mediaType": "application/wasm", "digest": layer.to_string(), "size": common::COMPONENT.len() }
        ],
        "annotations": { "a": "b" },
    });
    // The path, a line end, and the body that is put there.
    let request = |path: &str, body: &str| format!("{path}\n{body}");
    let examples = [
        ("manifest", request("/v2/a/manifests/v1", &manifest.to_string())),
        ("blob", request(&format!("/v2/a/blobs/{layer}"), "")),
        ("tags", request("/v2/a/tags/list?n=1&last=v0", "")),
        ("catalog", request("/v2/_catalog", "")),
        ("upload", request(&format!("/v2/team/b/blobs/uploads/?digest={config}"), "{}")),
        ("referrers", request(&format!("/v2/a/referrers/{layer}"), "")),
    ];
    fuzz("request").examples(examples).iterations(1_000).allocation_base(4 << 20).run(|bytes| {
        let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
        let Ok(path) = std::str::from_utf8(&bytes[..end]) else { return false };
        let Ok(uri) = path.parse::<hyper::Uri>() else { return false };
        if !uri.path().starts_with('/') {
            return false;
        }
        let body = bytes.get(end + 1..).unwrap_or_default();
        let headers = [("content-type", MANIFEST_MEDIA_TYPE)];
        for method in [Method::PUT, Method::GET, Method::POST] {
            let (status, ..) = runtime.block_on(common::send(&artifacts, method, path, &headers, body));
            assert_ne!(status, StatusCode::INTERNAL_SERVER_ERROR, "{path:?}");
        }
        true
    });
}
