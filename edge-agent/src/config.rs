//! What a node is told at its start, parsed once, and why a start can fail.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use lichen_mqtt::{Access, AddressError, address};
use lichen_net::AddressMode;
use lichen_wire::NODE_NAME_BYTES_MAX;

/// Everything a node needs to know at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node's name: a DNS subdomain, unique in the cluster.
    pub node_name: String,
    /// Where the identity, the checkpoint, artifacts, volumes and logs live.
    pub data_dir: PathBuf,
    /// The broker that the node's session goes through (MQTT over TLS); the one that the data directory remembers unless
    /// told otherwise.
    pub broker: Option<Access>,
    /// The join token, needed only while the data directory holds no identity.
    pub token: Option<String>,
    /// How cluster addresses become addresses that this process can bind and reach.
    pub address_mode: AddressMode,
    /// Labels that the Node carries beside the well-known ones.
    pub labels: BTreeMap<String, String>,
    /// How many pods the node takes.
    pub pods_max: u32,
    /// How long a first start tries to join.
    pub join_timeout: Duration,
    /// The longest pause before the node tries again to reach its broker. It is shorter than the server's patience with
    /// silent nodes, so that none is called lost for its pause alone.
    pub retry_max: Duration,
    /// The longest grace that containers get when the agent itself is shut down; a shorter one of their own counts.
    pub shutdown_grace: Duration,
    /// Whether containers that outlive the agent (OCI) go on when it is shut down, for its successor to take back.
    pub keep_containers: bool,
}

impl Config {
    /// A configuration with the defaults for everything that has one.
    pub fn new(
        node_name: impl Into<String>,
        data_dir: impl Into<PathBuf>,
        broker: impl Into<String>,
    ) -> Self {
        Self {
            node_name: node_name.into(),
            data_dir: data_dir.into(),
            broker: Some(Access::new(broker)),
            token: None,
            address_mode: AddressMode::Loopback,
            labels: BTreeMap::new(),
            pods_max: 110,
            join_timeout: Duration::from_secs(60),
            retry_max: Duration::from_secs(30),
            shutdown_grace: Duration::from_secs(2),
            keep_containers: false,
        }
    }

    pub(crate) fn validate(&self) -> Result<(), StartError> {
        let name = &self.node_name;
        let label_ok = |label: &str| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if name.len() > NODE_NAME_BYTES_MAX || !name.split('.').all(label_ok) {
            return Err(StartError::NodeName(name.clone()));
        }
        if let Some(broker) = &self.broker {
            address(&broker.address)?;
        }
        Ok(())
    }
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The name is no DNS subdomain.
    #[error(
        "node name {0:?} is not a lowercase DNS subdomain of at most {NODE_NAME_BYTES_MAX} letters, digits, '-' and '.'"
    )]
    NodeName(String),
    /// The broker's address is none.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The checkpoint can't be opened.
    #[error(transparent)]
    Checkpoint(#[from] lichen_state::OpenError),
    /// The checkpoint can't be written.
    #[error(transparent)]
    Commit(#[from] lichen_state::CommitError),
    /// The data directory belongs to another node.
    #[error("{dir} belongs to the node {found}, not to {wanted}")]
    OtherNode {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        wanted: String,
    },
    /// The node has no identity and no token to get one.
    #[error("the node has not joined a cluster yet: start it with a join token (`lichen token create`)")]
    NoToken,
    /// The node was never told of a broker.
    #[error("the node knows no broker yet: say which with --server HOST:PORT")]
    NoBroker,
    /// Joining failed.
    #[error("the node cannot join")]
    Join(#[source] lichen_link::JoinError),
    /// Keys or certificates can't be made or used.
    #[error(transparent)]
    Pki(#[from] lichen_pki::PkiError),
    /// The runtime for components can't be started.
    #[error("the runtime cannot be started")]
    Runtime(#[from] lichen_workload::RuntimeError),
    /// The data directory can't be used.
    #[error("cannot use {path}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_host_and_a_port() {
        let check = |server: &str, ok: bool| {
            assert_eq!(Config::new("n", "unused", server).validate().is_ok(), ok, "{server}");
        };
        check("localhost:8883", true);
        check("[::1]:8883", true);
        check("localhost", false);
        check(":8883", false);
        check("localhost:mqtt", false);
        check("localhost:99999", false);
    }

    #[test]
    fn node_names_are_dns_subdomains() {
        let check = |name: &str, ok: bool| {
            assert_eq!(Config::new(name, "unused", "localhost:1").validate().is_ok(), ok, "{name}");
        };
        check("edge-1", true);
        check("a.b.c0", true);
        check("", false);
        check("Edge", false);
        check("-a", false);
        check("a..b", false);
        check(&"a".repeat(200), false);
    }
}
