//! A server: the real registry, controllers, scheduler and gateway over a member of the log.
//!
//! A gateway begins whenever its server leads, and ends a while after it does not any more: meanwhile two of them want
//! the same nodes, and the epoch decides.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lichen_control::manager;
use lichen_gateway::Gateway;
use lichen_registry::{AllocationRanges, Registry, Sources};
use lichen_store::{Event, HistoryBounds, Leadership, RangeOptions, Store, WatchError};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::Assets;
use crate::dice::Dice;
use crate::log::{Log, Opened};
use crate::net::Net;
use crate::trace::{Invariant, Trace, note};

/// The longest that a gateway outlives its server's lead.
const LINGER_MS_MAX: u64 = 60_000;
/// The pause before a gateway that did not start is started again.
const RETRY: Duration = Duration::from_millis(500);
/// How often a watch that has been followed is held against the store, out of a thousand changes.
const COMPARED: u64 = 20;
const API_PORT: u16 = 6443;

/// What a server is made of.
#[derive(Clone)]
pub(crate) struct Setting {
    pub(crate) number: u64,
    pub(crate) assets: Arc<Assets>,
    pub(crate) log: Log,
    pub(crate) net: Net,
    pub(crate) dice: Dice,
    pub(crate) trace: Trace,
    pub(crate) history: HistoryBounds,
}

/// A server, up or down.
pub(crate) struct Server {
    setting: Setting,
    running: Option<Running>,
}

struct Running {
    registry: Registry,
    _stop: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

impl Server {
    pub(crate) fn new(setting: Setting) -> Self {
        Self { setting, running: None }
    }

    pub(crate) fn registry(&self) -> Option<Registry> {
        self.running.as_ref().map(|running| running.registry.clone())
    }

    pub(crate) fn is_up(&self) -> bool {
        self.running.is_some()
    }

    pub(crate) fn start(&mut self) {
        if self.is_up() {
            return;
        }
        let Setting { number, log, dice, trace, history, .. } = &self.setting;
        note!(trace, "server {number} starts");
        let Opened { store, leads } = log.open(*number, *history);
        let (clock, chance) = (trace.clone(), dice.fork());
        let random = move || u128::from(chance.draw()) << 64 | u128::from(chance.draw());
        let sources = Sources::new(move || clock.now(), random);
        let registry = Registry::new(store.clone(), AllocationRanges::default(), sources);
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(manager::run(registry.clone(), stopped));
        tasks.spawn(serve(self.setting.clone(), registry.clone(), leads));
        tasks.spawn(replay(store, trace.clone(), dice.fork()));
        self.running = Some(Running { registry, _stop: stop, _tasks: tasks });
    }

    /// Ends everything of it, as kill -9 does.
    pub(crate) fn kill(&mut self) {
        if self.running.take().is_some() {
            note!(self.setting.trace, "server {} is killed", self.setting.number);
            self.setting.log.kill(self.setting.number);
        }
    }
}

/// Runs a gateway for each term that the server leads in.
async fn serve(setting: Setting, registry: Registry, mut leads: watch::Receiver<Leadership>) {
    let mut lingering = JoinSet::new();
    loop {
        let Leadership { leader, term } = *leads.borrow_and_update();
        if leader {
            let begun = tokio::select! {
                biased;
                _ = leads.wait_for(|now| !now.leader || now.term != term) => None,
                gateway = begin(&setting, &registry) => Some(gateway),
            };
            if let Some(gateway) = begun {
                note!(setting.trace, "server {} has a gateway in term {term}", setting.number);
                let _ = leads.wait_for(|now| !now.leader || now.term != term).await;
                let wait = Duration::from_millis(setting.dice.between(0, LINGER_MS_MAX));
                let polite = setting.dice.chance(500);
                lingering.spawn(async move {
                    tokio::time::sleep(wait).await;
                    if polite {
                        gateway.shutdown().await;
                    }
                });
            }
        } else if leads.changed().await.is_err() {
            return;
        }
    }
}

async fn begin(setting: &Setting, registry: &Registry) -> Gateway {
    loop {
        if registry.bootstrap(API_PORT).await.is_ok() {
            let (assets, dice) = (&setting.assets, setting.dice.fork());
            let bus = Box::new(setting.net.gateway());
            let mut config = lichen_gateway::Config::new(
                registry.clone(),
                assets.artifacts.clone(),
                assets.authority.clone(),
                bus,
            );
            config.random = Arc::new(move || dice.bytes());
            if let Ok(gateway) = Gateway::start(config).await {
                return gateway;
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Follows everything, and holds what that comes to against the store.
async fn replay(store: Store, trace: Trace, dice: Dice) {
    let wrong = |detail: String| trace.violate(Invariant::Replay, detail);
    loop {
        let Ok(page) = store.range("/", &RangeOptions::default()) else { return };
        let Ok(mut watch) = store.watch("/", page.revision) else { continue };
        let mut last = page.revision;
        let mut copy: BTreeMap<_, _> = page.items.into_iter().collect();
        loop {
            match watch.next().await {
                Ok(Event::Change(change)) => {
                    if change.revision < last {
                        wrong(format!("revision {} came after {last}", change.revision));
                    }
                    last = change.revision;
                    let before = match change.new.clone() {
                        Some(record) => copy.insert(change.key.clone(), record),
                        None => copy.remove(&change.key),
                    };
                    if before != change.old {
                        wrong(format!("{} was not as revision {last} says", change.key));
                    }
                }
                Ok(Event::Progress(revision)) => last = revision,
                Err(WatchError::Lagged) => break,
                Err(WatchError::Closed) => return,
            }
            if dice.chance(COMPARED) && watch.progress() == Ok(store.revision()) {
                let now =
                    store.range("/", &RangeOptions::default()).map(|page| page.items).unwrap_or_default();
                if !now.iter().map(|(key, record)| (key, record)).eq(&copy) {
                    wrong(format!("at revision {last} the store is another"));
                }
            }
        }
    }
}
