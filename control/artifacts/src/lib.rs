//! Artifacts of a cluster: the embedded registry (OCI distribution API over a content-addressed store on disk), and
//! compilation ahead of time for the engine profiles of its nodes.
//!
//! Invariants:
//! - content is named by the SHA-256 of its bytes, checked before it gets its name and again whenever it is read whole;
//! - a file appears under its final name complete and synced, or not at all, so a crash leaves only temporary files,
//!   which the next start removes;
//! - a compiled artifact leaves this crate only with a signature of the cluster's CA over what it was made from and for,
//!   so that a node maps nothing that the control plane did not compile;
//! - what no manifest names is removed on opening, unless a manifest can't be read;
//! - compilers run in a process apart, limited in memory, processor time and wall time; they are never linked in here.
//!
//! Deliberately absent: pulling from other registries, authentication (whoever mounts [`Artifacts::handle`] admits
//! callers first), and blobs kept apart by repository (one tenant, one set of blobs).

mod blobs;
mod compile;
mod component;
mod copies;
mod digest;
mod files;
mod oci;
mod push;
mod reference;
mod repositories;
mod upload;

use std::path::Path;
use std::sync::Arc;

pub use blobs::BlobError;
pub use compile::{CompileCommand, CompileError, CompiledArtifact, PROFILE_BYTES_MAX, Signer, SignerError};
pub use component::{Component, ComponentError};
pub use copies::{Arriving, Copies, CopyError, Link, News};
pub use digest::{Digest, DigestError, Hasher};
pub use oci::Body;
pub use push::{PushError, Pushed, Transport, TransportError, push};
pub use reference::{DEFAULT_TAG, NAME_BYTES_MAX, Reference, ReferenceError, TAG_BYTES_MAX};
pub use repositories::{ResolveError, Resolved};

/// The media type of a manifest.
pub const MANIFEST_MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of the config of a Wasm artifact.
pub const WASM_CONFIG_MEDIA_TYPE: &str = "application/vnd.wasm.config.v0+json";
/// The media types of the config of an OCI container's image.
pub const IMAGE_CONFIG_MEDIA_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// The media type of a layer that is a Wasm binary.
pub const WASM_LAYER_MEDIA_TYPE: &str = "application/wasm";

/// Why the store of artifacts could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A directory could not be made or read.
    #[error("cannot use the artifact directory {path}")]
    Io {
        /// The directory or file.
        path: std::path::PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Another process has the directory open.
    #[error("another process uses the artifact directory {0}")]
    InUse(std::path::PathBuf),
}

/// The artifacts of a cluster. Cheap to clone; every clone is the same store.
#[derive(Clone)]
pub struct Artifacts {
    blobs: Arc<blobs::Blobs>,
    repositories: Arc<repositories::Repositories>,
    uploads: Arc<upload::Uploads>,
    compiler: Arc<compile::Compiler>,
    held: Option<Arc<copies::Held>>,
    // Held for as long as the store is open.
    _lock: Arc<std::fs::File>,
}

impl Artifacts {
    /// Opens the store in `dir`, making it if it isn't there and removing what a crash left half-written.
    ///
    /// `compile` says how to run a compile worker, `signer` is the cluster's CA.
    pub fn open(
        dir: &Path,
        compile: CompileCommand,
        signer: Arc<dyn Signer>,
    ) -> Result<Artifacts, OpenError> {
        let artifacts = Artifacts::assemble(dir, compile, signer, None)?;
        sweep(&artifacts.blobs, &artifacts.repositories, &artifacts.compiler);
        Ok(artifacts)
    }

    /// Opens the store of a member that holds the artifacts together with others. Nothing is removed on opening: what no
    /// manifest names here yet may be what others are about to agree on.
    pub fn open_member(
        dir: &Path,
        compile: CompileCommand,
        signer: Arc<dyn Signer>,
        copies: Arc<dyn Copies>,
    ) -> Result<Artifacts, OpenError> {
        Artifacts::assemble(dir, compile, signer, Some(copies))
    }

