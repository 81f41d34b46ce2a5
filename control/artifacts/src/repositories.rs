//! Repositories: which manifests a name has, and which of them its tags point at.
//!
//! On disk a repository is a directory named like it, with `_manifests/<digest>` (holding the media type) and
//! `_tags/<tag>` (holding a digest). No component of a repository's name starts with an underscore, so the two never
//! collide with a repository below. Manifests themselves are blobs.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use serde::Deserialize;

use crate::blobs::Blobs;
use crate::reference::{DEFAULT_TAG, is_tag};
use crate::{
    BlobError, Digest, IMAGE_CONFIG_MEDIA_TYPES, Link, OpenError, Reference, WASM_LAYER_MEDIA_TYPE, files,
};

/// The largest manifest that is taken in.
pub(crate) const MANIFEST_BYTES_MAX: usize = 4 * 1024 * 1024;

const MANIFESTS: &str = "_manifests";
const TAGS: &str = "_tags";

/// What a reference turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The manifest.
    pub manifest: Digest,
    /// The layer that is the component.
    pub layer: Digest,
    /// The layer's media type.
    pub media_type: String,
    /// The layer's length.
    pub len_bytes: u64,
}

/// Why a reference names nothing that can be run here.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The reference names a registry; only the embedded one is there.
    #[error(
        "{0}: pulling from the registry {1} is not supported yet; push the artifact to the embedded registry and leave the host out"
    )]
    OtherRegistry(String, String),
    /// The embedded registry has no such manifest.
    #[error("{0}: not found in the embedded registry")]
    NotFound(String),
    /// There is a manifest of an OCI container's image.
    #[error("{0}: the image of an OCI container, not a Wasm artifact")]
    Image(String),
    /// The image is not made for the platform.
    #[error("{0}: the image is not made for {1}")]
    Platform(String, String),
    /// There is a manifest, but not of one Wasm layer.
    #[error("{0}: not a Wasm artifact: {1}")]
    NotWasm(String, String),
    /// The store failed.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The store failed.
    #[error("cannot read the repository")]
    Io(#[from] io::Error),
}

/// Why a manifest was not taken in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("the manifest is not valid: {0}")]
    Invalid(String),
    #[error("the manifest is {want} by its reference and {is} by its bytes")]
    Digest { want: Digest, is: Digest },
    #[error("the manifest names content that is not here: {0}")]
    BlobUnknown(Digest),
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error("cannot write the repository")]
    Io(#[from] io::Error),
}

/// A manifest is named by its digest or by a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selector {
    Digest(Digest),
    Tag(String),
}

impl Selector {
    pub(crate) fn parse(text: &str) -> Option<Selector> {
        match text.parse() {
            Ok(digest) => Some(Selector::Digest(digest)),
            Err(_) => is_tag(text).then(|| Selector::Tag(text.to_owned())),
        }
    }
}

/// The parts of a manifest or an index that this registry looks at.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
    subject: Option<Descriptor>,
    annotations: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

impl Manifest {
    /// Whether it is of an OCI container's image, or an index, which only those have.
    fn is_image(&self) -> bool {
        let config = self.config.as_ref().map(|config| config.media_type.as_str());
        !self.manifests.is_empty() || config.is_some_and(|kind| IMAGE_CONFIG_MEDIA_TYPES.contains(&kind))
    }
}

impl Descriptor {
    fn digest(&self) -> Result<Digest, ManifestError> {
        self.digest.parse().map_err(|e: crate::DigestError| ManifestError::Invalid(e.to_string()))
    }
}

/// What was found under a selector.
pub(crate) struct Found {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) content: Bytes,
}

/// All repositories below one directory.
pub(crate) struct Repositories {
    root: PathBuf,
    temporary: PathBuf,
}

impl Repositories {
    pub(crate) fn open(dir: &Path, temporary: PathBuf) -> Result<Repositories, OpenError> {
        Ok(Repositories { root: files::make_dir(dir.join("repositories"))?, temporary })
    }

