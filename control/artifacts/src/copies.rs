//! Artifacts that several members hold: which tags and manifests there are is agreed on, content is copied by its digest.
//!
//! A member's repositories on disk then follow what the members have agreed on, link by link. Content is named by its
//! digest, so that it does not matter who a copy comes from: it is checked before it gets its name.
//!
//! Invariants: a link is agreed on only when a majority of the members holds all that it leads to; whoever reads a link
//! knows of all that were agreed on before; content that is not here is fetched from a member that has it.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::blobs::{BLOB_BYTES_MAX, Blobs};
use crate::{Artifacts, BlobError, Digest, Hasher, files};

/// Why the members could not agree, or content could not be copied.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the members do not hold the artifacts together: {0}")]
pub struct CopyError(pub String);

/// What leads to a manifest: a path below the repositories, and what is there. None if nothing is any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// `NAME/_tags/TAG` or `NAME/_manifests/HEX`.
    pub path: String,
    /// A tag's digest, or a manifest's media type.
    pub content: Option<String>,
}

/// Links that were agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// The earlier first.
    pub links: Vec<Link>,
    /// Whether these are all that there are: any other one that is here is gone.
    pub whole: bool,
}

/// Content on its way from another member.
pub trait Arriving: Send {
    /// The next piece; none at the end.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, CopyError>>;
}

/// The other members.
///
/// Obligations: links that were agreed on are never lost, and every member is told of them in one order; what
/// [`Copies::agree`] acknowledges is held by a majority.
pub trait Copies: Send + Sync + 'static {
    /// The links that were agreed on since this was last asked, the earlier first. All that were acknowledged to anybody
    /// before the call are among those that have been told.
    fn news(&self) -> BoxFuture<'_, Result<News, CopyError>>;

    /// Lets a majority hold content, then agrees on links.
    fn agree(&self, content: Vec<Digest>, links: Vec<Link>) -> BoxFuture<'_, Result<(), CopyError>>;

    /// Asks the other members for content. None if nobody has it.
    fn fetch(&self, digest: Digest) -> BoxFuture<'_, Result<Option<Box<dyn Arriving>>, CopyError>>;
}

/// What a member does with the others; nothing if there are none.
pub(crate) struct Held {
    pub(crate) copies: Arc<dyn Copies>,
    /// Links are written in the order in which they were agreed on.
    pub(crate) writing: tokio::sync::Mutex<()>,
}

impl Artifacts {
    /// Writes down which links were agreed on: afterwards all are known that were acknowledged to anybody.
    pub async fn catch_up(&self) -> Result<(), CopyError> {
        let Some(held) = self.held.as_deref() else { return Ok(()) };
        let _turn = held.writing.lock().await;
        let News { links, whole } = held.copies.news().await?;
        if links.is_empty() && !whole {
            return Ok(());
        }
        let repositories = self.repositories.clone();
        let written = files::blocking(move || {
            if whole {
                let known: BTreeSet<_> = links.iter().map(|link| &link.path).collect();
                for gone in repositories.links()?.into_iter().filter(|link| !known.contains(&link.path)) {
                    repositories.write(&Link { content: None, ..gone })?;
                }
            }
            links.iter().try_for_each(|link| repositories.write(link))
        });
        written.await.map_err(|error| CopyError(error.to_string()))
    }

    /// Makes sure that content is here, fetching it if it is not.
    pub async fn hold(&self, digest: &Digest) -> Result<(), BlobError> {
        let (blobs, wanted) = (self.blobs.clone(), *digest);
        let known = files::blocking(move || blobs.len(&wanted)).await;
        let Some(held) = self.held.as_deref().filter(|_| matches!(known, Err(BlobError::Unknown(_)))) else {
            return known.map(drop);
        };
        let io = |error: CopyError| BlobError::Io { digest: wanted, source: std::io::Error::other(error) };
        let arriving = held.copies.fetch(wanted).await.map_err(io)?;
        let arriving = arriving.ok_or(BlobError::Unknown(wanted))?;
        tracing::info!(digest = %wanted, "an artifact is copied from another member");
        receive(self.blobs.clone(), wanted, arriving).await
    }

    /// Makes sure that everything is here that a manifest names, and the manifests themselves. Tells what is not.
    pub async fn hold_all(&self) -> Result<(), BlobError> {
        let repositories = self.repositories.clone();
        let failed = |source| BlobError::Io { digest: Digest::of(b""), source };
        let manifests = files::blocking(move || repositories.manifests()).await.map_err(failed)?;
        for manifest in manifests {
            self.hold(&manifest).await?;
            let content = self.blob(&manifest).await?;
            for part in crate::repositories::parts(&content).unwrap_or_default() {
                self.hold(&part).await?;
            }
        }
        Ok(())
    }
}

async fn receive(blobs: Arc<Blobs>, want: Digest, mut arriving: Box<dyn Arriving>) -> Result<(), BlobError> {
    let io = move |source| BlobError::Io { digest: want, source };
    let mut draft = blobs.draft().map_err(io)?;
    let (mut hasher, mut len) = (Hasher::new(), 0);
    while let Some(piece) = arriving.next().await.map_err(|error| io(std::io::Error::other(error)))? {
        len += piece.len() as u64;
        if len > BLOB_BYTES_MAX {
            return Err(io(std::io::Error::other("it is larger than any blob")));
        }
        hasher.update(&piece);
        let (written, back) = files::blocking(move || (draft.file().write_all(&piece), draft)).await;
        draft = back;
        written.map_err(io)?;
    }
    let is = hasher.finish();
    if is != want {
        return Err(BlobError::Damaged { want, is });
    }
    files::blocking(move || blobs.adopt(draft, &want)).await
}
