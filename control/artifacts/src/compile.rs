//! Compilation ahead of time, in a process apart.
//!
//! A compile worker reads a component on stdin and writes the compiled artifact on stdout; what it has to complain about
//! goes to stderr, and its exit code says whether it worked. It starts with an empty environment and is limited from
//! outside, before it is fed its first byte: address space and processor time by the kernel, wall time and the size of
//! its output by [`Compiler`]. There is at most one compilation of a component for a profile at a time, and at most
//! [`CompileCommand::workers_max`] of all.
//!
//! A compiled artifact is kept with a record of what it was made from, its hash, and the CA's signature over all of that.
//! Both are checked whenever it is taken out of the cache; one that does not check is made again.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use lichen_wire::stream::ARTIFACT_SIGNING_CONTEXT;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;

use crate::blobs::Blobs;
use crate::{BlobError, Component, ComponentError, Digest, OpenError, files};

/// The longest profile id that is taken.
pub const PROFILE_BYTES_MAX: usize = 160;

/// How much of what a worker complains about is kept.
const STDERR_BYTES_MAX: u64 = 16 * 1024;

/// How a compile worker is run, and what it may use.
#[derive(Debug, Clone)]
pub struct CompileCommand {
    /// Program and first arguments; `--profile ID` is added.
    pub command: Vec<OsString>,
    /// Address space of a worker.
    pub memory_bytes_max: u64,
    /// Processor time of a worker.
    pub cpu_s_max: u64,
    /// Wall time of a worker, after which it is killed.
    pub time_max: Duration,
    /// The largest compiled artifact.
    pub output_bytes_max: u64,
    /// Workers at the same time.
    pub workers_max: usize,
}

impl CompileCommand {
    /// `command` with limits that suit components of some megabytes.
    pub fn new(command: Vec<OsString>) -> CompileCommand {
        CompileCommand {
            command,
            memory_bytes_max: 8 << 30,
            cpu_s_max: 300,
            time_max: Duration::from_secs(300),
            output_bytes_max: 512 << 20,
            workers_max: 2,
        }
    }
}

/// Why something could not be signed.
pub type SignerError = Box<dyn std::error::Error + Send + Sync>;

/// Whoever vouches for compiled artifacts: the cluster's CA.
pub trait Signer: Send + Sync {
    /// A signature over `message`.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignerError>;
    /// Whether `signature` is this signer's over `message`.
    fn verify(&self, message: &[u8], signature: &[u8]) -> bool;
}

impl Signer for lichen_pki::Authority {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        Ok(lichen_pki::Authority::sign(self, ARTIFACT_SIGNING_CONTEXT, message)?)
    }

    fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        lichen_pki::verify(self.ca_pem(), ARTIFACT_SIGNING_CONTEXT, message, signature).is_ok()
    }
}

/// The text that a compiled artifact's signature is over, as the wire defines it for those who verify.
fn statement(component: &Digest, profile: &str, sha256: &Digest, len_bytes: u64) -> Vec<u8> {
    // Profiles are short enough by `PROFILE_BYTES_MAX`.
    lichen_wire::stream::statement(component.as_bytes(), profile, sha256.as_bytes(), len_bytes)
        .map(|text| text.to_vec())
        .unwrap_or_default()
}

/// A component, compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompiledArtifact {
    /// The file. It is never changed, only replaced by one with the same meaning.
    pub path: PathBuf,
    /// The hash of the file's bytes.
    pub sha256: Digest,
    /// The CA's signature over what it was made from and for: see [`lichen_wire::stream::statement`].
    pub signature: Vec<u8>,
    /// The file's length.
    pub len_bytes: u64,
}

/// Why there is no compiled artifact.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The profile's name is none.
    #[error("{0:?} is not an engine profile")]
    Profile(String),
    /// The component could not be read.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The blob is no component.
    #[error("{digest} cannot be compiled")]
    NotComponent {
        /// The blob.
        digest: Digest,
        /// What it is instead.
        #[source]
        source: ComponentError,
    },
    /// The worker refused the component.
    #[error("compiling {digest} for {profile} failed: {message}")]
    Rejected {
        /// The component.
        digest: Digest,
        /// The profile.
        profile: String,
        /// What the worker said.
        message: String,
    },
    /// The worker used more than it may.
    #[error("compiling {digest} for {profile} was stopped: more than {limit}")]
    Limit {
        /// The component.
        digest: Digest,
        /// The profile.
        profile: String,
        /// Which limit was reached.
        limit: String,
    },
    /// The worker could not be run.
    #[error("cannot run the compile worker {program:?}")]
    Worker {
        /// The program.
        program: OsString,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The cache could not be written.
    #[error("cannot keep the compiled artifact")]
    Cache(#[source] io::Error),
    /// The CA did not sign.
    #[error("cannot sign the compiled artifact: {0}")]
    Sign(String),
}

/// What is kept beside a compiled artifact.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    version: u32,
    sha256: String,
    len_bytes: u64,
    signature: String,
}

