//! A node: the agent's own core and link over a simulated machine, carrier and runtime.
//!
//! What it commits outlives it. Its containers are components, which end with the agent that ran them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use lichen_agent::{
    AddressMode, ByteStream, Config, Failure, Host, Images, Machine, Parts, Prepared, Running, Uplink,
};
use lichen_link::{Carried, Link, LinkError, LinkEvent, LinkHandle};
use lichen_pods::{ImageFailure, ProbeTarget, PullPolicy};
use lichen_state::{Checkpoint, Contents, Memory};
use lichen_wire::body::SyncPoint;
use lichen_wire::keys::NodeKey;
use lichen_wire::session::{AgentConfig, Limits, Timing};
use lichen_wire::topic::{PRESENCE_DOWN, PRESENCE_UP};
use lichen_workload::mock::{Call, MockRuntime};
use lichen_workload::{Artifact, ContainerId, Exit, Runtime, State};
use tokio::sync::{mpsc, watch};

use crate::check::Checks;
use crate::dice::Dice;
use crate::knobs::Knobs;
use crate::net::Net;
use crate::trace::{Trace, note};

/// Frames that wait in a carrier.
const FRAMES_MAX: usize = 8;
/// The longest pause before a node connects again.
const RECONNECT_MS_MAX: u64 = 3_000;
/// The farthest that a node's clock is from the others.
const SKEW_MS_MAX: u64 = 20_000;
/// Events that wait between link and core.
const EVENTS_MAX: usize = 256;

/// What a node is made of.
#[derive(Clone)]
pub(crate) struct Setting {
    pub(crate) net: Net,
    pub(crate) dice: Dice,
    pub(crate) knobs: Knobs,
    pub(crate) trace: Trace,
    pub(crate) checks: Checks,
    pub(crate) dir: PathBuf,
}

/// A node, up or down.
pub(crate) struct Node {
    pub(crate) name: String,
    key: NodeKey,
    machine: Machine,
    pods_max: u32,
    skew: SignedDuration,
    disk: Memory,
    /// Whether there is a way to the broker.
    reachable: watch::Sender<bool>,
    setting: Setting,
    agent: Option<Agent>,
}

struct Agent {
    runtime: MockRuntime,
    running: Running,
    link: Link,
}

