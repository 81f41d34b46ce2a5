//! A server as one of several: how its store is opened as a member's, and what it keeps for that in its data directory.
//!
//! A server that knows no peer address is alone, as it always was. One that has an address keeps it in `member.json`, with
//! the members that it joined, so that it needs neither flags nor token when it starts again. The order of what a server
//! that joins makes durable is this: whom it joins, the keys that it is given, the authority's certificate, its store with an id
//! of its own. Wherever it dies in between, the next start goes on from there.

mod api;
mod join;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lichen_peers::{Listener, MemberRecord, PORT, Peers, PeersError, Serving};
use lichen_pki::{Authority, PkiError};
use lichen_store::{CommitError, EncryptionKey, Peering, Store};
use lichen_wire::join::Token;
use serde::{Deserialize, Serialize};

use crate::Config;
use crate::encryption::{self, KeyError};
pub use api::MEMBERS_PATH;
pub(crate) use api::{JOIN_PATH, JoinMount, MembersMount, respond};

/// What is kept of the membership.
const FILE: &str = "member.json";
/// The folders of a server's data directory.
pub(crate) const PKI: &str = "pki";
pub(crate) const STORE: &str = "store";
/// How long to wait before the cluster is told again what it could not be told.
const RETRY: Duration = Duration::from_secs(1);

