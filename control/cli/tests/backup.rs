//! A backup of a running cluster, what is refused, and the cluster that is made of it: its nodes come back by themselves and
//! keep their pods.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use lichen_firmware_tests::cluster::succeed;
use lichen_firmware_tests::process::Process;
use serde_json::Value;

const LICHEN: &str = env!("CARGO_BIN_EXE_lichen");
const TICKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../runtime/guests/ticker.wasm");
const PATIENCE: Duration = Duration::from_secs(90);
const NODE: &str = "edge-1";
const MANIFEST: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: ticker},
 spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: 'ticker:v1'}]}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: kept}, data: {a: before}}
---
{apiVersion: v1, kind: Secret, metadata: {name: password}, stringData: {password: correct-horse}}
";

struct World<'a> {
    dir: &'a Path,
    api: String,
    mqtt: String,
}

impl World<'_> {
    fn server(&self, data: &str) -> Process {
        let mut command = Command::new(LICHEN);
        command.args(["server", "--api-addr", &self.api, "--mqtt-addr", &self.mqtt, "--data-dir"]);
        command.arg(self.dir.join(data));
        Process::start(data, command, self.dir, &["A node joins"]).unwrap()
    }

    /// With the first server's kubeconfig, whichever runs.
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(LICHEN);
        command.args(arguments).env("KUBECONFIG", self.dir.join("admin.kubeconfig")).current_dir(self.dir);
        command.stdin(Stdio::null()).output().unwrap()
    }

    fn lichen(&self, arguments: &[&str]) -> String {
        succeed(self.run(arguments), arguments).unwrap()
    }

    /// What it says about something that it refuses.
    fn refuses(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(!output.status.success(), "{arguments:?} should be refused");
        String::from_utf8(output.stderr).unwrap()
    }

    fn get(&self, kind: &str, name: &str) -> Value {
        let output = self.run(&["get", kind, name, "-o", "json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// When the pod's container has started, once it runs and its node is there.
    fn running_since(&self) -> (Value, Value) {
        let mut since = (Value::Null, Value::Null);
        eventually("the pod runs", || {
            let status = self.get("pod", "ticker")["status"]["containerStatuses"][0].clone();
            since = (status["state"]["running"]["startedAt"].clone(), status["restartCount"].clone());
            let ready = |one: &Value| one["type"] == "Ready" && one["status"] == "True";
            let node = self.get("node", NODE);
            let there = node["status"]["conditions"].as_array().is_some_and(|all| all.iter().any(ready));
            !since.0.is_null() && there
        });
        since
    }

    fn agent_said(&self, what: &str) -> usize {
        let log = std::fs::read_to_string(self.dir.join(format!("{NODE}.log"))).unwrap_or_default();
        log.matches(what).count()
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: it never came to that");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_cluster_is_restored_and_its_nodes_keep_their_pods() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let world = World { dir, api: port(), mqtt: port() };
    let mut server = world.server("first");
    std::fs::copy(dir.join("first/admin.kubeconfig"), dir.join("admin.kubeconfig")).unwrap();
    world.lichen(&["push", TICKER, "ticker:v1"]);
    let token = world.lichen(&["token", "create"]);
    let mut command = Command::new(LICHEN);
    command.args([
        "--log",
        "info",
        "agent",
        "--server",
        &world.mqtt,
        "--node-name",
        NODE,
        "--token",
        token.trim(),
    ]);
    command.arg("--data-dir").arg(dir.join(NODE));
    let _agent = Process::start(NODE, command, dir, &["node "]).unwrap();
    std::fs::write(dir.join("manifest.yaml"), MANIFEST).unwrap();
    world.lichen(&["apply", "-f", "manifest.yaml"]);
    let before = world.running_since();

    let said = world.lichen(&["backup", "saved"]);
    assert!(said.contains("saved holds") && said.contains("keep it"), "{said}");
    let file = dir.join("saved");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!dir.join("saved.part").exists());
    // It is replaced as a whole.
    world.lichen(&["backup", "saved"]);
    let bytes = std::fs::read(&file).unwrap();

    // Whatever is done after the backup is lost with the server, and must be noticed to be.
    std::fs::write(dir.join("late.yaml"), MANIFEST.replace("before", "after")).unwrap();
    world.lichen(&["apply", "-f", "late.yaml"]);
    let late = world.get("configmap", "kept")["metadata"]["resourceVersion"].as_str().unwrap().to_owned();

    let refused = world.refuses(&["restore", "saved", "--data-dir", "first"]);
    assert!(refused.contains("is not empty") && refused.contains("another directory"), "{refused}");
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    let mut newer = bytes.clone();
    newer[8] += 1;
    for (content, expect) in [
        (&bytes[..bytes.len() - 1], "it is cut short"),
        (&bytes[..bytes.len() / 2], "it is cut short"),
        (&flipped, "it is damaged"),
        (&newer, "restore it with the version that made it"),
        (b"apiVersion: v1", "it is no backup"),
    ] {
        std::fs::write(dir.join("bad"), content).unwrap();
        let refused = world.refuses(&["restore", "bad", "--data-dir", "second"]);
        assert!(refused.contains(expect), "{refused} should say {expect:?}");
        assert!(!dir.join("second/server").exists() && !dir.join("second/server.restoring").exists());
    }
    assert!(world.refuses(&["restore", "nowhere", "--data-dir", "second"]).contains("nowhere"));
    assert_eq!(world.get("configmap", "kept")["data"]["a"], "after", "the cluster goes on as it was");

    server.kill().unwrap();
    // One that did not end is in nobody's way.
    std::fs::create_dir_all(dir.join("second/server.restoring/store")).unwrap();
    let said = world.lichen(&["restore", "saved", "--data-dir", "second"]);
    assert!(said.contains("taken at") && said.contains("lichen server --data-dir second"), "{said}");
    assert!(world.refuses(&["restore", "saved", "--data-dir", "second"]).contains("is not empty"));
    let connected = world.agent_said("connected with the control plane");
    let _server = world.server("second");
    eventually("the node comes back", || world.agent_said("connected with the control plane") > connected);
    // The old kubeconfig holds, what was saved is there, and the pod is the one that ran all the time.
    assert_eq!(world.running_since(), before);
    assert_eq!(world.get("configmap", "kept")["data"]["a"], "before");
    assert_eq!(world.get("secret", "password")["data"]["password"], "Y29ycmVjdC1ob3JzZQ==");
    // No revision is used again, not even those that were lost.
    world.lichen(&["apply", "-f", "late.yaml"]);
    let again = world.get("configmap", "kept")["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    assert!(
        again.parse::<u64>().unwrap() > late.parse::<u64>().unwrap() + 1_000_000_000,
        "{again} after {late}"
    );
    // And it obeys the new server.
    world.lichen(&["delete", "pod", "ticker"]);
    eventually("the pod ends", || world.get("pod", "ticker").is_null());
}
