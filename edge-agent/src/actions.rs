//! What the core does about a pod machine's commands.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use jiff::{SignedDuration, Timestamp};
use lichen_api::k8s::api::core::v1::{ObjectReference, Pod};
use lichen_api::k8s::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lichen_pods::{Command, Input, Life, PodEvent, Sandbox, Stage};
use lichen_state::{Change, Space};
use lichen_wire::report;
use lichen_workload::{Artifact, ContainerId, ContainerSpec, Handler, Runtime, RuntimeError, State};
use tokio::sync::mpsc;
use tracing::{debug, error, warn};

use crate::core::{Core, Msg};
use crate::env;
use crate::exit::exit_of;
use crate::facts::Facts;
use crate::host::Host;
use crate::process::process;
use crate::spec::find;
use crate::volumes::{self, Planned};

/// When routes that could not be served are tried again.
const ROUTES_RETRY: SignedDuration = SignedDuration::from_secs(15);

impl Core {
    /// Carries out a command. What takes time goes on in a task.
    pub(crate) fn execute(&mut self, uid: &str, command: Command) {
        match command {
            Command::SetUp => self.set_up(uid),
            Command::Prepare { container, image, policy } => {
                let (images, messages) = (self.images.clone(), self.messages.clone());
                let uid = uid.to_owned();
                self.tasks.spawn(async move {
                    let pulling = || {
                        let input = Input::Pulling { container: container.clone() };
                        // It makes an event only, so a full queue may lose it.
                        let _ = messages.try_send(Msg::Step(uid.clone(), input));
                    };
                    let result = images.prepare(&image, policy, Box::new(pulling)).await;
                    answer(&messages, Msg::Prepared { uid, container, result }).await;
                });
            }
            Command::Configure { container } => self.configure(uid, &container),
            Command::Start { container, attempt } => self.start(uid, &container, attempt),
            Command::Stop { container, attempt, grace_s } => {
                let Ok(id) = ContainerId::of_attempt(uid, &container, attempt) else { return };
                let (runtime, messages, uid) = (self.runtime.clone(), self.messages.clone(), uid.to_owned());
                self.tasks.spawn(async move {
                    let exit = match runtime.stop(&id, Duration::from_secs(grace_s.into())).await {
                        Ok(exit) => exit,
                        Err(RuntimeError::NotFound(_)) => lichen_workload::Exit::Lost,
                        // It is not said to have ended while it may not have: its exit will say so itself.
                        Err(error) => return error!(%id, %error, "a container could not be stopped"),
                    };
                    let input = Input::Exited { container, attempt, exit: exit_of(&exit) };
                    answer(&messages, Msg::Step(uid, input)).await;
                });
            }
            Command::Probe { container, attempt, kind, target, timeout_s } => {
                let ip = self.facts(uid).pod_ip;
                let (mode, messages, uid) = (self.config.address_mode, self.messages.clone(), uid.to_owned());
                let host = self.host.clone();
                self.tasks.spawn(async move {
                    let result = host.probe(&target, &ip, mode, Duration::from_secs(timeout_s.into())).await;
                    answer(&messages, Msg::Step(uid, Input::Probed { container, attempt, kind, result }))
                        .await;
                });
            }
            Command::Report(status) => {
                let Some(entry) = self.entries.get(uid) else { return };
                let meta = &entry.machine.pod().metadata;
                let pod = Pod {
                    metadata: ObjectMeta {
                        name: meta.name.clone(),
                        namespace: meta.namespace.clone(),
                        uid: meta.uid.clone(),
                        ..Default::default()
                    },
                    spec: None,
                    status: Some(*status),
                };
                self.report(report::POD, &entry.key, uid, &pod);
            }
            Command::Event(event) => self.pod_event(uid, event),
            Command::Release => self.release(uid),
            Command::Gone { confirm } => self.gone(uid, confirm),
        }
    }

    /// What the pod may be told about itself and the node.
    fn facts(&self, uid: &str) -> Facts {
        let ip = self.addresses.get(uid).map(ToString::to_string).unwrap_or_default();
        Facts {
            node_name: self.config.node_name.clone(),
            pod_ip: ip,
            host_ip: self.pool.as_ref().map(|pool| pool.node().to_string()).unwrap_or_default(),
            allocatable: self.machine.allocatable(self.config.pods_max),
        }
    }

