//! Any process may be killed at any time, in any order. A server, two agents and a broker live through a hundred rounds of
//! it while a client writes: what was acknowledged is there, pods come back as their restart policy says, and nothing that may run
//! once runs twice.
//!
//! `LICHEN_KILL_ROUNDS` and `LICHEN_KILL_SEED` change how long it takes and which processes die when.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lichen_firmware_tests::cluster::succeed;
use lichen_firmware_tests::mosquitto::{Mosquitto, Proof};
use lichen_firmware_tests::process::Process;
use lichen_firmware_tests::writer::{BATCH, Writer};
use lichen_pki::Authority;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

const LICHEN: &str = env!("CARGO_BIN_EXE_lichen");
const GUESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../runtime/guests");
/// Rounds with a broker of its own, which is killed like the others.
const ROUNDS: u64 = 100;
/// Rounds with the server's broker, which dies with it.
const ROUNDS_EMBEDDED: u64 = 40;
/// Rounds between two times that everything must have come to rest.
const ROUNDS_TO_REST: u64 = 20;
/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Who the server is to Mosquitto.
const GATEWAY: &str = "lichen-gateway";
const PASSWORD: &str = "a password";
const NODES: [&str; 2] = ["edge-1", "edge-2"];
/// Replicas of the Deployment whose pods must always come back.
const REPLICAS: usize = 4;

/// A server, its agents, and a broker if it is not the server's: each a process.
struct World {
    dir: PathBuf,
    api: String,
    /// Where the server's own broker listens.
    mqtt: String,
    broker: Option<Mosquitto>,
    server: Option<Process>,
    agents: [Option<Process>; 2],
    /// How often each agent was killed.
    agent_kills: [u64; 2],
}

impl World {
    fn start(dir: &Path, broker: Option<Mosquitto>) -> World {
        let port = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let mut world = World {
            dir: dir.into(),
            api: port(),
            mqtt: port(),
            broker,
            server: None,
            agents: [None, None],
            agent_kills: [0; 2],
        };
        world.start_server();
        for agent in 0..NODES.len() {
            let token = world.lichen(&["token", "create"]);
            std::fs::write(world.dir.join("token"), token).unwrap();
            world.start_agent(agent);
        }
        world
    }

    fn start_server(&mut self) {
        let mut command = Command::new(LICHEN);
        command.args(["server", "--api-addr", &self.api, "--data-dir"]).arg(self.dir.join("control"));
        match &self.broker {
            None => command.args(["--mqtt-addr", &self.mqtt]),
            Some(broker) => self.login(command.args(["--mqtt-broker", &url(broker)]), GATEWAY),
        };
        self.server = Some(Process::start("server", command, &self.dir, &["A node joins"]).unwrap());
    }

    fn start_agent(&mut self, agent: usize) {
        let node = NODES[agent];
        let mut command = Command::new(LICHEN);
        command.args(["agent", "--node-name", node, "--token-file"]).arg(self.dir.join("token"));
        command.arg("--data-dir").arg(self.dir.join(node));
        match &self.broker {
            None => command.args(["--server", &self.mqtt]),
            Some(broker) => self.login(command.args(["--server", &url(broker)]), node),
        };
        self.agents[agent] = Some(Process::start(node, command, &self.dir, &["node "]).unwrap());
    }