    /// Takes in a manifest: every blob it names must be here already, so that a tag never points at half an artifact. What
    /// leads to it is yet to be written.
    pub(crate) fn put(
        &self,
        blobs: &Blobs,
        name: &str,
        selector: &Selector,
        media_type: &str,
        content: &[u8],
    ) -> Result<Put, ManifestError> {
        let is = Digest::of(content);
        if let Selector::Digest(want) = selector
            && *want != is
        {
            return Err(ManifestError::Digest { want: *want, is });
        }
        let manifest: Manifest =
            serde_json::from_slice(content).map_err(|e| ManifestError::Invalid(e.to_string()))?;
        if manifest.schema_version != 2 {
            return Err(ManifestError::Invalid(format!(
                "schemaVersion is {}, want 2",
                manifest.schema_version
            )));
        }
        if manifest.media_type.as_deref().is_some_and(|inner| inner != media_type) {
            return Err(ManifestError::Invalid(format!(
                "its mediaType is not the Content-Type {media_type}"
            )));
        }
        for part in manifest.config.iter().chain(&manifest.layers).chain(&manifest.manifests) {
            let digest = part.digest()?;
            match blobs.len(&digest) {
                Ok(len) if len == part.size => {}
                Ok(len) => {
                    return Err(ManifestError::Invalid(format!(
                        "{digest} is {len} bytes, not {}",
                        part.size
                    )));
                }
                Err(BlobError::Unknown(digest)) => return Err(ManifestError::BlobUnknown(digest)),
                Err(e) => return Err(e.into()),
            }
        }
        let subject = manifest.subject.as_ref().map(Descriptor::digest).transpose()?;
        blobs.put(content)?;
        let link = |path: String, content: String| Link { path, content: Some(content) };
        let mut links = vec![link(format!("{name}/{MANIFESTS}/{}", is.hex()), media_type.to_owned())];
        if let Selector::Tag(tag) = selector {
            links.push(link(format!("{name}/{TAGS}/{tag}"), is.to_string()));
        }
        let mut content = parts(content).map_err(|e| ManifestError::Invalid(e.to_string()))?;
        content.push(is);
        Ok(Put { digest: is, subject, content, links })
    }

    /// Writes what leads to a manifest, or removes it.
    pub(crate) fn write(&self, link: &Link) -> io::Result<()> {
        let place = self.root.join(&link.path);
        // Paths come from other members, too: none leads out of the repositories.
        let inside = Path::new(&link.path).components().all(|part| matches!(part, Component::Normal(_)));
        if !inside {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{:?} is no link", link.path)));
        }
        match &link.content {
            Some(content) => files::write_atomically(&self.temporary, &place, content.as_bytes()),
            None => files::remove(&place).map(drop),
        }
    }

    /// Everything that leads to a manifest.
    pub(crate) fn links(&self) -> io::Result<Vec<Link>> {
        let mut all = Vec::new();
        for name in self.catalog()? {
            // Manifests come before the tags that lead to them.
            for folder in [MANIFESTS, TAGS] {
                for file in names(&self.root.join(&name).join(folder))? {
                    let path = format!("{name}/{folder}/{file}");
                    all.push(Link { content: read_if_there(&self.root.join(&path))?, path });
                }
            }
        }
        Ok(all)
    }

    /// The digests of all manifests.
    pub(crate) fn manifests(&self) -> io::Result<BTreeSet<Digest>> {
        let mut all = BTreeSet::new();
        for name in self.catalog()? {
            for hex in names(&self.root.join(&name).join(MANIFESTS))? {
                all.insert(Digest::from_hex(&hex).map_err(io::Error::other)?);
            }
        }
        Ok(all)
    }

    /// The manifest that a reference leads to, if it does.
    pub(crate) fn manifest_of(&self, reference: &Reference) -> io::Result<Option<Digest>> {
        let found = self.find(&reference.repository, &selector_of(reference))?;
        Ok(found.map(|(digest, _)| digest))
    }

