//! Starting a server: the parts are joined in the order in which they depend on each other, and end in the other one.
//! What only the leader runs is in `leading`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Request, Response};
use lichen_api::Status;
use lichen_apiserver::{Forward, Mount};
use lichen_artifacts::{Artifacts, CompileCommand};
use lichen_gateway::{Purpose, broker};
use lichen_peers::MemberRecord;
use lichen_pki::{Authority, PkiError, Rotating};
use lichen_registry::{AllocationRanges, Identity, MASTERS_GROUP, Registry, Sources};
use lichen_store::{EncryptionKey, Store};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::backup::{BACKUP_PATH, BackupMount};
use crate::copies;
use crate::encryption::{self, ROTATE_PATH, RotateMount};
use crate::forward::{self, FromMembers, ToLeader};
use crate::kubeconfig::{Kubeconfig, write_private};
use crate::leading::{Leader, Leading, Owner, Venue};
use crate::member::{self, JOIN_PATH, JoinMount, MEMBERS_PATH, Member, MemberError, MembersMount, Opened};
use crate::{Broker, Config};

/// Where artifacts are served on the API's port.
const ARTIFACTS_PREFIX: &str = "/v2/";
/// The user of the kubeconfig that a server hands out.
const ADMIN: &str = "admin";
/// Names by which every server is known, beside those that are configured.
const NAMES: [&str; 8] = [
    "localhost",
    "127.0.0.1",
    "::1",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "lichen",
];