    fn set_up(&mut self, uid: &str) {
        if let Err(message) = self.assign(uid) {
            let input = Input::SandboxFailed { reason: "FailedCreatePodSandBox", message };
            return self.inputs.push_back((uid.to_owned(), input));
        }
        match self.plan(uid) {
            Some(Ok(planned)) => self.write_volumes(uid, planned, true),
            Some(Err(message)) => {
                let input = Input::SandboxFailed { reason: "FailedMount", message };
                self.inputs.push_back((uid.to_owned(), input));
            }
            None => {}
        }
    }

    fn plan(&self, uid: &str) -> Option<Result<Vec<Planned>, String>> {
        let entry = self.entries.get(uid)?;
        Some(volumes::plan(entry.machine.pod(), &self.objects, &self.facts(uid)))
    }

    fn write_volumes(&mut self, uid: &str, planned: Vec<Planned>, set_up: bool) {
        let root = self.pod_dir(uid).join("volumes");
        let facts = self.facts(uid);
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.planned = (entry.planned.0 + 1, planned.clone());
        let (number, written) = (entry.planned.0, entry.written.clone());
        let (host, messages, uid) = (self.host.clone(), self.messages.clone(), uid.to_owned());
        self.tasks.spawn(async move {
            let result = host.blocking(move || {
                let mut last = written.lock().unwrap_or_else(PoisonError::into_inner);
                if *last > number {
                    return Ok(());
                }
                volumes::write(&root, &planned).inspect(|()| *last = number)
            });
            let input = match result.await.map_err(std::io::Error::other).and_then(|r| r) {
                Ok(()) if set_up => Input::SandboxReady { pod_ip: facts.pod_ip, host_ip: facts.host_ip },
                Ok(()) => return,
                Err(error) if set_up => Input::SandboxFailed {
                    reason: "FailedMount",
                    message: format!("the node's disk: {error}"),
                },
                Err(error) => return warn!(uid, %error, "a pod's volumes could not be brought up to date"),
            };
            answer(&messages, Msg::Step(uid, input)).await;
        });
    }

    fn configure(&mut self, uid: &str, name: &str) {
        let facts = self.facts(uid);
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let Some(container) = find(entry.machine.pod(), name) else { return };
        let container_name = name.to_owned();
        let pod = entry.machine.pod();
        let possible = match entry.artifacts.get(name).map(Artifact::handler) {
            Some(Handler::Oci) => process(pod, container).map(drop),
            Some(Handler::Wasm) | None => Ok(()),
        };
        let environment = possible.and_then(|()| env::environment(pod, container, &self.objects, &facts));
        let input = match environment {
            Ok(environment) => {
                entry.environments.insert(name.to_owned(), environment);
                Input::ConfigReady { container: container_name }
            }
            Err(message) => Input::ConfigMissing { container: container_name, message },
        };
        self.inputs.push_back((uid.to_owned(), input));
    }

    /// Configuration or the node changed: pods that wait for it are tried again, volumes follow it.
    pub(crate) fn refresh(&mut self) {
        for uid in self.entries.keys().cloned().collect::<Vec<_>>() {
            let Some(entry) = self.entries.get(&uid) else { continue };
            let state = entry.machine.state();
            if state.life != Life::Active {
                continue;
            }
            let waiting: Vec<String> = state
                .init
                .iter()
                .chain(&state.containers)
                .filter(|c| matches!(c.stage, Stage::ConfigMissing { .. }))
                .map(|c| c.name.clone())
                .collect();
            match state.sandbox {
                Sandbox::Failed { .. } => self.set_up(&uid),
                Sandbox::Ready if volumes::can_change(entry.machine.pod()) => match self.plan(&uid) {
                    // A volume whose source is gone stays as it was.
                    Some(Ok(planned)) if planned != self.entries[&uid].planned.1 => {
                        self.write_volumes(&uid, planned, false);
                    }
                    _ => {}
                },
                _ => {}
            }
            for container in waiting {
                self.configure(&uid, &container);
            }
        }
    }

