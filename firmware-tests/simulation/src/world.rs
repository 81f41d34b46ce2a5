//! A whole cluster: built from a seed, troubled, healed and judged.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use lichen_agent::Machine;
use lichen_api::kinds;
use lichen_gateway::{TOKEN_NAMESPACE, TOKEN_SECRET_TYPE, token_secret_name};
use lichen_store::HistoryBounds;
use lichen_wire::join::{JOIN_BYTES_MAX, Joiner, Token};
use lichen_wire::keys::NodeKey;
use lichen_workload::Exit;
use serde_json::json;
use tokio::time::timeout;

use crate::check::{Checks, EPOCH};
use crate::client::{Client, Servers};
use crate::dice::Dice;
use crate::knobs::{Knobs, Levels};
use crate::log::Log;
use crate::net::Net;
use crate::node::{self, Node};
use crate::server::{self, Server};
use crate::settled::{Found, Known, settled};
use crate::trace::{Invariant, Trace, Violation, note};
use crate::{Assets, Size};

/// The secret of the one join token.
const TOKEN_SECRET: &str = "simulated0simulated0";
const TOKEN_ID: &str = "simula";
/// How long everything may take to become as wanted once all is healed: longer than every back-off.
const CONVERGENCE_MAX: Duration = Duration::from_secs(20 * 60);
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// What may still be written about a convergence, events for example, is by then.
const SETTLE: Duration = Duration::from_secs(90);
/// How long nothing may be written after that.
const QUIET: Duration = Duration::from_secs(5 * 60);
/// How long a join is waited for until it is asked for again.
const JOIN_WAIT: Duration = Duration::from_secs(2);

/// How a simulation went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What it was determined by.
    pub seed: u64,
    /// Over everything that happened.
    pub hash: u64,
    /// Things that happened.
    pub steps: u64,
    /// How long it took by its own clock.
    pub elapsed: Duration,
    /// How large it was.
    pub size: Size,
    /// The first invariant that did not hold.
    pub violation: Option<Violation>,
}

/// Plays a seed from beginning to end, in a size of the caller's if there is one, and prints each step if asked to.
pub fn run(seed: u64, size: Option<Size>, assets: &Arc<Assets>, print: bool) -> Report {
    simulate(seed, size, assets, print, World::play).0
}

/// Plays a seed in a way of the caller's. There is no answer once an invariant did not hold.
pub(crate) fn simulate<T>(
    seed: u64,
    size: Option<Size>,
    assets: &Arc<Assets>,
    print: bool,
    play: impl AsyncFnOnce(&mut World) -> T,
) -> (Report, Option<T>) {
    let panicked = crate::watch_for_panics();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    // It opens nothing but memory.
    let runtime = runtime.unwrap_or_else(|error| panic!("no runtime can be made: {error}"));
    let answer = runtime.block_on(async {
        let mut world = World::new(seed, size, assets.clone(), print);
        let trace = world.trace.clone();
        let played = tokio::select! {
            biased;
            () = trace.violated() => None,
            played = play(&mut world) => Some(played),
        };
        if panicked() {
            trace.violate(Invariant::Panic, "a task panicked");
        }
        let report = Report {
            seed,
            hash: trace.hash(),
            steps: trace.steps(),
            elapsed: trace.elapsed(),
            size: world.size,
            violation: trace.violation(),
        };
        (report, played)
    });
    drop(runtime);
    answer
}

pub(crate) struct World {
    pub(crate) size: Size,
    assets: Arc<Assets>,
    dice: Dice,
    knobs: Knobs,
    pub(crate) trace: Trace,
    pub(crate) checks: Checks,
    pub(crate) log: Log,
    pub(crate) net: Net,
    servers: Vec<Server>,
    reachable: Servers,
    pub(crate) nodes: Vec<Node>,
    pub(crate) client: Client,
    known: Known,
}

impl World {
    fn new(seed: u64, size: Option<Size>, assets: Arc<Assets>, print: bool) -> Self {
        let dice = Dice::new(seed);
        let drawn = Size::draw(&dice);
        let size = size.unwrap_or(drawn);
        let (knobs, trace) = (Knobs::new(), Trace::new(print));
        note!(trace, "seed {seed}: {size:?}");
        let checks = Checks::new(trace.clone());
        let log = Log::new(dice.fork(), knobs.clone(), trace.clone(), checks.clone());
        let net = Net::new(dice.fork(), knobs.clone(), trace.clone());
        let reachable = Servers::default();
        let client = Client {
            servers: reachable.clone(),
            dice: dice.fork(),
            trace: trace.clone(),
            checks: checks.clone(),
            replicas_max: size.nodes * 2,
            names: size.nodes.clamp(3, 12),
        };
        let history = *dice.pick(&[50, 500, 10_000]).unwrap_or(&500);
        let server = |number| {
            Server::new(server::Setting {
                number,
                assets: assets.clone(),
                log: log.clone(),
                net: net.clone(),
                dice: dice.fork(),
                trace: trace.clone(),
                history: HistoryBounds { changes_max: history, ..HistoryBounds::default() },
            })
        };
        let servers = (0..size.servers).map(server).collect();
        let nodes = Vec::new();
        Self {
            size,
            assets,
            dice,
            knobs,
            trace,
            checks,
            log,
            net,
            servers,
            reachable,
            nodes,
            client,
            known: Known::default(),
        }
    }

