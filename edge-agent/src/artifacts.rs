//! Compiled artifacts on this node: pulled in pieces through the session, resumed where a transfer broke off,
//! verified against digest and signature, and kept under their digest.
//!
//! Invariant: a file under its digest's name was whole and verified when it got that name, and is verified once
//! more in every run of the agent before it is used.
//!
//! Deliberately absent: removing artifacts that no pod uses any more.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use lichen_pods::{ImageFailure, PullPolicy};
use lichen_state::{Change, Checkpoint, Space};
use lichen_wire::stream::{
    ARTIFACT_SIGNING_CONTEXT, ArtifactHead, REQUEST_BYTES_MAX, StreamError, StreamErrorCode, StreamRequest,
    statement,
};
use lichen_workload::{Artifact, Runtime, RuntimeError};
use ring::digest::{Context, SHA256, digest};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::clock::now;
use crate::uplink::{ByteStream, Uplink};

/// How often a transfer that broke off is resumed before the pull counts as failed.
const RESUMES_MAX: usize = 8;
/// The largest artifact that is taken.
const ARTIFACT_BYTES_MAX: u64 = 1 << 30;
/// How much of a file is read at a time.
const READ_BYTES: usize = 256 * 1024;

/// SHA-256 of something.
pub(crate) type Sha256 = [u8; 32];

/// Where an image reference led.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    manifest: Sha256,
    component: Sha256,
    sha256: Sha256,
    len: u64,
    signature: Vec<u8>,
}

/// What is kept of where an image reference led.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kept {
    /// A component, compiled for this node.
    Component(Record),
    /// The image of an OCI container, unpacked.
    Image {
        /// The digest of its manifest, under which it lies.
        manifest: Sha256,
    },
}

/// An artifact that is ready to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// The artifact.
    pub artifact: Artifact,
    /// What the container's status calls the image.
    pub image_id: String,
    /// How long fetching it took, if it had to be.
    pub pulled_ms: Option<u64>,
}

/// Why there is no artifact.
pub type Failure = (ImageFailure, String);

/// Gets images onto the node.
pub trait Images: Send + Sync + 'static {
    /// Gets an image's artifact and checks that the runtime can run it. `pulling` is called if it has to be fetched.
    fn prepare<'a>(
        &'a self,
        image: &'a str,
        policy: PullPolicy,
        pulling: Box<dyn FnOnce() + Send + 'a>,
    ) -> BoxFuture<'a, Result<Prepared, Failure>>;
}

/// The artifacts of this node.
pub(crate) struct Artifacts {
    pub(crate) dir: PathBuf,
    pub(crate) profile: String,
    pub(crate) ca_pem: String,
    pub(crate) uplink: Arc<dyn Uplink>,
    /// Whether the session stands.
    pub(crate) connected: watch::Receiver<bool>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) checkpoint: Arc<Checkpoint>,
    pub(crate) state: Mutex<State>,
}

/// What changes as artifacts come.
#[derive(Default)]
pub(crate) struct State {
    records: BTreeMap<String, Kept>,
    /// Verified in this run.
    pub(crate) verified: BTreeSet<Sha256>,
    /// One puller an image.
    pub(crate) locks: BTreeMap<String, Arc<tokio::sync::Mutex<()>>>,
}

impl State {
    /// Takes up what the checkpoint holds. A record that can't be read is pulled anew.
    pub(crate) fn restore<'a>(entries: impl Iterator<Item = (&'a str, &'a [u8])>) -> Self {
        let records = entries
            .filter_map(|(image, bytes)| Some((image.to_owned(), serde_cbor::from_slice(bytes).ok()?)));
        Self { records: records.collect(), ..Self::default() }
    }
}

/// Why a transfer ended without its artifact.
pub(crate) enum Broken {
    /// The link was lost; what arrived is kept.
    Lost(String),
    /// What was kept of an earlier transfer is of something else; it is gone now.
    Stale,
    Failed(Failure),
    /// It is the image of an OCI container, which comes another way.
    Image,
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Failed((ImageFailure::Pull, format!("the node's disk: {error}")))
    }
}

impl Images for Artifacts {
    fn prepare<'a>(
        &'a self,
        image: &'a str,
        policy: PullPolicy,
        pulling: Box<dyn FnOnce() + Send + 'a>,
    ) -> BoxFuture<'a, Result<Prepared, Failure>> {
        Artifacts::prepare(self, image, policy, pulling).boxed()
    }
}

