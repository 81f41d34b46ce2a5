//! The machine: one pod, one step at a time.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use lichen_api::k8s::api::core::v1::{Container, Pod, PodSpec, PodStatus};

use crate::backoff::after;
use crate::container::{ContainerState, Ending, Stage};
use crate::io::{Command, EventKind, Exit, Input, Output, PodEvent, PullPolicy};
use crate::probe::Probes;
use crate::state::{Life, PodState, Sandbox, Terminating};

/// When the address and the volumes are tried again if nothing helped before.
const SANDBOX_RETRY_S: u32 = 20;
/// The grace of a pod that doesn't say.
const GRACE_DEFAULT_S: u32 = 30;

/// One pod on one node.
#[derive(Debug, Clone)]
pub struct PodMachine {
    pod: Arc<Pod>,
    pub(crate) state: PodState,
    reported: Option<PodStatus>,
}

/// When a container that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl PodMachine {
    /// A pod that this node sees for the first time.
    pub fn new(pod: Arc<Pod>, now: Timestamp) -> Self {
        let state = PodState::new(&pod, now);
        Self { pod, state, reported: None }
    }

    /// A pod out of the checkpoint. Its first input is [`Input::RuntimeLost`].
    pub fn restore(pod: Arc<Pod>, mut state: PodState) -> Self {
        if state.life == Life::Gone {
            // Nobody knows whether its last command was carried out, so it comes again.
            let confirm = pod.metadata.deletion_timestamp.is_some();
            state.life = Life::Terminating(Terminating { deadline: state.start_time, confirm });
        }
        Self { pod, state, reported: None }
    }

    /// The pod as the control plane last described it.
    pub fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    /// What is to be made durable before the commands of a step are carried out.
    pub fn state(&self) -> &PodState {
        &self.state
    }

    /// The status as it was last reported.
    pub fn reported(&self) -> Option<&PodStatus> {
        self.reported.as_ref()
    }

    /// The reason why a container waits; empty if it doesn't.
    pub fn waiting(&self, name: &str) -> &str {
        let status = self.reported.as_ref();
        let all =
            status.into_iter().flat_map(|s| s.init_container_statuses.iter().chain(&s.container_statuses));
        let found = all.flatten().find(|c| c.name == name).and_then(|c| c.state.as_ref());
        found.and_then(|s| s.waiting.as_ref()).and_then(|w| w.reason.as_deref()).unwrap_or_default()
    }

    /// A container's state, by name, init containers included.
    pub fn container(&self, name: &str) -> Option<&ContainerState> {
        self.state.init.iter().chain(&self.state.containers).find(|c| c.name == name)
    }

    /// Takes what happened; says what is to be done.
    pub fn step(&mut self, input: Input, now: Timestamp) -> Output {
        let mut out = Vec::new();
        if self.state.life == Life::Gone {
            return Output::default();
        }
        self.apply(input, now, &mut out);
        let gone = self.advance(now, &mut out);
        let status = self.status(now);
        if self.reported.as_ref() != Some(&status) {
            out.push(Command::Report(Box::new(status.clone())));
            self.reported = Some(status);
        }
        if let Some(confirm) = gone {
            out.push(Command::Gone { confirm });
        }
        Output { commands: out, wake: self.wake() }
    }

    fn apply(&mut self, input: Input, now: Timestamp, out: &mut Vec<Command>) {
        match input {
            Input::Desired(pod) => {
                if pod.metadata.uid.as_deref() != Some(self.state.uid.as_str()) {
                    return;
                }
                self.pod = pod;
                let meta = &self.pod.metadata;
                if meta.deletion_timestamp.is_some() {
                    let grace = meta.deletion_grace_period_seconds.map(clamp_grace);
                    self.terminate(grace.unwrap_or_else(|| self.grace_s()), true, now, out);
                }
            }
            Input::Removed => self.terminate(self.grace_s(), false, now, out),
            Input::SandboxReady { pod_ip, host_ip } => {
                if self.state.life == Life::Active && self.state.sandbox != Sandbox::Released {
                    self.state.sandbox = Sandbox::Ready;
                    self.state.pod_ip = Some(pod_ip);
                    self.state.host_ip = Some(host_ip);
                }
            }
            Input::SandboxFailed { reason, message } => {
                if self.state.life == Life::Active && self.state.sandbox != Sandbox::Released {
                    if !matches!(&self.state.sandbox, Sandbox::Failed { message: old, .. } if *old == message)
                    {
                        out.push(event(EventKind::Warning, reason, message.clone(), None));
                    }
                    self.state.sandbox = Sandbox::Failed { message, until: after(now, SANDBOX_RETRY_S) };
                }
            }
            Input::Tick => {}
            Input::RuntimeLost { adopted } => self.runtime_lost(&adopted, now),
            Input::Pulling { container } => {
                if let Some((spec, _)) = self.find(&container) {
                    let message = format!("Pulling image {:?}", image(&spec));
                    out.push(self.event(EventKind::Normal, "Pulling", message, &container));
                }
            }
            Input::Prepared { container, image_id, pulled_ms } => {
                self.prepared(&container, image_id, pulled_ms, out);
            }
            Input::PrepareFailed { container, failure, message } => {
                self.prepare_failed(&container, failure, message, now, out);
            }
            Input::ConfigReady { container } => self.config_ready(&container, now, out),
            Input::ConfigMissing { container, message } => {
                let Some((_, state)) = self.find(&container) else { return };
                let same = matches!(&state.stage, Stage::ConfigMissing { message: old } if *old == message);
                if !matches!(state.stage, Stage::Configuring | Stage::ConfigMissing { .. }) || same {
                    return;
                }
                state.stage = Stage::ConfigMissing { message: message.clone() };
                out.push(self.event(EventKind::Warning, "Failed", format!("Error: {message}"), &container));
            }
            Input::Started { container, attempt, container_id } => {
                let Some((spec, state)) = self.find(&container) else { return };
                if !matches!(state.stage, Stage::Starting { attempt: a, .. } if a == attempt) {
                    return;
                }
                state.stage = Stage::Running { attempt, container_id, started_at: now };
                state.probes = Probes::new(&spec, now);
                out.push(self.event(EventKind::Normal, "Started", "Container started".into(), &container));
            }
            Input::StartFailed { container, attempt, message } => {
                let Some((_, state)) = self.find(&container) else { return };
                if state.live_attempt() != Some(attempt) {
                    return;
                }
                let end = state.terminate(Ending::StartFailed(&message), now);
                out.push(self.event(EventKind::Warning, "Failed", format!("Error: {message}"), &container));
                self.ended(&container, end, now, out);
            }
            Input::Exited { container, attempt, exit } => {
                let Some((_, state)) = self.find(&container) else { return };
                if state.live_attempt() != Some(attempt) {
                    return;
                }
                let end = state.terminate(Ending::Exit(&exit), now);
                if let Exit::Error { message, .. } = &exit {
                    out.push(self.event(
                        EventKind::Warning,
                        "Failed",
                        format!("Error: {message}"),
                        &container,
                    ));
                }
                self.ended(&container, end, now, out);
            }
            Input::Probed { container, attempt, kind, result } => {
                self.probed(&container, attempt, kind, result, out);
            }
        }
    }

    /// Drives everything that can go on. Says whether the pod is gone now, and whether that is to be confirmed.
    fn advance(&mut self, now: Timestamp, out: &mut Vec<Command>) -> Option<bool> {
        match self.state.life.clone() {
            Life::Gone | Life::Finished => None,
            Life::Terminating(terminating) => {
                self.stop_all(&terminating, now, out);
                if self.lives() {
                    return None;
                }
                self.state.life = Life::Gone;
                Some(terminating.confirm)
            }
            Life::Active => {
                self.drive(now, out);
                if matches!(self.phase(), "Succeeded" | "Failed") && !self.lives() {
                    self.state.life = Life::Finished;
                    self.state.sandbox = Sandbox::Released;
                    out.push(Command::Release);
                }
                None
            }
        }
    }

    fn drive(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        match &self.state.sandbox {
            Sandbox::Failed { until, .. } if *until > now => return,
            Sandbox::Needed | Sandbox::Failed { .. } => {
                self.state.sandbox = Sandbox::SettingUp;
                out.push(Command::SetUp);
                return;
            }
            Sandbox::SettingUp | Sandbox::Released => return,
            Sandbox::Ready => {}
        }
        let next_init = self.state.init.iter().find(|c| !succeeded(c)).map(|c| c.name.clone());
        let names = match next_init {
            Some(name) => vec![name],
            None => self.state.containers.iter().map(|c| c.name.clone()).collect(),
        };
        for name in names {
            self.drive_container(&name, now, out);
        }
    }

    fn drive_container(&mut self, name: &str, now: Timestamp, out: &mut Vec<Command>) {
        let Some((spec, state)) = self.find(name) else { return };
        match &mut state.stage {
            Stage::Waiting => {
                if let Some(message) = unsupported(&spec) {
                    state.stage = Stage::ConfigMissing { message: message.clone() };
                    out.push(self.event(EventKind::Warning, "Failed", format!("Error: {message}"), name));
                    return;
                }
                state.stage = Stage::Preparing;
                out.push(prepare(&spec, state));
            }
            Stage::ImageFailed { until, .. } if *until <= now => {
                state.pull.retried(now);
                state.stage = Stage::Preparing;
                out.push(prepare(&spec, state));
            }
            Stage::ImageFailed { reason, message, shown_until, .. }
                if shown_until.is_some_and(|at| at <= now) =>
            {
                *message = format!("Back-off pulling image {:?}: {reason}: {message}", image(&spec));
                *reason = "ImagePullBackOff".to_owned();
                *shown_until = None;
                let message = format!("Back-off pulling image {:?}", image(&spec));
                out.push(self.event(EventKind::Normal, "BackOff", message, name));
                out.push(self.event(EventKind::Warning, "Failed", "Error: ImagePullBackOff".into(), name));
            }
            Stage::BackOff { until, .. } if *until <= now => {
                state.restart.retried(now);
                if state.prepared {
                    state.stage = Stage::Configuring;
                    out.push(Command::Configure { container: name.to_owned() });
                } else {
                    state.stage = Stage::Preparing;
                    out.push(prepare(&spec, state));
                }
            }
            Stage::Running { attempt, .. } => {
                let attempt = *attempt;
                for (kind, target, timeout_s) in state.probes.take_due(now, &spec) {
                    out.push(Command::Probe { container: name.to_owned(), attempt, kind, target, timeout_s });
                }
            }
            _ => {}
        }
    }

    fn terminate(&mut self, grace_s: u32, confirm: bool, now: Timestamp, out: &mut Vec<Command>) {
        let deadline = after(now, grace_s);
        match &mut self.state.life {
            Life::Gone => {}
            Life::Terminating(terminating) => {
                terminating.confirm = confirm;
                if deadline < terminating.deadline {
                    terminating.deadline = deadline;
                    for container in self.state.init.iter().chain(&self.state.containers) {
                        if let Stage::Stopping { attempt, .. } = container.stage {
                            out.push(Command::Stop { container: container.name.clone(), attempt, grace_s });
                        }
                    }
                }
            }
            Life::Active | Life::Finished => {
                self.state.life = Life::Terminating(Terminating { deadline, confirm });
            }
        }
    }

    fn stop_all(&mut self, terminating: &Terminating, now: Timestamp, out: &mut Vec<Command>) {
        let left = terminating.deadline.duration_since(now).max(SignedDuration::ZERO);
        let grace_s = u32::try_from(left.as_secs()).unwrap_or(u32::MAX);
        let mut stopped = Vec::new();
        for container in self.state.init.iter_mut().chain(&mut self.state.containers) {
            if let Stage::Running { attempt, container_id, started_at } = container.stage.clone() {
                container.stage = Stage::Stopping { attempt, container_id, started_at };
                stopped.push((container.name.clone(), attempt));
            }
        }
        for (container, attempt) in stopped {
            let message = format!("Stopping container {container}");
            out.push(self.event(EventKind::Normal, "Killing", message, &container));
            out.push(Command::Stop { container, attempt, grace_s });
        }
    }

    fn wake(&self) -> Option<Timestamp> {
        if self.state.life != Life::Active {
            return None;
        }
        let sandbox = match &self.state.sandbox {
            Sandbox::Failed { until, .. } => Some(*until),
            _ => None,
        };
        let containers =
            self.state.init.iter().chain(&self.state.containers).filter_map(|c| match &c.stage {
                Stage::ImageFailed { shown_until, until, .. } => {
                    Some(shown_until.unwrap_or(*until).min(*until))
                }
                Stage::BackOff { until, .. } => Some(*until),
                Stage::Running { .. } => c.probes.next_due(),
                _ => None,
            });
        // Containers wait for the sandbox, so while it is being made nothing else is due.
        if self.state.sandbox == Sandbox::Ready { containers.min() } else { sandbox }
    }

    /// Whether an attempt of any of its containers lives.
    pub fn lives(&self) -> bool {
        self.state.init.iter().chain(&self.state.containers).any(|c| c.live_attempt().is_some())
    }

    pub(crate) fn spec(&self) -> Option<&PodSpec> {
        self.pod.spec.as_ref()
    }

    /// Whether a container that ends with this code would be started again.
    pub(crate) fn always_restarts(&self) -> bool {
        self.restart_policy() == RestartPolicy::Always
    }

    /// Whether a container that failed would be started again.
    pub(crate) fn restarts_failed(&self) -> bool {
        self.restart_policy() != RestartPolicy::Never
    }

    pub(crate) fn restart_policy(&self) -> RestartPolicy {
        match self.spec().and_then(|s| s.restart_policy.as_deref()) {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        }
    }

    pub(crate) fn grace_s(&self) -> u32 {
        self.spec().and_then(|s| s.termination_grace_period_seconds).map_or(GRACE_DEFAULT_S, clamp_grace)
    }

    /// `name_namespace(uid)`, as messages say it.
    pub(crate) fn full_name(&self) -> String {
        let meta = &self.pod.metadata;
        format!(
            "{}_{}({})",
            meta.name.as_deref().unwrap_or_default(),
            meta.namespace.as_deref().unwrap_or_default(),
            self.state.uid
        )
    }

    pub(crate) fn find(&mut self, name: &str) -> Option<(Container, &mut ContainerState)> {
        let spec = self.pod.spec.as_ref()?;
        let container =
            spec.init_containers.iter().flatten().chain(&spec.containers).find(|c| c.name == name)?;
        let state = self.state.init.iter_mut().chain(&mut self.state.containers).find(|c| c.name == name)?;
        Some((container.clone(), state))
    }

    pub(crate) fn event(
        &self,
        kind: EventKind,
        reason: &'static str,
        message: String,
        container: &str,
    ) -> Command {
        let init = self.state.init.iter().any(|c| c.name == container);
        let list = if init { "initContainers" } else { "containers" };
        event(kind, reason, message, Some(format!("spec.{list}{{{container}}}")))
    }
}

fn event(kind: EventKind, reason: &'static str, message: String, field_path: Option<String>) -> Command {
    Command::Event(PodEvent { kind, reason, message, field_path })
}

pub(crate) fn succeeded(container: &ContainerState) -> bool {
    matches!(&container.stage, Stage::Exited(end) if end.exit_code == 0)
}

pub(crate) fn image(container: &Container) -> &str {
    container.image.as_deref().unwrap_or_default()
}

/// What a container asks for that this machine doesn't do.
pub(crate) fn unsupported(container: &Container) -> Option<String> {
    container
        .restart_policy
        .as_ref()
        .map(|policy| format!("a container's own restartPolicy ({policy}) is not supported on this node"))
}

fn prepare(spec: &Container, state: &ContainerState) -> Command {
    let policy = match spec.image_pull_policy.as_deref() {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        _ => PullPolicy::IfNotPresent,
    };
    Command::Prepare { container: state.name.clone(), image: image(spec).to_owned(), policy }
}

pub(crate) fn clamp_grace(seconds: i64) -> u32 {
    u32::try_from(seconds.max(0)).unwrap_or(u32::MAX)
}
