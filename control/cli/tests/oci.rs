//! OCI containers beside components, on a node whose agent is killed: an image goes by skopeo into the cluster's registry,
//! from there through the node's session into a real engine (runc, crun).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lichen_firmware_tests::cluster::succeed;
use lichen_firmware_tests::process::Process;
use lichen_firmware_tests::tools;
use serde_json::{Value, json};

const LICHEN: &str = env!("CARGO_BIN_EXE_lichen");
const TICKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../runtime/guests/ticker.wasm");
const NODE: &str = "edge-1";
/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server and one node, each a process.
struct World {
    dir: tempfile::TempDir,
    api: String,
    mqtt: String,
    _server: Process,
    agent: Option<Process>,
}

impl World {
    fn start() -> Self {
        let port = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let (dir, api, mqtt) = (tempfile::tempdir().unwrap(), port(), port());
        let mut command = Command::new(LICHEN);
        command.args(["server", "--api-addr", &api, "--mqtt-addr", &mqtt, "--data-dir"]);
        command.arg(dir.path().join("control"));
        let server = Process::start("server", command, dir.path(), &["A node joins"]).unwrap();
        let mut world = Self { dir, api, mqtt, _server: server, agent: None };
        std::fs::write(world.path("token"), world.lichen(&["token", "create"])).unwrap();
        world.start_agent();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start_agent(&mut self) {
        let mut command = Command::new(LICHEN);
        command.args(["agent", "--node-name", NODE, "--server", &self.mqtt, "--token-file"]);
        command.arg(self.path("token")).arg("--data-dir").arg(self.path(NODE));
        self.agent = Some(Process::start(NODE, command, self.dir.path(), &["node "]).unwrap());
    }

    fn kill_agent(&mut self) {
        self.agent.take().unwrap().kill().unwrap();
    }

    fn lichen(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(LICHEN);
        let kubeconfig = self.path("control/admin.kubeconfig");
        command.args(arguments).env("KUBECONFIG", kubeconfig).stdin(Stdio::null());
        succeed(command.output().unwrap(), arguments).unwrap()
    }

    fn apply(&self, pod: &Value) {
        let file = self.path("manifest.yaml");
        std::fs::write(&file, pod.to_string()).unwrap();
        self.lichen(&["apply", "-f", &file.to_string_lossy()]);
    }

    fn pod(&self, name: &str) -> Value {
        serde_json::from_str(&self.lichen(&["get", "pod", name, "-o", "json"])).unwrap()
    }

    /// Waits until a pod is as it should be.
    fn wait(&self, name: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let pod = self.pod(name);
            if fits(&pod["status"]) {
                return pod;
            }
            assert!(Instant::now() < deadline, "gave up on {name}: {:#}", pod["status"]);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Copies an image of busybox into the cluster's registry, as its users do.
    fn push(&self, busybox: &Path, name: &str) {
        let layout = self.path("layout");
        write_layout(&layout, busybox);
        let certificates = self.path("certificates");
        std::fs::create_dir(&certificates).unwrap();
        let kubeconfig = std::fs::read_to_string(self.path("control/admin.kubeconfig")).unwrap();
        let kubeconfig: Value = serde_yaml_ng::from_str(&kubeconfig).unwrap();
        let (cluster, user) = (&kubeconfig["clusters"][0]["cluster"], &kubeconfig["users"][0]["user"]);
        for (file, data) in [
            ("ca.crt", &cluster["certificate-authority-data"]),
            ("client.cert", &user["client-certificate-data"]),
            ("client.key", &user["client-key-data"]),
        ] {
            std::fs::write(certificates.join(file), STANDARD.decode(data.as_str().unwrap()).unwrap())
                .unwrap();
        }
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["--insecure-policy", "copy", "--quiet", "--dest-cert-dir"]).arg(&certificates);
        skopeo.arg(format!("oci:{}:latest", layout.display())).arg(format!("docker://{}/{name}", self.api));
        succeed(skopeo.output().unwrap(), &["skopeo", "copy"]).unwrap();
    }
}

impl Drop for World {
    /// A test that failed leaves containers, which outlive their agent as they should.
    fn drop(&mut self) {
        drop(self.agent.take());
        let dir = self.path(NODE).join("oci");
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let decided = std::fs::read(entry.path().join("decided.json")).unwrap_or_default();
            let Ok(decided) = serde_json::from_slice::<Value>(&decided) else { continue };
            let Some(engine) = decided["engine"]["program"].as_str() else { continue };
            let mut delete = Command::new(engine);
            delete.arg("--root").arg(dir.join(".engine")).args(["delete", "--force", &name]);
            let _ = delete.output();
            let _ = Command::new("umount").arg(entry.path().join("rootfs")).output();
        }
    }
}

