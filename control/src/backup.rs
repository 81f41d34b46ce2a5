//! Backups of a running server, and new servers of them.
//!
//! A backup holds the store at one revision and the cluster's authority with its key: whoever has it, has the cluster.
//! Deliberately absent: artifacts, which are pushed again or copied (`server/artifacts`), and the certificates that each
//! server makes for itself.

use std::io::{self, BufReader};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use futures_util::stream;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request, Response};
use lichen_apiserver::{Body, Mount};
use lichen_pki::{Authority, Handover, PkiError};
use lichen_registry::Identity;
use lichen_store::{Backup, BackupError, CommitError, OpenError, Store};

use crate::encryption::{self, KeyError};
use crate::member::{PKI, STORE};

/// Where a backup is got from.
pub const BACKUP_PATH: &str = "/lichen/v1/backup";
/// What belongs to the cluster that was and not to the one that will be: under these prefixes of keys.
const LEFT_OUT: &[&str] = &[lichen_gateway::INCARNATION, lichen_peers::MEMBERS_PREFIX];
/// The files in a backup.
const CA_CERTIFICATE: &str = "pki/ca.crt";
const CA_KEY: &str = "pki/ca.key";

/// Why a backup was not restored. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The backup can't be used.
    #[error("cannot restore {path}")]
    Backup {
        /// The backup.
        path: PathBuf,
        /// Why not.
        #[source]
        source: BackupError,
    },
    /// Something is where the server's data would go.
    #[error(
        "{0} is not empty, and perhaps a server runs on it: restore into another directory, or move it away"
    )]
    Occupied(PathBuf),
    /// The backup lacks something.
    #[error("{path} does not hold {name}")]
    Lacks {
        /// The backup.
        path: PathBuf,
        /// What it lacks.
        name: &'static str,
    },
    /// A file can't be written.
    #[error("cannot write {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The authority in the backup can't be used.
    #[error("cannot use the cluster's authority")]
    Authority(#[from] PkiError),
    /// The encryption key can't be made.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The store can't be made.
    #[error("cannot make the store")]
    Store(#[from] OpenError),
}

/// What was restored.
#[derive(Clone, Copy, Debug)]
pub struct Restored {
    /// The revision that the backup has.
    pub revision: u64,
    /// When it was taken, in seconds since 1970.
    pub taken_unix_s: u64,
    /// How many objects it holds.
    pub records: usize,
}

/// Whether a backup in a file is whole, and what it holds. Blocks.
///
/// # Errors
/// When it is not.
pub fn look(path: &Path) -> Result<Restored, RestoreError> {
    read(path).map(|backup| said(&backup))
}

/// Makes the data of a new server out of a backup, in a directory that is empty or not there. Blocks.
///
/// # Errors
/// When the backup or the directory can't be used.
pub fn restore(path: &Path, data_dir: &Path) -> Result<Restored, RestoreError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| RestoreError::Io { path, source }
    };
    match std::fs::read_dir(data_dir).map(|mut entries| entries.next().is_some()) {
        Ok(false) => {}
        Ok(true) => return Err(RestoreError::Occupied(data_dir.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(data_dir)(error)),
    }
    let backup = read(path)?;
    // Beside the data directory, until it is whole: a server never finds a part of it.
    let mut name = data_dir.file_name().unwrap_or_default().to_owned();
    name.push(".restoring");
    let making = data_dir.with_file_name(name);
    match std::fs::remove_dir_all(&making) {
        Ok(()) => tracing::warn!(path = %making.display(), "a restore that did not end has been removed"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(&making)(error)),
    }
    let made = || {
        let file = |name: &'static str| {
            let lacks = || RestoreError::Lacks { path: path.to_owned(), name };
            let content = backup.files.get(name).ok_or_else(lacks)?;
            Ok::<_, RestoreError>(String::from_utf8_lossy(content).into_owned())
        };
        let authority = Handover { ca_pem: file(CA_CERTIFICATE)?, ca_key_pem: file(CA_KEY)? };
        std::fs::DirBuilder::new().mode(0o700).create(&making).map_err(failed(&making))?;
        Authority::adopt(&making.join(PKI), &authority)?;
        let store = lichen_store::Config {
            encryption: Some(encryption::open(&making, None)?),
            ..lichen_store::Config::new(making.join(STORE))
        };
        backup.restore(store, LEFT_OUT)?;
        sync_folder(&making).map_err(failed(&making))?;
        // An empty directory gives way.
        std::fs::rename(&making, data_dir).map_err(failed(data_dir))?;
        sync_folder(data_dir.parent().unwrap_or(Path::new("/"))).map_err(failed(data_dir))
    };
    if let Err(error) = made() {
        // Nobody looks there; the next restore removes what this one can't.
        let _ = std::fs::remove_dir_all(&making);
        return Err(error);
    }
    Ok(said(&backup))
}

fn read(path: &Path) -> Result<Backup, RestoreError> {
    let failed = |source| RestoreError::Backup { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(|error| failed(error.into()))?;
    Backup::read(&mut BufReader::new(file)).map_err(failed)
}

fn said(backup: &Backup) -> Restored {
    let Backup { revision, taken_unix_s, records, .. } = backup;
    Restored { revision: revision.0, taken_unix_s: *taken_unix_s, records: records.len() }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    std::fs::File::open(path)?.sync_all()
}

/// Hands out backups, to those who may do everything.
pub(crate) struct BackupMount {
    store: Store,
    authority: Arc<Authority>,
}

impl BackupMount {
    pub(crate) fn new(store: Store, authority: Arc<Authority>) -> Self {
        Self { store, authority }
    }

    async fn take(&self) -> Result<Backup, CommitError> {
        self.store.barrier().await?;
        let Handover { ca_pem, ca_key_pem } = self.authority.handover();
        let files = [(CA_CERTIFICATE, ca_pem), (CA_KEY, ca_key_pem)];
        let files = files.map(|(name, text)| (name.to_owned(), text.into_bytes())).into();
        let taken = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Ok(self.store.backup(taken, files))
    }
}

impl Mount for BackupMount {
    fn handle(&self, _: Identity, request: Request<Incoming>) -> BoxFuture<'_, Response<Body>> {
        Box::pin(async move {
            let said = |code: u16, text: String| {
                let mut response = Response::new(
                    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync(),
                );
                *response.status_mut() = code.try_into().unwrap_or_default();
                response
            };
            if request.method() != Method::GET {
                return said(405, "a backup is got with GET".into());
            }
            match self.take().await {
                Ok(backup) => {
                    tracing::info!(revision = %backup.revision, "a backup is taken");
                    let chunks = backup.chunks().map(|chunk| Ok(Frame::data(Bytes::from(chunk))));
                    let mut response = Response::new(StreamBody::new(stream::iter(chunks)).boxed_unsync());
                    let binary = hyper::header::HeaderValue::from_static("application/octet-stream");
                    response.headers_mut().insert(CONTENT_TYPE, binary);
                    response
                }
                Err(error) => {
                    tracing::warn!(%error, "a backup can't be taken");
                    said(503, error.to_string())
                }
            }
        })
    }
}