    /// The manifest under `selector`; none if the repository or the manifest isn't there.
    pub(crate) fn get(
        &self,
        blobs: &Blobs,
        name: &str,
        selector: &Selector,
    ) -> Result<Option<Found>, ResolveError> {
        let Some((digest, media_type)) = self.find(name, selector)? else { return Ok(None) };
        Ok(Some(Found { digest, media_type, content: blobs.read(&digest)? }))
    }

    pub(crate) fn find(&self, name: &str, selector: &Selector) -> io::Result<Option<(Digest, String)>> {
        let repository = self.root.join(name);
        let digest = match selector {
            Selector::Digest(digest) => *digest,
            Selector::Tag(tag) => match read_if_there(&repository.join(TAGS).join(tag))? {
                Some(text) => text.parse().map_err(io::Error::other)?,
                None => return Ok(None),
            },
        };
        let media_type = read_if_there(&repository.join(MANIFESTS).join(digest.hex()))?;
        Ok(media_type.map(|media_type| (digest, media_type)))
    }

    /// What forgets a tag, or a manifest with every tag that points at it. Nothing if there is no such thing.
    pub(crate) fn delete(&self, name: &str, selector: &Selector) -> io::Result<Vec<Link>> {
        let mut paths = Vec::new();
        match selector {
            Selector::Tag(tag) => paths.push(format!("{name}/{TAGS}/{tag}")),
            Selector::Digest(digest) => {
                // Tags go first: after a crash in between there may be an untagged manifest, never a dangling tag.
                for tag in self.tags(name)?.unwrap_or_default() {
                    if self.find(name, &Selector::Tag(tag.clone()))?.is_some_and(|(is, _)| is == *digest) {
                        paths.push(format!("{name}/{TAGS}/{tag}"));
                    }
                }
                paths.push(format!("{name}/{MANIFESTS}/{}", digest.hex()));
            }
        }
        // The last one is what was asked for.
        if !paths.last().is_some_and(|path| self.root.join(path).is_file()) {
            return Ok(Vec::new());
        }
        Ok(paths.into_iter().map(|path| Link { path, content: None }).collect())
    }

    /// The tags of a repository in order; none if there is no such repository.
    pub(crate) fn tags(&self, name: &str) -> io::Result<Option<Vec<String>>> {
        let repository = self.root.join(name);
        if !repository.join(MANIFESTS).is_dir() {
            return Ok(None);
        }
        Ok(Some(names(&repository.join(TAGS))?.into_iter().collect()))
    }