const ENTRY_VERSION: u32 = 1;

/// What two compilations may not share.
type Job = (Digest, String);

/// The cache, and the workers that fill it.
pub(crate) struct Compiler {
    root: PathBuf,
    temporary: PathBuf,
    command: CompileCommand,
    signer: Arc<dyn Signer>,
    workers: Semaphore,
    // Only jobs that someone waits for are here.
    jobs: Mutex<BTreeMap<Job, Arc<tokio::sync::Mutex<()>>>>,
}

impl Compiler {
    pub(crate) fn open(
        dir: &Path,
        temporary: PathBuf,
        command: CompileCommand,
        signer: Arc<dyn Signer>,
    ) -> Result<Compiler, OpenError> {
        Ok(Compiler {
            root: files::make_dir(dir.join("compiled"))?,
            temporary,
            workers: Semaphore::new(command.workers_max.max(1)),
            command,
            signer,
            jobs: Mutex::default(),
        })
    }

    /// See [`crate::Artifacts::compiled`].
    pub(crate) async fn compiled(
        self: &Arc<Self>,
        blobs: &Arc<Blobs>,
        component: &Digest,
        profile: &str,
    ) -> Result<CompiledArtifact, CompileError> {
        if !is_profile(profile) {
            return Err(CompileError::Profile(profile.to_owned()));
        }
        let job = (*component, profile.to_owned());
        let turn =
            self.jobs.lock().unwrap_or_else(PoisonError::into_inner).entry(job.clone()).or_default().clone();
        let result = {
            let _mine = turn.lock().await;
            self.cached_or_made(blobs, &job).await
        };
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        // Two holders are the table and this call: nobody else waits for the job.
        if Arc::strong_count(&turn) == 2 {
            jobs.remove(&job);
        }
        result
    }

    async fn cached_or_made(
        self: &Arc<Self>,
        blobs: &Arc<Blobs>,
        job: &Job,
    ) -> Result<CompiledArtifact, CompileError> {
        let (this, key) = (self.clone(), job.clone());
        if let Some(found) = files::blocking(move || this.cached(&key)).await {
            return Ok(found);
        }
        let (blobs, digest) = (blobs.clone(), job.0);
        let wasm = files::blocking(move || blobs.read(&digest)).await?;
        Component::parse(&wasm).map_err(|source| CompileError::NotComponent { digest, source })?;
        let output = {
            // The semaphore is never closed.
            let _permit = self.workers.acquire().await.ok();
            self.run_worker(job, wasm).await?
        };
        let (this, key) = (self.clone(), job.clone());
        files::blocking(move || this.keep(&key, &output)).await
    }

    /// Removes what was compiled from components that are not in `keep`.
    pub(crate) fn retain(&self, keep: &BTreeSet<Digest>) -> io::Result<()> {
        for dir in std::fs::read_dir(&self.root)? {
            for file in std::fs::read_dir(dir?.path())? {
                let path = file?.path();
                let digest = path.file_stem().and_then(|stem| stem.to_str()).map(Digest::from_hex);
                if matches!(digest, Some(Ok(digest)) if !keep.contains(&digest)) {
                    std::fs::remove_file(path)?;
                }
            }
        }
        Ok(())
    }

    fn places(&self, (digest, profile): &Job) -> (PathBuf, PathBuf) {
        let dir = self.root.join(profile);
        (dir.join(format!("{}.cwasm", digest.hex())), dir.join(format!("{}.json", digest.hex())))
    }

    /// What the cache has for a job, if all of it checks.
    fn cached(&self, job: &Job) -> Option<CompiledArtifact> {
        let (path, entry) = self.places(job);
        let entry: Entry = serde_json::from_slice(&std::fs::read(entry).ok()?).ok()?;
        let content = std::fs::read(&path).ok()?;
        let sha256 = Digest::of(&content);
        let signature = BASE64.decode(&entry.signature).ok()?;
        let len_bytes = content.len() as u64;
        let holds = entry.version == ENTRY_VERSION
            && entry.sha256 == sha256.to_string()
            && self.signer.verify(&statement(&job.0, &job.1, &sha256, len_bytes), &signature);
        if !holds {
            tracing::warn!(path = %path.display(), "a compiled artifact in the cache does not check; making it again");
            return None;
        }
        Some(CompiledArtifact { path, sha256, signature, len_bytes })
    }

    fn keep(&self, job: &Job, output: &[u8]) -> Result<CompiledArtifact, CompileError> {
        let sha256 = Digest::of(output);
        let len_bytes = output.len() as u64;
        let message = statement(&job.0, &job.1, &sha256, len_bytes);
        let signature = self.signer.sign(&message).map_err(|e| CompileError::Sign(e.to_string()))?;
        let entry = Entry {
            version: ENTRY_VERSION,
            sha256: sha256.to_string(),
            len_bytes,
            signature: BASE64.encode(&signature),
        };
        let (path, entry_path) = self.places(job);
        let write = || -> io::Result<()> {
            let mut draft = files::Draft::create(&self.temporary)?;
            draft.file().write_all(output)?;
            draft.publish(&path)?;
            files::write_atomically(&self.temporary, &entry_path, &serde_json::to_vec(&entry)?)
        };
        write().map_err(CompileError::Cache)?;
        Ok(CompiledArtifact { path, sha256, signature, len_bytes })
    }

