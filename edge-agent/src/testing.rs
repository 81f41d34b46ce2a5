//! Stand-ins for the control plane, for this crate's tests.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lichen_engine::{ProfileId, Target};
use lichen_link::{LinkError, StreamError};
use lichen_pki::Authority;
use lichen_wire::body::Blob;
use lichen_wire::stream::{
    ARTIFACT_SIGNING_CONTEXT, ArtifactHead, ImageHead, REQUEST_BYTES_MAX, StreamRequest, statement,
};
use ring::digest::{SHA256, digest};
use serde_json::Value;
use tokio::sync::Notify;

use crate::uplink::{ByteStream, Uplink};

/// A certificate authority of its own.
pub(crate) fn authority() -> Authority {
    let dir = tempfile::tempdir().expect("a directory");
    Authority::open_or_create(dir.path()).expect("an authority")
}

/// How long a test waits for something that must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A report, as the gateway would read it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Report {
    pub(crate) kind: String,
    pub(crate) key: String,
    pub(crate) uid: String,
    pub(crate) body: Value,
}

/// How the next transfers go.
#[derive(Debug, Clone)]
pub(crate) enum Transfer {
    /// The link is lost after this many bytes.
    LostAfter(usize),
    /// The bytes are not those that were announced.
    Damaged,
    /// Somebody else vouches for them.
    Forged,
    /// They were compiled for another machine.
    OtherProfile,
    /// An error in place of the artifact.
    Error(&'static str),
}

/// A control plane that takes reports and serves one artifact under any name.
pub(crate) struct Fake {
    pub(crate) authority: Authority,
    pub(crate) artifact: Vec<u8>,
    pub(crate) reports: Mutex<Vec<Report>>,
    pub(crate) offsets: Mutex<Vec<u64>>,
    pub(crate) transfers: Mutex<VecDeque<Transfer>>,
    /// The image that every reference leads to, in place of the artifact: its manifest's digest.
    pub(crate) image: Mutex<Option<[u8; 32]>>,
    /// What there is by digest. Of a blob that was asked for the first time half is sent.
    pub(crate) blobs: Mutex<BTreeMap<[u8; 32], Vec<u8>>>,
    /// Blobs that were asked for, and from where on.
    pub(crate) asked: Mutex<Vec<([u8; 32], u64)>>,
    changed: Notify,
}

impl Fake {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            authority: authority(),
            artifact: (0..100_000u32).flat_map(u32::to_le_bytes).collect(),
            reports: Mutex::default(),
            offsets: Mutex::default(),
            transfers: Mutex::default(),
            image: Mutex::default(),
            blobs: Mutex::default(),
            asked: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// Waits until the latest report of a kind about a key satisfies the condition; forgets all before it.
    pub(crate) async fn wait(&self, kind: &str, key: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                {
                    let mut reports = self.reports.lock().expect("not poisoned");
                    let found =
                        reports.iter().position(|r| r.kind == kind && r.key == key && condition(&r.body));
                    if let Some(at) = found {
                        let body = reports[at].body.clone();
                        reports.drain(..=at);
                        return body;
                    }
                }
                changed.await;
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(body) => body,
            Err(_) => panic!("no such {kind} {key}: {:#?}", self.reports.lock().expect("not poisoned")),
        }
    }