impl Artifacts {
    /// Gets an image's artifact onto the node and checks that the runtime can run it. `pulling` is called if it
    /// has to be fetched.
    pub(crate) async fn prepare(
        &self,
        image: &str,
        policy: PullPolicy,
        pulling: impl FnOnce() + Send,
    ) -> Result<Prepared, Failure> {
        let lock = self.state().locks.entry(image.to_owned()).or_default().clone();
        let _only = lock.lock().await;
        let here = self.find(image).await;
        let connected = *self.connected.borrow();
        let (kept, pulled_ms) = match (here, policy) {
            (Some(kept), PullPolicy::IfNotPresent | PullPolicy::Never) => (kept, None),
            // Without its control plane a node runs what it has.
            (Some(kept), PullPolicy::Always) if !connected => (kept, None),
            (None, PullPolicy::Never) => {
                let text = format!("Container image {image:?} is not present with pull policy of Never");
                return Err((ImageFailure::NeverPull, text));
            }
            (_, PullPolicy::Always | PullPolicy::IfNotPresent) => {
                pulling();
                let begun = now();
                let kept = self.pull(image).await?;
                (kept, Some(elapsed_ms(begun)))
            }
        };
        let (artifact, manifest) = match &kept {
            Kept::Component(record) => {
                let (path, digest) = (self.path(&record.sha256), format!("sha256:{}", hex(&record.sha256)));
                (Artifact::Component { path, digest }, &record.manifest)
            }
            Kept::Image { manifest } => (Artifact::Image { path: self.image_path(manifest) }, manifest),
        };
        match self.runtime.prepare(&artifact).await {
            Ok(()) => {}
            Err(RuntimeError::Unavailable(why)) => return Err((ImageFailure::NoRuntime, why)),
            Err(error) => {
                if matches!(error, RuntimeError::BadArtifact { .. }) {
                    // It may be the file's fault; the next try gets another.
                    if let Kept::Component(record) = &kept {
                        self.state().verified.remove(&record.sha256);
                    }
                    self.state().records.remove(image);
                }
                return Err((ImageFailure::Inspect, error.to_string()));
            }
        }
        let name = match image.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => name,
            _ => image,
        };
        Ok(Prepared { artifact, image_id: format!("{name}@sha256:{}", hex(manifest)), pulled_ms })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, sha256: &Sha256) -> PathBuf {
        self.dir.join(format!("{}.cwasm", hex(sha256)))
    }

    /// The image's artifact if it is on the node and whole.
    async fn find(&self, image: &str) -> Option<Kept> {
        let kept = self.state().records.get(image).cloned()?;
        let whole = match &kept {
            Kept::Component(record) => self.verify(record).await,
            Kept::Image { manifest } => self.is_unpacked(manifest).await,
        };
        whole.then_some(kept)
    }

    /// Whether an artifact's file is what its record says and the cluster vouches for it.
    async fn verify(&self, record: &Record) -> bool {
        if self.state().verified.contains(&record.sha256) {
            return true;
        }
        if self.check_signature(record).is_err() {
            return false;
        }
        self.is_whole(self.path(&record.sha256), &record.sha256, record.len).await
    }

    /// Whether a file is what its name says; looked at once in a run of the agent.
    pub(crate) async fn is_whole(&self, path: PathBuf, sha256: &Sha256, len: u64) -> bool {
        if self.state().verified.contains(sha256) {
            return true;
        }
        let found = tokio::task::spawn_blocking(move || digest_file(&path)).await;
        let good = matches!(found, Ok(Ok(found)) if found == (*sha256, len));
        if good {
            self.state().verified.insert(*sha256);
        }
        good
    }

    fn check_signature(&self, record: &Record) -> Result<(), Failure> {
        let text = statement(&record.component, &self.profile, &record.sha256, record.len);
        let text =
            text.ok_or_else(|| (ImageFailure::Pull, "the engine profile's name is too long".to_owned()))?;
        lichen_pki::verify(&self.ca_pem, ARTIFACT_SIGNING_CONTEXT, &text, &record.signature)
            .map_err(|error| (ImageFailure::Pull, format!("the artifact is refused: {error}")))
    }

    async fn pull(&self, image: &str) -> Result<Kept, Failure> {
        let mut connected = self.connected.clone();
        let mut last = String::new();
        for _ in 0..=RESUMES_MAX {
            // A node that is cut off waits; its pods stay as they are meanwhile.
            if connected.wait_for(|up| *up).await.is_err() {
                return Err((ImageFailure::Pull, "the agent is stopping".to_owned()));
            }
            let kept = match self.transfer(image).await {
                Ok(record) => Ok(Kept::Component(record)),
                Err(Broken::Image) => {
                    self.transfer_image(image).await.map(|manifest| Kept::Image { manifest })
                }
                Err(broken) => Err(broken),
            };
            match kept {
                Ok(kept) => {
                    self.keep(image, &kept).await;
                    return Ok(kept);
                }
                Err(Broken::Failed(failure)) => return Err(failure),
                Err(Broken::Stale | Broken::Image) => {
                    debug!(image, "what was kept of an earlier transfer is stale")
                }
                Err(Broken::Lost(why)) => {
                    debug!(image, why, "a transfer broke off");
                    last = why;
                }
            }
        }
        Err((ImageFailure::Pull, format!("the transfer broke off too often: {last}")))
    }

    async fn keep(&self, image: &str, kept: &Kept) {
        let before = {
            let mut state = self.state();
            if let Kept::Component(record) = kept {
                state.verified.insert(record.sha256);
            }
            state.records.insert(image.to_owned(), kept.clone())
        };
        let Ok(bytes) = serde_cbor::to_vec(kept) else { return };
        if before.as_ref() == Some(kept) {
            return;
        }
        let checkpoint = self.checkpoint.clone();
        let change = Change::Put(Space::Image, image.to_owned(), bytes);
        let kept = tokio::task::spawn_blocking(move || checkpoint.commit(&[change])).await;
        if !matches!(kept, Ok(Ok(()))) {
            warn!(image, ?kept, "where an image led is not in the checkpoint");
        }
    }

    async fn transfer(&self, image: &str) -> Result<Record, Broken> {
        let key = digest(&SHA256, format!("{image}\n{}", self.profile).as_bytes());
        let part = Part::of(&self.dir, &hex_of(key.as_ref()));
        tokio::fs::create_dir_all(&self.dir).await?;
        let (kept, offset) = part.kept().await;
        let mut stream =
            self.open(&StreamRequest::Artifact { image, profile: &self.profile, offset }).await?;
        let mut buffer = BytesMut::new();
        let record = loop {
            match ArtifactHead::read(&buffer) {
                Ok(Some((head, used))) => {
                    let record = Record {
                        manifest: head.manifest,
                        component: head.component,
                        sha256: head.sha256,
                        len: head.len,
                        signature: head.signature.0.to_owned(),
                    };
                    let _ = buffer.split_to(used);
                    break record;
                }
                Ok(None) => buffer.extend_from_slice(&next(stream.as_mut()).await?),
                Err(error) => {
                    stream.reset("the artifact's head can't be read");
                    return Err(Broken::Failed((
                        ImageFailure::Pull,
                        format!("the artifact's head: {error}"),
                    )));
                }
            }
        };
        self.check_signature(&record).map_err(Broken::Failed)?;
        if record.len > ARTIFACT_BYTES_MAX {
            stream.reset("too large");
            let text = format!("{} bytes are more than a node takes", record.len);
            return Err(Broken::Failed((ImageFailure::Pull, text)));
        }
        if self.verify(&record).await {
            stream.reset("the node has it already");
            return Ok(record);
        }
        if offset > 0 && (kept != Some(record.sha256) || offset > record.len) {
            stream.reset("the node has another beginning");
            part.discard().await;
            return Err(Broken::Stale);
        }
        let goal = Goal { sha256: record.sha256, len: record.len, path: self.path(&record.sha256) };
        self.receive(stream, &goal, &part, offset, buffer.freeze()).await?;
        Ok(record)
    }

    /// Asks for something.
    pub(crate) async fn open(&self, request: &StreamRequest<'_>) -> Result<Box<dyn ByteStream>, Broken> {
        let mut bytes = vec![0; REQUEST_BYTES_MAX];
        let len = request.write(&mut bytes).map_err(|_| {
            Broken::Failed((ImageFailure::InvalidName, "the reference is too long".to_owned()))
        })?;
        bytes.truncate(len);
        self.uplink.open(bytes).await.map_err(|error| Broken::Lost(error.to_string()))
    }

    /// Takes the bytes of a file after those that are here, and gives it its name once it is whole.
    pub(crate) async fn receive(
        &self,
        mut stream: Box<dyn ByteStream>,
        goal: &Goal,
        part: &Part,
        offset: u64,
        first: Bytes,
    ) -> Result<(), Broken> {
        let mut file = part.open(&goal.sha256, offset).await?;
        let mut have = offset;
        let mut chunk = first;
        loop {
            have += chunk.len() as u64;
            if have > goal.len {
                stream.reset("more bytes than announced");
                part.discard().await;
                return Err(Broken::Failed((
                    ImageFailure::Pull,
                    "the artifact is longer than announced".into(),
                )));
            }
            file.write_all(&chunk).await?;
            if have == goal.len {
                break;
            }
            chunk = match next(stream.as_mut()).await {
                Ok(chunk) => chunk,
                Err(broken) => {
                    // What arrived is flushed, so that the next transfer goes on from there.
                    file.flush().await?;
                    return Err(broken);
                }
            };
        }
        file.flush().await?;
        file.sync_all().await?;
        drop(file);
        let path = part.data.clone();
        let found =
            tokio::task::spawn_blocking(move || digest_file(&path)).await.map_err(io::Error::other)??;
        if found != (goal.sha256, goal.len) {
            part.discard().await;
            let text = format!("the artifact's digest is {}, not {}", hex(&found.0), hex(&goal.sha256));
            return Err(Broken::Failed((ImageFailure::Pull, text)));
        }
        tokio::fs::rename(&part.data, &goal.path).await?;
        let dir = goal.path.parent().unwrap_or(&self.dir);
        tokio::fs::File::open(dir).await?.sync_all().await?;
        part.discard().await;
        // The other side ends after the last byte; there is nothing to say.
        let _ = stream.finish().await;
        Ok(())
    }
}