impl Node {
    pub(crate) fn new(name: String, key: NodeKey, machine: Machine, pods_max: u32, setting: Setting) -> Self {
        let skew = i64::try_from(setting.dice.between(0, 2 * SKEW_MS_MAX)).unwrap_or(0);
        let skew = SignedDuration::from_millis(skew - SKEW_MS_MAX as i64);
        Self {
            name,
            key,
            machine,
            pods_max,
            skew,
            disk: Memory::default(),
            reachable: watch::Sender::new(true),
            setting,
            agent: None,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.agent.is_some()
    }

    /// Starts the agent.
    pub(crate) fn boot(&mut self) {
        if self.is_up() {
            return;
        }
        let Setting { net, dice, knobs, trace, checks, dir } = self.setting.clone();
        note!(trace, "{} boots", self.name);
        let (checkpoint, contents) = Checkpoint::in_memory(self.disk.clone());
        let mut boot_id = [0; 16];
        boot_id.copy_from_slice(&dice.bytes()[..16]);
        let session = AgentConfig {
            node: self.name.as_str().try_into().unwrap_or_default(),
            key: self.key.clone(),
            boot_id,
            agent_version: lichen_wire::heapless::String::new(),
            profile: lichen_wire::heapless::String::new(),
            epoch_seen: contents.sync.epoch,
            synced: contents.sync.synced.map(|(incarnation, version)| SyncPoint { incarnation, version }),
            limits: Limits::SERVER,
            timing: Timing::DEFAULT,
        };
        let carrier = Carrier {
            net,
            dice: dice.fork(),
            topics: ["up", "down", "presence"].map(|last| format!("lichen/v1/n/{}/{last}", self.name)),
            reachable: self.reachable.subscribe(),
        };
        let (link, said) = Link::over(session, dice.bytes(), |driver| carrier.run(driver));
        let events = overhear(said, self.name.clone(), checks.clone());
        let host = Pretend {
            dice: dice.fork(),
            knobs,
            trace: trace.clone(),
            skew: self.skew,
            machine: self.machine.clone(),
        };
        let host = Arc::new(host);
        let heard = (self.name.clone(), checks.clone());
        let clock = host.clone();
        let runtime = MockRuntime::heard(
            move || clock.now().into(),
            move |call| {
                if let Call::Start(id) = call {
                    heard.1.started(&heard.0, id.as_str());
                }
            },
        );
        let mut config = Config::new(self.name.clone(), dir, "");
        config.pods_max = self.pods_max;
        let (connected, _) = watch::channel(false);
        let parts = Parts {
            config: Arc::new(config),
            host: host.clone(),
            runtime: Arc::new(runtime.clone()),
            images: host,
            proxy: None,
            checkpoint: Arc::new(checkpoint),
            connected,
        };
        let uplink = Arc::new(Tap { link: link.handle(), checks });
        let running = parts.start(&contents, uplink, events);
        self.agent = Some(Agent { runtime, running, link });
    }

    /// Ends the agent, and all that it runs, as kill -9 does.
    pub(crate) fn kill(&mut self) {
        if self.agent.take().is_some() {
            note!(self.setting.trace, "{} is killed", self.name);
        }
    }

    /// Stops the agent as its supervisor does.
    pub(crate) async fn stop(&mut self) {
        if let Some(Agent { running, link, .. }) = self.agent.take() {
            note!(self.setting.trace, "{} is stopped", self.name);
            running.stop().await;
            link.shutdown().await;
        }
    }

    /// Gives or takes the way to the broker.
    pub(crate) fn reach(&self, reachable: bool) {
        note!(self.setting.trace, "{} reaches the broker: {reachable}", self.name);
        self.reachable.send_replace(reachable);
    }

    /// The containers that run.
    pub(crate) fn running(&self) -> BTreeSet<ContainerId> {
        let all = self.agent.iter().flat_map(|agent| agent.runtime.list());
        all.filter(|(_, state)| matches!(state, State::Running { .. })).map(|(id, _)| id).collect()
    }

    /// Ends a container by itself.
    pub(crate) fn exit(&self, id: &ContainerId, exit: Exit) {
        if let Some(agent) = &self.agent {
            note!(self.setting.trace, "{}: {id} ends: {exit:?}", self.name);
            // It may just have ended otherwise.
            let _ = agent.runtime.exit(id, exit);
        }
    }

    /// What the agent has committed.
    pub(crate) fn contents(&self) -> Contents {
        self.disk.contents()
    }
}

/// Passes on what the link says, and has it checked.
fn overhear(mut said: mpsc::Receiver<LinkEvent>, node: String, checks: Checks) -> mpsc::Receiver<LinkEvent> {
    let (hear, heard) = mpsc::channel(EVENTS_MAX);
    tokio::spawn(async move {
        while let Some(event) = said.recv().await {
            if let LinkEvent::Connected { epoch, .. } = event {
                checks.connected(&node, epoch);
            }
            if hear.send(event).await.is_err() {
                return;
            }
        }
    });
    heard
}

/// Reports on their way to the link.
struct Tap {
    link: LinkHandle,
    checks: Checks,
}

impl Uplink for Tap {
    fn report<'a>(
        &'a self,
        kind: &'a str,
        key: &'a str,
        uid: &'a str,
        body: Vec<u8>,
    ) -> BoxFuture<'a, Result<(), LinkError>> {
        if kind == lichen_wire::report::POD
            && let Ok(pod) = serde_cbor::from_slice(&body)
        {
            self.checks.reported(uid, &pod);
        }
        Uplink::report(&self.link, kind, key, uid, body)
    }

    fn open(&self, request: Vec<u8>) -> BoxFuture<'_, Result<Box<dyn ByteStream>, LinkError>> {
        Uplink::open(&self.link, request)
    }
}

