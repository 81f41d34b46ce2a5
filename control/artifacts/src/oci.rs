//! The HTTP face of the registry: OCI Distribution 1.1, pull, push, listing and deletion of manifests.

mod failure;
mod reply;
mod route;

use bytes::Bytes;
use http_body_util::{BodyExt, Channel};
use hyper::body::Body as HttpBody;
use hyper::header::{self, HeaderMap};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;

use self::failure::Failure;
pub use self::reply::Body;
use self::reply::{Reply, empty, full, json_response, link, reply, set};
use self::route::{Query, Route};
use crate::blobs::{BlobReader, CHUNK_BYTES};
use crate::reference::is_repository;
use crate::repositories::{MANIFEST_BYTES_MAX, Selector, parts};
use crate::upload::{Upload, Uploads};
use crate::{Artifacts, BlobError, Digest, Link, files};

/// How many chunks of a blob wait for a slow reader.
const CHUNKS_QUEUED_MAX: usize = 2;
/// Serves one request.
pub(crate) async fn handle<B>(artifacts: &Artifacts, request: Request<B>) -> Response<Body>
where
    B: HttpBody<Data = Bytes> + Send,
    B::Error: std::fmt::Display,
{
    let head_only = request.method() == Method::HEAD;
    let response = match dispatch(artifacts, request).await {
        Ok(response) => response,
        Err(failure) => failure.response(),
    };
    match head_only {
        // Headers, the length above all, stay those of the GET.
        true => response.map(|_| empty()),
        false => response,
    }
}

async fn dispatch<B>(artifacts: &Artifacts, request: Request<B>) -> Reply
where
    B: HttpBody<Data = Bytes> + Send,
    B::Error: std::fmt::Display,
{
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    let unknown =
        || Failure::new(StatusCode::NOT_FOUND, "UNSUPPORTED", format!("there is nothing at {path}"));
    let route = Route::parse(path).ok_or_else(unknown)?;
    if let Some(name) = route.name().filter(|name| !is_repository(name)) {
        return Err(Failure::new(
            StatusCode::BAD_REQUEST,
            "NAME_INVALID",
            format!("{name:?} is no repository name"),
        ));
    }
    let query = Query(parts.uri.query().unwrap_or_default());
    let reads = matches!(parts.method, Method::GET | Method::HEAD);
    match route {
        Route::Base if reads => Ok(json_response(StatusCode::OK, "application/json", &json!({}))),
        Route::Catalog if reads => catalog(artifacts, &query).await,
        Route::Tags(name) if reads => tags(artifacts, name, &query).await,
        Route::Referrers(name, digest) if reads => referrers(artifacts, name, digest).await,
        Route::Manifest(name, reference) => {
            let selector = Selector::parse(reference).ok_or_else(|| {
                Failure::new(
                    StatusCode::NOT_FOUND,
                    "MANIFEST_UNKNOWN",
                    format!("{reference:?} is no tag and no digest"),
                )
            })?;
            match parts.method {
                Method::GET | Method::HEAD => get_manifest(artifacts, name, selector).await,
                Method::PUT => put_manifest(artifacts, name, selector, &parts.headers, body).await,
                Method::DELETE => delete_manifest(artifacts, name, selector).await,
                _ => Err(Failure::unsupported(&parts.method)),
            }
        }
        Route::Blob(_, digest) if reads => {
            get_blob(artifacts, parse_digest(digest)?, &parts.headers, parts.method == Method::HEAD).await
        }
        Route::Uploads(name) if parts.method == Method::POST => {
            start_upload(artifacts, name, &query, body).await
        }
        Route::Upload(name, id) => match parts.method {
            Method::GET => {
                let shared = artifacts.uploads.get(id).ok_or_else(Failure::upload_unknown)?;
                let len = shared
                    .lock()
                    .await
                    .as_ref()
                    .map(Upload::len_bytes)
                    .ok_or_else(Failure::upload_unknown)?;
                upload_response(StatusCode::NO_CONTENT, name, id, len)
            }
            Method::PATCH => {
                let len = append(&artifacts.uploads, id, &parts.headers, body).await?;
                upload_response(StatusCode::ACCEPTED, name, id, len)
            }
            Method::PUT => finish_upload(artifacts, name, id, &query, &parts.headers, body).await,
            Method::DELETE if artifacts.uploads.remove(id) => reply(StatusCode::NO_CONTENT, &[], empty()),
            Method::DELETE => Err(Failure::upload_unknown()),
            _ => Err(Failure::unsupported(&parts.method)),
        },
        _ => Err(Failure::unsupported(&parts.method)),
    }
}

