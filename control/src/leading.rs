//! What the member that leads runs, and no other: broker, gateway, controllers and scheduler.
//!
//! One task follows the leadership: it starts these parts when this member becomes the leader, and ends them when it is
//! deposed. All that they write is fenced by the term, so that a member which does not know yet that it was deposed
//! writes nothing. Whether the broker is embedded or another's, nobody but the leader meets nodes there; the port of an
//! embedded one belongs to the member all the time, and refuses connections while it does not lead.
//!
//! Deliberately absent: what every member runs (see `server`), and judging who leads (see `lichen_store`).

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use lichen_api::Status;
use lichen_artifacts::Artifacts;
use lichen_gateway::bus::{Bus, EmbeddedBus};
use lichen_gateway::external::{self, ExternalBus};
use lichen_gateway::{Gateway, NodeLinks, broker};
use lichen_mqtt::Access;
use lichen_pki::{Authority, ClientTrust, GATEWAY_USER, PkiError, Rotating};
use lichen_registry::{LogRequest, LogStream, NodePresence, NodeStreams, Registry};
use lichen_store::{Leadership, Term};
use lichen_wire::session::Timing;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};

use crate::essentials::Essentials;
use crate::{StartError, manager};

/// The pause before a leader tries again to start what it runs.
const RETRY: Duration = Duration::from_secs(1);

/// Where nodes are met.
pub(crate) enum Venue {
    /// The server's own broker.
    Embedded {
        /// Its address, whether it runs or not.
        seat: broker::Seat,
        /// Its certificate.
        tls: Arc<rustls::ServerConfig>,
    },
    /// Another one, and how the server reaches it.
    External(Access),
}

/// What it takes to lead.
pub(crate) struct Leader {
    pub(crate) registry: Registry,
    pub(crate) artifacts: Artifacts,
    pub(crate) authority: Arc<Authority>,
    pub(crate) venue: Venue,
    pub(crate) silence_grace: Duration,
    pub(crate) node_certificate_ttl: Duration,
    pub(crate) timing: Timing,
    /// The API server's port, which the `kubernetes` Service leads to.
    pub(crate) api_port: u16,
    /// This member, as the Leases name it.
    pub(crate) holder: String,
}

/// What runs during a term.
struct Reign {
    term: Term,
    gateway: Gateway,
    broker: Option<broker::Broker>,
    keeper: JoinSet<()>,
    stop_manager: watch::Sender<bool>,
    manager: JoinSet<()>,
}

impl Leader {
    async fn begin(&self, term: Term) -> Result<Reign, StartError> {
        let registry = self.registry.fenced(term);
        let (api_port, holder) = (self.api_port, self.holder.clone());
        let essentials = Essentials { registry: registry.clone(), api_port, holder };
        essentials.make().await.map_err(StartError::Bootstrap)?;
        let (broker, bus): (_, Box<dyn Bus>) = match &self.venue {
            Venue::Embedded { seat, tls } => {
                let admit = lichen_gateway::admit_members(self.registry.clone());
                let config = broker::Config { tls: tls.clone(), limits: broker::Limits::default(), admit };
                let broker = broker::Broker::start(seat, config)?;
                let bus = EmbeddedBus::new(broker.port())?;
                (Some(broker), Box::new(bus))
            }
            Venue::External(access) => (None, Box::new(external_bus(access, &self.authority)?)),
        };
        let gateway = lichen_gateway::Config {
            silence_grace: self.silence_grace,
            node_certificate_ttl: self.node_certificate_ttl,
            timing: self.timing,
            ..lichen_gateway::Config::new(registry, self.artifacts.clone(), self.authority.clone(), bus)
        };
        let gateway = Gateway::start(gateway).await?;
        let (stop_manager, mut manager) = (watch::Sender::new(false), JoinSet::new());
        manager.spawn(manager::run(self.registry.clone(), stop_manager.subscribe()));
        let mut keeper = JoinSet::new();
        keeper.spawn(essentials.keep());
        tracing::info!(term = term.0, "this member leads");
        Ok(Reign { term, gateway, broker, keeper, stop_manager, manager })
    }
}

impl Reign {
    /// Ends everything. Nodes are told first: they have another leader to look for.
    async fn end(mut self) {
        self.stop_manager.send_replace(true);
        self.keeper.shutdown().await;
        self.gateway.shutdown().await;
        if let Some(broker) = self.broker {
            broker.shutdown().await;
        }
        while let Some(ended) = self.manager.join_next().await {
            report(&ended, "controllers and scheduler");
        }
        tracing::info!(term = self.term.0, "what only the leader runs has ended");
    }
}

/// The way to the nodes, while this member has it.
#[derive(Clone, Default)]
pub(crate) struct Owner(Arc<RwLock<Option<NodeLinks>>>);

