//! One pod after another through its life, as `kubectl get` would show it.

use std::sync::Arc;

use jiff::Timestamp;
use lichen_api::k8s::api::core::v1::{Pod, PodStatus};
use lichen_pods::{Command, Exit, ImageFailure, Input, Output, PodMachine, PodState, ProbeKind};
use serde_json::json;

/// A pod, its clock, and what it was told to do.
struct Bench {
    pod: Pod,
    machine: PodMachine,
    now: Timestamp,
    commands: Vec<Command>,
    status: PodStatus,
    wake: Option<Timestamp>,
}

impl Bench {
    fn new(spec: serde_json::Value) -> Self {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "p", "namespace": "ns", "uid": "u", "generation": 3 },
            "spec": spec,
        }))
        .expect("a pod");
        let now = Timestamp::from_second(1_800_000_000).expect("in range");
        let machine = PodMachine::new(Arc::new(pod.clone()), now);
        let mut bench =
            Self { pod, machine, now, commands: vec![], status: PodStatus::default(), wake: None };
        bench.step(Input::Tick);
        bench
    }

    fn note(&mut self, output: Output) {
        self.wake = output.wake;
        for command in output.commands {
            match command {
                Command::Report(status) => self.status = *status,
                other => self.commands.push(other),
            }
        }
    }

    fn step(&mut self, input: Input) -> &mut Self {
        let output = self.machine.step(input, self.now);
        self.note(output);
        self
    }

    fn wait(&mut self, seconds: i64) -> &mut Self {
        self.now += jiff::SignedDuration::from_secs(seconds);
        self.step(Input::Tick)
    }

    fn take(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.commands).into_iter().filter(|c| !matches!(c, Command::Event(_))).collect()
    }

    fn events(&mut self) -> Vec<(&'static str, String)> {
        std::mem::take(&mut self.commands)
            .into_iter()
            .filter_map(|c| if let Command::Event(e) = c { Some((e.reason, e.message)) } else { None })
            .collect()
    }

    fn sandbox(&mut self) -> &mut Self {
        self.step(Input::SandboxReady { pod_ip: "10.64.0.2".into(), host_ip: "10.64.0.1".into() })
    }

    fn prepared(&mut self, c: &str) -> &mut Self {
        self.step(Input::Prepared { container: c.into(), image_id: "sha256:1".into(), pulled_ms: Some(1) })
    }

    fn up(&mut self, c: &str, attempt: u32) -> &mut Self {
        self.step(Input::ConfigReady { container: c.into() });
        self.step(Input::Started {
            container: c.into(),
            attempt,
            container_id: format!("wasm://{c}-{attempt}"),
        })
    }

    fn exit(&mut self, c: &str, attempt: u32, code: i32) -> &mut Self {
        self.step(Input::Exited { container: c.into(), attempt, exit: Exit::Code { code, message: None } })
    }

    /// phase, then `name:ready:restarts:state` of each container.
    fn shows(&self, expect: &str) {
        let mut text = self.status.phase.clone().unwrap_or_default();
        let statuses =
            self.status.init_container_statuses.iter().chain(&self.status.container_statuses).flatten();
        for c in statuses {
            let state = c.state.clone().unwrap_or_default();
            let state = if let Some(w) = state.waiting {
                w.reason.unwrap_or_default()
            } else if let Some(t) = state.terminated {
                format!("{}({})", t.reason.unwrap_or_default(), t.exit_code)
            } else {
                "Running".to_owned()
            };
            text += &format!(" {}:{}:{}:{state}", c.name, c.ready, c.restart_count);
        }
        assert_eq!(text, expect);
    }

    fn condition(&self, kind: &str) -> (String, Option<String>) {
        let list = self.status.conditions.clone().unwrap_or_default();
        let found = list.into_iter().find(|c| c.type_ == kind).expect("the condition");
        assert_eq!(found.observed_generation, Some(3));
        (found.status, found.reason)
    }

    fn restart_agent(&mut self) -> &mut Self {
        let bytes = serde_json::to_vec(self.machine.state()).expect("encodes");
        let state: PodState = serde_json::from_slice(&bytes).expect("decodes");
        self.machine = PodMachine::restore(Arc::new(self.pod.clone()), state);
        self.step(Input::RuntimeLost { adopted: vec![] })
    }
}

