//! What answers about one container do to it: its artifact, its configuration, its probes and its end.

use jiff::Timestamp;

use crate::backoff::after;
use crate::container::{Ending, Stage, Termination};
use crate::io::{Command, EventKind, ImageFailure, ProbeKind};
use crate::machine::{PodMachine, RestartPolicy, clamp_grace, image, unsupported};
use crate::probe::{Probes, Verdict};
use crate::state::{Life, Sandbox};

/// How long the reason of a failed pull is shown before `ImagePullBackOff` takes its place.
const PULL_REASON_SHOWN_S: u32 = 2;

impl PodMachine {
    pub(crate) fn prepared(
        &mut self,
        name: &str,
        image_id: String,
        pulled_ms: Option<u64>,
        out: &mut Vec<Command>,
    ) {
        let Some((spec, state)) = self.find(name) else { return };
        if state.stage != Stage::Preparing {
            return;
        }
        state.image_id = Some(image_id);
        state.prepared = true;
        state.pull.reset();
        state.stage = Stage::Configuring;
        let message = match pulled_ms {
            Some(ms) => format!("Successfully pulled image {:?} in {ms}ms", image(&spec)),
            None => format!("Container image {:?} already present on machine", image(&spec)),
        };
        out.push(self.event(EventKind::Normal, "Pulled", message, name));
        out.push(Command::Configure { container: name.to_owned() });
    }

    pub(crate) fn prepare_failed(
        &mut self,
        name: &str,
        failure: ImageFailure,
        message: String,
        now: Timestamp,
        out: &mut Vec<Command>,
    ) {
        let Some((spec, state)) = self.find(name) else { return };
        if state.stage != Stage::Preparing {
            return;
        }
        if state.pull.delay_s(now) == 0 {
            state.pull.retried(now);
        }
        let shown_until = (failure == ImageFailure::Pull).then(|| after(now, PULL_REASON_SHOWN_S));
        state.stage = Stage::ImageFailed {
            reason: failure.reason().to_owned(),
            message: message.clone(),
            shown_until,
            until: after(now, state.pull.delay_s(now)),
        };
        let detail = match failure {
            ImageFailure::Pull => format!("Failed to pull image {:?}: {message}", image(&spec)),
            _ => format!("Failed to apply image {:?}: {message}", image(&spec)),
        };
        out.push(self.event(EventKind::Warning, "Failed", detail, name));
        out.push(self.event(EventKind::Warning, "Failed", format!("Error: {}", failure.reason()), name));
    }

    pub(crate) fn config_ready(&mut self, name: &str, now: Timestamp, out: &mut Vec<Command>) {
        if self.state.life != Life::Active || self.state.sandbox != Sandbox::Ready {
            return;
        }
        let Some((spec, state)) = self.find(name) else { return };
        let waits = matches!(state.stage, Stage::Configuring | Stage::ConfigMissing { .. });
        if !waits || unsupported(&spec).is_some() {
            return;
        }
        let attempt = state.starts;
        state.starts += 1;
        state.stage = Stage::Starting { attempt, at: now };
        out.push(self.event(EventKind::Normal, "Created", "Container created".into(), name));
        out.push(Command::Start { container: name.to_owned(), attempt });
    }

    pub(crate) fn probed(
        &mut self,
        name: &str,
        attempt: u32,
        kind: ProbeKind,
        result: Result<(), String>,
        out: &mut Vec<Command>,
    ) {
        let pod_grace_s = self.grace_s();
        let Some((_, state)) = self.find(name) else { return };
        let Stage::Running { attempt: running, container_id, started_at } = state.stage.clone() else {
            return;
        };
        if running != attempt {
            return;
        }
        let verdict = state.probes.note(kind, result.is_ok());
        let grace_s = state.probes.grace_s(kind).map_or(pod_grace_s, clamp_grace);
        if verdict == Verdict::Failed {
            state.stage = Stage::Stopping { attempt, container_id, started_at };
        }
        if let Err(why) = result {
            let what = match kind {
                ProbeKind::Startup => "Startup",
                ProbeKind::Readiness => "Readiness",
                ProbeKind::Liveness => "Liveness",
            };
            out.push(self.event(
                EventKind::Warning,
                "Unhealthy",
                format!("{what} probe failed: {why}"),
                name,
            ));
            if verdict == Verdict::Failed {
                let message =
                    format!("Container {name} failed {} probe, will be restarted", what.to_lowercase());
                out.push(self.event(EventKind::Normal, "Killing", message, name));
                out.push(Command::Stop { container: name.to_owned(), attempt, grace_s });
            }
        }
    }