/// The next bytes of an artifact.
pub(crate) async fn next(stream: &mut dyn ByteStream) -> Result<Bytes, Broken> {
    match stream.read().await {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(Broken::Lost("the transfer ended early".to_owned())),
        Err(lichen_link::StreamError::Remote(text)) => {
            let error = StreamError::parse(&text);
            if error.code == StreamErrorCode::Image {
                return Err(Broken::Image);
            }
            let kind = match error.code {
                StreamErrorCode::Invalid => ImageFailure::InvalidName,
                StreamErrorCode::Unusable => ImageFailure::Inspect,
                _ => ImageFailure::Pull,
            };
            Err(Broken::Failed((kind, error.message.to_owned())))
        }
        Err(error) => Err(Broken::Lost(error.to_string())),
    }
}

/// A file that is to be here.
pub(crate) struct Goal {
    pub(crate) sha256: Sha256,
    pub(crate) len: u64,
    pub(crate) path: PathBuf,
}

/// What there is of an artifact that is on its way: the bytes, and the digest that they will have.
pub(crate) struct Part {
    data: PathBuf,
    goal: PathBuf,
}

impl Part {
    pub(crate) fn of(dir: &Path, key: &str) -> Self {
        Self { data: dir.join(format!("{key}.part")), goal: dir.join(format!("{key}.goal")) }
    }