    /// How a user proves himself to Mosquitto.
    fn login<'a>(&self, command: &'a mut Command, user: &str) -> &'a mut Command {
        std::fs::write(self.dir.join("password"), PASSWORD).unwrap();
        let command =
            command.args(["--mqtt-username", user, "--mqtt-ca"]).arg(self.dir.join("broker-ca.pem"));
        command.arg("--mqtt-password-file").arg(self.dir.join("password"))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        client(&self.dir, arguments)
    }

    fn lichen(&self, arguments: &[&str]) -> String {
        succeed(self.command(arguments).output().unwrap(), arguments).unwrap()
    }

    fn list(&self, plural: &str, arguments: &[&str]) -> Vec<Value> {
        let list: Value =
            serde_json::from_str(&self.lichen(&[&["get", plural, "-o", "json"], arguments].concat()))
                .unwrap();
        list["items"].as_array().unwrap().clone()
    }

    fn apply(&self, name: &str, manifest: &str) {
        let file = self.dir.join(name);
        std::fs::write(&file, manifest).unwrap();
        self.lichen(&["apply", "-f", &file.to_string_lossy()]);
    }

    /// Kills some of the processes, and starts them again in some order.
    fn round(&mut self, random: &mut StdRng) {
        let processes = if self.broker.is_some() { 4 } else { 3 };
        // Each bit is a process: every set of victims is as likely.
        let victims = random.random_range(1..1 << processes);
        std::thread::sleep(Duration::from_millis(random.random_range(0..300)));
        let mut order: Vec<usize> = (0..processes).filter(|process| victims & (1 << process) != 0).collect();
        order.shuffle(random);
        for process in &order {
            match process {
                0 => self.server.take().unwrap().kill().unwrap(),
                3 => self.broker.as_mut().unwrap().kill().unwrap(),
                agent => {
                    self.agents[agent - 1].take().unwrap().kill().unwrap();
                    self.agent_kills[agent - 1] += 1;
                }
            }
        }
        std::thread::sleep(Duration::from_millis(random.random_range(0..200)));
        order.shuffle(random);
        for process in order {
            match process {
                0 => self.start_server(),
                3 => self.broker.as_mut().unwrap().restart().unwrap(),
                agent => self.start_agent(agent - 1),
            }
        }
    }
}

fn url(broker: &Mosquitto) -> String {
    format!("mqtts://{}", broker.address())
}

/// `lichen` as the administrator of the cluster in `dir`.
fn client(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(LICHEN);
    let kubeconfig = dir.join("control/admin.kubeconfig");
    command.args(arguments).env("KUBECONFIG", kubeconfig).stdin(Stdio::null());
    command
}

fn pod(name: &str, restart: &str, arguments: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{restart: {restart}}}}}, spec: \
         {{restartPolicy: {restart}, containers: [{{name: main, image: 'worker:v1', args: {arguments}}}]}}}}\n"
    )
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

fn phase(pod: &Value) -> &str {
    pod["status"]["phase"].as_str().unwrap_or_default()
}

fn restarts(pod: &Value) -> u64 {
    pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0)
}

fn is_ready(pod: &Value) -> bool {
    pod["status"]["conditions"]
        .as_array()
        .is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

/// How often the container of a pod has started, by what it wrote on its node's disk.
fn starts(dir: &Path, pod: &Value) -> usize {
    fn count(folder: &Path) -> usize {
        let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
        let count_of = |path: PathBuf| {
            if path.is_dir() {
                return count(&path);
            }
            let text = std::fs::read(&path).unwrap_or_default();
            let lines = String::from_utf8_lossy(&text).into_owned();
            lines.lines().filter(|line| line.contains("working for")).count()
        };
        entries.map(|entry| count_of(entry.unwrap().path())).sum()
    }
    let Some(node) = pod["spec"]["nodeName"].as_str() else { return 0 };
    count(&dir.join(node).join("pods").join(pod["metadata"]["uid"].as_str().unwrap()))
}

/// What is not yet as it must be once everything has come to rest.
fn restless(world: &World) -> Vec<String> {
    let mut out = Vec::new();
    for node in world.list("nodes", &[]) {
        if !is_ready(&node) {
            out.push(format!("node {} is not ready", name(&node)));
        }
    }
    let pods = world.list("pods", &[]);
    let always = pods.iter().filter(|pod| pod["metadata"]["labels"]["app"] == "ticker").count();
    if always != REPLICAS {
        out.push(format!("{always} pods of the Deployment"));
    }
    for pod in &pods {
        let restful = match pod["spec"]["restartPolicy"].as_str().unwrap() {
            "Always" => is_ready(pod),
            "OnFailure" => phase(pod) == "Succeeded",
            _ => ["Succeeded", "Failed"].contains(&phase(pod)),
        };
        if !restful {
            out.push(format!("pod {}: {}", name(pod), pod["status"]));
        }
    }
    out
}

fn come_to_rest(world: &World) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = restless(world);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "did not come to rest:\n{}", left.join("\n"));
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn check(world: &World, acknowledged: &BTreeSet<String>, uids: &BTreeMap<String, String>) {
    let there: BTreeMap<String, Value> = world
        .list("configmaps", &[])
        .into_iter()
        .map(|object| (name(&object).to_owned(), object["data"]["value"].clone()))
        .collect();
    for write in acknowledged {
        assert_eq!(there.get(write), Some(&Value::from(write.as_str())), "an acknowledged write is lost");
    }
    for pod in world.list("pods", &[]) {
        let name = name(&pod);
        if let Some(uid) = uids.get(name) {
            assert_eq!(pod["metadata"]["uid"], uid.as_str(), "{name} is another pod");
        }
        let node = NODES.iter().position(|node| pod["spec"]["nodeName"] == *node);
        match pod["spec"]["restartPolicy"].as_str().unwrap() {
            "Never" => {
                assert!(starts(&world.dir, &pod) <= 1, "{name} started more than once: {pod:#}");
                assert_eq!(restarts(&pod), 0, "{name}");
            }
            // Each end is the end of its agent: nothing else ends a ticker.
            "Always" => {
                assert!(restarts(&pod) <= world.agent_kills[node.unwrap()], "{name}: {}", pod["status"])
            }
            _ => {}
        }
    }
}

