//! What a server needs to know before it starts.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use lichen_api::pod::defaults::Patience;
use lichen_gateway::{NODE_CERTIFICATE_TTL, SILENCE_GRACE};
use lichen_mqtt::Access;
use lichen_store::Pace;
use lichen_wire::session::Timing;

/// The broker that nodes and server meet at.
#[derive(Clone, Debug)]
pub enum Broker {
    /// The server's own, which listens here for MQTT over TLS.
    Embedded(SocketAddr),
    /// Another one, and how the server reaches it.
    External(Access),
}

/// The cluster that a server joins as a member.
#[derive(Clone)]
pub struct Join {
    /// The URL of the API of a member.
    pub server: String,
    /// A token for members.
    pub token: String,
}

impl fmt::Debug for Join {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Join").field("server", &self.server).finish_non_exhaustive()
    }
}

/// The configuration of one server process. Port 0 binds a free port; [`crate::Server`] says which.
#[derive(Clone, Debug)]
pub struct Config {
    /// The directory that holds everything the server keeps. One server at a time may use it.
    pub data_dir: PathBuf,
    /// Where the HTTPS API listens.
    pub api_addr: SocketAddr,
    /// The broker that nodes and server meet at.
    pub broker: Broker,
    /// How long a node may be silent until its Ready condition becomes Unknown.
    pub silence_grace: Duration,
    /// The times of the nodes' sessions.
    pub timing: Timing,
    /// Where to keep a kubeconfig of the administrator, if anywhere. It follows the members as they come and go.
    pub kubeconfig: Option<PathBuf>,
    /// The machine's name, by which people know this member in the Leases of what only the leader runs.
    pub hostname: String,
    /// Further host names and addresses that clients and nodes reach this server by; they go into its certificate.
    /// `localhost` and the loopback addresses are always in it.
    pub names: Vec<String>,
    /// Where other members reach this one. A server keeps it, and listens there ever after. One that was never given an
    /// address, and neither joins nor begins a cluster, is alone.
    pub peer_addr: Option<SocketAddr>,
    /// Whether other members are to reach this one, at the default port if no other is said.
    pub cluster_init: bool,
    /// The cluster to join. Of no meaning for a server that has.
    pub join: Option<Join>,
    /// How soon the members of the control plane miss each other.
    pub pace: Pace,
    /// How long pods stay on lost nodes unless they say so themselves.
    pub patience: Patience,
    /// Where the key is that encrypts what is secret in the store; in the data directory, and made there, if this is not
    /// given.
    pub encryption_key_file: Option<PathBuf>,
    /// How long a node's certificate holds; a node renews it when most of that time has passed.
    pub node_certificate_ttl: Duration,
    /// The command that compiles one component: WebAssembly on its standard input, compiled code on its output.
    /// `--profile ID` is added to it.
    pub compile_worker: Vec<String>,
}

impl Config {
    /// A server in `data_dir` on free loopback ports.
    pub fn new(data_dir: impl Into<PathBuf>) -> Config {
        Config {
            data_dir: data_dir.into(),
            api_addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            broker: Broker::Embedded(SocketAddr::from(([127, 0, 0, 1], 0))),
            silence_grace: SILENCE_GRACE,
            timing: Timing::DEFAULT,
            kubeconfig: None,
            hostname: "lichen".to_owned(),
            names: Vec::new(),
            peer_addr: None,
            cluster_init: false,
            join: None,
            pace: Pace::default(),
            patience: Patience::default(),
            encryption_key_file: None,
            node_certificate_ttl: NODE_CERTIFICATE_TTL,
            compile_worker: Vec::new(),
        }
    }
}