    fn start(&mut self, uid: &str, name: &str, attempt: u32) {
        let failed = |message: String| Input::StartFailed { container: name.to_owned(), attempt, message };
        let spec = match self.spec(uid, name, attempt) {
            Ok(spec) => spec,
            Err(message) => return self.inputs.push_back((uid.to_owned(), failed(message))),
        };
        let id = spec.id.clone();
        self.ids.insert(id.clone(), (uid.to_owned(), name.to_owned(), attempt));
        let outdated = attempt.checked_sub(2).and_then(|old| ContainerId::of_attempt(uid, name, old).ok());
        if let Some(old) = &outdated {
            self.ids.remove(old);
        }
        let outdated = outdated.map(|old| (old, self.log_path(uid, name, attempt - 2)));
        let (host, runtime, messages) = (self.host.clone(), self.runtime.clone(), self.messages.clone());
        let (uid, container) = (uid.to_owned(), name.to_owned());
        let container_id = shown(spec.artifact.handler(), &id);
        self.tasks.spawn(async move {
            let input = match launch(host.as_ref(), runtime.as_ref(), spec).await {
                Ok(()) => Input::Started { container, attempt, container_id },
                Err(error) => Input::StartFailed { container, attempt, message: error.to_string() },
            };
            answer(&messages, Msg::Step(uid, input)).await;
            // The attempt before this one keeps its log; the one before that is of no use to anybody.
            if let Some((old, log)) = outdated {
                if let Err(error) = runtime.remove(&old).await {
                    debug!(%old, %error, "an old attempt is not known any more");
                }
                let _ = host.blocking(move || std::fs::remove_file(log)).await;
            }
        });
    }

    /// A pod out of the checkpoint goes on with what the runtime took back of it, if anything.
    pub(crate) fn take_back(&mut self, uid: &str, found: &BTreeMap<ContainerId, State>) {
        let Some(entry) = self.entries.get(uid) else { return };
        let state = entry.machine.state();
        let mut adopted = Vec::new();
        for container in state.init.iter().chain(&state.containers) {
            // The last attempt, and the one before it for its log.
            for attempt in container.starts.saturating_sub(2)..container.starts {
                let Ok(id) = ContainerId::of_attempt(uid, &container.name, attempt) else { continue };
                let Some(state) = found.get(&id) else { continue };
                let live = container.live_attempt() == Some(attempt);
                if live {
                    adopted.push((id.clone(), container.name.clone(), attempt, state.clone()));
                } else if !matches!(state, State::Exited { .. }) {
                    continue;
                }
                self.ids.insert(id, (uid.to_owned(), container.name.clone(), attempt));
            }
        }
        let names = adopted.iter().map(|(_, container, ..)| container.clone()).collect();
        self.step(uid, Input::RuntimeLost { adopted: names });
        for (id, container, attempt, state) in adopted {
            // Only OCI containers outlive an agent.
            let container_id = shown(Handler::Oci, &id);
            let started = Input::Started { container: container.clone(), attempt, container_id };
            match state {
                State::Created => {
                    // Its start was made durable and then not carried out, so it is now.
                    let (runtime, messages, uid) =
                        (self.runtime.clone(), self.messages.clone(), uid.to_owned());
                    self.tasks.spawn(async move {
                        let input = match runtime.start(&id).await {
                            Ok(()) => started,
                            Err(error) => {
                                Input::StartFailed { container, attempt, message: error.to_string() }
                            }
                        };
                        answer(&messages, Msg::Step(uid, input)).await;
                    });
                }
                // The checkpoint may not know yet that it started: then it started when the runtime says.
                State::Running { started: at } => self.step_at(uid, started, self.moment(at)),
                State::Exited { started: at, finished, exit } => {
                    self.step_at(uid, started, self.moment(at));
                    let exited = Input::Exited { container, attempt, exit: exit_of(&exit) };
                    self.step_at(uid, exited, self.moment(finished));
                }
            }
        }
    }

    /// A moment that the runtime names; now, should it be none.
    fn moment(&self, time: SystemTime) -> Timestamp {
        Timestamp::try_from(time).unwrap_or_else(|_| self.host.now())
    }

