//! Images of OCI containers on this node: a manifest, its configuration and its layers, each fetched by its digest through
//! the session, and unpacked once under the manifest's digest.
//!
//! Layers stay, so that the next version of an image brings only what is new in it.

use std::path::PathBuf;

use bytes::Bytes;
use lichen_pods::ImageFailure;
use lichen_wire::stream::{ImageHead, REQUEST_BYTES_MAX, StreamRequest};
use lichen_workload::oci::image::{self, CONFIG_BYTES_MAX, ImageError};
use lichen_workload::oci::unpack::{Budget, UnpackError};
use lichen_workload::{Handler, RuntimeError};
use serde::Deserialize;

use crate::artifacts::{Artifacts, Broken, Failure, Goal, Part, Sha256, hex, next};

/// The largest manifest that is taken.
const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// The most that an image's layers may be together, as they are sent.
const LAYERS_BYTES_MAX: u64 = 4 << 30;

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    size: u64,
}

impl Descriptor {
    fn sha256(&self) -> Result<Sha256, Broken> {
        let hex = self.digest.strip_prefix("sha256:").filter(|hex| hex.len() == 64 && hex.is_ascii());
        let byte = |at: usize| u8::from_str_radix(hex?.get(2 * at..2 * at + 2)?, 16).ok();
        let mut sha256 = [0; 32];
        for (at, place) in sha256.iter_mut().enumerate() {
            *place = byte(at).ok_or_else(|| unusable(format!("{:?} is no SHA-256 digest", self.digest)))?;
        }
        Ok(sha256)
    }
}

fn unusable(why: String) -> Broken {
    Broken::Failed((ImageFailure::Inspect, why))
}

fn failure(error: &ImageError) -> Failure {
    let disk =
        matches!(error, ImageError::Io { .. } | ImageError::Layer { source: UnpackError::Io { .. }, .. });
    (if disk { ImageFailure::Pull } else { ImageFailure::Inspect }, error.to_string())
}

impl Artifacts {
    /// Where an image lies once it is unpacked.
    pub(crate) fn image_path(&self, manifest: &Sha256) -> PathBuf {
        self.dir.join("images").join(hex(manifest))
    }

    pub(crate) async fn is_unpacked(&self, manifest: &Sha256) -> bool {
        let path = self.image_path(manifest);
        tokio::task::spawn_blocking(move || image::exists(&path)).await.unwrap_or(false)
    }

    /// Gets an image onto the node; the answer is its manifest's digest.
    pub(crate) async fn transfer_image(&self, image: &str) -> Result<Sha256, Broken> {
        self.runtime.offers(Handler::Oci).map_err(|error| match error {
            RuntimeError::Unavailable(why) => Broken::Failed((ImageFailure::NoRuntime, why)),
            other => unusable(other.to_string()),
        })?;
        let head = self.head(image).await?;
        let lock = self.state().locks.entry(format!("image {}", hex(&head.manifest))).or_default().clone();
        let _only = lock.lock().await;
        if self.is_unpacked(&head.manifest).await {
            return Ok(head.manifest);
        }
        if head.len > MANIFEST_BYTES_MAX {
            return Err(unusable(format!("its manifest has {} bytes, more than a node takes", head.len)));
        }
        let manifest = tokio::fs::read(self.blob(&head.manifest, head.len).await?).await?;
        let manifest: Manifest = serde_json::from_slice(&manifest)
            .map_err(|error| unusable(format!("the image's manifest: {error}")))?;
        if manifest.config.size > CONFIG_BYTES_MAX as u64 {
            return Err(unusable("the image's configuration is too long".to_owned()));
        }
        let config = self.blob(&manifest.config.sha256()?, manifest.config.size).await?;
        // Read first: an image for other machines is not worth its layers.
        let config =
            image::config(&tokio::fs::read(config).await?).map_err(|e| Broken::Failed(failure(&e)))?;
        let sum = manifest.layers.iter().try_fold(0u64, |sum, layer| sum.checked_add(layer.size));
        if sum.is_none_or(|sum| sum > LAYERS_BYTES_MAX) {
            return Err(unusable("its layers are more than a node takes".to_owned()));
        }
        let mut layers = Vec::new();
        for layer in &manifest.layers {
            layers.push(self.blob(&layer.sha256()?, layer.size).await?);
        }
        let dir = self.image_path(&head.manifest);
        let unpacked =
            tokio::task::spawn_blocking(move || image::create(&dir, &config, &layers, Budget::default()));
        match unpacked.await {
            Ok(Ok(())) => Ok(head.manifest),
            Ok(Err(error)) => Err(Broken::Failed(failure(&error))),
            Err(error) => Err(Broken::Failed((ImageFailure::Pull, error.to_string()))),
        }
    }

    async fn head(&self, image: &str) -> Result<ImageHead, Broken> {
        let platform = image::platform();
        let mut stream = self.open(&StreamRequest::Image { image, platform: &platform }).await?;
        let mut bytes = Vec::new();
        loop {
            bytes.extend_from_slice(&next(stream.as_mut()).await?);
            match ImageHead::read(&bytes) {
                Ok(head) => {
                    let _ = stream.finish().await;
                    return Ok(head);
                }
                // More is to come.
                Err(_) if bytes.len() < REQUEST_BYTES_MAX => {}
                Err(error) => {
                    stream.reset("the image's head can't be read");
                    return Err(Broken::Failed((ImageFailure::Pull, format!("the image's head: {error}"))));
                }
            }
        }
    }

    /// Gets a blob onto the node, from where an earlier transfer broke off; the answer is its file.
    async fn blob(&self, sha256: &Sha256, len: u64) -> Result<PathBuf, Broken> {
        let (dir, name) = (self.dir.join("blobs"), hex(sha256));
        let path = dir.join(&name);
        let lock = self.state().locks.entry(format!("blob {name}")).or_default().clone();
        let _only = lock.lock().await;
        if self.is_whole(path.clone(), sha256, len).await {
            return Ok(path);
        }
        tokio::fs::create_dir_all(&dir).await?;
        let part = Part::of(&dir, &name);
        let (_, offset) = part.kept().await;
        if offset > len {
            part.discard().await;
            return Err(Broken::Stale);
        }
        let goal = Goal { sha256: *sha256, len, path: path.clone() };
        let stream = self.open(&StreamRequest::Blob { sha256: *sha256, offset }).await?;
        self.receive(stream, &goal, &part, offset, Bytes::new()).await?;
        self.state().verified.insert(*sha256);
        Ok(path)
    }
}

#[cfg(test)]
mod tests;