    /// Adds content and answers its digest.
    pub(crate) fn add(&self, content: &[u8]) -> [u8; 32] {
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest(&SHA256, content).as_ref());
        self.blobs.lock().expect("not poisoned").insert(sha256, content.to_vec());
        sha256
    }

    fn image_head(&self) -> FakeStream {
        let manifest = self.image.lock().expect("not poisoned").expect("an image");
        let len = self.blobs.lock().expect("not poisoned")[&manifest].len() as u64;
        let mut out = vec![0; REQUEST_BYTES_MAX];
        let written = ImageHead { manifest, len }.write(&mut out).expect("fits");
        FakeStream::of(&out[..written], Ok(()))
    }

    fn blob(&self, sha256: [u8; 32], offset: u64) -> FakeStream {
        let mut asked = self.asked.lock().expect("not poisoned");
        let first = asked.iter().all(|(known, _)| *known != sha256);
        asked.push((sha256, offset));
        let blobs = self.blobs.lock().expect("not poisoned");
        let rest = &blobs[&sha256][usize::try_from(offset).expect("fits")..];
        if first && rest.len() > 1000 {
            return FakeStream::of(&rest[..rest.len() / 2], Err(StreamError::Lost));
        }
        FakeStream::of(rest, Ok(()))
    }

    fn serve(&self, offset: u64) -> FakeStream {
        if self.image.lock().expect("not poisoned").is_some() {
            return FakeStream::of(b"", Err(StreamError::Remote("Image: of an OCI container".to_owned())));
        }
        self.offsets.lock().expect("not poisoned").push(offset);
        let transfer = self.transfers.lock().expect("not poisoned").pop_front();
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest(&SHA256, &self.artifact).as_ref());
        let len = self.artifact.len() as u64;
        let host = ProfileId::host();
        let profile = match transfer {
            Some(Transfer::OtherProfile) => ProfileId::new(another(host.target()), host.baseline()),
            _ => host,
        };
        let text = statement(&[2; 32], &profile.to_string(), &sha256, len).expect("fits");
        let other = authority();
        let signer = if matches!(transfer, Some(Transfer::Forged)) { &other } else { &self.authority };
        let signature = signer.sign(ARTIFACT_SIGNING_CONTEXT, &text).expect("signs");
        let head =
            ArtifactHead { manifest: [1; 32], component: [2; 32], sha256, len, signature: Blob(&signature) };
        let mut out = vec![0; REQUEST_BYTES_MAX];
        let head_len = head.write(&mut out).expect("fits");
        out.truncate(head_len);
        let mut bytes = self.artifact[usize::try_from(offset).expect("fits")..].to_vec();
        if matches!(transfer, Some(Transfer::Damaged)) {
            bytes[7] ^= 1;
        }
        let mut end = Ok(());
        match transfer {
            Some(Transfer::LostAfter(count)) => {
                bytes.truncate(count);
                end = Err(StreamError::Lost);
            }
            Some(Transfer::Error(text)) => {
                out.clear();
                bytes.clear();
                end = Err(StreamError::Remote(text.to_owned()));
            }
            _ => {}
        }
        // The head arrives in two pieces, to be put together.
        let mut chunks: VecDeque<Bytes> = out.chunks(40).map(Bytes::copy_from_slice).collect();
        chunks.extend(bytes.chunks(30_000).map(Bytes::copy_from_slice));
        FakeStream { chunks, end, written: Arc::default() }
    }
}

/// A machine that is not this one.
fn another(target: Target) -> Target {
    if target == Target::Aarch64 { Target::X86_64 } else { Target::Aarch64 }
}

impl Uplink for Fake {
    fn report<'a>(
        &'a self,
        kind: &'a str,
        key: &'a str,
        uid: &'a str,
        body: Vec<u8>,
    ) -> BoxFuture<'a, Result<(), LinkError>> {
        async move {
            let body = serde_cbor::from_slice(&body).expect("reads");
            let report = Report { kind: kind.to_owned(), key: key.to_owned(), uid: uid.to_owned(), body };
            self.reports.lock().expect("not poisoned").push(report);
            self.changed.notify_waiters();
            Ok(())
        }
        .boxed()
    }

    fn open(&self, request: Vec<u8>) -> BoxFuture<'_, Result<Box<dyn ByteStream>, LinkError>> {
        async move {
            match StreamRequest::read(&request) {
                Ok(StreamRequest::Artifact { offset, .. }) => {
                    Ok(Box::new(self.serve(offset)) as Box<dyn ByteStream>)
                }
                Ok(StreamRequest::Image { platform, .. }) => {
                    assert!(platform.starts_with("linux/"), "{platform}");
                    Ok(Box::new(self.image_head()) as Box<dyn ByteStream>)
                }
                Ok(StreamRequest::Blob { sha256, offset }) => {
                    Ok(Box::new(self.blob(sha256, offset)) as Box<dyn ByteStream>)
                }
                _ => Err(LinkError::NotConnected),
            }
        }
        .boxed()
    }
}

/// What was written to a stream, and how it ended.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Written {
    pub(crate) data: Vec<u8>,
    pub(crate) finished: bool,
    pub(crate) reset: Option<String>,
}

/// A stream that gives what it was made with.
pub(crate) struct FakeStream {
    pub(crate) chunks: VecDeque<Bytes>,
    pub(crate) end: Result<(), StreamError>,
    pub(crate) written: Arc<Mutex<Written>>,
}

impl FakeStream {
    fn of(bytes: &[u8], end: Result<(), StreamError>) -> Self {
        let chunks = bytes.chunks(30_000).map(Bytes::copy_from_slice).collect();
        Self { chunks, end, written: Arc::default() }
    }
}

impl ByteStream for FakeStream {
    fn read(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, StreamError>> {
        let next = self.chunks.pop_front();
        let end = self.end.clone();
        async move { next.map_or(end.map(|()| None), |chunk| Ok(Some(chunk))) }.boxed()
    }

    fn write<'a>(&'a mut self, data: &'a [u8]) -> BoxFuture<'a, Result<(), StreamError>> {
        self.written.lock().expect("not poisoned").data.extend_from_slice(data);
        async { Ok(()) }.boxed()
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<(), StreamError>> {
        self.written.lock().expect("not poisoned").finished = true;
        async { Ok(()) }.boxed()
    }

    fn reset(self: Box<Self>, error: &str) {
        self.written.lock().expect("not poisoned").reset = Some(error.to_owned());
    }
}
