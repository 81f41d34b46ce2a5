//! The status that a pod's state amounts to, as Kubernetes words it.

use jiff::Timestamp;
use lichen_api::k8s::api::core::v1::{
    Container, ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, HostIP, PodCondition, PodIP, PodStatus,
};
use lichen_api::k8s::apimachinery::pkg::apis::meta::v1::Time;

use crate::container::{ContainerState, Stage, Termination};
use crate::machine::{PodMachine, succeeded};
use crate::state::{Life, Sandbox};

/// A condition before its transition time is known.
struct Condition {
    kind: &'static str,
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl PodMachine {
    /// The pod's phase.
    pub(crate) fn phase(&self) -> &'static str {
        let terminal = matches!(self.state.life, Life::Terminating(_) | Life::Gone) && !self.lives();
        for init in &self.state.init {
            match &init.stage {
                Stage::Exited(end) if end.exit_code == 0 => {}
                Stage::Exited(_) => return "Failed",
                _ if terminal => return "Failed",
                _ => return "Pending",
            }
        }
        let (mut waiting, mut running, mut ended, mut failed) = (0, 0, 0, 0);
        for container in &self.state.containers {
            match &container.stage {
                Stage::Running { .. } | Stage::Stopping { .. } => running += 1,
                Stage::Exited(end) => {
                    ended += 1;
                    failed += usize::from(end.exit_code != 0);
                }
                _ => match &container.last {
                    Some(last) => {
                        ended += 1;
                        failed += usize::from(last.exit_code != 0);
                    }
                    None => waiting += 1,
                },
            }
        }
        let exited = self.state.containers.iter().all(|c| matches!(c.stage, Stage::Exited(_)));
        if terminal {
            return if waiting == 0 && ended > 0 && failed == 0 { "Succeeded" } else { "Failed" };
        }
        if waiting > 0 {
            "Pending"
        } else if running > 0 || ended == 0 {
            if running > 0 { "Running" } else { "Pending" }
        } else if exited && !(self.always_restarts() || (failed > 0 && self.restarts_failed())) {
            if failed == 0 { "Succeeded" } else { "Failed" }
        } else {
            "Running"
        }
    }

    /// The whole status; notes since when its conditions hold.
    pub(crate) fn status(&mut self, now: Timestamp) -> PodStatus {
        let phase = self.phase();
        let generation = self.pod().metadata.generation;
        let conditions = self.conditions(phase);
        let conditions = conditions
            .into_iter()
            .map(|condition| {
                let since = self
                    .state
                    .transitions
                    .entry(condition.kind.to_owned())
                    .and_modify(|(holds, at)| {
                        if *holds != condition.holds {
                            (*holds, *at) = (condition.holds, now);
                        }
                    })
                    .or_insert((condition.holds, now))
                    .1;
                PodCondition {
                    type_: condition.kind.to_owned(),
                    status: if condition.holds { "True" } else { "False" }.to_owned(),
                    reason: condition.reason.map(str::to_owned),
                    message: condition.message,
                    last_transition_time: Some(Time(since)),
                    observed_generation: generation,
                    ..Default::default()
                }
            })
            .collect();
        let spec = self.pod().spec.clone().unwrap_or_default();
        let init_specs = spec.init_containers.unwrap_or_default();
        let init: Vec<_> = self
            .state
            .init
            .iter()
            .filter_map(|state| Some(self.container_status(state, find(&init_specs, &state.name)?)))
            .collect();
        let containers = self
            .state
            .containers
            .iter()
            .filter_map(|state| Some(self.container_status(state, find(&spec.containers, &state.name)?)))
            .collect();
        PodStatus {
            observed_generation: generation,
            phase: Some(phase.to_owned()),
            conditions: Some(conditions),
            start_time: Some(Time(self.state.start_time)),
            host_ip: self.state.host_ip.clone(),
            host_ips: self.state.host_ip.clone().map(|ip| vec![HostIP { ip }]),
            pod_ip: self.state.pod_ip.clone(),
            pod_ips: self.state.pod_ip.clone().map(|ip| vec![PodIP { ip }]),
            init_container_statuses: (!init.is_empty()).then_some(init),
            container_statuses: Some(containers),
            qos_class: self.pod().status.as_ref().and_then(|s| s.qos_class.clone()),
            message: match &self.state.sandbox {
                Sandbox::Failed { message, .. } => Some(message.clone()),
                _ => None,
            },
            ..Default::default()
        }
    }