fn one(policy: &str) -> serde_json::Value {
    json!({ "restartPolicy": policy, "containers": [{ "name": "c", "image": "hello:v1" }] })
}

#[test]
fn a_pod_comes_up_and_is_deleted() {
    let mut b = Bench::new(one("Always"));
    assert_eq!(b.take(), [Command::SetUp]);
    b.shows("Pending c:false:0:ContainerCreating");
    b.sandbox();
    assert!(matches!(b.take()[..], [Command::Prepare { .. }]));
    b.prepared("c");
    assert_eq!(b.take(), [Command::Configure { container: "c".into() }]);
    b.step(Input::ConfigReady { container: "c".into() });
    assert_eq!(b.take(), [Command::Start { container: "c".into(), attempt: 0 }]);
    b.step(Input::Started { container: "c".into(), attempt: 0, container_id: "wasm://x".into() });
    b.shows("Running c:true:0:Running");
    assert_eq!(b.condition("Ready"), ("True".into(), None));
    assert_eq!(b.condition("PodReadyToStartContainers").0, "True");
    assert_eq!(b.status.pod_ip.as_deref(), Some("10.64.0.2"));
    assert_eq!(b.status.observed_generation, Some(3));
    assert_eq!(b.wake, None, "an idle pod needs no timer");

    let mut doomed = b.pod.clone();
    doomed.metadata.deletion_timestamp = Some(b.now.into());
    doomed.metadata.deletion_grace_period_seconds = Some(7);
    b.step(Input::Desired(Arc::new(doomed)));
    assert_eq!(b.take(), [Command::Stop { container: "c".into(), attempt: 0, grace_s: 7 }]);
    b.exit("c", 0, 0);
    assert_eq!(b.take(), [Command::Gone { confirm: true }]);
    b.shows("Succeeded c:false:0:Completed(0)");
    b.step(Input::Removed);
    assert_eq!(b.take(), []);
}

#[test]
fn an_end_that_nobody_may_have_heard_of_is_told_again() {
    let mut b = Bench::new(one("Always"));
    b.sandbox().prepared("c").up("c", 0);
    b.pod.metadata.deletion_timestamp = Some(b.now.into());
    b.step(Input::Desired(Arc::new(b.pod.clone())));
    b.exit("c", 0, 0);
    assert_eq!(b.take().last(), Some(&Command::Gone { confirm: true }));
    b.restart_agent();
    assert_eq!(b.take(), [Command::Gone { confirm: true }]);
}

#[test]
fn crashes_back_off() {
    let mut b = Bench::new(one("Always"));
    b.sandbox().prepared("c").up("c", 0);
    b.exit("c", 0, 3);
    b.shows("Running c:false:0:ContainerCreating");
    b.up("c", 1);
    b.shows("Running c:true:1:Running");
    b.exit("c", 1, 3);
    b.shows("Running c:false:1:CrashLoopBackOff");
    let c = b.status.container_statuses.clone().expect("containers").remove(0);
    assert_eq!(
        c.state.and_then(|s| s.waiting).and_then(|w| w.message).as_deref(),
        Some("back-off 10s restarting failed container=c pod=p_ns(u)")
    );
    assert_eq!(c.last_state.and_then(|s| s.terminated).map(|t| t.exit_code), Some(3));
    b.take();
    b.wait(9);
    assert_eq!(b.take(), []);
    b.wait(1);
    assert_eq!(b.take(), [Command::Configure { container: "c".into() }]);
    b.up("c", 2).exit("c", 2, 1);
    assert_eq!(b.wake.map(|at| at.duration_since(b.now).as_secs()), Some(20));
}