    async fn run_worker(&self, (digest, profile): &Job, wasm: Bytes) -> Result<Vec<u8>, CompileError> {
        let program = self.command.command.first().cloned().unwrap_or_default();
        let failed = |source| CompileError::Worker { program: program.clone(), source };
        let over = |limit: String| CompileError::Limit { digest: *digest, profile: profile.clone(), limit };
        let mut child = Command::new(&program)
            .args(self.command.command.iter().skip(1))
            .arg("--profile")
            .arg(profile)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        // Nothing untrusted has reached the worker yet, so limits set now are as good as limits set before it started.
        self.limit(&child).map_err(failed)?;
        // All three are there, since they were asked for above.
        let (Some(mut stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(failed(io::Error::other("no pipes")));
        };
        let feed = async move {
            // A worker that refuses early closes its end; what it says on stderr is the better error.
            let _ = stdin.write_all(&wasm).await;
            drop(stdin);
            Ok(())
        };
        let output_bytes_max = self.command.output_bytes_max;
        let output = async {
            let output = read_up_to(stdout, output_bytes_max.saturating_add(1)).await.map_err(failed)?;
            match output.len() as u64 > output_bytes_max {
                true => Err(over(format!("{output_bytes_max} bytes of output"))),
                false => Ok(output),
            }
        };
        let complaint = async { Ok(read_start(stderr, STDERR_BYTES_MAX).await) };
        let exit = async { child.wait().await.map_err(failed) };
        let work = async { tokio::try_join!(feed, output, complaint, exit) };
        let result = match tokio::time::timeout(self.command.time_max, work).await {
            Ok(result) => result,
            Err(_) => Err(over(format!("{} s", self.command.time_max.as_secs_f32()))),
        };
        let ((), output, complaint, status) = match result {
            Ok(done) => done,
            Err(e) => {
                kill(&mut child).await;
                return Err(e);
            }
        };
        if status.success() && !output.is_empty() {
            return Ok(output);
        }
        use std::os::unix::process::ExitStatusExt;
        if status.signal() == Some(rustix::process::Signal::XCPU.as_raw()) {
            return Err(over(format!("{} s of processor time", self.command.cpu_s_max)));
        }
        let said = String::from_utf8_lossy(&complaint).trim().to_owned();
        let message = match said.is_empty() {
            true => format!("the worker ended with {status} and said nothing"),
            false => said,
        };
        Err(CompileError::Rejected { digest: *digest, profile: profile.clone(), message })
    }

    fn limit(&self, child: &Child) -> io::Result<()> {
        // A child that has ended already has no id; there is nothing to limit then.
        let Some(pid) = child.id().and_then(|id| Pid::from_raw(id as i32)) else { return Ok(()) };
        let limit = |max| Rlimit { current: Some(max), maximum: Some(max) };
        prlimit(Some(pid), Resource::As, limit(self.command.memory_bytes_max))?;
        // The kernel sends SIGXCPU at the soft limit and kills at the hard one.
        let cpu = Rlimit { current: Some(self.command.cpu_s_max), maximum: Some(self.command.cpu_s_max + 1) };
        prlimit(Some(pid), Resource::Cpu, cpu)?;
        prlimit(Some(pid), Resource::Core, limit(0))?;
        Ok(())
    }
}

async fn kill(child: &mut Child) {
    if let Err(e) = child.kill().await {
        tracing::warn!(error = %e, "cannot kill a compile worker");
    }
}

/// Everything up to `max` bytes. What comes after is left in the pipe.
async fn read_up_to(from: impl AsyncRead + Unpin, max: u64) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    from.take(max).read_to_end(&mut all).await?;
    Ok(all)
}

/// The first `max` bytes. What comes after is read and dropped, so that the writer never waits.
async fn read_start(from: impl AsyncRead + Unpin, max: u64) -> Vec<u8> {
    let mut start = Vec::new();
    let mut from = from.take(max);
    if from.read_to_end(&mut start).await.is_ok() {
        // What cannot be read any more was going to be dropped.
        let _ = tokio::io::copy(&mut from.into_inner(), &mut tokio::io::sink()).await;
    }
    start
}

/// Profiles become file names and arguments: letters, digits and a few signs, not starting with a dot or a dash.
fn is_profile(profile: &str) -> bool {
    !profile.is_empty()
        && profile.len() <= PROFILE_BYTES_MAX
        && profile.starts_with(|c: char| c.is_ascii_alphanumeric())
        && profile.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+".contains(&b))
}
