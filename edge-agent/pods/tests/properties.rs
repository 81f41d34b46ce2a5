//! Random lives of pods: whatever answers the world gives, and whenever the agent is restarted, the machine's
//! invariants hold; and once the world is kind, the pod comes to rest.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use lichen_api::k8s::api::core::v1::Pod;
use lichen_pods::{Command, Exit, ImageFailure, Input, PodMachine, PodState, Stage};
use proptest::prelude::*;
use serde_json::json;

/// A world that owes answers to commands.
struct World {
    pod: Arc<Pod>,
    machine: PodMachine,
    now: Timestamp,
    owed: Vec<Command>,
    /// Attempts that run in the runtime, as it sees them.
    live: BTreeMap<String, u32>,
    starts: BTreeSet<(String, u32)>,
    prepared: BTreeSet<String>,
    final_phase: Option<String>,
    succeeded_init: BTreeSet<String>,
    gone: bool,
    wake: Option<Timestamp>,
    terminating: bool,
    policy: &'static str,
}

impl World {
    fn new(policy: &'static str, inits: usize, containers: usize) -> Self {
        let list = |prefix: &str, n: usize| -> Vec<_> {
            (0..n)
                .map(|i| {
                    json!({ "name": format!("{prefix}{i}"), "image": "x",
                        "readinessProbe": { "tcpSocket": { "port": 80 }, "periodSeconds": 3 },
                        "livenessProbe": { "tcpSocket": { "port": 80 }, "failureThreshold": 2 } })
                })
                .collect()
        };
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "p", "namespace": "ns", "uid": "u" },
            "spec": { "restartPolicy": policy, "initContainers": list("i", inits), "containers": list("c", containers) },
        }))
        .expect("a pod");
        let pod = Arc::new(pod);
        let now = Timestamp::from_second(1_800_000_000).expect("in range");
        let machine = PodMachine::new(pod.clone(), now);
        let mut world = Self {
            pod,
            machine,
            now,
            owed: vec![],
            live: BTreeMap::new(),
            starts: BTreeSet::new(),
            prepared: BTreeSet::new(),
            final_phase: None,
            succeeded_init: BTreeSet::new(),
            gone: false,
            wake: None,
            terminating: false,
            policy,
        };
        world.step(Input::Tick);
        world
    }

    fn step(&mut self, input: Input) {
        match &input {
            Input::Desired(pod) if pod.metadata.deletion_timestamp.is_some() => self.terminating = true,
            Input::Removed => self.terminating = true,
            Input::Exited { container, exit: Exit::Code { code: 0, .. }, .. }
                if container.starts_with('i') =>
            {
                self.succeeded_init.insert(container.clone());
            }
            _ => {}
        }
        let output = self.machine.step(input, self.now);
        self.wake = output.wake;
        if let Some(wake) = self.wake {
            assert!(wake > self.now, "a timer that is due already would spin");
        }
        let mut gone_now = false;
        for command in output.commands {
            assert!(!self.gone && !gone_now, "{command:?} after Gone");
            match &command {
                Command::Start { container, attempt } => {
                    assert!(!self.terminating, "start while terminating");
                    assert!(self.final_phase.is_none(), "start after the end");
                    assert!(self.starts.insert((container.clone(), *attempt)), "{container} {attempt} twice");
                    assert!(self.prepared.contains(container), "{container} was not prepared");
                    assert!(!self.live.contains_key(container), "{container} lives already");
                    if self.policy == "Never" {
                        assert_eq!(*attempt, 0);
                    }
                    if container.starts_with('i') {
                        assert!(self.live.is_empty(), "init containers run alone");
                    } else {
                        let inits = self.pod.spec.as_ref().and_then(|s| s.init_containers.as_ref());
                        assert_eq!(self.succeeded_init.len(), inits.map_or(0, Vec::len));
                    }
                    self.owed.push(command);
                }
                Command::Report(status) => {
                    let phase = status.phase.clone().expect("a phase");
                    if let Some(end) = &self.final_phase {
                        assert_eq!(&phase, end, "the end is final");
                    }
                    if !self.terminating && (phase == "Succeeded" || phase == "Failed") {
                        self.final_phase = Some(phase);
                    }
                }
                Command::Gone { .. } => {
                    gone_now = true;
                    assert!(self.live.is_empty(), "gone while {:?} lives", self.live);
                }
                Command::Event(_) | Command::Release => {}
                _ => self.owed.push(command),
            }
        }
        self.gone |= gone_now;
    }

    /// The agent starts anew. Of what runs each bit of `kept` says whether it is taken back; of that the first may have
    /// ended meanwhile.
    fn restart_agent(&mut self, kept: u8, ended: bool) {
        let state: PodState =
            serde_json::from_slice(&serde_json::to_vec(self.machine.state()).expect("encodes"))
                .expect("decodes");
        self.machine = PodMachine::restore(self.pod.clone(), state);
        // Whether its last command was carried out is known to nobody: it comes once more.
        let gone = std::mem::take(&mut self.gone);
        // A start that was made durable and not carried out is carried out once the container is taken back.
        let starts: BTreeMap<String, u32> = self
            .owed
            .drain(..)
            .filter_map(|command| match command {
                Command::Start { container, attempt } => Some((container, attempt)),
                _ => None,
            })
            .collect();
        let mut bit = 0;
        let mut keep = |_: &String, _: &mut u32| {
            bit += 1;
            kept >> (bit - 1) & 1 == 1
        };
        self.live.retain(&mut keep);
        let mut starts = starts;
        starts.retain(&mut keep);
        self.prepared.clear();
        let adopted = self.live.keys().chain(starts.keys()).cloned().collect();
        self.step(Input::RuntimeLost { adopted });
        self.owed
            .extend(starts.into_iter().map(|(container, attempt)| Command::Start { container, attempt }));
        let running = self.live.clone();
        if ended && let Some((name, attempt)) = running.into_iter().next() {
            self.exit(&name, attempt, 100);
        }
        assert!(self.gone || !gone, "a pod that was gone is kept");
    }

    /// Answers one of the commands that wait; `luck` chooses how.
    fn answer(&mut self, index: usize, luck: u8) {
        if self.owed.is_empty() {
            return;
        }
        let kind = luck < 160;
        let input = match self.owed.remove(index % self.owed.len()) {
            Command::SetUp if kind => {
                Input::SandboxReady { pod_ip: "10.64.0.2".into(), host_ip: "10.64.0.1".into() }
            }
            Command::SetUp => Input::SandboxFailed { reason: "FailedMount", message: "no".into() },
            Command::Prepare { container, .. } if kind => {
                self.prepared.insert(container.clone());
                Input::Prepared { container, image_id: "x".into(), pulled_ms: None }
            }
            Command::Prepare { container, .. } => {
                Input::PrepareFailed { container, failure: ImageFailure::Pull, message: "no".into() }
            }
            Command::Configure { container } if kind => Input::ConfigReady { container },
            Command::Configure { container } => {
                // The shell says so when what is missing appears.
                self.owed.push(Command::Configure { container: container.clone() });
                Input::ConfigMissing { container, message: "no".into() }
            }
            Command::Start { container, attempt } if kind => {
                self.live.insert(container.clone(), attempt);
                Input::Started { container, attempt, container_id: "wasm://x".into() }
            }
            Command::Start { container, attempt } => {
                Input::StartFailed { container, attempt, message: "no".into() }
            }
            Command::Stop { container, attempt, .. } => return self.exit(&container, attempt, luck),
            Command::Probe { container, attempt, kind: probe, .. } => Input::Probed {
                container,
                attempt,
                kind: probe,
                result: if kind { Ok(()) } else { Err("no".into()) },
            },
            _ => return,
        };
        self.step(input);
    }

    fn exit(&mut self, container: &str, attempt: u32, luck: u8) {
        if self.live.get(container) != Some(&attempt) {
            return;
        }
        self.live.remove(container);
        let exit = match luck {
            0..=80 => Exit::Code { code: 0, message: None },
            81..=160 => Exit::Code { code: 2, message: None },
            161..=200 => Exit::OutOfMemory,
            _ => Exit::Error { code: 134, message: "trap".into() },
        };
        self.step(Input::Exited { container: container.to_owned(), attempt, exit });
    }

    fn delete(&mut self, grace: i64) {
        let mut pod = (*self.pod).clone();
        pod.metadata.deletion_timestamp = Some(self.now.into());
        pod.metadata.deletion_grace_period_seconds = Some(grace);
        self.pod = Arc::new(pod);
        self.step(Input::Desired(self.pod.clone()));
    }

    /// Everything succeeds from now on.
    fn be_kind(&mut self) {
        for _ in 0..500 {
            while let Some(index) = self.owed.len().checked_sub(1) {
                self.answer(index, 0);
                let init = self.live.iter().find(|(name, _)| name.starts_with('i'));
                if let Some((name, attempt)) = init.map(|(n, a)| (n.clone(), *a)) {
                    self.exit(&name, attempt, 0);
                }
            }
            match self.wake {
                Some(wake) if self.starts.len() < 200 => {
                    self.now = wake;
                    self.step(Input::Tick);
                }
                _ => break,
            }
            let settled =
                self.machine.state().containers.iter().all(|c| matches!(c.stage, Stage::Running { .. }));
            if settled {
                break;
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Op {
    Answer(usize, u8),
    Exit(usize, u8),
    Wait(u16),
    Delete(u8),
    Removed,
    RestartAgent(u8, bool),
    Stale(u8),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        20 => (any::<usize>(), any::<u8>()).prop_map(|(i, l)| Op::Answer(i, l)),
        5 => (any::<usize>(), any::<u8>()).prop_map(|(i, l)| Op::Exit(i, l)),
        6 => (0u16..400).prop_map(Op::Wait),
        1 => any::<u8>().prop_map(Op::Delete),
        1 => Just(Op::Removed),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(kept, ended)| Op::RestartAgent(kept, ended)),
        2 => any::<u8>().prop_map(Op::Stale),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn invariants_hold(
        policy in prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")],
        inits in 0usize..3,
        containers in 1usize..3,
        ops in prop::collection::vec(op(), 0..120),
    ) {
        let mut world = World::new(policy, inits, containers);
        for op in ops {
            match op {
                Op::Answer(index, luck) => world.answer(index, luck),
                Op::Exit(index, luck) => {
                    let live: Vec<_> = world.live.clone().into_iter().collect();
                    if let Some((name, attempt)) = live.get(index % live.len().max(1)) {
                        world.exit(name, *attempt, luck);
                    }
                }
                Op::Wait(seconds) => {
                    world.now += SignedDuration::from_secs(seconds.into());
                    world.step(Input::Tick);
                }
                Op::Delete(grace) => world.delete(grace.into()),
                Op::Removed => world.step(Input::Removed),
                Op::RestartAgent(kept, ended) => world.restart_agent(kept, ended),
                Op::Stale(n) => {
                    let container = format!("c{}", n % 3);
                    let attempt = u32::from(n / 3) + 1000;
                    world.step(Input::Exited { container: container.clone(), attempt, exit: Exit::Killed });
                    world.step(Input::Started { container, attempt, container_id: String::new() });
                }
            }
        }
        world.be_kind();
        let state = world.machine.state();
        if world.terminating {
            prop_assert!(world.gone, "a doomed pod goes: {state:?}");
        } else if world.final_phase.is_none() {
            prop_assert!(
                state.containers.iter().all(|c| matches!(c.stage, Stage::Running { .. } | Stage::Exited(_))),
                "a wanted pod runs: {state:?}"
            );
        }
    }
}