#[test]
fn policies_decide_what_an_exit_means() {
    let check = |policy: &str, code: i32, shows: &str| {
        let mut b = Bench::new(one(policy));
        b.sandbox().prepared("c").up("c", 0).exit("c", 0, code);
        b.shows(shows);
    };
    check("Always", 0, "Running c:false:0:ContainerCreating");
    check("OnFailure", 0, "Succeeded c:false:0:Completed(0)");
    check("OnFailure", 1, "Running c:false:0:ContainerCreating");
    check("Never", 0, "Succeeded c:false:0:Completed(0)");
    check("Never", 7, "Failed c:false:0:Error(7)");
}

#[test]
fn exits_have_reasons() {
    let check = |exit: Exit, shows: &str| {
        let mut b = Bench::new(one("Never"));
        b.sandbox().prepared("c").up("c", 0);
        b.step(Input::Exited { container: "c".into(), attempt: 0, exit });
        b.shows(shows);
    };
    check(Exit::OutOfMemory, "Failed c:false:0:OOMKilled(137)");
    check(Exit::Killed, "Failed c:false:0:Error(137)");
    check(Exit::Error { code: 134, message: "trap".into() }, "Failed c:false:0:Error(134)");
}

#[test]
fn a_start_that_fails_is_a_crash() {
    let mut b = Bench::new(one("Never"));
    b.sandbox().prepared("c").step(Input::ConfigReady { container: "c".into() });
    b.step(Input::StartFailed { container: "c".into(), attempt: 0, message: "port in use".into() });
    b.shows("Failed c:false:0:StartError(128)");
    assert!(b.events().contains(&("Failed", "Error: port in use".into())));
}

#[test]
fn a_missing_artifact_backs_off() {
    let mut b = Bench::new(one("Always"));
    b.sandbox();
    let fail = |b: &mut Bench| {
        b.step(Input::PrepareFailed {
            container: "c".into(),
            failure: ImageFailure::Pull,
            message: "not found".into(),
        });
    };
    fail(&mut b);
    b.shows("Pending c:false:0:ErrImagePull");
    b.wait(2);
    b.shows("Pending c:false:0:ImagePullBackOff");
    assert!(b.events().iter().any(|e| e.1 == "Failed to pull image \"hello:v1\": not found"));
    b.wait(8);
    assert!(matches!(b.take()[..], [Command::Prepare { .. }]));
    fail(&mut b);
    b.wait(2);
    b.wait(17);
    assert_eq!(b.take(), []);
    b.wait(1);
    assert!(matches!(b.take()[..], [Command::Prepare { .. }]));
    b.prepared("c").up("c", 0);
    b.shows("Running c:true:0:Running");
}

#[test]
fn missing_configuration_waits_for_it() {
    let mut b = Bench::new(one("Always"));
    b.step(Input::SandboxFailed { reason: "FailedMount", message: "configmap \"x\" not found".into() });
    assert!(b.events().iter().any(|e| e.0 == "FailedMount"));
    b.sandbox().prepared("c");
    let missing = Input::ConfigMissing { container: "c".into(), message: "secret \"s\" not found".into() };
    b.step(missing.clone());
    b.shows("Pending c:false:0:CreateContainerConfigError");
    assert_eq!(b.events().last(), Some(&("Failed", "Error: secret \"s\" not found".into())));
    b.step(missing);
    assert_eq!(b.events(), [], "the same again is no news");
    b.up("c", 0);
    b.shows("Running c:true:0:Running");
}

