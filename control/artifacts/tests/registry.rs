//! The OCI distribution API, as a client sees it.

mod common;

use bytes::Bytes;
use common::{COMPONENT, Local, fixture, get, send};
use hyper::{Method, StatusCode};
use lichen_artifacts::{Digest, MANIFEST_MEDIA_TYPE, PushError, Reference, ResolveError, push};
use serde_json::{Value, json};

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

fn json_of(body: &Bytes) -> Value {
    serde_json::from_slice(body).unwrap()
}

fn code(body: &Bytes) -> String {
    json_of(body)["errors"][0]["code"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_pushed_component_resolves_and_is_pulled_back() {
    let (_dir, artifacts) = fixture();
    let local = Local(artifacts.clone());
    let component = Bytes::from_static(COMPONENT);
    let pushed = push(&local, &reference("team/hello:v1"), component.clone()).await.unwrap();
    assert!(!pushed.layer_existed);
    let again = push(&local, &reference("team/hello:v1"), component.clone()).await.unwrap();
    assert_eq!(
        (again.manifest, again.layer_existed),
        (pushed.manifest, true),
        "pushing again changes nothing"
    );

    let resolved = artifacts.resolve(&reference("team/hello:v1")).await.unwrap();
    assert_eq!((resolved.manifest, resolved.layer), (pushed.manifest, Digest::of(COMPONENT)));
    assert_eq!(resolved.len_bytes, COMPONENT.len() as u64);
    let by_digest = reference(&format!("team/hello@{}", pushed.manifest));
    assert_eq!(artifacts.resolve(&by_digest).await.unwrap(), resolved);

    let (status, headers, body) = get(&artifacts, "/v2/team/hello/manifests/v1").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(headers["content-type"], MANIFEST_MEDIA_TYPE);
    assert_eq!(headers["docker-content-digest"], pushed.manifest.to_string().as_str());
    let manifest = json_of(&body);
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.wasm.config.v0+json");
    assert_eq!(manifest["layers"][0]["mediaType"], "application/wasm");
    let config = manifest["config"]["digest"].as_str().unwrap();
    let (_, _, config) = get(&artifacts, &format!("/v2/team/hello/blobs/{config}")).await;
    let config = json_of(&config);
    assert_eq!(config["layerDigests"], json!([Digest::of(COMPONENT).to_string()]));
    let exports = config["component"]["exports"].to_string();
    assert!(exports.contains("wasi:http/incoming-handler"), "{exports}");

    let (status, _, body) = get(&artifacts, &format!("/v2/team/hello/blobs/{}", resolved.layer)).await;
    assert_eq!((status, body), (StatusCode::OK, component));
    let (_, _, body) = get(&artifacts, "/v2/_catalog").await;
    assert_eq!(json_of(&body), json!({ "repositories": ["team/hello"] }));
    let (_, _, body) = get(&artifacts, "/v2/team/hello/tags/list").await;
    assert_eq!(json_of(&body), json!({ "name": "team/hello", "tags": ["v1"] }));
}

#[tokio::test]
async fn what_is_no_component_is_not_pushed() {
    let (_dir, artifacts) = fixture();
    let local = Local(artifacts.clone());
    for (content, say) in
        [(&b"#!/bin/sh"[..], "not a WebAssembly binary"), (b"\0asm\x01\0\0\0", "core WebAssembly module")]
    {
        let error = push(&local, &reference("x:v1"), Bytes::from_static(content)).await.unwrap_err();
        assert!(matches!(error, PushError::NotComponent(_)));
        assert!(error.to_string().contains(say), "{error}");
    }
    let elsewhere = push(&local, &reference("ghcr.io/x:v1"), Bytes::from_static(COMPONENT)).await;
    assert!(matches!(elsewhere, Err(PushError::Reference(_))));
    let (_, _, body) = get(&artifacts, "/v2/_catalog").await;
    assert_eq!(json_of(&body), json!({ "repositories": [] }), "nothing was sent");
}

#[tokio::test]
async fn unknown_references_say_which_and_why() {
    let (_dir, artifacts) = fixture();
    let missing = artifacts.resolve(&reference("hello:v2")).await.unwrap_err();
    assert_eq!(missing.to_string(), "hello:v2: not found in the embedded registry");
    let other = artifacts.resolve(&reference("ghcr.io/a/b:v1")).await.unwrap_err();
    assert!(matches!(other, ResolveError::OtherRegistry(..)));
    assert!(other.to_string().contains("ghcr.io"));
}

#[tokio::test]
async fn uploads_come_in_chunks_in_one_piece_and_by_mount() {
    let (_dir, artifacts) = fixture();
    let digest = Digest::of(b"hello world");
    let (status, headers, _) = send(&artifacts, Method::POST, "/v2/a/blobs/uploads/", &[], b"").await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let at = headers["location"].to_str().unwrap().to_owned();
    let (status, headers, _) =
        send(&artifacts, Method::PATCH, &at, &[("content-range", "0-5")], b"hello ").await;
    assert_eq!((status, headers["range"].to_str().unwrap()), (StatusCode::ACCEPTED, "0-5"));
    let (status, _, _) = send(&artifacts, Method::PATCH, &at, &[("content-range", "9-13")], b"world").await;
    assert_eq!(status, StatusCode::RANGE_NOT_SATISFIABLE, "a gap is refused");
    let (status, headers, _) = get(&artifacts, &at).await;
    assert_eq!((status, headers["range"].to_str().unwrap()), (StatusCode::NO_CONTENT, "0-5"));
    let (status, _, _) = send(&artifacts, Method::PUT, &format!("{at}?digest={digest}"), &[], b"world").await;
    assert_eq!(status, StatusCode::CREATED);
    let (status, _, body) = get(&artifacts, &format!("/v2/a/blobs/{digest}")).await;
    assert_eq!((status, &body[..]), (StatusCode::OK, &b"hello world"[..]));

    let other = Digest::of(b"other");
    let escaped = other.to_string().replace(':', "%3A");
    let (status, _, _) =
        send(&artifacts, Method::POST, &format!("/v2/a/blobs/uploads/?digest={escaped}"), &[], b"other")
            .await;
    assert_eq!(status, StatusCode::CREATED);
    let mount = format!("/v2/b/blobs/uploads/?mount={other}&from=a");
    let (status, headers, _) = send(&artifacts, Method::POST, &mount, &[], b"").await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(headers["location"], format!("/v2/b/blobs/{other}").as_str());
    let unknown = format!("/v2/b/blobs/uploads/?mount={}&from=a", Digest::of(b"?"));
    assert_eq!(send(&artifacts, Method::POST, &unknown, &[], b"").await.0, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_digest_that_does_not_match_leaves_nothing() {
    let (dir, artifacts) = fixture();
    let wrong = Digest::of(b"something else");
    let uri = format!("/v2/a/blobs/uploads/?digest={wrong}");
    let (status, _, body) = send(&artifacts, Method::POST, &uri, &[], b"content").await;
    assert_eq!((status, code(&body).as_str()), (StatusCode::BAD_REQUEST, "DIGEST_INVALID"));
    let (status, _, body) = get(&artifacts, &format!("/v2/a/blobs/{wrong}")).await;
    assert_eq!((status, code(&body).as_str()), (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"));
    assert_eq!(std::fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn ranges_of_a_blob_are_served() {
    let (_dir, artifacts) = fixture();
    let digest = Digest::of(b"0123456789");
    let uri = format!("/v2/a/blobs/uploads/?digest={digest}");
    send(&artifacts, Method::POST, &uri, &[], b"0123456789").await;
    let blob = format!("/v2/a/blobs/{digest}");
    for (range, status, content_range, body) in [
        ("bytes=2-4", 206, "bytes 2-4/10", "234"),
        ("bytes=7-", 206, "bytes 7-9/10", "789"),
        ("bytes=-3", 206, "bytes 7-9/10", "789"),
        ("bytes=5-99", 206, "bytes 5-9/10", "56789"),
        ("bytes=10-", 416, "bytes */10", ""),
        ("bytes=0-1,3-4", 200, "", "0123456789"),
        ("lines=1-2", 200, "", "0123456789"),
    ] {
        let (is, headers, content) = send(&artifacts, Method::GET, &blob, &[("range", range)], b"").await;
        assert_eq!(is.as_u16(), status, "{range}");
        assert_eq!(
            headers.get("content-range").map_or("", |v| v.to_str().unwrap()),
            content_range,
            "{range}"
        );
        if status != 416 {
            assert_eq!(content, body, "{range}");
            assert_eq!(headers["content-length"], content.len().to_string().as_str());
        }
    }
    let (status, headers, body) = send(&artifacts, Method::HEAD, &blob, &[], b"").await;
    assert_eq!((status, headers["content-length"].to_str().unwrap()), (StatusCode::OK, "10"));
    assert!(body.is_empty());
}

#[tokio::test]
async fn manifests_are_checked_before_they_are_taken() {
    let (_dir, artifacts) = fixture();
    push(&Local(artifacts.clone()), &reference("a:v1"), Bytes::from_static(COMPONENT)).await.unwrap();
    let missing = Digest::of(b"missing");
    let descriptor = |digest: &Digest, size: usize| json!({ "mediaType": "application/wasm", "digest": digest.to_string(), "size": size });
    let manifest = |layer: Value| json!({ "schemaVersion": 2, "layers": [layer] }).to_string();
    let typed = [("content-type", MANIFEST_MEDIA_TYPE)];
    let good = manifest(descriptor(&Digest::of(COMPONENT), COMPONENT.len()));
    for (name, headers, content, status, expect) in [
        ("v2", &typed[..], manifest(descriptor(&missing, 1)), 400, "MANIFEST_BLOB_UNKNOWN"),
        ("v2", &typed, manifest(descriptor(&Digest::of(COMPONENT), 1)), 400, "MANIFEST_INVALID"),
        ("v2", &typed, "{".to_owned(), 400, "MANIFEST_INVALID"),
        ("v2", &typed, json!({ "schemaVersion": 1 }).to_string(), 400, "MANIFEST_INVALID"),
        ("v2", &[], good.clone(), 400, "MANIFEST_INVALID"),
        (&missing.to_string(), &typed, good.clone(), 400, "DIGEST_INVALID"),
        ("-bad", &typed, good.clone(), 404, "MANIFEST_UNKNOWN"),
        ("v2", &typed, " ".repeat(5 << 20), 413, "SIZE_INVALID"),
    ] {
        let uri = format!("/v2/a/manifests/{name}");
        let (is, _, body) = send(&artifacts, Method::PUT, &uri, headers, content.as_bytes()).await;
        assert_eq!((is.as_u16(), code(&body).as_str()), (status, expect), "{content:.60}");
    }
    let (status, _, body) = get(&artifacts, "/v2/a/manifests/v2").await;
    assert_eq!((status, code(&body).as_str()), (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"));
    let (status, _, _) = send(&artifacts, Method::PUT, "/v2/a/manifests/v2", &typed, good.as_bytes()).await;
    assert_eq!(status, StatusCode::CREATED);
}

#[tokio::test]
async fn errors_have_the_specified_form() {
    let (_dir, artifacts) = fixture();
    for (method, uri, status, expect) in [
        (Method::GET, "/v2/nothing/tags/list", 404, "NAME_UNKNOWN"),
        (Method::GET, "/v2/nothing/manifests/v1", 404, "NAME_UNKNOWN"),
        (Method::GET, "/v2/Bad/tags/list", 400, "NAME_INVALID"),
        (Method::GET, "/v2/a/../../b/tags/list", 400, "NAME_INVALID"),
        (Method::GET, "/v2/a/blobs/sha256:12", 400, "DIGEST_INVALID"),
        (Method::GET, "/v2/what", 404, "UNSUPPORTED"),
        (Method::DELETE, "/v2/a/tags/list", 405, "UNSUPPORTED"),
        (Method::PATCH, "/v2/a/blobs/uploads/none", 404, "BLOB_UPLOAD_UNKNOWN"),
    ] {
        let (is, headers, body) = send(&artifacts, method, uri, &[], b"").await;
        assert_eq!((is.as_u16(), code(&body).as_str()), (status, expect), "{uri}");
        assert_eq!(headers["content-type"], "application/json");
    }
    let (status, headers, _) = get(&artifacts, "/v2/").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(headers["docker-distribution-api-version"], "registry/2.0");
}

#[tokio::test]
async fn listings_have_pages() {
    let (_dir, artifacts) = fixture();
    let local = Local(artifacts.clone());
    for name in ["a:v1", "b:v1", "b/c:v1", "d:v1"] {
        push(&local, &reference(name), Bytes::from_static(COMPONENT)).await.unwrap();
    }
    let (_, headers, body) = get(&artifacts, "/v2/_catalog?n=2").await;
    assert_eq!(json_of(&body)["repositories"], json!(["a", "b"]));
    assert_eq!(headers["link"], "</v2/_catalog?n=2&last=b>; rel=\"next\"");
    let (_, headers, body) = get(&artifacts, "/v2/_catalog?n=2&last=b").await;
    assert_eq!(json_of(&body)["repositories"], json!(["b/c", "d"]));
    assert!(!headers.contains_key("link"));
}

#[tokio::test]
async fn everything_is_there_after_a_restart_and_a_second_process_is_refused() {
    let (dir, artifacts) = fixture();
    let pushed =
        push(&Local(artifacts.clone()), &reference("a:v1"), Bytes::from_static(COMPONENT)).await.unwrap();
    let second = common::open(dir.path(), common::cat()).err().unwrap();
    assert!(second.to_string().contains("another process"), "{second}");
    std::fs::write(dir.path().join("tmp/left-over"), b"half").unwrap();
    drop(artifacts);
    let artifacts = common::open(dir.path(), common::cat()).unwrap();
    assert_eq!(artifacts.resolve(&reference("a:v1")).await.unwrap().manifest, pushed.manifest);
    assert_eq!(std::fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn deleting_a_manifest_takes_its_tags_along() {
    let (_dir, artifacts) = fixture();
    let local = Local(artifacts.clone());
    let pushed = push(&local, &reference("a:v1"), Bytes::from_static(COMPONENT)).await.unwrap();
    push(&local, &reference("a:v2"), Bytes::from_static(COMPONENT)).await.unwrap();
    let (status, _, _) = send(&artifacts, Method::DELETE, "/v2/a/manifests/v2", &[], b"").await;
    assert_eq!(status, StatusCode::ACCEPTED);
    assert!(artifacts.resolve(&reference("a:v2")).await.is_err());
    artifacts.resolve(&reference("a:v1")).await.unwrap();
    let by_digest = format!("/v2/a/manifests/{}", pushed.manifest);
    assert_eq!(send(&artifacts, Method::DELETE, &by_digest, &[], b"").await.0, StatusCode::ACCEPTED);
    assert!(artifacts.resolve(&reference("a:v1")).await.is_err());
    assert_eq!(send(&artifacts, Method::DELETE, &by_digest, &[], b"").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn what_no_manifest_names_goes_with_a_restart_and_all_else_stays() {
    let (dir, artifacts) = fixture();
    let local = Local(artifacts.clone());
    let pushed = push(&local, &reference("team/a:v1"), Bytes::from_static(COMPONENT)).await.unwrap();
    artifacts.compiled(&pushed.layer, "p").await.unwrap();
    let stray = Digest::of(b"stray");
    let upload = format!("/v2/a/blobs/uploads/?digest={stray}");
    send(&artifacts, Method::POST, &upload, &[], b"stray").await;
    drop((artifacts, local));
    let artifacts = common::open(dir.path(), common::script("exit 1")).unwrap();
    assert_eq!(get(&artifacts, &format!("/v2/a/blobs/{stray}")).await.0, StatusCode::NOT_FOUND);
    let resolved = artifacts.resolve(&reference("team/a:v1")).await.unwrap();
    artifacts.blob(&resolved.layer).await.unwrap();
    artifacts.compiled(&resolved.layer, "p").await.expect("kept, since this worker makes none");

    // A manifest that can't be read: nobody knows what it names, so nothing goes.
    send(&artifacts, Method::POST, &upload, &[], b"stray").await;
    drop(artifacts);
    let hex = pushed.manifest.hex();
    std::fs::write(dir.path().join("blobs/sha256").join(&hex[..2]).join(&hex), b"damaged").unwrap();
    let artifacts = common::open(dir.path(), common::cat()).unwrap();
    assert_eq!(get(&artifacts, &format!("/v2/a/blobs/{stray}")).await.0, StatusCode::OK);
    assert!(artifacts.resolve(&reference("team/a:v1")).await.is_err(), "damage is never served");
    artifacts.blob(&resolved.layer).await.unwrap();
}
