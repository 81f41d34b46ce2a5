//! The node's one deciding task: it takes what happens, steps pods' machines, makes what must last durable, and
//! only then lets it be carried out.
//!
//! Everything that takes time (pulling, starting, probing, writing volumes) runs in tasks that this one owns;
//! they answer through [`Msg`]s. Nothing here waits for the network.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use lichen_api::k8s::api::core::v1::Pod;
use lichen_link::LinkEvent;
use lichen_net::{Pool, Proxy};
use lichen_pods::{Command, Input, PodMachine, PodState};
use lichen_state::{Change, Checkpoint, Contents, Space, SyncState};
use lichen_workload::{Artifact, ContainerId, Event, Handler, Runtime, State};
use serde::Serialize;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::{error, warn};

use crate::artifacts::{Failure, Images, Prepared};
use crate::config::Config;
use crate::env::Environment;
use crate::events::Recorder;
use crate::exit::exit_of;
use crate::host::Host;
use crate::node::Machine;
use crate::objects::{Id, Objects};
use crate::uplink::Outbox;
use crate::volumes::Planned;

/// How many things that happened are taken together, to be made durable in one go.
const BATCH_MAX: usize = 256;
/// How long a change that need not be durable at once may wait for company.
const FLUSH_AFTER: SignedDuration = SignedDuration::from_millis(500);
/// The pause before a checkpoint that could not be written is tried again.
const COMMIT_RETRY: Duration = Duration::from_secs(1);

/// What tasks answer.
pub(crate) enum Msg {
    /// An input for a pod.
    Step(String, Input),
    /// What became of a container's artifact.
    Prepared { uid: String, container: String, result: Result<Prepared, Failure> },
}

/// A pod on this node.
pub(crate) struct Entry {
    pub(crate) machine: PodMachine,
    pub(crate) key: String,
    wake: Option<Timestamp>,
    /// Resolved environments, by container.
    pub(crate) environments: BTreeMap<String, Environment>,
    /// Artifacts that are ready, by container.
    pub(crate) artifacts: BTreeMap<String, Artifact>,
    /// The volumes as they were last planned, and how often they were.
    pub(crate) planned: (u64, Vec<Planned>),
    /// How often volumes were planned when they were last written: an older plan never undoes a newer one.
    pub(crate) written: Arc<Mutex<u64>>,
    /// What was last given to the checkpoint.
    stored: Vec<u8>,
}

/// See the module.
pub(crate) struct Core {
    pub(crate) config: Arc<Config>,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) images: Arc<dyn Images>,
    pub(crate) outbox: Outbox,
    pub(crate) objects: Objects,
    pub(crate) entries: BTreeMap<String, Entry>,
    /// UIDs of pods by key, of those that are desired.
    pub(crate) keys: BTreeMap<String, String>,
    /// Pods that are gone from here and that the control plane has yet to remove: keys by UID.
    pub(crate) gone: BTreeMap<String, String>,
    /// What runs or ran as which container, by the runtime's id.
    pub(crate) ids: BTreeMap<ContainerId, (String, String, u32)>,
    pub(crate) pool: Option<Pool>,
    /// Addresses as they are in the checkpoint, by pod.
    pub(crate) addresses: BTreeMap<String, Ipv4Addr>,
    pub(crate) proxy: Option<Proxy>,
    pub(crate) recorder: Recorder,
    pub(crate) machine: Machine,
    pub(crate) changes: Vec<Change>,
    pub(crate) inputs: VecDeque<(String, Input)>,
    pub(crate) messages: mpsc::Sender<Msg>,
    pub(crate) tasks: JoinSet<()>,
    /// Whether configuration changed that pods may be waiting for.
    pub(crate) config_stale: bool,
    /// Whether routes changed, and when those that could not be served are tried again.
    pub(crate) routes_stale: bool,
    pub(crate) routes_retry: Option<Timestamp>,
    checkpoint: Arc<Checkpoint>,
    pub(crate) sync: SyncState,
    /// What the snapshot that is arriving has not named yet.
    pub(crate) snapshot: Option<BTreeSet<Id>>,
    pub(crate) commands: Vec<(String, Command)>,
    dirty: BTreeSet<String>,
    /// Whether what waits to be made durable must be before anything else happens.
    pub(crate) urgent: bool,
    flush_at: Option<Timestamp>,
    pub(crate) connected: watch::Sender<bool>,
    /// Whether the node is to leave the cluster.
    pub(crate) leaving: bool,
}

