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
type Sha256 = [u8; 32];

/// Where an image reference led.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    manifest: Sha256,
    component: Sha256,
    sha256: Sha256,
    len: u64,
    signature: Vec<u8>,
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
    records: BTreeMap<String, Record>,
    /// Verified in this run.
    verified: BTreeSet<Sha256>,
    /// One puller an image.
    locks: BTreeMap<String, Arc<tokio::sync::Mutex<()>>>,
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
enum Broken {
    /// The link was lost; what arrived is kept.
    Lost(String),
    /// What was kept of an earlier transfer is of something else; it is gone now.
    Stale,
    Failed(Failure),
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
        let (record, pulled_ms) = match (here, policy) {
            (Some(record), PullPolicy::IfNotPresent | PullPolicy::Never) => (record, None),
            // Without its control plane a node runs what it has.
            (Some(record), PullPolicy::Always) if !connected => (record, None),
            (None, PullPolicy::Never) => {
                let text = format!("Container image {image:?} is not present with pull policy of Never");
                return Err((ImageFailure::NeverPull, text));
            }
            (_, PullPolicy::Always | PullPolicy::IfNotPresent) => {
                pulling();
                let begun = now();
                let record = self.pull(image).await?;
                (record, Some(elapsed_ms(begun)))
            }
        };
        let path = self.path(&record.sha256);
        let artifact = Artifact::Component { path, digest: format!("sha256:{}", hex(&record.sha256)) };
        if let Err(error) = self.runtime.prepare(&artifact).await {
            if matches!(error, RuntimeError::BadArtifact { .. }) {
                // It may be the file's fault; the next try gets another.
                self.state().verified.remove(&record.sha256);
                self.state().records.remove(image);
            }
            return Err((ImageFailure::Inspect, error.to_string()));
        }
        let name = match image.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => name,
            _ => image,
        };
        Ok(Prepared { artifact, image_id: format!("{name}@sha256:{}", hex(&record.manifest)), pulled_ms })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, sha256: &Sha256) -> PathBuf {
        self.dir.join(format!("{}.cwasm", hex(sha256)))
    }

    /// The image's artifact if it is on the node and whole.
    async fn find(&self, image: &str) -> Option<Record> {
        let record = self.state().records.get(image).cloned()?;
        if self.verify(&record).await { Some(record) } else { None }
    }

    /// Whether an artifact's file is what its record says and the cluster vouches for it.
    async fn verify(&self, record: &Record) -> bool {
        if self.state().verified.contains(&record.sha256) {
            return true;
        }
        if self.check_signature(record).is_err() {
            return false;
        }
        let path = self.path(&record.sha256);
        let found = tokio::task::spawn_blocking(move || digest_file(&path)).await;
        let good = matches!(found, Ok(Ok((sha256, len))) if sha256 == record.sha256 && len == record.len);
        if good {
            self.state().verified.insert(record.sha256);
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

    async fn pull(&self, image: &str) -> Result<Record, Failure> {
        let mut connected = self.connected.clone();
        let mut last = String::new();
        for _ in 0..=RESUMES_MAX {
            // A node that is cut off waits; its pods stay as they are meanwhile.
            if connected.wait_for(|up| *up).await.is_err() {
                return Err((ImageFailure::Pull, "the agent is stopping".to_owned()));
            }
            match self.transfer(image).await {
                Ok(record) => {
                    self.keep(image, &record).await;
                    return Ok(record);
                }
                Err(Broken::Failed(failure)) => return Err(failure),
                Err(Broken::Stale) => debug!(image, "what was kept of an earlier transfer is stale"),
                Err(Broken::Lost(why)) => {
                    debug!(image, why, "a transfer broke off");
                    last = why;
                }
            }
        }
        Err((ImageFailure::Pull, format!("the transfer broke off too often: {last}")))
    }

    async fn keep(&self, image: &str, record: &Record) {
        let before = {
            let mut state = self.state();
            state.verified.insert(record.sha256);
            state.records.insert(image.to_owned(), record.clone())
        };
        let Ok(bytes) = serde_cbor::to_vec(record) else { return };
        if before.as_ref() == Some(record) {
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
        let mut request = vec![0; REQUEST_BYTES_MAX];
        let len =
            StreamRequest::Artifact { image, profile: &self.profile, offset }.write(&mut request).map_err(
                |_| Broken::Failed((ImageFailure::InvalidName, "the reference is too long".to_owned())),
            )?;
        request.truncate(len);
        let mut stream = self.uplink.open(request).await.map_err(|error| Broken::Lost(error.to_string()))?;
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
        self.receive(stream, &record, &part, offset, buffer.freeze()).await?;
        Ok(record)
    }

    async fn receive(
        &self,
        mut stream: Box<dyn ByteStream>,
        record: &Record,
        part: &Part,
        offset: u64,
        first: Bytes,
    ) -> Result<(), Broken> {
        let mut file = part.open(&record.sha256, offset).await?;
        let mut have = offset;
        let mut chunk = first;
        loop {
            have += chunk.len() as u64;
            if have > record.len {
                stream.reset("more bytes than announced");
                part.discard().await;
                return Err(Broken::Failed((
                    ImageFailure::Pull,
                    "the artifact is longer than announced".into(),
                )));
            }
            file.write_all(&chunk).await?;
            if have == record.len {
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
        if found != (record.sha256, record.len) {
            part.discard().await;
            let text = format!("the artifact's digest is {}, not {}", hex(&found.0), hex(&record.sha256));
            return Err(Broken::Failed((ImageFailure::Pull, text)));
        }
        tokio::fs::rename(&part.data, self.path(&record.sha256)).await?;
        tokio::fs::File::open(&self.dir).await?.sync_all().await?;
        part.discard().await;
        // The other side ends after the last byte; there is nothing to say.
        let _ = stream.finish().await;
        Ok(())
    }
}

/// The next bytes of an artifact.
async fn next(stream: &mut dyn ByteStream) -> Result<Bytes, Broken> {
    match stream.read().await {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(Broken::Lost("the transfer ended early".to_owned())),
        Err(lichen_link::StreamError::Remote(text)) => {
            let error = StreamError::parse(&text);
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

/// What there is of an artifact that is on its way: the bytes, and the digest that they will have.
struct Part {
    data: PathBuf,
    goal: PathBuf,
}

impl Part {
    fn of(dir: &Path, key: &str) -> Self {
        Self { data: dir.join(format!("{key}.part")), goal: dir.join(format!("{key}.goal")) }
    }

    async fn kept(&self) -> (Option<Sha256>, u64) {
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

    async fn discard(&self) {
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

fn hex(bytes: &Sha256) -> String {
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