    /// The names of all repositories in order.
    pub(crate) fn catalog(&self) -> io::Result<Vec<String>> {
        let mut found = BTreeSet::new();
        let mut open = vec![String::new()];
        while let Some(prefix) = open.pop() {
            for name in names(&self.root.join(&prefix))? {
                if name == MANIFESTS {
                    found.insert(prefix.clone());
                } else if !name.starts_with('_') {
                    open.push(if prefix.is_empty() { name } else { format!("{prefix}/{name}") });
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    /// Descriptors of the manifests whose subject is `subject`, as an index holds them.
    pub(crate) fn referrers(
        &self,
        blobs: &Blobs,
        name: &str,
        subject: &Digest,
    ) -> Result<Vec<serde_json::Value>, ResolveError> {
        let mut found = Vec::new();
        for hex in names(&self.root.join(name).join(MANIFESTS))? {
            let Ok(digest) = Digest::from_hex(&hex) else { continue };
            let Some(manifest) = self.get(blobs, name, &Selector::Digest(digest))? else { continue };
            let Ok(parsed) = serde_json::from_slice::<Manifest>(&manifest.content) else { continue };
            if parsed.subject.is_some_and(|s| s.digest == subject.to_string()) {
                let artifact_type = parsed.artifact_type.or(parsed.config.map(|config| config.media_type));
                found.push(serde_json::json!({
                    "mediaType": manifest.media_type, "digest": digest.to_string(), "size": manifest.content.len(),
                    "artifactType": artifact_type, "annotations": parsed.annotations,
                }));
            }
        }
        Ok(found)
    }

    /// Everything that a manifest names, and the manifests themselves. An error if a manifest can't be read: then it is
    /// not known what is still needed.
    pub(crate) fn referenced(&self, blobs: &Blobs) -> Result<BTreeSet<Digest>, ResolveError> {
        let mut all = BTreeSet::new();
        for digest in self.manifests()? {
            all.insert(digest);
            all.extend(parts(&blobs.read(&digest)?).map_err(io::Error::other)?);
        }
        Ok(all)
    }

    /// See [`crate::Artifacts::resolve`].
    pub(crate) fn resolve(&self, blobs: &Blobs, reference: &Reference) -> Result<Resolved, ResolveError> {
        let (found, manifest) = self.look_up(blobs, reference)?;
        let not_wasm = |why: String| ResolveError::NotWasm(reference.to_string(), why);
        if manifest.is_image() {
            return Err(ResolveError::Image(reference.to_string()));
        }
        let [layer] = manifest.layers.as_slice() else {
            return Err(not_wasm(format!(
                "{} layers, want one of type {WASM_LAYER_MEDIA_TYPE}",
                manifest.layers.len()
            )));
        };
        if layer.media_type != WASM_LAYER_MEDIA_TYPE {
            return Err(not_wasm(format!("its layer is of type {}", layer.media_type)));
        }
        Ok(Resolved {
            manifest: found.digest,
            layer: layer.digest().map_err(|e| not_wasm(e.to_string()))?,
            media_type: layer.media_type.clone(),
            len_bytes: layer.size,
        })
    }

    /// See [`crate::Artifacts::image`].
    pub(crate) fn image(
        &self,
        blobs: &Blobs,
        reference: &Reference,
        platform: &str,
    ) -> Result<(Digest, u64), ResolveError> {
        let (found, manifest) = self.look_up(blobs, reference)?;
        if manifest.manifests.is_empty() {
            return Ok((found.digest, found.content.len() as u64));
        }
        let fits = |one: &&Descriptor| {
            one.platform.as_ref().is_some_and(|p| format!("{}/{}", p.os, p.architecture) == platform)
        };
        let one = manifest.manifests.iter().find(fits);
        let one = one.ok_or_else(|| ResolveError::Platform(reference.to_string(), platform.to_owned()))?;
        let digest = one.digest().map_err(|e| ResolveError::NotWasm(reference.to_string(), e.to_string()))?;
        Ok((digest, one.size))
    }

    fn look_up(&self, blobs: &Blobs, reference: &Reference) -> Result<(Found, Manifest), ResolveError> {
        if let Some(host) = &reference.host {
            return Err(ResolveError::OtherRegistry(reference.to_string(), host.clone()));
        }
        let found = self.get(blobs, &reference.repository, &selector_of(reference))?;
        let found = found.ok_or_else(|| ResolveError::NotFound(reference.to_string()))?;
        let manifest: Manifest = serde_json::from_slice(&found.content)
            .map_err(|e| ResolveError::NotWasm(reference.to_string(), e.to_string()))?;
        Ok((found, manifest))
    }
}

/// What taking in a manifest came to.
pub(crate) struct Put {
    pub(crate) digest: Digest,
    pub(crate) subject: Option<Digest>,
    /// All that it leads to, itself included.
    pub(crate) content: Vec<Digest>,
    /// What is to lead to it.
    pub(crate) links: Vec<Link>,
}

fn selector_of(reference: &Reference) -> Selector {
    match (&reference.digest, &reference.tag) {
        (Some(digest), _) => Selector::Digest(*digest),
        (None, tag) => Selector::Tag(tag.as_deref().unwrap_or(DEFAULT_TAG).to_owned()),
    }
}

/// The content that a manifest names.
pub(crate) fn parts(manifest: &[u8]) -> io::Result<Vec<Digest>> {
    let manifest: Manifest = serde_json::from_slice(manifest)?;
    let all = manifest.config.iter().chain(&manifest.layers).chain(&manifest.manifests);
    all.map(|part| part.digest.parse().map_err(io::Error::other)).collect()
}

fn read_if_there(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn names(dir: &Path) -> io::Result<BTreeSet<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(e) => return Err(e),
    };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}
