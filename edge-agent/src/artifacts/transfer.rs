//! Getting files through the session, in pieces that outlive a broken connection.

use std::io;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use lichen_pods::ImageFailure;
use lichen_wire::stream::{ArtifactHead, REQUEST_BYTES_MAX, StreamError, StreamErrorCode, StreamRequest};
use ring::digest::{SHA256, digest};
use tokio::io::AsyncWriteExt;
use tracing::debug;

use super::{Artifacts, Failure, Kept, Record, Sha256, digest_file, hex, hex_of};
use crate::uplink::ByteStream;

/// How often a transfer that broke off is resumed before the pull counts as failed.
const RESUMES_MAX: usize = 8;
/// The largest artifact that is taken.
const ARTIFACT_BYTES_MAX: u64 = 1 << 30;

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

impl Artifacts {
    pub(super) async fn pull(&self, image: &str) -> Result<Kept, Failure> {
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