#[test]
fn init_containers_run_one_after_the_other() {
    let mut b = Bench::new(json!({
        "restartPolicy": "OnFailure",
        "initContainers": [{ "name": "i1", "image": "i" }, { "name": "i2", "image": "i" }],
        "containers": [{ "name": "c", "image": "c" }],
    }));
    b.sandbox();
    b.shows("Pending i1:false:0:PodInitializing i2:false:0:PodInitializing c:false:0:PodInitializing");
    b.prepared("i1").up("i1", 0).exit("i1", 0, 1).up("i1", 1).exit("i1", 1, 0);
    assert_eq!(b.condition("Initialized").0, "False");
    b.prepared("i2").up("i2", 0).exit("i2", 0, 0);
    assert_eq!(b.condition("Initialized").0, "True");
    b.prepared("c").up("c", 0);
    b.shows("Running i1:true:1:Completed(0) i2:true:0:Completed(0) c:true:0:Running");
}

#[test]
fn a_failed_init_container_fails_a_pod_that_never_restarts() {
    let mut b = Bench::new(json!({
        "restartPolicy": "Never",
        "initContainers": [{ "name": "i", "image": "i" }],
        "containers": [{ "name": "c", "image": "c" }],
    }));
    b.sandbox().prepared("i").up("i", 0).exit("i", 0, 2);
    b.shows("Failed i:false:0:Error(2) c:false:0:PodInitializing");
    assert!(b.take().contains(&Command::Release));
}

#[test]
fn the_agent_restarts() {
    let mut b = Bench::new(one("Always"));
    b.sandbox().prepared("c").up("c", 0);
    b.take();
    b.restart_agent();
    assert_eq!(b.take(), [Command::SetUp]);
    b.shows("Running c:false:0:ContainerCreating");
    b.sandbox().prepared("c").up("c", 1);
    b.shows("Running c:true:1:Running");
    let c = b.status.container_statuses.clone().expect("containers").remove(0);
    let last = c.last_state.and_then(|s| s.terminated).expect("ended");
    assert_eq!((last.exit_code, last.reason.as_deref()), (137, Some("ContainerStatusUnknown")));

    let mut b = Bench::new(one("Never"));
    b.sandbox().prepared("c").up("c", 0).restart_agent();
    b.shows("Failed c:false:0:ContainerStatusUnknown(137)");

    let mut b = Bench::new(one("Never"));
    b.sandbox().prepared("c").up("c", 0).exit("c", 0, 0).restart_agent();
    b.shows("Succeeded c:false:0:Completed(0)");
}

#[test]
fn liveness_restarts_and_readiness_gates() {
    let mut b = Bench::new(json!({
        "terminationGracePeriodSeconds": 4,
        "containers": [{
            "name": "c", "image": "c",
            "readinessProbe": { "tcpSocket": { "port": 80 }, "failureThreshold": 1 },
            "livenessProbe": { "tcpSocket": { "port": 80 }, "failureThreshold": 1 },
        }],
    }));
    b.sandbox().prepared("c").up("c", 0);
    b.shows("Running c:false:0:Running");
    assert_eq!(b.condition("Ready").1.as_deref(), Some("ContainersNotReady"));
    let answer = |b: &mut Bench, kind, result: Result<(), String>| {
        b.step(Input::Probed { container: "c".into(), attempt: 0, kind, result });
    };
    answer(&mut b, ProbeKind::Readiness, Ok(()));
    answer(&mut b, ProbeKind::Liveness, Ok(()));
    b.shows("Running c:true:0:Running");
    b.wait(10);
    b.take();
    answer(&mut b, ProbeKind::Liveness, Err("refused".into()));
    assert_eq!(b.take(), [Command::Stop { container: "c".into(), attempt: 0, grace_s: 4 }]);
    b.exit("c", 0, 143).up("c", 1);
    b.shows("Running c:false:1:Running");
}

#[test]
fn a_restartable_init_container_says_that_it_is_not_supported() {
    let mut b = Bench::new(json!({
        "initContainers": [{ "name": "s", "image": "s", "restartPolicy": "Always" }],
        "containers": [{ "name": "c", "image": "c" }],
    }));
    b.sandbox();
    b.shows("Pending s:false:0:CreateContainerConfigError c:false:0:PodInitializing");
}