async fn catalog(artifacts: &Artifacts, query: &Query<'_>) -> Reply {
    artifacts.catch_up().await?;
    let repositories = artifacts.repositories.clone();
    let all = files::blocking(move || repositories.catalog()).await?;
    let (page, next) = query.page(all);
    let mut response = json_response(StatusCode::OK, "application/json", &json!({ "repositories": page }));
    link(&mut response, "/v2/_catalog", next);
    Ok(response)
}

async fn tags(artifacts: &Artifacts, name: &str, query: &Query<'_>) -> Reply {
    artifacts.catch_up().await?;
    let (repositories, owned) = (artifacts.repositories.clone(), name.to_owned());
    let all = files::blocking(move || repositories.tags(&owned)).await?;
    let (page, next) = query.page(all.ok_or_else(|| Failure::name_unknown(name))?);
    let mut response =
        json_response(StatusCode::OK, "application/json", &json!({ "name": name, "tags": page }));
    link(&mut response, &format!("/v2/{name}/tags/list"), next);
    Ok(response)
}

async fn referrers(artifacts: &Artifacts, name: &str, digest: &str) -> Reply {
    let digest = parse_digest(digest)?;
    artifacts.catch_up().await?;
    if artifacts.held.is_some() {
        artifacts.hold_all().await?;
    }
    let (repositories, blobs, name) =
        (artifacts.repositories.clone(), artifacts.blobs.clone(), name.to_owned());
    let found = files::blocking(move || repositories.referrers(&blobs, &name, &digest)).await?;
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": found });
    Ok(json_response(StatusCode::OK, media_type, &index))
}

async fn get_manifest(artifacts: &Artifacts, name: &str, selector: Selector) -> Reply {
    artifacts.catch_up().await?;
    let (repositories, owned, wanted) = (artifacts.repositories.clone(), name.to_owned(), selector.clone());
    if let Some((manifest, _)) = files::blocking(move || repositories.find(&owned, &wanted)).await? {
        artifacts.hold(&manifest).await?;
    }
    let (repositories, blobs) = (artifacts.repositories.clone(), artifacts.blobs.clone());
    let (owned, wanted) = (name.to_owned(), selector.clone());
    let found = files::blocking(move || {
        let known = repositories.tags(&owned)?.is_some();
        repositories.get(&blobs, &owned, &wanted).map(|found| (known, found))
    });
    let found = match found.await? {
        (_, Some(found)) => found,
        (true, None) => return Err(Failure::manifest_unknown(&selector)),
        (false, None) => return Err(Failure::name_unknown(name)),
    };
    let digest = found.digest.to_string();
    let len = found.content.len().to_string();
    let headers = [
        ("content-type", found.media_type.as_str()),
        ("content-length", &len),
        ("docker-content-digest", &digest),
    ];
    reply(StatusCode::OK, &headers, full(found.content))
}