/// Why a server did not start. Nothing of it runs then.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be made.
    #[error("cannot use the data directory {path}")]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The store does not open, or the server does not become the member that it is to be.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// Certificates cannot be read or made.
    #[error("cannot use the cluster's authority")]
    Authority(#[from] PkiError),
    /// The artifact store does not open.
    #[error("cannot open the artifact store")]
    Artifacts(#[from] lichen_artifacts::OpenError),
    /// The broker does not listen.
    #[error("cannot start the embedded broker")]
    Broker(#[from] broker::BrokerError),
    /// The gateway does not start.
    #[error("cannot start the gateway")]
    Gateway(#[from] lichen_gateway::StartError),
    /// The API server does not listen.
    #[error("cannot start the API server")]
    ApiServer(#[from] lichen_apiserver::BuildError),
    /// The administrator's kubeconfig cannot be written.
    #[error("cannot write {}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// What every cluster has cannot be made.
    #[error("cannot make the first objects: {0}")]
    Bootstrap(Status),
}

/// A join token could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a join token: {0}")]
pub struct TokenError(#[from] Status);

/// A running server. Dropping it ends its tasks without draining them; [`Server::shutdown`] drains.
pub struct Server {
    api_addr: SocketAddr,
    mqtt_addr: Option<SocketAddr>,
    authority: Arc<Authority>,
    kubeconfig: Kubeconfig,
    registry: Registry,
    store: Store,
    leading: Leading,
    stop_api: watch::Sender<bool>,
    api: JoinSet<()>,
    member: Option<Member>,
    background: JoinSet<()>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Server");
        debug.field("api_addr", &self.api_addr).field("mqtt_addr", &self.mqtt_addr).finish_non_exhaustive()
    }
}

impl Server {
    /// Opens the data directory, binds the addresses and starts every part. When this returns, the server serves.
    ///
    /// # Errors
    /// When a part does not start; what had started by then is ended.
    pub async fn start(config: Config) -> Result<Server, StartError> {
        let data_dir = &config.data_dir;
        std::fs::create_dir_all(data_dir)
            .map_err(|source| StartError::DataDir { path: data_dir.clone(), source })?;
        let Opened { store, authority, encryption_key, member } = member::open(&config).await?;
        let keys = (authority, encryption_key);
        match Server::join(&config, store.clone(), keys, member.as_ref()).await {
            Ok(mut server) => {
                server.member = member;
                Ok(server)
            }
            Err(error) => {
                if let Some(member) = member {
                    member.serving.shutdown().await;
                }
                store.shutdown().await;
                Err(error)
            }
        }
    }

    async fn join(
        config: &Config,
        store: Store,
        (authority, encryption_key): (Arc<Authority>, EncryptionKey),
        member: Option<&Member>,
    ) -> Result<Server, StartError> {
        let ranges = AllocationRanges::default();
        let admin = authority.issue_client(ADMIN, Some(MASTERS_GROUP))?;
        let certificate = Rotating::server(authority.clone(), names(config, &ranges, member))?;
        let tls = |alpn: &[&[u8]]| certificate.server_config(alpn).map(Arc::new);
        let registry = Registry::new(store.clone(), ranges, Sources::system()).patient(config.patience);
        let command = CompileCommand::new(config.compile_worker.iter().map(Into::into).collect());
        let dir = config.data_dir.join("artifacts");
        let artifacts = Arc::new(match member {
            None => Artifacts::open(&dir, command, authority.clone())?,
            Some(member) => {
                let members = copies::Members::new(store.clone(), member.peers.clone());
                Artifacts::open_member(&dir, command, authority.clone(), Arc::new(members))?
            }
        });
        if let Some(member) = member {
            member.peers.mount(copies::PREFIX, Arc::new(copies::Holder(Arc::downgrade(&artifacts))));
        }

        // Every address is taken before anything is served: one that can't be had is told at the start.
        let (venue, mqtt_addr) = match &config.broker {
            Broker::Embedded(listen) => {
                let seat = broker::Seat::bind(*listen)?;
                let address = seat.local_addr();
                (Venue::Embedded { seat, tls: tls(&[])? }, Some(address))
            }
            Broker::External(access) => (Venue::External(access.clone()), None),
        };
        let owner = Owner::default();
        let peers = member.map(|member| member.peers.clone());
        let join = JoinMount {
            registry: registry.clone(),
            authority: authority.clone(),
            encryption_key,
            address: member.map(|member| member.address().to_owned()),
        };
        let api = lichen_apiserver::Config {
            registry: registry.clone(),
            streams: Some(Arc::new(owner.clone())),
            presence: Some(Arc::new(owner.clone())),
            forward: peers.clone().map(|peers| {
                let forward: Arc<dyn Forward> = Arc::new(ToLeader { peers, owner: owner.clone() });
                forward
            }),
            tls: tls(&[b"h2", b"http/1.1"])?,
            listen: config.api_addr,
            mounts: vec![
                (ARTIFACTS_PREFIX.to_owned(), Arc::new(ArtifactMount(Artifacts::clone(&artifacts)))),
                (JOIN_PATH.to_owned(), Arc::new(join)),
                (MEMBERS_PATH.to_owned(), Arc::new(MembersMount(peers.clone()))),
                (BACKUP_PATH.to_owned(), Arc::new(BackupMount::new(store.clone(), authority.clone()))),
                (ROTATE_PATH.to_owned(), Arc::new(RotateMount(registry.clone()))),
            ],
        };
        let api = lichen_apiserver::build(api).await?;
        let api_addr = api.address();
        if let Some(peers) = &peers {
            let answers = FromMembers { api: api.forwarded(), owner: owner.clone() };
            peers.mount(forward::PREFIX, Arc::new(answers));
        }
        let leader = Leader {
            registry: registry.clone(),
            artifacts: Artifacts::clone(&artifacts),
            authority: authority.clone(),
            venue,
            silence_grace: config.silence_grace,
            node_certificate_ttl: config.node_certificate_ttl,
            timing: config.timing,
            api_port: api_addr.port(),
            holder: format!("{}_{:016x}", config.hostname, store.member_id().unwrap_or_default()),
        };
        let leading = Leading::start(leader, owner).await?;

        let kubeconfig = Kubeconfig {
            url: url(config, member, api_addr),
            ca_pem: authority.ca_pem().to_owned(),
            user: ADMIN,
            credentials: admin,
        };
        let (stop_api, mut api_task) = (watch::Sender::new(false), JoinSet::new());
        let mut stopping = stop_api.subscribe();
        api_task.spawn(api.run(async move {
            // An error means that the server was dropped, which stops it as well.
            let _ = stopping.wait_for(|stop| *stop).await;
        }));
        let mut background = JoinSet::new();
        if let Some(path) = &config.kubeconfig {
            let failed = |source| StartError::Kubeconfig { path: path.clone(), source };
            write_private(path, &kubeconfig.text(&store)).map_err(failed)?;
            background.spawn(kubeconfig.clone().keep(path.clone(), store.clone()));
        }
        background.spawn(encryption::follow(store.clone()));
        if let Some(member) = member {
            background.spawn(copies::keep(artifacts, store.clone()));
            let reached = |address: SocketAddr| reached(config, Some(member), address);
            background.spawn(member.announce(MemberRecord {
                api_url: format!("https://{}", reached(api_addr)),
                mqtt_address: mqtt_addr.map(reached).unwrap_or_default(),
                names: config.names.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                removed: false,
            }));
        }
        tracing::info!(%api_addr, broker = ?config.broker, data_dir = %config.data_dir.display(), "the server runs");
        Ok(Server {
            api_addr,
            mqtt_addr,
            authority,
            kubeconfig,
            registry,
            store,
            leading,
            stop_api,
            api: api_task,
            member: None,
            background,
        })
    }

    /// The address the HTTPS API listens on.
    pub fn api_addr(&self) -> SocketAddr {
        self.api_addr
    }

    /// The address the embedded broker listens on, if there is one.
    pub fn mqtt_addr(&self) -> Option<SocketAddr> {
        self.mqtt_addr
    }

    /// Where other members reach this one, if they do.
    pub fn peer_address(&self) -> Option<&str> {
        self.member.as_ref().map(Member::address)
    }

    /// The certificate of the cluster's authority.
    pub fn ca_pem(&self) -> &str {
        self.authority.ca_pem()
    }

    /// A kubeconfig for the user `admin` of the group `system:masters`, certificates inline, with an entry for each member.
    pub fn admin_kubeconfig(&self) -> String {
        self.kubeconfig.text(&self.store)
    }

    /// Makes a join token that holds for `ttl`: the text that a node is started with.
    ///
    /// # Errors
    /// When its Secret cannot be written.
    pub async fn create_token(&self, ttl: Duration) -> Result<String, TokenError> {
        self.token(ttl, Purpose::Node).await
    }

    /// Makes a token that holds for `ttl`, with which other servers join.
    ///
    /// # Errors
    /// When its Secret cannot be written.
    pub async fn create_member_token(&self, ttl: Duration) -> Result<String, TokenError> {
        self.token(ttl, Purpose::Member).await
    }

    async fn token(&self, ttl: Duration, purpose: Purpose) -> Result<String, TokenError> {
        let identity = Identity::new(ADMIN, [MASTERS_GROUP]);
        let digest = self.authority.ca_digest();
        Ok(lichen_gateway::create_token(&self.registry, &identity, digest, ttl, purpose).await?.to_string())
    }

    /// Completes, with the reason, when the server is of no use any more: a part has ended by itself, or this member was
    /// removed from its cluster. Can be cancelled.
    pub async fn failed(&mut self) -> String {
        let removed = self.member.as_ref().map(|member| member.peers.removed());
        let removed = async {
            match removed {
                Some(mut removed) => match removed.wait_for(Option::is_some).await {
                    Ok(why) => why.clone().unwrap_or_default(),
                    Err(_) => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            why = removed => why,
            ended = self.api.join_next() => format!("the API server has ended: {ended:?}"),
            () = self.leading.failed() => "the leadership is no longer followed".into(),
        }
    }

    /// Hands over the lead, stops accepting, drains every task, makes the store durable and closes it.
    pub async fn shutdown(mut self) {
        self.store.hand_over().await;
        self.stop_api.send_replace(true);
        while let Some(ended) = self.api.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "the API server ended badly");
            }
        }
        self.background.shutdown().await;
        self.leading.shutdown().await;
        self.store.shutdown().await;
        if let Some(member) = self.member {
            member.serving.shutdown().await;
        }
        tracing::info!("the server has ended");
    }
}

/// Everything that the server's certificate is for.
fn names(config: &Config, ranges: &AllocationRanges, member: Option<&Member>) -> Vec<String> {
    let mut names: Vec<String> = NAMES.map(str::to_owned).into();
    names.push(ranges.api_service().to_string());
    let mqtt_addr = match config.broker {
        Broker::Embedded(listen) => Some(listen),
        Broker::External(_) => None,
    };
    for address in [Some(config.api_addr), mqtt_addr].into_iter().flatten() {
        if !address.ip().is_unspecified() {
            names.push(address.ip().to_string());
        }
    }
    names.extend(config.names.iter().cloned());
    names.extend(member.map(|member| member.host().trim_matches(['[', ']']).to_owned()));
    names.sort();
    names.dedup();
    names
}

/// Where clients on other machines, or at least on this one, reach the API.
fn url(config: &Config, member: Option<&Member>, address: SocketAddr) -> String {
    format!("https://{}", reached(config, member, address))
}

/// Where others reach what listens on an address: if that is every address, at the server's first name, or where other
/// members reach it.
fn reached(config: &Config, member: Option<&Member>, address: SocketAddr) -> String {
    if !address.ip().is_unspecified() {
        return address.to_string();
    }
    let port = address.port();
    match (config.names.first(), member) {
        (Some(name), _) => format!("{name}:{port}"),
        (None, Some(member)) => format!("{}:{port}", member.host()),
        (None, None) => format!("127.0.0.1:{port}"),
    }
}

/// The artifact registry behind the API's port and authentication.
struct ArtifactMount(Artifacts);

impl Mount for ArtifactMount {
    fn handle(
        &self,
        _: Identity,
        request: Request<Incoming>,
    ) -> BoxFuture<'_, Response<lichen_apiserver::Body>> {
        Box::pin(async move {
            let response = self.0.handle(request).await;
            response.map(|body| body.map_err(Into::into).boxed_unsync())
        })
    }
}

#[cfg(test)]
mod tests;
