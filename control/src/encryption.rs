//! Encryption at rest: where its key comes from, what is encrypted, and rotations, which every member carries out by
//! itself when the cluster's count of them grows.

use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use lichen_api::Status;
use lichen_apiserver::{Body, Mount};
use lichen_registry::{Identity, Registry};
use lichen_store::{
    CommitError, Draft, Encryption, EncryptionKey, InvalidKey, Key, Precondition, Store, Txn, WatchError,
};
use serde_json::json;

use crate::member::respond;

/// Where a rotation is ordered.
pub const ROTATE_PATH: &str = "/lichen/v1/rotate-key";
/// What lies under these prefixes is encrypted in every file: Secrets, and the keys of the nodes' sessions.
const PREFIXES: [&str; 2] = ["/core/secrets/", "/gateway/nodekeys/"];
/// Counts the rotations that were ordered. Outside every kind's prefix, so the API cannot serve it.
const ROTATIONS: &str = "/encryption/rotations";
/// The file of the key within the data directory, where no other is named.
const KEY_FILE: &str = "encryption.key";
/// The store's folder and, within it, the file that says that it is encrypted.
const STORE_KEYS: &str = "store/keys";
/// The pause before a rotation that failed is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Times that an order is written again because another came first.
const ATTEMPTS: usize = 8;

/// The encryption key can't be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Its file can't be read or made.
    #[error("cannot use the encryption key {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It holds something else.
    #[error("{path}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        #[source]
        source: InvalidKey,
    },
    /// It is another one than the cluster's.
    #[error(
        "{path} holds another encryption key than the cluster that this server joins: give the cluster's"
    )]
    Other {
        /// The file.
        path: PathBuf,
    },
    /// It is gone, and what was encrypted with it is there.
    #[error(
        "the encryption key {path} is missing, and the store was encrypted with it: put it back, or name the file \
             where it is with --encryption-key-file"
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
}

/// What the store of a data directory is opened with. The key is made on the first start, unless its owner keeps it in a
/// file of his own.
pub(crate) fn open(data_dir: &Path, file: Option<&Path>) -> Result<Encryption, KeyError> {
    let own = data_dir.join(KEY_FILE);
    let path = file.unwrap_or(&own);
    let failed = |source| KeyError::Io { path: path.to_owned(), source };
    let key = match std::fs::read_to_string(path) {
        Ok(text) => EncryptionKey::parse(&text)
            .map_err(|source| KeyError::Invalid { path: path.to_owned(), source })?,
        Err(error) if error.kind() != io::ErrorKind::NotFound || file.is_some() => return Err(failed(error)),
        Err(_) if data_dir.join(STORE_KEYS).exists() => return Err(KeyError::Missing { path: own }),
        Err(_) => {
            let key = EncryptionKey::random().map_err(failed)?;
            write(path, &key).map_err(failed)?;
            key
        }
    };
    Ok(Encryption { key, prefixes: PREFIXES.map(str::to_owned).into() })
}

/// Keeps the key that a cluster gave to a server that joins.
pub(crate) fn adopt(data_dir: &Path, file: Option<&Path>, given: &EncryptionKey) -> Result<(), KeyError> {
    let own = data_dir.join(KEY_FILE);
    let path = file.unwrap_or(&own);
    match std::fs::read_to_string(path) {
        Ok(text) if EncryptionKey::parse(&text).as_ref() == Ok(given) => Ok(()),
        Ok(_) if file.is_some() => Err(KeyError::Other { path: path.to_owned() }),
        // What an earlier attempt to join left behind has encrypted nothing.
        _ => write(path, given).map_err(|source| KeyError::Io { path: path.to_owned(), source }),
    }
}

/// Writes the file, whole or not at all.
fn write(path: &Path, key: &EncryptionKey) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(format!("{}\n", key.text()).as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    std::fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// Takes orders to rotate.
pub(crate) struct RotateMount(pub(crate) Registry);

impl Mount for RotateMount {
    fn handle(&self, identity: Identity, request: Request<Incoming>) -> BoxFuture<'_, Response<Body>> {
        Box::pin(async move {
            if request.method() != Method::POST {
                return respond(Err(Status::method_not_allowed()));
            }
            let ordered = order_rotation(&self.0).await;
            if let Ok(rotations) = &ordered {
                tracing::info!(user = identity.user, rotations, "a new data key was ordered");
            }
            respond(ordered.map(|rotations| json!({ "rotations": rotations })))
        })
    }
}

/// Orders a rotation: every member makes a new data key and forgets the old one.
async fn order_rotation(registry: &Registry) -> Result<u64, Status> {
    let unavailable = |error: CommitError| Status::service_unavailable(error.to_string());
    let store = registry.store();
    for _ in 0..ATTEMPTS {
        store.barrier().await.map_err(unavailable)?;
        let (ordered, pre) = ordered(store);
        let draft = Draft::opaque((ordered + 1).to_string().as_bytes());
        match store.commit(Txn::new().put(Key::new(ROTATIONS), pre, draft)).await {
            Ok(_) => return Ok(ordered + 1),
            Err(CommitError::Conflict { .. }) => {}
            Err(error) => return Err(unavailable(error)),
        }
    }
    Err(Status::service_unavailable("others order rotations all the time".to_owned()))
}

fn ordered(store: &Store) -> (u64, Precondition) {
    match store.get(&Key::new(ROTATIONS)) {
        Some(record) => {
            let text = std::str::from_utf8(record.body()).ok();
            let count = text.and_then(|text| text.parse().ok()).unwrap_or_default();
            (count, Precondition::Revision(record.revision()))
        }
        None => (0, Precondition::Absent),
    }
}

/// Carries out what is ordered, until the store ends.
pub(crate) async fn follow(store: Store) {
    loop {
        let Ok(mut watch) = store.watch(ROTATIONS, store.revision()) else { continue };
        loop {
            let (wanted, _) = ordered(&store);
            match store.rotate_key(wanted).await {
                Ok(()) => match watch.next().await {
                    Ok(_) => {}
                    Err(WatchError::Closed) => return,
                    // It was overtaken: what is wanted is read anew.
                    Err(_) => break,
                },
                Err(CommitError::Closed(_)) => return,
                Err(error) => {
                    tracing::warn!(%error, "what is encrypted can't be encrypted anew yet");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}