/// What a core is made of, whatever carries its session and whatever it runs on.
pub struct Parts {
    /// What the node was told.
    pub config: Arc<Config>,
    /// The machine.
    pub host: Arc<dyn Host>,
    /// What runs containers.
    pub runtime: Arc<dyn Runtime>,
    /// What gets images onto the node.
    pub images: Arc<dyn Images>,
    /// What serves Services; without it they are not served on this node.
    pub proxy: Option<Proxy>,
    /// What lasts.
    pub checkpoint: Arc<Checkpoint>,
    /// Told whether the session stands.
    pub connected: watch::Sender<bool>,
}

impl Core {
    /// A core that knows what the checkpoint does. Its pods go on from where they were.
    pub(crate) fn new(
        parts: Parts,
        contents: &Contents,
        outbox: Outbox,
        messages: mpsc::Sender<Msg>,
    ) -> Self {
        let machine = parts.host.look(&parts.config.data_dir);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut core = Self {
            config: parts.config,
            host: parts.host,
            runtime: parts.runtime,
            images: parts.images,
            outbox,
            objects: Objects::default(),
            entries: BTreeMap::new(),
            keys: BTreeMap::new(),
            gone: contents.space(Space::Gone).map(|(uid, key)| (uid.to_owned(), text(key))).collect(),
            ids: BTreeMap::new(),
            pool: None,
            addresses: contents
                .space(Space::Address)
                .filter_map(|(uid, ip)| Some((uid.to_owned(), text(ip).parse().ok()?)))
                .collect(),
            proxy: parts.proxy,
            recorder: Recorder::default(),
            machine,
            changes: Vec::new(),
            inputs: VecDeque::new(),
            messages,
            tasks: JoinSet::new(),
            config_stale: false,
            routes_stale: true,
            routes_retry: None,
            checkpoint: parts.checkpoint,
            sync: contents.sync,
            snapshot: None,
            commands: Vec::new(),
            dirty: BTreeSet::new(),
            urgent: false,
            flush_at: None,
            connected: parts.connected,
            leaving: false,
        };
        core.restore(contents);
        core
    }

    fn restore(&mut self, contents: &Contents) {
        let states: BTreeMap<&str, &[u8]> = contents.space(Space::Pod).collect();
        for object in &contents.objects {
            if let Err(error) = self.objects.put(&object.kind, &object.key, &object.body) {
                error!(%error, "an object of the checkpoint is left out");
            }
        }
        self.set_pool();
        let at = self.host.now();
        let found: BTreeMap<ContainerId, State> = self.runtime.list().into_iter().collect();
        let pods: Vec<(String, Arc<Pod>)> = self.objects.pods.clone().into_iter().collect();
        for (key, pod) in pods {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            self.keys.insert(key.clone(), uid.clone());
            if self.gone.contains_key(&uid) {
                continue;
            }
            let bytes = states.get(uid.as_str()).copied().unwrap_or_default();
            match serde_cbor::from_slice::<PodState>(bytes) {
                Ok(state) => {
                    let machine = PodMachine::restore(pod, state);
                    self.insert(&uid, key, machine, bytes.to_owned());
                    self.take_back(&uid, &found);
                }
                Err(_) => {
                    self.insert(&uid, key, PodMachine::new(pod.clone(), at), Vec::new());
                    self.step(&uid, Input::Desired(pod));
                }
            }
        }
        for id in found.into_keys() {
            if !self.ids.contains_key(&id) {
                self.discard(id);
            }
        }
        for uid in states.keys().map(|uid| (*uid).to_owned()) {
            if !self.entries.contains_key(&uid) {
                self.changes.push(Change::Remove(Space::Pod, uid));
            }
        }
        for uid in self.addresses.keys().cloned().collect::<Vec<_>>() {
            if !self.entries.contains_key(&uid) {
                self.release(&uid);
            }
        }
    }

    pub(crate) fn insert(&mut self, uid: &str, key: String, machine: PodMachine, stored: Vec<u8>) {
        let entry = Entry {
            machine,
            key,
            wake: None,
            environments: BTreeMap::new(),
            artifacts: BTreeMap::new(),
            planned: (0, Vec::new()),
            written: Arc::default(),
            stored,
        };
        self.entries.insert(uid.to_owned(), entry);
    }