/// Why a server does not become a member.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// The file that tells of the membership can't be used.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The text is no token.
    #[error("--token: {0}")]
    Token(#[from] lichen_wire::join::JoinError),
    /// The directory has an authority already, and it is not the token's.
    #[error(
        "{} holds another cluster than the token is for. To join, give a data directory that is empty",
        dir.display()
    )]
    OtherCluster {
        /// The data directory.
        dir: PathBuf,
    },
    /// The directory belongs to a server that made the cluster itself.
    #[error(
        "{} holds the cluster itself that the token is for: start it with --cluster-init, and join with another server",
        dir.display()
    )]
    Own {
        /// The data directory.
        dir: PathBuf,
    },
    /// A join ended before the cluster's authority was here.
    #[error("an earlier join was interrupted: start once more with --join and --token")]
    Interrupted,
    /// Others would not find this server.
    #[error(
        "other members can't reach {listen}, and this machine has no address that could be told them: give --peer-addr \
         IP:PORT or --name NAME"
    )]
    Address {
        /// Where it listens.
        listen: SocketAddr,
    },
    /// The server that was to be joined can't be asked.
    #[error("cannot join {server}: {why}")]
    Join {
        /// Its URL.
        server: String,
        /// What went wrong, or its refusal.
        why: String,
    },
    /// The members do not take this one in.
    #[error("the cluster does not take this member in")]
    Peers(#[from] PeersError),
    /// The members' port can't be served.
    #[error(transparent)]
    Start(#[from] lichen_peers::StartError),
    /// The authority can't be used or kept.
    #[error("cannot use the cluster's authority")]
    Pki(#[from] PkiError),
    /// The encryption key can't be had.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The store does not open.
    #[error("cannot open the store")]
    Store(#[from] lichen_store::OpenError),
}

/// What `member.json` holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Membership {
    /// Where it listens for other members.
    listen: SocketAddr,
    /// The members that were there when it joined, by their ids; none if it began the cluster.
    joined: Vec<Contact>,
}

impl Membership {
    /// Reads what the file holds, which may be anything.
    fn parse(text: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(text)
    }
}

/// A member, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Contact {
    /// Sixteen hexadecimal digits.
    pub(crate) id: String,
    pub(crate) address: String,
}

/// A server's store, and what makes it a member.
pub(crate) struct Opened {
    pub(crate) store: Store,
    pub(crate) authority: Arc<Authority>,
    pub(crate) encryption_key: EncryptionKey,
    pub(crate) member: Option<Member>,
}

/// A server that others reach.
pub(crate) struct Member {
    pub(crate) peers: Peers,
    pub(crate) serving: Serving,
    address: String,
}

impl Member {
    /// Where other members reach this one.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The name or address by which other members reach this one.
    pub(crate) fn host(&self) -> &str {
        self.address.rsplit_once(':').map_or(self.address.as_str(), |(host, _)| host)
    }

    /// Tells the cluster what is to be known of this member, until it knows.
    pub(crate) fn announce(&self, record: MemberRecord) -> impl Future<Output = ()> + use<> {
        let (peers, address) = (self.peers.clone(), self.address.clone());
        async move {
            let told = async || {
                peers.move_to(&address).await?;
                peers.announce(&record).await
            };
            while let Err(error) = told().await {
                if let PeersError::Commit(CommitError::Membership(why)) = error {
                    tracing::error!(address, why, "the cluster does not take this member's address");
                    return;
                }
                tracing::debug!(%error, "the cluster does not know yet where this member is");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Opens a server's store: its own, or that of the cluster which it belongs to or joins.
pub(crate) async fn open(config: &Config) -> Result<Opened, MemberError> {
    let pki = config.data_dir.join(PKI);
    let found = membership(config).await?;
    let encryption = encryption::open(&config.data_dir, config.encryption_key_file.as_deref())?;
    let encryption_key = encryption.key.clone();
    let store = lichen_store::Config {
        encryption: Some(encryption),
        ..lichen_store::Config::new(config.data_dir.join(STORE))
    };
    let Some((mut membership, listener)) = found else {
        // The store comes first: it is what a second server on the same directory is refused by.
        let store = Store::open(store).await?;
        let authority = match Authority::open_or_create(&pki) {
            Ok(authority) => Arc::new(authority),
            Err(error) => {
                store.shutdown().await;
                return Err(error.into());
            }
        };
        return Ok(Opened { store, authority, encryption_key, member: None });
    };
    membership.listen = listener.address();
    let address = reachable(config, listener.address())?;
    write(&config.data_dir, &membership)?;
    let authority = Arc::new(Authority::open_or_create(&pki)?);
    let peers = Peers::new(authority.clone());
    let peering = Peering {
        address: address.clone(),
        joins: !membership.joined.is_empty(),
        pace: config.pace,
        network: peers.network(),
    };
    let store = Store::open_member(store, peering).await?;
    match enter(&peers, &store, listener, &membership, &address).await {
        Ok(serving) => {
            let member = Some(Member { peers, serving, address });
            Ok(Opened { store, authority, encryption_key, member })
        }
        Err(error) => {
            store.shutdown().await;
            Err(error)
        }
    }
}

/// Serves the other members, and asks them to take this one in if it belongs to no cluster yet.
async fn enter(
    peers: &Peers,
    store: &Store,
    listener: Listener,
    membership: &Membership,
    address: &str,
) -> Result<Serving, MemberError> {
    let serving = peers.start(store.clone(), listener)?;
    let members = store.members().map_err(PeersError::from)?;
    if members.is_empty() {
        let known: Vec<(u64, String)> = membership
            .joined
            .iter()
            .filter_map(|known| Some((u64::from_str_radix(&known.id, 16).ok()?, known.address.clone())))
            .collect();
        if let Err(error) = peers.join(&known, address).await {
            serving.shutdown().await;
            return Err(error.into());
        }
        tracing::info!(address, "the cluster has taken this member in");
    }
    Ok(serving)
}

/// What this server is to its cluster, and the port where other members find it; nothing for one that is alone. Fetches
/// the authority of the cluster that it is to join.
async fn membership(config: &Config) -> Result<Option<(Membership, Listener)>, MemberError> {
    let dir = &config.data_dir;
    let kept = read(dir)?;
    if kept.is_none() && config.join.is_none() && !config.cluster_init && config.peer_addr.is_none() {
        return Ok(None);
    }
    let unless_told = kept.as_ref().map_or(SocketAddr::from(([0, 0, 0, 0], PORT)), |kept| kept.listen);
    let listen = config.peer_addr.unwrap_or(unless_told);
    let digest = Authority::digest_in(&dir.join(PKI))?;
    let joined = match (&config.join, &kept, digest) {
        (Some(join), _, None) => {
            let token: Token = join.token.parse()?;
            // A port that can't be had is told before anything is asked of the cluster.
            let listener = Listener::bind(listen).await?;
            let found = join::fetch(&join.server, &token).await;
            let found = found.map_err(|why| MemberError::Join { server: join.server.clone(), why })?;
            let membership = Membership { listen: listener.address(), joined: found.members };
            write(dir, &membership)?;
            encryption::adopt(dir, config.encryption_key_file.as_deref(), &found.encryption_key)?;
            Authority::adopt(&dir.join(PKI), &found.handover)?;
            return Ok(Some((membership, listener)));
        }
        (None, Some(kept), None) if !kept.joined.is_empty() => return Err(MemberError::Interrupted),
        (Some(join), kept, Some(digest)) => {
            if *join.token.parse::<Token>()?.ca_digest() != digest {
                return Err(MemberError::OtherCluster { dir: dir.clone() });
            }
            match kept {
                // It has joined before.
                Some(kept) if !kept.joined.is_empty() => kept.joined.clone(),
                _ => return Err(MemberError::Own { dir: dir.clone() }),
            }
        }
        (None, kept, _) => kept.as_ref().map(|kept| kept.joined.clone()).unwrap_or_default(),
    };
    let listener = Listener::bind(listen).await?;
    Ok(Some((Membership { listen, joined }, listener)))
}

/// Where other members reach this server: at the address it listens on, or, if that is every address, at its name or the
/// machine's own address.
fn reachable(config: &Config, listen: SocketAddr) -> Result<String, MemberError> {
    if !listen.ip().is_unspecified() {
        return Ok(listen.to_string());
    }
    if let Some(name) = config.names.first() {
        return Ok(match name.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, listen.port()).to_string(),
            Err(_) => format!("{name}:{}", listen.port()),
        });
    }
    match own_address() {
        Some(ip) => Ok(SocketAddr::new(ip, listen.port()).to_string()),
        None => Err(MemberError::Address { listen }),
    }
}

/// The address that this machine has towards others. Nothing is sent: the kernel only chooses a route.
fn own_address() -> Option<IpAddr> {
    // Of a range that is set aside for documentation: no network is preferred.
    const ELSEWHERE: ([u8; 4], u16) = ([192, 0, 2, 1], 9);
    let socket = UdpSocket::bind(SocketAddr::from(([0, 0, 0, 0], 0))).ok()?;
    socket.connect(SocketAddr::from(ELSEWHERE)).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_unspecified())
}

fn read(dir: &Path) -> Result<Option<Membership>, MemberError> {
    let path = dir.join(FILE);
    let failed = |why: String| MemberError::File { path: path.clone(), why };
    match std::fs::read(&path) {
        Ok(text) => Membership::parse(&text).map(Some).map_err(|error| failed(error.to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Writes the file if it is not as it is to be: whole or not at all.
fn write(dir: &Path, membership: &Membership) -> Result<(), MemberError> {
    if read(dir).ok().flatten().as_ref() == Some(membership) {
        return Ok(());
    }
    let path = dir.join(FILE);
    let temporary = path.with_extension("tmp");
    let write = || {
        let mut file = std::fs::File::create(&temporary)?;
        std::io::Write::write_all(&mut file, &serde_json::to_vec_pretty(membership)?)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        std::fs::File::open(dir)?.sync_all()
    };
    write().map_err(|error: std::io::Error| MemberError::File { path: path.clone(), why: error.to_string() })
}

#[cfg(test)]
mod tests;