#[test]
fn a_hundred_rounds_of_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::open_or_create(&folder.path().join("broker")).unwrap();
    std::fs::write(folder.path().join("broker-ca.pem"), authority.ca_pem()).unwrap();
    let own = authority.issue_server(&["127.0.0.1".to_owned()]).unwrap();
    let users = [GATEWAY, NODES[0], NODES[1]].map(|user| (user.to_owned(), PASSWORD.to_owned()));
    let broker =
        Mosquitto::start(Proof::Passwords, authority.ca_pem(), &own.chain_pem, &own.key_pem, &users).unwrap();
    if broker.is_some() {
        play(folder.path(), broker, ROUNDS);
    }
}

#[test]
fn the_broker_of_the_server_dies_with_it() {
    let folder = tempfile::tempdir().unwrap();
    play(folder.path(), None, ROUNDS_EMBEDDED);
}

fn play(dir: &Path, broker: Option<Mosquitto>, rounds: u64) {
    // The nodes' addresses are of this machine, so that one cluster is here at a time.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let setting = |name, default| std::env::var(name).map_or(default, |text| text.parse().expect(name));
    let (rounds, seed) = (setting("LICHEN_KILL_ROUNDS", rounds), setting("LICHEN_KILL_SEED", 1));
    println!("LICHEN_KILL_SEED={seed} LICHEN_KILL_ROUNDS={rounds}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut world = World::start(dir, broker);
    for guest in ["ticker", "worker"] {
        world.lichen(&["push", &format!("{GUESTS}/{guest}.wasm"), &format!("{guest}:v1")]);
    }
    world.apply(
        "deployment.yaml",
        &format!(
            "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: ticker}}, spec: {{replicas: {REPLICAS}, \
             selector: {{matchLabels: {{app: ticker}}}}, template: {{metadata: {{labels: {{app: ticker}}}}, spec: \
             {{containers: [{{name: main, image: 'ticker:v1'}}]}}}}}}}}"
        ),
    );
    come_to_rest(&world);
    let uid = |pod: &Value| (name(pod).to_owned(), pod["metadata"]["uid"].as_str().unwrap().to_owned());
    let uids: BTreeMap<String, String> = world.list("pods", &[]).iter().map(uid).collect();
    let writer = Writer::start(&world.dir, {
        let dir = world.dir.clone();
        move |arguments| client(&dir, arguments)
    });
    for round in 1..=rounds {
        let ms = random.random_range(0..600);
        let pods = [
            pod(&format!("once-{round}"), "Never", &format!("['--ms', '{ms}']")),
            pod(&format!("until-{round}"), "OnFailure", &format!("['--ms', '{ms}']")),
        ];
        world.apply("pods.yaml", &pods.join("---\n"));
        world.round(&mut random);
        if round % ROUNDS_TO_REST == 0 {
            come_to_rest(&world);
            check(&world, &writer.acknowledged(), &uids);
        }
    }
    let acknowledged = writer.finish().unwrap();
    come_to_rest(&world);
    check(&world, &acknowledged, &uids);
    assert!(acknowledged.len() > BATCH, "the client wrote hardly anything: {}", acknowledged.len());
    let pods = world.list("pods", &[]);
    let failed = pods.iter().filter(|pod| phase(pod) == "Failed").count();
    let restarted = pods.iter().filter(|pod| restarts(pod) > 0).count();
    assert!(failed > 0 && restarted > 0, "no kill met a pod at work");
    println!(
        "{} writes acknowledged, agents killed {:?} times, of {} pods {failed} failed and {restarted} restarted",
        acknowledged.len(),
        world.agent_kills,
        pods.len()
    );
}
