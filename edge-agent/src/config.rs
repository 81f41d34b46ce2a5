//! What a node is told at its start, parsed once, and why a start can fail.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lichen_net::AddressMode;

/// The longest node name: a DNS subdomain.
const NODE_NAME_LEN_MAX: usize = 253;

/// Everything a node needs to know at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node's name: a DNS subdomain, unique in the cluster.
    pub node_name: String,
    /// Where the identity, the checkpoint, artifacts, volumes and logs live.
    pub data_dir: PathBuf,
    /// `host:port` of the broker that the node's session goes through (MQTT over TLS).
    pub mqtt_addr: String,
    /// The join token, needed only while the data directory holds no identity.
    pub token: Option<String>,
    /// How cluster addresses become addresses that this process can bind and reach.
    pub address_mode: AddressMode,
    /// Labels that the Node carries beside the well-known ones.
    pub labels: BTreeMap<String, String>,
    /// How many pods the node takes.
    pub pods_max: u32,
}

impl Config {
    /// A configuration with the defaults for everything that has one.
    pub fn new(
        node_name: impl Into<String>,
        data_dir: impl Into<PathBuf>,
        mqtt_addr: impl Into<String>,
    ) -> Self {
        Self {
            node_name: node_name.into(),
            data_dir: data_dir.into(),
            mqtt_addr: mqtt_addr.into(),
            token: None,
            address_mode: AddressMode::Loopback,
            labels: BTreeMap::new(),
            pods_max: 110,
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
        if name.len() > NODE_NAME_LEN_MAX || !name.split('.').all(label_ok) {
            return Err(StartError::NodeName(name.clone()));
        }
        Ok(())
    }
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The name is no DNS subdomain.
    #[error("node name {0:?} is not a lowercase DNS subdomain (letters, digits, '-' and '.')")]
    NodeName(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_are_dns_subdomains() {
        let check = |name: &str, ok: bool| {
            assert_eq!(Config::new(name, "/tmp/x", "localhost:1").validate().is_ok(), ok, "{name}");
        };
        check("edge-1", true);
        check("a.b.c0", true);
        check("", false);
        check("Edge", false);
        check("-a", false);
        check("a..b", false);
    }
}
