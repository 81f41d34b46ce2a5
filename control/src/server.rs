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
use lichen_apiserver::Mount;
use lichen_artifacts::{Artifacts, CompileCommand};
use lichen_gateway::broker;
use lichen_pki::{Authority, PkiError, Rotating};
use lichen_registry::{AllocationRanges, Identity, MASTERS_GROUP, Registry, Sources};
use lichen_store::Store;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::kubeconfig::kubeconfig;
use crate::leading::{Leader, Leading, Owner, Venue};
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
    /// The store does not open; another server may have the data directory.
    #[error("cannot open the store")]
    Store(#[from] lichen_store::OpenError),
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
    admin_kubeconfig: String,
    registry: Registry,
    store: Store,
    leading: Leading,
    stop_api: watch::Sender<bool>,
    api: JoinSet<()>,
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
        // The store comes first: it is what a second server on the same directory is refused by.
        let store = Store::open(lichen_store::Config::new(data_dir.join("store"))).await?;
        match Server::join(&config, store.clone()).await {
            Ok(server) => Ok(server),
            Err(error) => {
                store.shutdown().await;
                Err(error)
            }
        }
    }

    async fn join(config: &Config, store: Store) -> Result<Server, StartError> {
        let authority = Arc::new(Authority::open_or_create(&config.data_dir.join("pki"))?);
        let ranges = AllocationRanges::default();
        let admin = authority.issue_client(ADMIN, Some(MASTERS_GROUP))?;
        let certificate = Rotating::server(authority.clone(), names(config, &ranges))?;
        let tls = |alpn: &[&[u8]]| certificate.server_config(alpn).map(Arc::new);
        let registry = Registry::new(store.clone(), ranges, Sources::system());
        let command = CompileCommand::new(config.compile_worker.iter().map(Into::into).collect());
        let artifacts = Artifacts::open(&config.data_dir.join("artifacts"), command, authority.clone())?;

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
        let api = lichen_apiserver::Config {
            registry: registry.clone(),
            streams: Some(Arc::new(owner.clone())),
            presence: Some(Arc::new(owner.clone())),
            tls: tls(&[b"h2", b"http/1.1"])?,
            listen: config.api_addr,
            mounts: vec![(ARTIFACTS_PREFIX.to_owned(), Arc::new(ArtifactMount(artifacts.clone())))],
        };
        let api = lichen_apiserver::build(api).await?;
        let api_addr = api.address();
        let leader = Leader {
            registry: registry.clone(),
            artifacts,
            authority: authority.clone(),
            venue,
            silence_grace: config.silence_grace,
            node_certificate_ttl: config.node_certificate_ttl,
            timing: config.timing,
            api_port: api_addr.port(),
        };
        let leading = Leading::start(leader, owner).await?;

        let admin_kubeconfig = kubeconfig(&url(config, api_addr), authority.ca_pem(), ADMIN, &admin);
        let (stop_api, mut api_task) = (watch::Sender::new(false), JoinSet::new());
        let mut stopping = stop_api.subscribe();
        api_task.spawn(api.run(async move {
            // An error means that the server was dropped, which stops it as well.
            let _ = stopping.wait_for(|stop| *stop).await;
        }));
        tracing::info!(%api_addr, broker = ?config.broker, data_dir = %config.data_dir.display(), "the server runs");
        Ok(Server {
            api_addr,
            mqtt_addr,
            authority,
            admin_kubeconfig,
            registry,
            store,
            leading,
            stop_api,
            api: api_task,
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

    /// The certificate of the cluster's authority.
    pub fn ca_pem(&self) -> &str {
        self.authority.ca_pem()
    }

    /// A kubeconfig for the user `admin` of the group `system:masters`, certificates inline.
    pub fn admin_kubeconfig(&self) -> String {
        self.admin_kubeconfig.clone()
    }

    /// Makes a join token that holds for `ttl`: the text that a node is started with.
    ///
    /// # Errors
    /// When its Secret cannot be written.
    pub async fn create_token(&self, ttl: Duration) -> Result<String, TokenError> {
        let identity = Identity::new(ADMIN, [MASTERS_GROUP]);
        let token =
            lichen_gateway::create_token(&self.registry, &identity, self.authority.ca_digest(), ttl).await?;
        Ok(token.to_string())
    }

    /// Completes when a part has ended by itself: the server is of no use any more. Can be cancelled.
    pub async fn failed(&mut self) {
        tokio::select! {
            ended = self.api.join_next() => tracing::error!(?ended, "the API server has ended"),
            () = self.leading.failed() => tracing::error!("the leadership is no longer followed"),
        }
    }

    /// Stops accepting, drains every task, makes the store durable and closes it.
    pub async fn shutdown(mut self) {
        self.stop_api.send_replace(true);
        while let Some(ended) = self.api.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "the API server ended badly");
            }
        }
        self.leading.shutdown().await;
        self.store.shutdown().await;
        tracing::info!("the server has ended");
    }
}

/// Everything that the server's certificate is for.
fn names(config: &Config, ranges: &AllocationRanges) -> Vec<String> {
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
    names.sort();
    names.dedup();
    names
}

/// Where clients on other machines, or at least on this one, reach the API.
fn url(config: &Config, address: SocketAddr) -> String {
    let port = address.port();
    match config.names.first() {
        Some(name) if address.ip().is_unspecified() => format!("https://{name}:{port}"),
        _ if address.ip().is_unspecified() => format!("https://127.0.0.1:{port}"),
        _ => format!("https://{address}"),
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