    pub(crate) async fn kept(&self) -> (Option<Sha256>, u64) {
        let goal = tokio::fs::read(&self.goal).await.ok().and_then(|bytes| bytes.try_into().ok());
        let len = tokio::fs::metadata(&self.data).await.map_or(0, |meta| meta.len());
        if goal.is_some() { (goal, len) } else { (None, 0) }
    }

    async fn open(&self, goal: &Sha256, offset: u64) -> io::Result<tokio::fs::File> {
        if offset == 0 {
            tokio::fs::write(&self.goal, goal).await?;
            return tokio::fs::File::create(&self.data).await;
        }
        tokio::fs::OpenOptions::new().append(true).open(&self.data).await
    }

    pub(crate) async fn discard(&self) {
        // What is not there needs no removing.
        let _ = tokio::fs::remove_file(&self.data).await;
        let _ = tokio::fs::remove_file(&self.goal).await;
    }
}

fn digest_file(path: &Path) -> io::Result<(Sha256, u64)> {
    let mut file = std::fs::File::open(path)?;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; READ_BYTES];
    let mut len = 0;
    loop {
        let read = io::Read::read(&mut file, &mut buffer)?;
        if read == 0 {
            break;
        }
        context.update(&buffer[..read]);
        len += read as u64;
    }
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(context.finish().as_ref());
    Ok((sha256, len))
}

pub(crate) fn hex(bytes: &Sha256) -> String {
    hex_of(bytes)
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn elapsed_ms(since: Timestamp) -> u64 {
    u64::try_from(now().duration_since(since).as_millis()).unwrap_or(0)
}

#[cfg(test)]
mod tests;
