//! Compiled artifacts on this node: pulled in pieces through the session, resumed where a transfer broke off,
//! verified against digest and signature, and kept under their digest.
//!
//! Invariant: a file under its digest's name was whole and verified when it got that name, and is verified once
//! more in every run of the agent before it is used.
//!
//! Deliberately absent: removing artifacts that no pod uses any more.

mod transfer;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use lichen_pods::{ImageFailure, PullPolicy};
use lichen_state::{Change, Checkpoint, Space};
use lichen_wire::stream::{ARTIFACT_SIGNING_CONTEXT, statement};
use lichen_workload::{Artifact, Runtime, RuntimeError};
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::warn;

pub(crate) use self::transfer::{Broken, Goal, Part, next};
use crate::clock::now;
use crate::uplink::Uplink;

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