impl Owner {
    fn links(&self) -> Option<NodeLinks> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether this member has it.
    pub(crate) fn is_here(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn set(&self, links: Option<NodeLinks>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = links;
    }
}

impl NodePresence for Owner {
    fn last_heard(&self, node: &str) -> Option<Timestamp> {
        self.links()?.last_heard(node)
    }
}

impl NodeStreams for Owner {
    fn logs<'a>(&'a self, node: &'a str, request: LogRequest) -> BoxFuture<'a, Result<LogStream, Status>> {
        Box::pin(async move {
            let Some(links) = self.links() else {
                return Err(Status::service_unavailable(
                    "this member does not lead: nodes are not connected here",
                ));
            };
            links.logs(node, request).await
        })
    }
}

/// Follows the leadership until it is stopped.
pub(crate) struct Leading {
    stop: watch::Sender<bool>,
    task: JoinSet<()>,
}

impl Leading {
    /// Begins to follow. If this member leads already, all that the leader runs runs when this returns.
    /// `owner` is given the way to the nodes while this member has it.
    pub(crate) async fn start(leader: Leader, owner: Owner) -> Result<Leading, StartError> {
        let stop = watch::Sender::new(false);
        let leadership = leader.registry.store().leadership();
        let now = *leadership.borrow();
        let first = match now.leader {
            true => Some(leader.begin(now.term).await?),
            false => None,
        };
        owner.set(first.as_ref().map(|reign| reign.gateway.links()));
        let mut task = JoinSet::new();
        task.spawn(follow(leader, first, owner, leadership, stop.subscribe()));
        Ok(Leading { stop, task })
    }

    /// Completes when following has ended by itself. Can be cancelled.
    pub(crate) async fn failed(&mut self) {
        if let Some(ended) = self.task.join_next().await {
            report(&ended, "following the leadership");
        }
    }

    /// Ends what runs and waits for it.
    pub(crate) async fn shutdown(mut self) {
        self.stop.send_replace(true);
        while let Some(ended) = self.task.join_next().await {
            report(&ended, "following the leadership");
        }
    }
}

async fn follow(
    leader: Leader,
    mut reign: Option<Reign>,
    owner: Owner,
    mut leadership: watch::Receiver<Leadership>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let term = match reign.take() {
            Some(mut current) => {
                let term = current.term;
                owner.set(Some(current.gateway.links()));
                let over = tokio::select! {
                    biased;
                    () = over(&mut leadership, term, &mut stop) => false,
                    ended = current.manager.join_next() => {
                        ended.iter().for_each(|ended| report(ended, "controllers and scheduler"));
                        true
                    }
                };
                owner.set(None);
                current.end().await;
                // They end by themselves only with the store.
                if over {
                    return;
                }
                continue;
            }
            None => {
                let Ok(now) = leading(&mut leadership, &mut stop).await else { return };
                now.term
            }
        };
        let begun = tokio::select! {
            biased;
            () = over(&mut leadership, term, &mut stop) => continue,
            begun = leader.begin(term) => begun,
        };
        match begun {
            Ok(begun) => reign = Some(begun),
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the leader can't serve yet");
                tokio::select! {
                    () = over(&mut leadership, term, &mut stop) => {}
                    () = tokio::time::sleep(RETRY) => {}
                }
            }
        }
    }
}

/// Waits until this member leads; an error when there is no more to wait for.
async fn leading(
    leadership: &mut watch::Receiver<Leadership>,
    stop: &mut watch::Receiver<bool>,
) -> Result<Leadership, ()> {
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => Err(()),
        now = leadership.wait_for(|now| now.leader) => now.map(|now| *now).map_err(drop),
    }
}

/// Waits until this member leads no more in a term, or is to stop. That either of them is gone comes to the same.
async fn over(leadership: &mut watch::Receiver<Leadership>, term: Term, stop: &mut watch::Receiver<bool>) {
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => {}
        _ = leadership.wait_for(|now| !now.leader || now.term != term) => {}
    }
}

fn report(ended: &Result<(), JoinError>, what: &str) {
    if let Err(error) = ended {
        tracing::error!(%error, "{what} ended badly");
    }
}

/// A client of the user's broker. Where nothing else is said it shows a certificate of the cluster's authority.
fn external_bus(access: &Access, authority: &Arc<Authority>) -> Result<ExternalBus, PkiError> {
    let cluster = authority.ca_pem();
    let tls = match access.login.is_none() && access.credentials.is_none() {
        // The gateway's own certificate does not end while it connects again and again.
        true => {
            let trust = ClientTrust::Authority(access.ca_pem.as_deref().unwrap_or(cluster).to_owned());
            Arc::new(Rotating::client(authority.clone(), GATEWAY_USER, None)?.client_config(&trust)?)
        }
        false => access.tls(&ClientTrust::Authority(cluster.to_owned()), None)?,
    };
    let (broker, login) = (access.address.clone(), access.login.clone());
    Ok(ExternalBus::spawn(external::Config { broker, tls, login }))
}

#[cfg(test)]
mod tests;