/// An image as an OCI layout: busybox and its shell.
fn write_layout(layout: &Path, busybox: &Path) {
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let root = layout.join("root/bin");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::copy(busybox, root.join("busybox")).unwrap();
    for applet in ["sh", "sleep", "tail", "wget"] {
        std::os::unix::fs::symlink("busybox", root.join(applet)).unwrap();
    }
    let mut tar = Command::new("tar");
    tar.args(["-czf"]).arg(layout.join("layer")).arg("-C").arg(layout.join("root")).arg("bin");
    succeed(tar.output().unwrap(), &["tar"]).unwrap();
    let add = |content: &[u8], kind: &str| {
        let digest = lichen_artifacts::Digest::of(content);
        std::fs::write(blobs.join(digest.hex()), content).unwrap();
        json!({ "mediaType": kind, "digest": digest.to_string(), "size": content.len() })
    };
    let layer =
        add(&std::fs::read(layout.join("layer")).unwrap(), "application/vnd.oci.image.layer.v1.tar+gzip");
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({ "os": "linux", "architecture": architecture, "rootfs": { "type": "layers", "diff_ids": [] },
        "config": { "Env": ["PATH=/bin"], "Cmd": ["sh"] } });
    let config = add(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer] });
    let mut manifest = add(manifest.to_string().as_bytes(), kind);
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

fn pod(name: &str, restart: &str, containers: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "default" }, "spec": {
        // The machine that tests run on may have a disk that is nearly full.
        "tolerations": [{ "key": "node.kubernetes.io/disk-pressure", "operator": "Exists" }],
        "restartPolicy": restart, "terminationGracePeriodSeconds": 2, "containers": containers,
        "volumes": [{ "name": "v", "emptyDir": {} }] } })
}

fn sh(script: &str) -> Value {
    json!({ "name": "main", "image": "box:v1", "command": ["sh", "-c", script],
        "volumeMounts": [{ "name": "v", "mountPath": "/v" }] })
}

/// The part of a pod's status that is about a container.
fn container<'a>(status: &'a Value, name: &str) -> &'a Value {
    let all = status["containerStatuses"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().find(|one| one["name"] == name).unwrap_or(&Value::Null)
}

fn numbers(log: &str) -> Vec<u64> {
    log.lines().filter_map(|line| line.strip_prefix("count ")?.parse().ok()).collect()
}