    /// Runs until it is told to stop, then stops what cannot or shall not go on; pods stay as they are in the checkpoint.
    pub(crate) async fn run(
        mut self,
        mut link: mpsc::Receiver<LinkEvent>,
        mut messages: mpsc::Receiver<Msg>,
        mut stop: oneshot::Receiver<()>,
        left: watch::Sender<bool>,
    ) {
        let mut runtime = self.runtime.events();
        self.settle().await;
        loop {
            let timer = sleep_until(self.wake(), self.host.now());
            tokio::select! {
                // In this order, so that the same happenings are always taken alike; what the control plane can flood
                // the node with comes last.
                biased;
                _ = &mut stop => break,
                Some(done) = self.tasks.join_next() => {
                    if let Err(error) = done && error.is_panic() {
                        error!(%error, "a task of the agent failed");
                    }
                }
                event = runtime.recv() => self.on_runtime(event),
                () = timer => self.tick(),
                Some(message) = messages.recv() => self.on_message(message),
                Some(event) = link.recv() => self.on_link(event),
            }
            for _ in 0..BATCH_MAX {
                if let Ok(message) = messages.try_recv() {
                    self.on_message(message);
                } else if let Ok(event) = link.try_recv() {
                    self.on_link(event);
                } else {
                    break;
                }
            }
            self.settle().await;
            if self.may_depart() {
                return self.depart(link, left).await;
            }
        }
        self.stop().await;
    }

    fn wake(&self) -> Option<Timestamp> {
        let pods = self.entries.values().filter_map(|entry| entry.wake);
        pods.chain(self.flush_at).chain(self.routes_retry).min()
    }

    fn tick(&mut self) {
        let at = self.host.now();
        let due = self.entries.iter().filter(|(_, entry)| entry.wake.is_some_and(|wake| wake <= at));
        let due: Vec<String> = due.map(|(uid, _)| uid.clone()).collect();
        for uid in due {
            self.step(&uid, Input::Tick);
        }
        if self.routes_retry.is_some_and(|retry| retry <= at) {
            self.routes_retry = None;
            self.routes_stale = true;
        }
        if self.flush_at.is_some_and(|flush| flush <= at) {
            self.urgent = true;
        }
    }

    /// Steps a pod's machine and notes what follows.
    pub(crate) fn step(&mut self, uid: &str, input: Input) {
        self.step_at(uid, input, self.host.now());
    }