    fn conditions(&self, phase: &str) -> [Condition; 5] {
        let uninitialized: Vec<&str> =
            self.state.init.iter().filter(|c| !succeeded(c)).map(|c| c.name.as_str()).collect();
        let unready: Vec<&str> =
            self.state.containers.iter().filter(|c| !self.ready(c)).map(|c| c.name.as_str()).collect();
        let ended = match phase {
            "Succeeded" => Some("PodCompleted"),
            "Failed" => Some("PodFailed"),
            _ => None,
        };
        // What runs has its sandbox, also while an agent that was started anew looks at it again.
        let sandbox = self.state.sandbox == Sandbox::Ready || self.lives();
        let condition = |kind, holds, reason, message| Condition { kind, holds, reason, message };
        let readiness = |kind| match ended {
            Some(reason) => condition(kind, false, Some(reason), None),
            None if unready.is_empty() => condition(kind, true, None, None),
            None => condition(
                kind,
                false,
                Some("ContainersNotReady"),
                Some(format!("containers with unready status: [{}]", unready.join(" "))),
            ),
        };
        let initialized = if uninitialized.is_empty() {
            condition("Initialized", true, ended.filter(|r| *r == "PodCompleted"), None)
        } else {
            let message = format!("containers with incomplete status: [{}]", uninitialized.join(" "));
            condition("Initialized", false, Some("ContainersNotInitialized"), Some(message))
        };
        [
            condition("PodReadyToStartContainers", sandbox, None, None),
            initialized,
            readiness("Ready"),
            readiness("ContainersReady"),
            condition("PodScheduled", true, None, None),
        ]
    }

    fn ready(&self, container: &ContainerState) -> bool {
        matches!(container.stage, Stage::Running { .. }) && container.probes.ready()
    }

    fn container_status(&self, state: &ContainerState, spec: &Container) -> ContainerStatus {
        let waiting = |reason: &str, message: Option<String>| ApiState {
            waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
            ..Default::default()
        };
        let mut container_id = state.last.as_ref().and_then(|last| last.container_id.clone());
        let current = match &state.stage {
            Stage::Waiting | Stage::Preparing | Stage::Configuring | Stage::Starting { .. } => waiting(
                if self.state.init.is_empty() { "ContainerCreating" } else { "PodInitializing" },
                None,
            ),
            Stage::ImageFailed { reason, message, .. } => waiting(reason, Some(message.clone())),
            Stage::ConfigMissing { message } => waiting("CreateContainerConfigError", Some(message.clone())),
            Stage::BackOff { delay_s, .. } => waiting(
                "CrashLoopBackOff",
                Some(format!(
                    "back-off {} restarting failed container={} pod={}",
                    duration(*delay_s),
                    state.name,
                    self.full_name()
                )),
            ),
            Stage::Running { container_id: id, started_at, .. }
            | Stage::Stopping { container_id: id, started_at, .. } => {
                container_id = Some(id.clone());
                ApiState {
                    running: Some(ContainerStateRunning { started_at: Some(Time(*started_at)) }),
                    ..Default::default()
                }
            }
            Stage::Exited(end) => {
                container_id.clone_from(&end.container_id);
                terminated(end)
            }
        };
        let running = matches!(state.stage, Stage::Running { .. });
        let init = self.state.init.iter().any(|c| c.name == state.name);
        ContainerStatus {
            name: state.name.clone(),
            image: spec.image.clone().unwrap_or_default(),
            image_id: state.image_id.clone().unwrap_or_default(),
            container_id,
            ready: if init { succeeded(state) } else { self.ready(state) },
            started: Some(running && state.probes.started()),
            restart_count: i32::try_from(state.restarts()).unwrap_or(i32::MAX),
            state: Some(current),
            last_state: Some(state.last.as_ref().map(terminated).unwrap_or_default()),
            ..Default::default()
        }
    }
}

fn find<'a>(specs: &'a [Container], name: &str) -> Option<&'a Container> {
    specs.iter().find(|c| c.name == name)
}

fn terminated(end: &Termination) -> ApiState {
    ApiState {
        terminated: Some(ContainerStateTerminated {
            container_id: end.container_id.clone(),
            exit_code: end.exit_code,
            reason: Some(end.reason.clone()),
            message: end.message.clone(),
            started_at: end.started_at.map(Time),
            finished_at: Some(Time(end.finished_at)),
            signal: None,
        }),
        ..Default::default()
    }
}

/// Seconds as Go prints a duration.
fn duration(seconds: u32) -> String {
    match (seconds / 60, seconds % 60) {
        (0, s) => format!("{s}s"),
        (m, s) => format!("{m}m{s}s"),
    }
}
