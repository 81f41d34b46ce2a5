//! The broker goes away for much longer than a node may be silent, and comes back: a hundred nodes, each the agent itself
//! with a runtime that is played, meet their server at Mosquitto.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lichen_agent::Agent;
use lichen_control::{Access, Broker, Config, Server};
use lichen_firmware_tests::cluster::succeed;
use lichen_firmware_tests::mosquitto::{Mosquitto, Proof};
use lichen_pki::Authority;
use lichen_wire::session::Timing;
use lichen_workload::mock::{Call, MockRuntime};
use serde_json::Value;

const LICHEN: &str = env!("CARGO_BIN_EXE_lichen");
const HELLO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../runtime/guests/hello.wasm");
const NODES: usize = 100;
/// How long a node may be silent, here, and the longest pause of an agent: both a tenth of what is usual, or less.
const GRACE: Duration = Duration::from_secs(4);
const RETRY: Duration = Duration::from_secs(1);
/// Long enough for every session to be lost at both ends, and for several times the grace.
const LOSS: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(120);

/// A cluster whose broker is Mosquitto.
struct World {
    dir: tempfile::TempDir,
    authority: Authority,
    mosquitto: Mosquitto,
    runtime: MockRuntime,
    agents: BTreeMap<String, Agent>,
}

impl World {
    fn access(&self, user: &str) -> Access {
        Access {
            ca_pem: Some(self.authority.ca_pem().to_owned()),
            credentials: Some(self.authority.issue_client(user, None).unwrap()),
            ..Access::new(self.mosquitto.address().to_string())
        }
    }

    async fn server(&self) -> Server {
        let server = Server::start(Config {
            broker: Broker::External(self.access("lichen-gateway")),
            silence_grace: GRACE,
            timing: Timing { keepalive_ms: 2_000, silence_max_ms: 8_000, ..Timing::DEFAULT },
            // What it makes is never run.
            compile_worker: ["/bin/sh", "-c", "cat > /dev/null; echo compiled"].map(str::to_owned).into(),
            ..Config::new(self.dir.path().join("server"))
        });
        let server = server.await.unwrap();
        std::fs::write(self.kubeconfig(), server.admin_kubeconfig()).unwrap();
        server
    }

    fn kubeconfig(&self) -> std::path::PathBuf {
        self.dir.path().join("kubeconfig")
    }

    async fn agent(&self, node: &str, broker: Option<Access>, token: Option<String>) -> Agent {
        let mut config = lichen_agent::Config::new(node, self.dir.path().join(node), "");
        (config.broker, config.token, config.retry_max) = (broker, token, RETRY);
        // All nodes share the machine.
        Agent::start_with(config, Arc::new(self.runtime.clone())).await.unwrap()
    }

    /// Runs `lichen`, which blocks, beside the cluster.
    async fn lichen(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(LICHEN);
        command.args(arguments).env("KUBECONFIG", self.kubeconfig());
        let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
        let run = move || {
            let texts: Vec<&str> = arguments.iter().map(String::as_str).collect();
            succeed(command.output().unwrap(), &texts).unwrap()
        };
        tokio::task::spawn_blocking(run).await.unwrap()
    }

    async fn list(&self, arguments: &[&str]) -> Value {
        let arguments = [&["get"], arguments, &["-o", "json"]].concat();
        serde_json::from_str(&self.lichen(&arguments).await).unwrap()
    }

