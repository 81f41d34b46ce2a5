//! A node's life as its owner sees it: its certificate is renewed while it runs and after it was off for too long, it is
//! decommissioned, and its device is revoked.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lichen_firmware_tests::cluster::succeed;
use lichen_firmware_tests::process::Process;
use serde_json::Value;

const LICHEN: &str = env!("CARGO_BIN_EXE_lichen");
const TICKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../runtime/guests/ticker.wasm");
/// How long a node's certificate holds here: long enough that an artifact is compiled between two renewals.
const CERTIFICATE_TTL: Duration = Duration::from_secs(12);
const PATIENCE: Duration = Duration::from_secs(90);
const NODE: &str = "edge-1";
const RENEWED: &str = "the node's certificate and key were renewed";

struct World {
    dir: PathBuf,
    mqtt: String,
    _server: Process,
}

impl World {
    fn start(dir: &Path) -> World {
        let port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let (api, mqtt) = (port(), port());
        let mut command = Command::new(LICHEN);
        command.args(["server", "--api-addr", &api, "--mqtt-addr", &mqtt, "--node-certificate-ttl"]);
        command.arg(format!("{}s", CERTIFICATE_TTL.as_secs())).arg("--data-dir").arg(dir.join("control"));
        let server = Process::start("server", command, dir, &["A node joins"]).unwrap();
        World { dir: dir.into(), mqtt, _server: server }
    }

    fn agent(&self) -> Process {
        let mut command = Command::new(LICHEN);
        command.args(["--log", "info", "agent", "--server", &self.mqtt, "--node-name", NODE, "--token-file"]);
        command.arg(self.dir.join("token")).arg("--data-dir").arg(self.dir.join(NODE));
        Process::start(NODE, command, &self.dir, &["node "]).unwrap()
    }

    fn new_token(&self) -> String {
        let token = self.lichen(&["token", "create"]);
        std::fs::write(self.dir.join("token"), &token).unwrap();
        token.split('.').next().unwrap().to_owned()
    }

    fn token_secret(&self) -> String {
        let token = std::fs::read_to_string(self.dir.join("token")).unwrap();
        token.split('.').nth(1).unwrap().to_owned()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(LICHEN);
        command.args(arguments).env("KUBECONFIG", self.dir.join("control/admin.kubeconfig"));
        command.stdin(Stdio::null());
        command
    }

    fn lichen(&self, arguments: &[&str]) -> String {
        succeed(self.command(arguments).output().unwrap(), arguments).unwrap()
    }

    fn apply(&self, manifest: &str) {
        let file = self.dir.join("manifest.yaml");
        std::fs::write(&file, manifest).unwrap();
        self.lichen(&["apply", "-f", &file.to_string_lossy()]);
    }

    fn get(&self, kind: &str, name: &str) -> Value {
        let output = self.command(&["get", kind, name, "-o", "json"]).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// How often the agent's log says something.
    fn said(&self, what: &str) -> usize {
        let log = std::fs::read_to_string(self.dir.join(format!("{NODE}.log"))).unwrap_or_default();
        log.matches(what).count()
    }

    /// The pod's restarts once it runs on a node that is there.
    fn running(&self) -> u64 {
        let mut restarts = 0;
        eventually("the pod runs", || {
            let pod = self.get("pod", "ticker");
            let status = &pod["status"]["containerStatuses"][0];
            restarts = status["restartCount"].as_u64().unwrap_or_default();
            let ready = |one: &Value| one["type"] == "Ready" && one["status"] == "True";
            let node = self.get("node", NODE);
            let there = node["status"]["conditions"].as_array().is_some_and(|all| all.iter().any(ready));
            !status["state"]["running"].is_null() && there
        });
        restarts
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: it never came to that");
        std::thread::sleep(Duration::from_millis(100));
    }
}

const POD: &str = "{apiVersion: v1, kind: Pod, metadata: {name: ticker}, spec: {terminationGracePeriodSeconds: 1, \
                   containers: [{name: main, image: 'ticker:v1', envFrom: [{secretRef: {name: db}}]}]}}";

#[test]
fn a_node_renews_itself_is_decommissioned_and_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path());
    world.lichen(&["push", TICKER, "ticker:v1"]);
    world.apply("{apiVersion: v1, kind: Secret, metadata: {name: db}, stringData: {PASSWORD: hidden}}");
    let first = world.new_token();
    let listed = world.lichen(&["token", "list"]);
    assert!(listed.contains(&first) && !listed.contains(world.token_secret().as_str()), "{listed}");
    let mut agent = world.agent();
    world.apply(POD);
    assert_eq!(world.running(), 0);

    // Twice renewed, and no pod has noticed.
    eventually("the certificate is renewed", || world.said(RENEWED) >= 2);
    assert_eq!(world.running(), 0);

    // Off for longer than its certificate holds, it comes back by itself.
    agent.kill().unwrap();
    let before = world.said(RENEWED);
    std::thread::sleep(CERTIFICATE_TTL + Duration::from_secs(1));
    let mut agent = world.agent();
    eventually("the certificate is renewed", || world.said(RENEWED) > before);
    assert_eq!(world.running(), 1);

    // A token that was taken back lets nobody in, and the machine says what to do.
    world.lichen(&["token", "revoke", &first]);
    let refused = Command::new(LICHEN)
        .args(["agent", "--server", &world.mqtt, "--node-name", "edge-2", "--token-file"])
        .arg(dir.path().join("token"))
        .arg("--data-dir")
        .arg(dir.path().join("edge-2"))
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && error.contains("lichen token create"), "{error}");

    let removed = world.lichen(&["node", "remove", NODE]);
    assert_eq!(removed, format!("node \"{NODE}\" removed\n"));
    let mut status = None;
    eventually("the agent ends", || {
        status = agent.ended().unwrap();
        status.is_some()
    });
    assert!(status.unwrap().success());
    assert_eq!(std::fs::read_dir(dir.path().join(NODE)).unwrap().count(), 0, "it wiped what made it a node");
    for (kind, name) in [("node", NODE), ("pod", "ticker")] {
        assert_eq!(world.get(kind, name), Value::Null, "{kind}");
    }

    // The machine joins again, and is stolen.
    let second = world.new_token();
    let mut agent = world.agent();
    world.apply(POD);
    assert_eq!(world.running(), 0);
    let revoked: Value =
        serde_json::from_str(&world.lichen(&["node", "revoke", NODE, "-o", "json"])).unwrap();
    let expect = serde_json::json!({
        "node": NODE, "tokens": [&second], "secrets": [{ "namespace": "default", "name": "db" }],
    });
    assert_eq!(revoked, expect);
    assert!(!world.lichen(&["token", "list"]).contains(&second));
    const REFUSED: &str = "the broker refuses this node";
    eventually("the device is refused", || world.said(REFUSED) > 0);
    let before = world.said(REFUSED);
    agent.kill().unwrap();
    let _agent = world.agent();
    eventually("the device is refused again", || world.said(REFUSED) > before);
    for (kind, name) in [("node", NODE), ("pod", "ticker")] {
        assert_eq!(world.get(kind, name), Value::Null, "{kind}");
    }
    let again = world.lichen(&["node", "revoke", NODE]);
    assert!(again.contains("default     db"), "it says so as often as it is asked: {again}");
    let unknown = world.command(&["node", "revoke", "edge-9"]).output().unwrap();
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("no machine had joined as \"edge-9\""));
    let unknown = world.command(&["node", "remove", "edge-9"]).output().unwrap();
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("nodes \"edge-9\" not found"));
}