    /// Ends and removes a container that no pod has.
    pub(crate) fn discard(&mut self, id: ContainerId) {
        warn!(%id, "a container of no pod of this node is removed");
        let (runtime, grace) = (self.runtime.clone(), self.config.shutdown_grace);
        self.tasks.spawn(async move {
            if matches!(runtime.state(&id), Ok(State::Running { .. }))
                && let Err(error) = runtime.stop(&id, grace).await
            {
                warn!(%id, %error, "a container could not be stopped");
            }
            if let Err(error) = runtime.remove(&id).await {
                warn!(%id, %error, "a container could not be removed");
            }
        });
    }

    fn gone(&mut self, uid: &str, confirm: bool) {
        let Some(entry) = self.entries.remove(uid) else { return };
        self.release(uid);
        self.changes.push(Change::Remove(Space::Pod, uid.to_owned()));
        if confirm {
            self.changes.push(Change::Put(Space::Gone, uid.to_owned(), entry.key.clone().into_bytes()));
            self.gone.insert(uid.to_owned(), entry.key);
            self.report_gone(uid);
        }
        let ids: Vec<ContainerId> =
            self.ids.iter().filter(|(_, (of, ..))| of == uid).map(|(id, _)| id.clone()).collect();
        for id in &ids {
            self.ids.remove(id);
        }
        let (host, runtime, dir) = (self.host.clone(), self.runtime.clone(), self.pod_dir(uid));
        self.tasks.spawn(async move {
            for id in ids {
                if let Err(error) = runtime.remove(&id).await {
                    debug!(%id, %error, "a container of a pod that is gone is not known any more");
                }
            }
            let removed = dir.clone();
            if let Ok(Err(error)) = host.blocking(move || std::fs::remove_dir_all(removed)).await
                && error.kind() != std::io::ErrorKind::NotFound
            {
                warn!(dir = %dir.display(), %error, "what a pod left could not be removed");
            }
        });
    }

    fn pod_event(&mut self, uid: &str, event: PodEvent) {
        let Some(entry) = self.entries.get(uid) else { return };
        let meta = &entry.machine.pod().metadata;
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            field_path: event.field_path,
            ..Default::default()
        };
        self.event(about, (event.kind.as_str(), event.reason, event.message));
    }

    fn event(&mut self, about: ObjectReference, what: (&str, &str, String)) {
        let (key, event) = self.recorder.record(about, what, &self.config.node_name, self.host.now());
        self.report(report::EVENT, &key, "", &event);
    }

    /// Makes the proxy serve what the table says.
    pub(crate) fn apply_routes(&mut self) {
        let Some(proxy) = &mut self.proxy else { return };
        let errors = proxy.apply(&self.objects.table.routes());
        if errors.is_empty() {
            return;
        }
        self.routes_retry = Some(self.host.now().saturating_add(ROUTES_RETRY).unwrap_or(Timestamp::MAX));
        for error in errors {
            warn!(%error, "a service is not served on this node");
            let about = ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Node".to_owned()),
                name: Some(self.config.node_name.clone()),
                ..Default::default()
            };
            self.event(about, ("Warning", "ServiceNotServed", error.to_string()));
        }
    }
}

/// Creates and starts a container.
async fn launch(host: &dyn Host, runtime: &dyn Runtime, spec: ContainerSpec) -> Result<(), RuntimeError> {
    let io_error = |source| RuntimeError::Io { context: "making the log's directory".to_owned(), source };
    if let Some(dir) = spec.log.parent().map(Path::to_owned) {
        let made = host.blocking(move || std::fs::create_dir_all(dir)).await;
        made.map_err(io::Error::other).and_then(|made| made).map_err(io_error)?;
    }
    let id = spec.id.clone();
    runtime.create(spec).await?;
    let started = runtime.start(&id).await;
    if started.is_err() {
        // The error that matters is the one of the start.
        let _ = runtime.remove(&id).await;
    }
    started
}

/// A container's id as `containerID` has it.
fn shown(handler: Handler, id: &ContainerId) -> String {
    format!("{}://{id}", handler.name())
}

/// Answers the core; when it is gone, nobody is there to care.
async fn answer(messages: &mpsc::Sender<Msg>, message: Msg) {
    let _ = messages.send(message).await;
}