    /// The store's revision.
    async fn revision(&self) -> u64 {
        let list = self.list(&["configmaps"]).await;
        list["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
    }

    /// Each pod by its UID, with where it is and how often its container was started again.
    async fn pods(&self) -> BTreeMap<String, (String, i64)> {
        let list = self.list(&["pods"]).await;
        let running =
            list["items"].as_array().unwrap().iter().filter(|pod| pod["status"]["phase"] == "Running");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let restarts =
            |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap_or(-1);
        running
            .map(|pod| (text(&pod["metadata"]["uid"]), (text(&pod["spec"]["nodeName"]), restarts(pod))))
            .collect()
    }

    /// Which nodes were heard of since then, as their Leases say.
    async fn heard_since(&self, then: &str) -> BTreeSet<String> {
        let list = self.list(&["leases", "-n", "kube-node-lease"]).await;
        let heard = |lease: &&Value| lease["spec"]["renewTime"].as_str().is_some_and(|at| at > then);
        let leases = list["items"].as_array().unwrap().iter().filter(heard);
        leases.map(|lease| lease["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    }

    async fn ready_nodes(&self) -> usize {
        let list = self.list(&["nodes"]).await;
        let ready = |node: &&Value| {
            let conditions = node["status"]["conditions"].as_array();
            let ready = |one: &Value| one["type"] == "Ready" && one["status"] == "True";
            conditions.is_some_and(|all| all.iter().any(ready))
                && !node["spec"]["taints"].to_string().contains("NoExecute")
        };
        list["items"].as_array().unwrap().iter().filter(ready).count()
    }

    fn starts(&self) -> usize {
        self.runtime.calls().iter().filter(|call| matches!(call, Call::Start(_))).count()
    }
}

/// Asks until the answer fits.
async fn eventually<T: std::fmt::Debug>(mut ask: impl AsyncFnMut() -> T, fits: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask().await;
        if fits(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "gave up; the last answer was {answer:?}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// A time as Leases have it.
fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// Its pods also go where a disk is nearly full, which is the machine's affair and not the test's.
fn deployment(path: &Path, replicas: usize) -> String {
    let manifest = format!(
        "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: hello}}, spec: {{replicas: {replicas}, \
         selector: {{matchLabels: {{app: hello}}}}, template: {{metadata: {{labels: {{app: hello}}}}, \
         spec: {{tolerations: [{{operator: Exists, effect: NoSchedule}}], \
         containers: [{{name: main, image: 'hello:v1'}}]}}}}}}}}"
    );
    let file = path.join("manifest.yaml");
    std::fs::write(&file, manifest).unwrap();
    file.to_string_lossy().into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_nodes_outlast_their_broker() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open_or_create(&dir.path().join("broker-pki")).unwrap();
    let own = authority.issue_server(&["127.0.0.1".into()]).unwrap();
    let started =
        Mosquitto::start(Proof::Certificates, authority.ca_pem(), &own.chain_pem, &own.key_pem, &[]);
    let Some(mosquitto) = started.unwrap() else { return };
    let (runtime, agents) = (MockRuntime::new(std::time::SystemTime::now), BTreeMap::new());
    let mut world = World { dir, authority, mosquitto, runtime, agents };
    let server = world.server().await;
    let token = server.create_token(Duration::from_secs(3600)).await.unwrap();
    for index in 0..NODES {
        let node = format!("edge-{index:03}");
        let agent = world.agent(&node, Some(world.access(&node)), Some(token.clone())).await;
        world.agents.insert(node, agent);
    }
    world.lichen(&["push", HELLO, "hello:v1"]).await;
    world.lichen(&["apply", "-f", &deployment(world.dir.path(), NODES)]).await;
    let pods = eventually(async || world.pods().await, |pods| pods.len() == NODES).await;
    assert_eq!(world.ready_nodes().await, NODES);
    let mut before = world.revision().await;
    // Whatever follows from the start, such as events, has been written once nothing more is for a while.
    eventually(
        async || {
            tokio::time::sleep(GRACE).await;
            let (last, now) = (before, world.revision().await);
            before = now;
            now - last
        },
        |written| *written == 0,
    )
    .await;
    let starts = world.starts();

    world.mosquitto.kill().unwrap();
    tokio::time::sleep(LOSS).await;
    assert_eq!(world.revision().await, before, "a server that hears nobody judges nobody");
    assert_eq!(world.pods().await, pods);

    let back = now();
    world.mosquitto.restart().unwrap();
    eventually(async || world.heard_since(&back).await.len(), |heard| *heard == NODES).await;
    tokio::time::sleep(GRACE * 2).await;
    assert_eq!(world.revision().await, before, "nothing has changed, so nothing is written");
    assert_eq!(world.pods().await, pods, "the same pods, in the same places, started once");
    assert_eq!(world.starts(), starts);
    assert_eq!(world.ready_nodes().await, NODES);

    // All of them do as they are told again.
    world.lichen(&["apply", "-f", &deployment(world.dir.path(), 2 * NODES)]).await;
    let more = eventually(async || world.pods().await, |pods| pods.len() == 2 * NODES).await;
    assert!(pods.iter().all(|(uid, pod)| more.get(uid) == Some(pod)), "the first are still there");
    let at: BTreeSet<&String> = more.values().map(|(node, _)| node).collect();
    assert_eq!(at.len(), NODES);

    // A node remembers its broker, and how it proves itself there.
    world.agents.remove("edge-000").unwrap().shutdown().await;
    let restarted = now();
    let agent = world.agent("edge-000", None, None).await;
    world.agents.insert("edge-000".to_owned(), agent);
    eventually(async || world.heard_since(&restarted).await, |heard| heard.contains("edge-000")).await;

    for agent in std::mem::take(&mut world.agents).into_values() {
        agent.shutdown().await;
    }
    server.shutdown().await;
}
