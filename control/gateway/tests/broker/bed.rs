//! A broker under test, and clients that it knows.

use std::net::SocketAddr;
use std::sync::Arc;

use lichen_firmware_tests::mosquitto::{Mosquitto, Proof};
use lichen_gateway::broker::{Admit, Broker, Config, Limits, Seat};
use lichen_mqtt::Login;
use lichen_pki::{Authority, ClientTrust, Credentials, GATEWAY_USER, client_config, server_config};

use crate::client::Client;

/// How many clients with numbers for names there are.
pub(crate) const MANY: usize = 2_000;

/// Which broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Embedded,
    MosquittoCertificates,
    MosquittoPasswords,
}

enum Running {
    Embedded(Broker),
    Mosquitto(Mosquitto),
}

/// A running broker.
pub(crate) struct Bed {
    pub(crate) kind: Kind,
    authority: Authority,
    running: Running,
    _folder: tempfile::TempDir,
}

/// Who a client says it is.
#[derive(Clone, Default)]
pub(crate) struct Who {
    pub(crate) credentials: Option<Credentials>,
    pub(crate) login: Option<Login>,
}

impl Bed {
    /// Starts a broker; none if it is not installed.
    pub(crate) async fn new(kind: Kind) -> Option<Bed> {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(folder.path()).unwrap();
        let server = authority.issue_server(&["127.0.0.1".into()]).unwrap();
        let mosquitto = |proof, users: &[(String, String)]| {
            Mosquitto::start(proof, authority.ca_pem(), &server.chain_pem, &server.key_pem, users).unwrap()
        };
        let running = match kind {
            Kind::Embedded => {
                let tls = Arc::new(server_config(&server, authority.ca_pem(), &[]).unwrap());
                let seat = Seat::bind(([127, 0, 0, 1], 0).into()).unwrap();
                let config = Config { tls, limits: Limits::default(), admit: Admit::everyone() };
                Running::Embedded(Broker::start(&seat, config).unwrap())
            }
            Kind::MosquittoCertificates => Running::Mosquitto(mosquitto(Proof::Certificates, &[])?),
            Kind::MosquittoPasswords => {
                let named = ["lichen-gateway", "a", "b", "edge-1"].map(str::to_owned);
                let users = named.into_iter().chain((0..MANY).map(number));
                let users: Vec<_> = users.map(|user| (user.clone(), password(&user))).collect();
                Running::Mosquitto(mosquitto(Proof::Passwords, &users)?)
            }
        };
        Some(Bed { kind, authority, running, _folder: folder })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        match &self.running {
            Running::Embedded(broker) => broker.local_addr(),
            Running::Mosquitto(mosquitto) => mosquitto.address(),
        }
    }

    /// The broker's process: this one for the embedded broker.
    pub(crate) fn process(&self) -> u32 {
        match &self.running {
            Running::Embedded(_) => std::process::id(),
            Running::Mosquitto(mosquitto) => mosquitto.id().unwrap(),
        }
    }

    pub(crate) fn tls(&self, who: &Who) -> Arc<rustls::ClientConfig> {
        let trust = ClientTrust::Authority(self.authority.ca_pem().into());
        Arc::new(client_config(&trust, who.credentials.as_ref()).unwrap())
    }

    /// What makes a client the node of that name.
    pub(crate) fn node(&self, node: &str) -> Who {
        match self.kind {
            Kind::Embedded => self.certificate(&format!("system:node:{node}"), Some("system:nodes")),
            Kind::MosquittoCertificates => self.certificate(node, None),
            Kind::MosquittoPasswords => login(node, password(node)),
        }
    }

    /// What makes a client the gateway.
    pub(crate) fn gateway(&self) -> Who {
        match self.kind {
            Kind::Embedded => self.certificate(GATEWAY_USER, None),
            Kind::MosquittoCertificates => self.certificate("lichen-gateway", None),
            Kind::MosquittoPasswords => login("lichen-gateway", password("lichen-gateway")),
        }
    }

    /// What makes a client nobody.
    pub(crate) fn strangers(&self) -> Vec<Who> {
        let folder = tempfile::tempdir().unwrap();
        let other = Authority::open_or_create(folder.path()).unwrap();
        let forged = other.issue_client("system:node:a", Some("system:nodes")).unwrap();
        let forged = Who { credentials: Some(forged), login: None };
        vec![Who::default(), forged, login("a", "guessed".into()), login("lichen-gateway", String::new())]
    }

    /// A client that has connected under its own name.
    pub(crate) async fn connected(&self, node: &str) -> Client {
        let mut client = Client::open(self, &self.node(node)).await.unwrap();
        client.connected(node).await;
        client
    }

    /// The gateway, subscribed to what it hears.
    pub(crate) async fn listening(&self) -> Client {
        let mut client = Client::open(self, &self.gateway()).await.unwrap();
        client.connected("gateway").await;
        for filter in lichen_gateway::bus::FILTERS {
            assert!(client.subscribe(filter).await, "{filter}");
        }
        client
    }

    fn certificate(&self, user: &str, group: Option<&str>) -> Who {
        Who { credentials: Some(self.authority.issue_client(user, group).unwrap()), login: None }
    }
}

pub(crate) fn number(index: usize) -> String {
    format!("n{index}")
}

fn password(user: &str) -> String {
    format!("password of {user}")
}

fn login(user: &str, password: String) -> Who {
    Who { credentials: None, login: Some(Login { username: user.to_owned(), password }) }
}

/// Asks a broker a question, if it is installed.
pub(crate) fn run<F: Future<Output = ()>>(kind: Kind, question: impl FnOnce(Arc<Bed>) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        if let Some(bed) = Bed::new(kind).await {
            question(Arc::new(bed)).await;
        }
    });
}