    fn assemble(
        dir: &Path,
        compile: CompileCommand,
        signer: Arc<dyn Signer>,
        copies: Option<Arc<dyn Copies>>,
    ) -> Result<Artifacts, OpenError> {
        let lock = Arc::new(files::lock(dir)?);
        let temporary = files::make_empty_dir(dir.join("tmp"))?;
        let blobs = Arc::new(blobs::Blobs::open(dir, temporary.clone())?);
        let repositories = Arc::new(repositories::Repositories::open(dir, temporary.clone())?);
        let compiler = Arc::new(compile::Compiler::open(dir, temporary, compile, signer)?);
        let uploads = Arc::new(upload::Uploads::new(blobs.clone()));
        let held = copies.map(|copies| Arc::new(copies::Held { copies, writing: Default::default() }));
        Ok(Artifacts { blobs, repositories, uploads, compiler, held, _lock: lock })
    }

    /// The links that are here, for members that have yet to agree on any.
    pub async fn links(&self) -> std::io::Result<Vec<Link>> {
        let repositories = self.repositories.clone();
        files::blocking(move || repositories.links()).await
    }

    /// The manifest that a reference leads to is made to be here, whoever it was pushed to.
    async fn find(&self, reference: &Reference) -> Result<(), ResolveError> {
        self.catch_up().await.map_err(std::io::Error::other)?;
        let (repositories, reference) = (self.repositories.clone(), reference.clone());
        match files::blocking(move || repositories.manifest_of(&reference)).await? {
            Some(manifest) => Ok(self.hold(&manifest).await?),
            None => Ok(()),
        }
    }

    /// Finds what `reference` names: its manifest and the one layer that is the component.
    pub async fn resolve(&self, reference: &Reference) -> Result<Resolved, ResolveError> {
        self.find(reference).await?;
        let (blobs, repositories, reference) =
            (self.blobs.clone(), self.repositories.clone(), reference.clone());
        files::blocking(move || repositories.resolve(&blobs, &reference)).await
    }

    /// Finds the manifest that the image of an OCI container has for a platform such as `linux/arm64`, and its length.
    pub async fn image(&self, reference: &Reference, platform: &str) -> Result<(Digest, u64), ResolveError> {
        self.find(reference).await?;
        let (blobs, repositories, reference, platform) =
            (self.blobs.clone(), self.repositories.clone(), reference.clone(), platform.to_owned());
        files::blocking(move || repositories.image(&blobs, &reference, &platform)).await
    }

    /// The file of a blob and its length, to be read in pieces by whoever checks the whole.
    pub async fn open_blob(&self, digest: &Digest) -> Result<(std::fs::File, u64), BlobError> {
        self.hold(digest).await?;
        self.open_own(digest).await
    }

    /// The same of what is here already: for other members, who ask each of them.
    pub async fn open_own(&self, digest: &Digest) -> Result<(std::fs::File, u64), BlobError> {
        let (blobs, digest) = (self.blobs.clone(), *digest);
        files::blocking(move || blobs.open_file(&digest)).await
    }

    /// The component `layer` compiled for the engine profile `profile`: out of the cache, or by a compile worker.
    pub async fn compiled(&self, layer: &Digest, profile: &str) -> Result<CompiledArtifact, CompileError> {
        self.hold(layer).await?;
        self.compiler.compiled(&self.blobs, layer, profile).await
    }

    /// Serves one request of the OCI distribution API: everything at and below `/v2/`. The caller has been admitted.
    pub async fn handle<B>(&self, request: hyper::Request<B>) -> hyper::Response<Body>
    where
        B: hyper::body::Body<Data = bytes::Bytes> + Send,
        B::Error: std::fmt::Display,
    {
        oci::handle(self, request).await
    }

    /// The whole content of a blob, checked against its digest.
    pub async fn blob(&self, digest: &Digest) -> Result<bytes::Bytes, BlobError> {
        let (blobs, digest) = (self.blobs.clone(), *digest);
        files::blocking(move || blobs.read(&digest)).await
    }
}

/// Removes what no manifest names: leftovers of pushes that were broken off, and of deleted manifests. Only on opening,
/// when nothing is being pushed. Whatever stands in the way is logged, and leaves things as they are.
fn sweep(blobs: &blobs::Blobs, repositories: &repositories::Repositories, compiler: &compile::Compiler) {
    let keep = match repositories.referenced(blobs) {
        Ok(keep) => keep,
        Err(error) => {
            tracing::warn!(%error, "a manifest can't be read, so nothing is removed from the artifact store");
            return;
        }
    };
    match blobs.retain(&keep).and_then(|removed| compiler.retain(&keep).map(|()| removed)) {
        Ok(0) => {}
        Ok(removed) => tracing::info!(removed, "blobs that no manifest names were removed"),
        Err(error) => tracing::warn!(%error, "leftovers in the artifact store could not be removed"),
    }
}