    /// The same for something that happened earlier.
    pub(crate) fn step_at(&mut self, uid: &str, input: Input, at: Timestamp) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        self.urgent |= matches!(input, Input::Exited { .. });
        let output = entry.machine.step(input, at);
        entry.wake = output.wake;
        self.dirty.insert(uid.to_owned());
        for command in output.commands {
            self.urgent |= matches!(command, Command::Start { .. } | Command::Gone { .. });
            self.commands.push((uid.to_owned(), command));
        }
    }

    /// Makes durable what must be, carries out what follows, and goes on until nothing more does.
    async fn settle(&mut self) {
        loop {
            if std::mem::take(&mut self.config_stale) {
                self.refresh();
            }
            while let Some((uid, input)) = self.inputs.pop_front() {
                self.step(&uid, input);
            }
            self.commit().await;
            let commands = std::mem::take(&mut self.commands);
            if commands.is_empty() && self.inputs.is_empty() {
                break;
            }
            for (uid, command) in commands {
                self.execute(&uid, command);
            }
        }
        if std::mem::take(&mut self.routes_stale) {
            self.apply_routes();
        }
    }

    async fn commit(&mut self) {
        for uid in std::mem::take(&mut self.dirty) {
            let Some(entry) = self.entries.get_mut(&uid) else { continue };
            let Ok(bytes) = serde_cbor::to_vec(entry.machine.state()) else { continue };
            if bytes != entry.stored {
                entry.stored.clone_from(&bytes);
                self.changes.push(Change::Put(Space::Pod, uid, bytes));
            }
        }
        if self.changes.is_empty() {
            self.urgent = false;
            self.flush_at = None;
            return;
        }
        if !self.urgent && self.changes.len() < BATCH_MAX {
            let now = self.host.now();
            self.flush_at.get_or_insert_with(|| now.saturating_add(FLUSH_AFTER).unwrap_or(Timestamp::MAX));
            return;
        }
        self.changes.push(Change::Sync(self.sync));
        let changes = Arc::new(std::mem::take(&mut self.changes));
        loop {
            let (checkpoint, batch) = (self.checkpoint.clone(), changes.clone());
            match self.host.blocking(move || checkpoint.commit(&batch)).await {
                Ok(Ok(())) => break,
                Ok(Err(error)) => error!(%error, "the checkpoint waits"),
                Err(error) => error!(%error, "the checkpoint waits"),
            }
            tokio::time::sleep(COMMIT_RETRY).await;
        }
        self.urgent = false;
        self.flush_at = None;
    }

    fn on_message(&mut self, message: Msg) {
        match message {
            Msg::Step(uid, input) => self.step(&uid, input),
            Msg::Prepared { uid, container, result } => {
                let input = match result {
                    Ok(prepared) => {
                        if let Some(entry) = self.entries.get_mut(&uid) {
                            entry.artifacts.insert(container.clone(), prepared.artifact);
                        }
                        let (image_id, pulled_ms) = (prepared.image_id, prepared.pulled_ms);
                        Input::Prepared { container, image_id, pulled_ms }
                    }
                    Err((failure, message)) => Input::PrepareFailed { container, failure, message },
                };
                self.step(&uid, input);
            }
        }
    }

    fn on_runtime(&mut self, event: Result<Event, broadcast::error::RecvError>) {
        match event {
            Ok(Event::Exited { id, exit }) => {
                if let Some((uid, container, attempt)) = self.ids.get(&id).cloned() {
                    self.step(&uid, Input::Exited { container, attempt, exit: exit_of(&exit) });
                }
            }
            Ok(Event::Started { .. }) => {}
            Err(broadcast::error::RecvError::Lagged(count)) => {
                warn!(count, "events of the runtime were missed; its containers are listed");
                for (id, state) in self.runtime.list() {
                    if let (State::Exited { exit, .. }, Some((uid, container, attempt))) =
                        (state, self.ids.get(&id).cloned())
                    {
                        self.step(&uid, Input::Exited { container, attempt, exit: exit_of(&exit) });
                    }
                }
            }
            Err(broadcast::error::RecvError::Closed) => {}
        }
    }

    pub(crate) fn report<T: Serialize>(&self, kind: &'static str, key: &str, uid: &str, body: &T) {
        match serde_cbor::to_vec(body) {
            Ok(body) => self.outbox.put(kind, key, uid, body),
            Err(error) => error!(kind, key, %error, "a report cannot be encoded"),
        }
    }

    /// Where everything of a pod lies.
    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.config.data_dir.join("pods").join(uid)
    }

    /// Stops what cannot or shall not go on and writes what is known. No machine hears of it, so that the next start brings all back.
    async fn stop(mut self) {
        self.tasks.shutdown().await;
        let mut stops = JoinSet::new();
        for (id, state) in self.runtime.list() {
            let Some((uid, name, _)) = self.ids.get(&id) else { continue };
            let artifact = self.entries.get(uid).and_then(|entry| entry.artifacts.get(name));
            // What was taken back may have no artifact yet; it outlives the agent, or it would not be here.
            let outlives = artifact.is_none_or(|artifact| artifact.handler() == Handler::Oci);
            if !matches!(state, State::Running { .. }) || (outlives && self.config.keep_containers) {
                continue;
            }
            let spec = self.entries.get(uid).and_then(|entry| entry.machine.pod().spec.as_ref());
            let own = spec.and_then(|spec| spec.termination_grace_period_seconds);
            let own = own.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs);
            let grace = own.map_or(self.config.shutdown_grace, |own| own.min(self.config.shutdown_grace));
            let runtime = self.runtime.clone();
            stops.spawn(async move {
                if let Err(error) = runtime.stop(&id, grace).await {
                    warn!(%id, %error, "a container could not be stopped");
                }
            });
        }
        stops.join_all().await;
        if let Some(proxy) = self.proxy {
            proxy.shutdown(self.config.shutdown_grace).await;
        }
        self.changes.push(Change::Sync(self.sync));
        let (checkpoint, changes) = (self.checkpoint, self.changes);
        match self.host.blocking(move || checkpoint.commit(&changes)).await {
            Ok(Ok(())) => {}
            other => error!(?other, "the last changes are not in the checkpoint"),
        }
    }
}

async fn sleep_until(at: Option<Timestamp>, now: Timestamp) {
    match at {
        Some(at) => {
            let left = at.duration_since(now);
            tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
        }
        None => std::future::pending().await,
    }
}
