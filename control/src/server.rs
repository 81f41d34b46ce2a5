//! Starting a server, and what can be asked of one that runs.

use std::net::SocketAddr;
use std::time::Duration;

use crate::Config;

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A part of the server is not there yet.
    #[error("the server's parts are not joined yet")]
    Incomplete,
}

/// A join token could not be made.
#[derive(Debug, thiserror::Error)]
#[error("could not make a join token: {0}")]
pub struct TokenError(String);

/// A running server. Dropping it ends its tasks without draining them; [`Server::shutdown`] drains.
#[derive(Debug)]
pub struct Server {
    api_addr: SocketAddr,
    mqtt_addr: SocketAddr,
    ca_pem: String,
    admin_kubeconfig: String,
}

impl Server {
    /// Opens the data directory, binds the addresses and starts every part.
    pub async fn start(config: Config) -> Result<Server, StartError> {
        let _ = config;
        Err(StartError::Incomplete)
    }

    /// The address the HTTPS API listens on.
    pub fn api_addr(&self) -> SocketAddr {
        self.api_addr
    }

    /// The address the embedded broker listens on.
    pub fn mqtt_addr(&self) -> SocketAddr {
        self.mqtt_addr
    }

    /// The certificate of the cluster's authority.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// A kubeconfig for the user `admin` of the group `system:masters`, certificates inline.
    pub fn admin_kubeconfig(&self) -> String {
        self.admin_kubeconfig.clone()
    }

    /// Makes a join token that holds for `ttl`.
    pub async fn create_token(&self, ttl: Duration) -> Result<String, TokenError> {
        Err(TokenError(format!("not joined with the gateway yet, for {} s", ttl.as_secs())))
    }

    /// Stops accepting, drains every task, makes the store durable and closes it.
    pub async fn shutdown(self) {}
}