async fn put_manifest<B>(
    artifacts: &Artifacts,
    name: &str,
    selector: Selector,
    headers: &HeaderMap,
    body: B,
) -> Reply
where
    B: HttpBody<Data = Bytes> + Send,
    B::Error: std::fmt::Display,
{
    let invalid = |message: &str| Failure::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", message);
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let media_type = media_type.ok_or_else(|| invalid("a manifest needs a Content-Type"))?.to_owned();
    let mut content = Vec::new();
    let mut body = std::pin::pin!(body);
    while let Some(piece) = next_piece(&mut body).await? {
        if content.len() + piece.len() > MANIFEST_BYTES_MAX {
            let message = format!("the manifest is larger than {MANIFEST_BYTES_MAX} bytes");
            return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", message));
        }
        content.extend_from_slice(&piece);
    }
    // What it names may have been pushed to another member.
    for part in parts(&content).unwrap_or_default() {
        match artifacts.hold(&part).await {
            Err(BlobError::Unknown(_)) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let (repositories, blobs) = (artifacts.repositories.clone(), artifacts.blobs.clone());
    let owned = name.to_owned();
    let mut put =
        files::blocking(move || repositories.put(&blobs, &owned, &selector, &media_type, &content)).await?;
    agree(artifacts, std::mem::take(&mut put.content), std::mem::take(&mut put.links)).await?;
    let digest = put.digest.to_string();
    let location = format!("/v2/{name}/manifests/{digest}");
    let mut response =
        reply(StatusCode::CREATED, &[("location", &location), ("docker-content-digest", &digest)], empty())?;
    if let Some(subject) = put.subject {
        set(response.headers_mut(), "oci-subject", &subject.to_string());
    }
    Ok(response)
}

async fn delete_manifest(artifacts: &Artifacts, name: &str, selector: Selector) -> Reply {
    artifacts.catch_up().await?;
    let (repositories, owned, wanted) = (artifacts.repositories.clone(), name.to_owned(), selector.clone());
    let links = files::blocking(move || repositories.delete(&owned, &wanted)).await?;
    if links.is_empty() {
        return Err(Failure::manifest_unknown(&selector));
    }
    agree(artifacts, Vec::new(), links).await?;
    reply(StatusCode::ACCEPTED, &[], empty())
}

/// Writes links once all members that there are know of them.
async fn agree(artifacts: &Artifacts, content: Vec<Digest>, links: Vec<Link>) -> Result<(), Failure> {
    match artifacts.held.as_deref() {
        Some(held) => {
            held.copies.agree(content, links).await?;
            Ok(artifacts.catch_up().await?)
        }
        None => {
            let repositories = artifacts.repositories.clone();
            Ok(files::blocking(move || links.iter().try_for_each(|link| repositories.write(link))).await?)
        }
    }
}

async fn get_blob(artifacts: &Artifacts, digest: Digest, headers: &HeaderMap, head_only: bool) -> Reply {
    artifacts.hold(&digest).await?;
    let blobs = artifacts.blobs.clone();
    let total = files::blocking(move || blobs.len(&digest)).await?;
    let range = headers.get(header::RANGE).and_then(|r| r.to_str().ok()).and_then(|r| parse_range(r, total));
    let (status, offset, len) = match range {
        None => (StatusCode::OK, 0, total),
        Some(Ok((first, last))) => (StatusCode::PARTIAL_CONTENT, first, last - first + 1),
        Some(Err(())) => {
            let message = format!("the blob has {total} bytes");
            let failure = Failure::new(StatusCode::RANGE_NOT_SATISFIABLE, "SIZE_INVALID", message);
            let mut response = failure.response();
            set(response.headers_mut(), "content-range", &format!("bytes */{total}"));
            return Ok(response);
        }
    };
    let body = match head_only {
        true => empty(),
        false => {
            let blobs = artifacts.blobs.clone();
            stream(files::blocking(move || blobs.reader(&digest, offset, len)).await?)
        }
    };
    let (len_text, digest) = (len.to_string(), digest.to_string());
    let headers = [
        ("content-type", "application/octet-stream"),
        ("content-length", len_text.as_str()),
        ("docker-content-digest", digest.as_str()),
        ("accept-ranges", "bytes"),
    ];
    let mut response = reply(status, &headers, body)?;
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {offset}-{}/{total}", offset + len - 1);
        set(response.headers_mut(), "content-range", &range);
    }
    Ok(response)
}

/// Reads a blob as fast as the client takes it, off the asynchronous threads. Ends when the client is gone.
fn stream(mut reader: BlobReader) -> Body {
    let (mut sender, body) = Channel::<Bytes, std::io::Error>::new(CHUNKS_QUEUED_MAX);
    tokio::spawn(async move {
        loop {
            let (next, back) = files::blocking(move || (reader.next(), reader)).await;
            reader = back;
            match next {
                Ok(Some(chunk)) => {
                    if sender.send_data(chunk).await.is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(e) => {
                    tracing::error!(error = %e, "a blob broke off");
                    // Less than was announced: the client sees a broken transfer, not a short blob.
                    sender.abort(std::io::Error::other(e));
                    return;
                }
            }
        }
    });
    body.boxed()
}

async fn start_upload<B>(artifacts: &Artifacts, name: &str, query: &Query<'_>, body: B) -> Reply
where
    B: HttpBody<Data = Bytes> + Send,
    B::Error: std::fmt::Display,
{
    if let Some(mount) = query.get("mount") {
        let (blobs, digest) = (artifacts.blobs.clone(), parse_digest(&mount)?);
        if files::blocking(move || blobs.len(&digest)).await.is_ok() {
            return blob_created(name, &digest);
        }
    }
    let (id, _) = artifacts.uploads.start()?;
    if query.get("digest").is_some() {
        return finish_upload(artifacts, name, &id, query, &HeaderMap::new(), body).await;
    }
    upload_response(StatusCode::ACCEPTED, name, &id, 0)
}

async fn finish_upload<B>(
    artifacts: &Artifacts,
    name: &str,
    id: &str,
    query: &Query<'_>,
    headers: &HeaderMap,
    body: B,
) -> Reply
where
    B: HttpBody<Data = Bytes> + Send,
    B::Error: std::fmt::Display,
{
    let digest = query.get("digest").ok_or_else(|| Failure::digest_invalid("the digest is missing"))?;
    let digest = parse_digest(&digest)?;
    append(&artifacts.uploads, id, headers, body).await?;
    let shared = artifacts.uploads.get(id).ok_or_else(Failure::upload_unknown)?;
    let upload = shared.lock().await.take().ok_or_else(Failure::upload_unknown)?;
    artifacts.uploads.remove(id);
    let uploads = artifacts.uploads.clone();
    files::blocking(move || uploads.finish(upload, &digest)).await?;
    blob_created(name, &digest)
}

/// Takes in a request's body as the next part of an upload; gives the length so far.
async fn append<B>(uploads: &Uploads, id: &str, headers: &HeaderMap, body: B) -> Result<u64, Failure>
where
    B: HttpBody<Data = Bytes> + Send,
    B::Error: std::fmt::Display,
{
    let shared = uploads.get(id).ok_or_else(Failure::upload_unknown)?;
    let mut slot = shared.lock_owned().await;
    let at = slot.as_ref().map(Upload::len_bytes).ok_or_else(Failure::upload_unknown)?;
    if let Some(range) = headers.get(header::CONTENT_RANGE) {
        let range = range.to_str().unwrap_or_default();
        let first = range.strip_prefix("bytes ").unwrap_or(range).split('-').next().unwrap_or_default();
        if first.parse() != Ok(at) {
            let message = format!("the upload goes on at {at}, not at {first:?}");
            return Err(Failure::new(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", message));
        }
    }
    let mut body = std::pin::pin!(body);
    let mut gathered = Vec::new();
    loop {
        let piece = next_piece(&mut body).await?;
        let ended = piece.is_none();
        gathered.extend_from_slice(&piece.unwrap_or_default());
        // Small pieces are put together, so that the disk is not visited for each.
        if gathered.len() >= CHUNK_BYTES || (ended && !gathered.is_empty()) {
            let part = std::mem::take(&mut gathered);
            let (result, back) = files::blocking(move || {
                let result = slot.as_mut().map_or(Ok(()), |upload| upload.append(&part));
                (result, slot)
            })
            .await;
            slot = back;
            if let Err(e) = result {
                // What the file holds is not certain any more: the client starts over.
                slot.take();
                uploads.remove(id);
                return Err(e.into());
            }
        }
        if ended {
            return slot.as_ref().map(Upload::len_bytes).ok_or_else(Failure::upload_unknown);
        }
    }
}

async fn next_piece<B>(body: &mut std::pin::Pin<&mut B>) -> Result<Option<Bytes>, Failure>
where
    B: HttpBody<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    while let Some(frame) = body.frame().await {
        let broken = |e| {
            Failure::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", format!("the body broke off: {e}"))
        };
        if let Ok(data) = frame.map_err(broken)?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

fn parse_digest(text: &str) -> Result<Digest, Failure> {
    text.parse().map_err(Failure::digest_invalid)
}

/// A `Range` header: none if it is to be ignored, an error if it cannot be satisfied. Only single ranges are served.
fn parse_range(text: &str, total: u64) -> Option<Result<(u64, u64), ()>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    if last.contains(',') {
        return None;
    }
    let range = match (first, last) {
        ("", suffix) => (total.saturating_sub(suffix.parse().ok()?), total.checked_sub(1)),
        (first, "") => (first.parse().ok()?, total.checked_sub(1)),
        (first, last) => {
            (first.parse().ok()?, total.checked_sub(1).map(|end| end.min(last.parse().unwrap_or(end))))
        }
    };
    match range {
        (first, Some(last)) if first <= last => Some(Ok((first, last))),
        _ => Some(Err(())),
    }
}

fn blob_created(name: &str, digest: &Digest) -> Reply {
    let digest = digest.to_string();
    let location = format!("/v2/{name}/blobs/{digest}");
    reply(StatusCode::CREATED, &[("location", &location), ("docker-content-digest", &digest)], empty())
}

fn upload_response(status: StatusCode, name: &str, id: &str, len: u64) -> Reply {
    let location = format!("/v2/{name}/blobs/uploads/{id}");
    let range = format!("0-{}", len.saturating_sub(1));
    reply(status, &[("location", &location), ("range", &range), ("docker-upload-uuid", id)], empty())
}