    /// Decides what follows the end of an attempt.
    pub(crate) fn ended(&mut self, name: &str, end: Termination, now: Timestamp, out: &mut Vec<Command>) {
        let restart = self.state.life == Life::Active && self.restarts(name, end.exit_code);
        let Some((_, state)) = self.find(name) else { return };
        if !restart {
            state.stage = Stage::Exited(end);
            return;
        }
        state.last = Some(end);
        let delay_s = state.restart.delay_s(now);
        if delay_s == 0 {
            state.restart.retried(now);
            if state.prepared {
                state.stage = Stage::Configuring;
                out.push(Command::Configure { container: name.to_owned() });
            } else {
                // It was adopted, so its artifact was not asked for in this run of the agent.
                state.stage = Stage::Waiting;
            }
            return;
        }
        state.stage = Stage::BackOff { delay_s, until: after(now, delay_s) };
        let message = format!("Back-off restarting failed container {name} in pod {}", self.full_name());
        out.push(self.event(EventKind::Warning, "BackOff", message, name));
    }

    fn restarts(&self, name: &str, exit_code: i32) -> bool {
        let init = self.state.init.iter().any(|c| c.name == name);
        match (self.restart_policy(), init) {
            (RestartPolicy::Always, false) => true,
            (RestartPolicy::Never, _) => false,
            (RestartPolicy::Always, true) | (RestartPolicy::OnFailure, _) => exit_code != 0,
        }
    }

    pub(crate) fn runtime_lost(&mut self, adopted: &[String], now: Timestamp) {
        let active = self.state.life == Life::Active;
        if active && self.state.sandbox != Sandbox::Released {
            self.state.sandbox = Sandbox::Needed;
        }
        let names: Vec<String> =
            self.state.init.iter().chain(&self.state.containers).map(|c| c.name.clone()).collect();
        for name in names {
            let Some((spec, state)) = self.find(&name) else { continue };
            match &state.stage {
                Stage::Starting { .. } | Stage::Running { .. } if adopted.contains(&name) => {
                    state.probes = Probes::new(&spec, now);
                }
                Stage::Stopping { attempt, container_id, started_at } if adopted.contains(&name) => {
                    // Whoever asked it to stop is gone. It is asked anew: at once if the pod is to go, and by its probe
                    // if that is what it failed.
                    let (attempt, container_id, started_at) = (*attempt, container_id.clone(), *started_at);
                    state.stage = Stage::Running { attempt, container_id, started_at };
                    state.probes = Probes::new(&spec, now);
                }
                Stage::Starting { .. } | Stage::Running { .. } | Stage::Stopping { .. } => {
                    let end = state.terminate(Ending::Lost, now);
                    if active && self.restarts(&name, end.exit_code) {
                        let Some((_, state)) = self.find(&name) else { continue };
                        state.last = Some(end);
                        state.stage = Stage::Waiting;
                    } else if let Some((_, state)) = self.find(&name) {
                        state.stage = Stage::Exited(end);
                    }
                }
                Stage::Preparing
                | Stage::Configuring
                | Stage::ConfigMissing { .. }
                | Stage::BackOff { .. }
                    if active =>
                {
                    // The artifact has to be loaded anew, so even a restart goes through Preparing again. What is
                    // left of a back-off is forgiven; its count is not.
                    state.stage = Stage::Waiting;
                }
                _ => {}
            }
        }
    }
}