    async fn play(&mut self) {
        self.begin().await;
        note!(self.trace, "trouble begins");
        let client = self.client.clone();
        let actions = self.size.actions;
        let pause_ms = self.size.trouble.as_millis() as u64 * 2 / actions.max(1);
        let acting = tokio::spawn(async move {
            for _ in 0..actions {
                tokio::time::sleep(Duration::from_millis(client.dice.between(0, pause_ms))).await;
                client.act().await;
            }
        });
        self.trouble().await;
        // Nobody wants anything else from here on.
        acting.abort();
        let _ = acting.await;
        self.heal();
        self.judge().await;
    }

    /// Starts the servers and has the nodes join.
    pub(crate) async fn begin(&mut self) {
        for server in &mut self.servers {
            server.start();
        }
        self.log.elect(Some(0));
        self.list_servers();
        // A gateway begins when what every cluster has is there.
        while !self.log.state().iter().any(|(key, _)| key.as_str() == EPOCH) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        self.client.prepare().await;
        self.join_all().await;
    }

    fn list_servers(&self) {
        let up = self.servers.iter().enumerate();
        let up = up.filter_map(|(number, server)| Some((number as u64, server.registry()?)));
        *self.reachable.lock().unwrap_or_else(PoisonError::into_inner) = up.collect();
    }