/// Keeps a connection with the broker while there is a way to it.
struct Carrier {
    net: Net,
    dice: Dice,
    topics: [String; 3],
    reachable: watch::Receiver<bool>,
}

impl Carrier {
    async fn run(mut self, driver: mpsc::Sender<Carried>) {
        loop {
            tokio::time::sleep(Duration::from_millis(self.dice.between(1, RECONNECT_MS_MAX))).await;
            if self.reachable.wait_for(|reachable| *reachable).await.is_err() {
                return;
            }
            let [up, down, presence] = &self.topics;
            let will = Will { net: self.net.clone(), presence: presence.clone() };
            let mut incoming = self.net.subscribe(down);
            self.net.up(presence, Bytes::from_static(PRESENCE_UP));
            let (frames, mut outgoing) = mpsc::channel(FRAMES_MAX);
            if driver.send(Carried::Up(frames)).await.is_err() {
                return;
            }
            loop {
                tokio::select! {
                    biased;
                    lost = self.reachable.wait_for(|reachable| !*reachable).map(|lost| lost.is_ok()) => {
                        if lost {
                            break;
                        }
                        return;
                    }
                    frame = outgoing.recv() => match frame {
                        Some(frame) => self.net.up(up, frame.into()),
                        // The driver is gone after a goodbye.
                        None => return,
                    },
                    Some(frame) = incoming.recv() => {
                        if driver.send(Carried::Frame(frame)).await.is_err() {
                            return;
                        }
                    }
                }
            }
            drop((will, incoming));
            if driver.send(Carried::Down).await.is_err() {
                return;
            }
        }
    }
}

/// What the broker says when the connection is gone, however it went.
struct Will {
    net: Net,
    presence: String,
}

impl Drop for Will {
    fn drop(&mut self) {
        // At the end of a simulation there is nobody left to tell.
        if tokio::runtime::Handle::try_current().is_ok() {
            self.net.up(&self.presence, Bytes::from_static(PRESENCE_DOWN));
        }
    }
}

/// A machine whose disk takes its time, and whose images are there at once or not at all.
struct Pretend {
    dice: Dice,
    knobs: Knobs,
    trace: Trace,
    skew: SignedDuration,
    machine: Machine,
}

impl Pretend {
    fn rest(&self) -> tokio::time::Sleep {
        tokio::time::sleep(Duration::from_millis(self.dice.between(0, self.knobs.get().disk_ms)))
    }
}

impl Host for Pretend {
    fn now(&self) -> Timestamp {
        self.trace.now().saturating_add(self.skew).unwrap_or(Timestamp::MAX)
    }

    fn look(&self, _: &Path) -> Machine {
        self.machine.clone()
    }

    fn block(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        let (before, after) = (self.rest(), self.rest());
        async move {
            before.await;
            work();
            after.await;
        }
        .boxed()
    }

    fn in_use(&self, _: SocketAddr) -> bool {
        false
    }

    fn probe<'a>(
        &'a self,
        _: &'a ProbeTarget,
        _: &'a str,
        _: AddressMode,
        _: Duration,
    ) -> BoxFuture<'a, Result<(), String>> {
        async {
            self.rest().await;
            if self.dice.chance(self.knobs.get().broken) {
                Err("connection refused".to_owned())
            } else {
                Ok(())
            }
        }
        .boxed()
    }
}

impl Images for Pretend {
    fn prepare<'a>(
        &'a self,
        image: &'a str,
        _: PullPolicy,
        pulling: Box<dyn FnOnce() + Send + 'a>,
    ) -> BoxFuture<'a, Result<Prepared, Failure>> {
        async move {
            pulling();
            self.rest().await;
            if self.dice.chance(self.knobs.get().broken) {
                return Err((ImageFailure::Pull, "the transfer broke off too often".to_owned()));
            }
            let artifact = Artifact::Component { path: image.into(), digest: image.to_owned() };
            Ok(Prepared { artifact, image_id: image.to_owned(), pulled_ms: Some(0) })
        }
        .boxed()
    }
}