#[test]
fn a_container_outlives_its_agent_and_its_component_does_not() {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new).into_iter().find(|path| path.is_file());
    let has = |tool: &str| ["/usr/bin", "/usr/sbin"].iter().any(|dir| Path::new(dir).join(tool).is_file());
    let (true, true, Some(busybox)) = (rustix::process::geteuid().is_root(), has("skopeo"), busybox) else {
        return tools::missing("OCI containers need root, busybox-static and skopeo");
    };
    if !has("runc") && !has("crun") {
        return tools::missing("OCI containers need runc or crun");
    }
    let mut world = World::start();
    world.push(busybox, "box:v1");
    world.lichen(&["push", TICKER, "ticker:v1"]);

    let count = "trap 'exit 0' TERM; n=0; while :; do n=$((n+1)); echo count $n; sleep 0.1; done";
    let ticker = json!({ "name": "ticker", "image": "ticker:v1" });
    world.apply(&pod("both", "Always", json!([sh(count), ticker])));
    world.apply(&pod("once", "Never", json!([sh("while [ ! -e /v/go ]; do sleep 0.1; done; exit 7")])));
    let running =
        |name: &'static str| move |status: &Value| !container(status, name)["state"]["running"].is_null();
    world.wait("both", |status| running("ticker")(status) && running("main")(status));
    let once = world.wait("once", running("main"));
    let before = world.pod("both");
    let main = container(&before["status"], "main").clone();
    assert!(main["containerID"].as_str().unwrap().starts_with("oci://"), "{main}");
    assert!(main["imageID"].as_str().unwrap().starts_with("box@sha256:"), "{main}");
    let log = world
        .path(NODE)
        .join("pods")
        .join(before["metadata"]["uid"].as_str().unwrap())
        .join("logs/main/0.log");

    world.kill_agent();
    // It counts on while nobody watches, and what ends meanwhile is known.
    let size = std::fs::metadata(&log).unwrap().len();
    let deadline = Instant::now() + PATIENCE;
    while std::fs::metadata(&log).unwrap().len() < size + 200 {
        assert!(Instant::now() < deadline, "the container stopped with its agent");
        std::thread::sleep(Duration::from_millis(100));
    }
    let volume =
        world.path(NODE).join("pods").join(once["metadata"]["uid"].as_str().unwrap()).join("volumes/v");
    std::fs::write(volume.join("go"), "").unwrap();
    let directory =
        world.path(NODE).join("oci").join(format!("{}_main_0", once["metadata"]["uid"].as_str().unwrap()));
    while !directory.join("ended.json").exists() {
        assert!(Instant::now() < deadline, "its end was not written down");
        std::thread::sleep(Duration::from_millis(50));
    }
    world.start_agent();

    let ended = world.wait("once", |status| status["phase"] == "Failed");
    let state = &container(&ended["status"], "main")["state"]["terminated"];
    assert_eq!((&state["exitCode"], &state["reason"]), (&json!(7), &json!("Error")));
    let after = world
        .wait("both", |status| container(status, "ticker")["restartCount"] == 1 && running("ticker")(status));
    let (status, same) = (&after["status"], container(&after["status"], "main"));
    assert_eq!(same["restartCount"], 0, "{status:#}");
    assert_eq!(same["containerID"], main["containerID"]);
    // Killed at once, the agent may not have written down yet when it saw the start: then the engine's word counts.
    let started = |container: &Value| -> jiff::Timestamp {
        container["state"]["running"]["startedAt"].as_str().unwrap().parse().unwrap()
    };
    let apart = started(same).duration_since(started(&main)).abs();
    assert!(apart <= jiff::SignedDuration::from_secs(1), "it runs since when it did: {same} {main}");
    let lost = &container(status, "ticker")["lastState"]["terminated"];
    assert_eq!(lost["reason"], "ContainerStatusUnknown", "{lost}");
    let counted = numbers(&world.lichen(&["logs", "both", "-c", "main"]));
    assert!(counted.len() > 3 && counted.windows(2).all(|two| two[1] == two[0] + 1), "{counted:?}");

    // A container that is taken back and then ends is restarted like any other.
    let init =
        world.path(NODE).join("oci").join(format!("{}_main_0", after["metadata"]["uid"].as_str().unwrap()));
    let init = std::fs::read_to_string(init.join("pid")).unwrap();
    succeed(Command::new("kill").args(["-TERM", init.trim()]).output().unwrap(), &["kill"]).unwrap();
    let again = world
        .wait("both", |status| container(status, "main")["restartCount"] == 1 && running("main")(status));
    assert_eq!(container(&again["status"], "main")["lastState"]["terminated"]["reason"], "Completed");

    ends(&world);
    for name in ["both", "once", "hungry", "absent", "reached"] {
        world.lichen(&["delete", "pod", name]);
    }
    let left = || std::fs::read_dir(world.path(NODE).join("oci")).unwrap().count();
    let deadline = Instant::now() + PATIENCE;
    while left() > 1 {
        assert!(Instant::now() < deadline, "containers are left beside the engine's own directory");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// How containers end that cannot live.
fn ends(world: &World) {
    let mut hungry = sh("exec tail /dev/zero");
    hungry["resources"] = json!({ "limits": { "memory": "16Mi" } });
    world.apply(&pod("hungry", "Never", json!([hungry])));
    let mut absent = sh("");
    absent["command"] = json!(["/no/such/program"]);
    world.apply(&pod("absent", "Never", json!([absent])));
    let mut reached = sh("sleep 1");
    reached["ports"] = json!([{ "containerPort": 80 }]);
    world.apply(&pod("reached", "Never", json!([reached])));
    let failed = |name| {
        let pod = world.wait(name, |status| status["phase"] == "Failed");
        container(&pod["status"], "main")["state"]["terminated"].clone()
    };
    let oom = failed("hungry");
    assert_eq!((&oom["exitCode"], &oom["reason"]), (&json!(137), &json!("OOMKilled")));
    let start = failed("absent");
    assert_eq!((&start["exitCode"], &start["reason"]), (&json!(128), &json!("StartError")));
    assert!(start["message"].as_str().unwrap().contains("/no/such/program"), "{start}");
    let waits =
        world.wait("reached", |status| !container(status, "main")["state"]["waiting"]["message"].is_null());
    let why = &container(&waits["status"], "main")["state"]["waiting"];
    assert_eq!(why["reason"], "CreateContainerConfigError");
    assert!(why["message"].as_str().unwrap().contains("hostNetwork: true"), "{why}");
}