    /// Has every node join, and boots it.
    async fn join_all(&mut self) {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": TOKEN_SECRET_TYPE,
            "metadata": { "name": token_secret_name(TOKEN_ID) },
            "stringData": {
                "token-id": TOKEN_ID, "token-secret": TOKEN_SECRET, "usage-bootstrap-authentication": "true",
            },
        });
        self.client.insist(&kinds::secret::RESOURCE, TOKEN_NAMESPACE, secret).await;
        for number in 0..self.size.nodes {
            let name = format!("node-{number}");
            let Some(key) = self.join(&name).await else { return };
            let machine = Machine {
                cpus: self.dice.between(1, 4) as usize,
                memory_bytes: 1 << 30,
                memory_available_bytes: 1 << 30,
                disk_bytes: 1 << 34,
                disk_free_bytes: 1 << 34,
            };
            let setting = node::Setting {
                net: self.net.clone(),
                dice: self.dice.fork(),
                knobs: self.knobs.clone(),
                trace: self.trace.clone(),
                checks: self.checks.clone(),
                dir: self.assets.dir.path().join("nodes"),
            };
            let pods_max = self.dice.between(3, 12) as u32;
            let mut node = Node::new(name, key, machine, pods_max, setting);
            node.boot();
            self.nodes.push(node);
        }
    }

    async fn join(&self, node: &str) -> Option<NodeKey> {
        let token = Token::new(TOKEN_ID, TOKEN_SECRET, self.assets.authority.ca_digest())?;
        for _ in 0..100 {
            let joiner =
                Joiner::new(&token, node, &self.assets.csr, self.dice.bytes(), self.dice.bytes()).ok()?;
            let mut replies = self.net.subscribe(&format!("lichen/v1/join/{TOKEN_ID}/down"));
            let mut request = vec![0; JOIN_BYTES_MAX];
            let len = joiner.write_request(&mut request).ok()?;
            request.truncate(len);
            self.net.up(&format!("lichen/v1/join/{TOKEN_ID}/up"), request.into());
            if let Ok(Some(reply)) = timeout(JOIN_WAIT, replies.recv()).await {
                match joiner.finish(&reply) {
                    Ok(joined) => return Some(joined.key),
                    Err(error) => note!(self.trace, "{node} can't join: {error}"),
                }
            }
        }
        self.trace.violate(Invariant::Convergence, format!("{node} never joined"));
        None
    }

    /// Lets things go wrong for a while.
    async fn trouble(&mut self) {
        let pause_ms = self.size.trouble.as_millis() as u64 * 2 / self.size.faults.max(1);
        let end = self.trace.elapsed() + self.size.trouble;
        while self.trace.elapsed() < end {
            let wait = Duration::from_millis(self.dice.between(0, pause_ms));
            tokio::time::sleep(wait.min(end.saturating_sub(self.trace.elapsed()))).await;
            if self.size.faults > 0 {
                self.fault().await;
            }
        }
    }

    async fn fault(&mut self) {
        let dice = self.dice.clone();
        let pick = |len: usize| usize::try_from(dice.draw() % len.max(1) as u64).unwrap_or(0);
        let (node, server) = (pick(self.nodes.len()), pick(self.servers.len()));
        match self.dice.between(0, 18) {
            0 | 1 => {
                let levels = self.draw_levels();
                note!(self.trace, "{levels:?}");
                self.knobs.set(levels);
            }
            2 => self.knobs.set(Levels::CALM),
            3 | 4 => self.log.elect(self.servers[server].is_up().then_some(server as u64)),
            5 => {
                self.servers[server].kill();
                self.list_servers();
            }
            6 | 7 => {
                self.servers[server].start();
                self.list_servers();
            }
            8 => self.nodes[node].kill(),
            9 => self.nodes[node].stop().await,
            10 | 11 => self.nodes[node].boot(),
            12 => self.nodes[node].reach(false),
            13 => self.nodes[node].reach(true),
            14 => self.net.cut(true),
            15 => self.net.cut(false),
            _ => {
                let running: Vec<_> = self.nodes[node].running().into_iter().collect();
                let exits =
                    [Exit::Code(0), Exit::Code(1), Exit::OutOfMemory, Exit::Trap("unreachable".into())];
                if let (Some(id), Some(exit)) = (self.dice.pick(&running), self.dice.pick(&exits)) {
                    self.nodes[node].exit(id, exit.clone());
                }
            }
        }
        // A majority finds a leader by itself.
        if self.log.leader().is_none() && self.dice.chance(700) {
            self.lead();
        }
    }

    fn draw_levels(&self) -> Levels {
        let dice = &self.dice;
        let some = |most: u64| if dice.chance(500) { dice.between(0, most) } else { 0 };
        Levels {
            loss: some(300),
            repeat: some(300),
            delay_ms: 1 + some(3_000),
            unavailable: some(400),
            unacknowledged: some(200),
            duplicate: some(300),
            commit_ms: 1 + some(500),
            lag_ms: 1 + some(60_000),
            disk_ms: 1 + some(500),
            broken: some(500),
        }
    }

    /// Has a server lead that is up.
    fn lead(&self) {
        let up: Vec<u64> =
            (0..).zip(&self.servers).filter(|(_, server)| server.is_up()).map(|(number, _)| number).collect();
        if let Some(leader) = self.dice.pick(&up) {
            self.log.elect(Some(*leader));
        }
    }

    fn heal(&mut self) {
        note!(self.trace, "everything is healed");
        self.knobs.set(Levels::CALM);
        self.net.cut(false);
        self.servers.iter_mut().for_each(Server::start);
        self.list_servers();
        if self.log.leader().is_none() {
            self.lead();
        }
        for node in &mut self.nodes {
            node.reach(true);
            node.boot();
        }
    }

    /// Waits until what is, is what is wanted, and then until nothing is written any more.
    pub(crate) async fn judge(&mut self) {
        if !self.converge().await {
            return;
        }
        tokio::time::sleep(SETTLE).await;
        let revision = self.log.revision();
        tokio::time::sleep(QUIET).await;
        if self.log.revision() != revision {
            let written = self.checks.since(revision);
            return self.trace.violate(Invariant::Quiet, format!("after revision {revision}: {written:?}"));
        }
        if let Err(why) = self.settled() {
            self.trace.violate(Invariant::Convergence, format!("no longer: {why}"));
        }
    }

    /// Waits until what is, is what is wanted.
    pub(crate) async fn converge(&mut self) -> bool {
        let began = self.trace.elapsed();
        while let Err(why) = self.settled() {
            if self.trace.elapsed() > began + CONVERGENCE_MAX {
                self.trace.violate(Invariant::Convergence, why);
                return false;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        note!(self.trace, "all is as wanted");
        true
    }

    fn settled(&mut self) -> Result<(), String> {
        let found = self.nodes.iter().map(|node| Found {
            name: node.name.clone(),
            objects: node.contents().objects,
            running: node.running().iter().map(ToString::to_string).collect(),
        });
        let found: Vec<Found> = found.collect();
        settled(&mut self.known, &self.log.state(), &found)?;
        let epoch = self.checks.epoch();
        match self.nodes.iter().find(|node| node.contents().sync.epoch != epoch) {
            Some(node) => {
                Err(format!("{} would follow a gateway older than {epoch} after a crash", node.name))
            }
            None => Ok(()),
        }
    }
}
