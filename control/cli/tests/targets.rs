//! A node of another architecture: `lichen-agent` for 64-bit ARM, in an emulator, joins a server of this machine and runs
//! what the server compiled for it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lichen_firmware_tests::cluster::succeed;
use lichen_firmware_tests::machine::ARM64_LINUX;
use lichen_firmware_tests::process::Process;
use serde_json::Value;

const LICHEN: &str = env!("CARGO_BIN_EXE_lichen");
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const PATIENCE: Duration = Duration::from_secs(120);
/// What an ELF header has for 64-bit ARM.
const ELF_AARCH64: [u8; 2] = [183, 0];

struct World(tempfile::TempDir);

impl World {
    fn dir(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn lichen(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(LICHEN);
        command.args(arguments).env("KUBECONFIG", self.dir("control/admin.kubeconfig")).stdin(Stdio::null());
        succeed(command.output().unwrap(), arguments).unwrap()
    }

    fn get(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.lichen(&[&["get", "-o", "json"], arguments].concat())).unwrap()
    }

    /// Asks for an object until it fits; fails with the last answer.
    fn wait(&self, arguments: &[&str], fits: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let object = self.get(arguments);
            if fits(&object) {
                return object;
            }
            assert!(Instant::now() < deadline, "gave up; the last answer was:\n{object:#}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

/// The compiled components in a folder.
fn artifacts(dir: &Path) -> Vec<Vec<u8>> {
    let files = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    files
        .filter(|path| path.extension().is_some_and(|extension| extension == "cwasm"))
        .map(|path| std::fs::read(path).unwrap())
        .collect()
}

#[test]
fn an_arm_node_runs_what_the_server_compiled_for_it() {
    let Some(programs) = ARM64_LINUX.programs() else { return };
    let world = World(tempfile::tempdir().unwrap());
    let logs = world.0.path();
    let mqtt = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut server = Command::new(LICHEN);
    server.args(["server", "--api-addr", "127.0.0.1:0", "--mqtt-addr", &mqtt, "--data-dir"]);
    server.arg(world.dir("control"));
    let server = Process::start("server", server, logs, &["A node joins"]).unwrap();
    std::fs::write(world.dir("token"), world.lichen(&["token", "create"])).unwrap();

    let began = Instant::now();
    let mut agent = ARM64_LINUX.command(&programs[0]);
    agent.args(["run", "--server", &mqtt, "--node-name", "arm", "--token-file"]).arg(world.dir("token"));
    agent.arg("--data-dir").arg(world.dir("arm"));
    let agent = Process::start("agent", agent, logs, &["node "]).unwrap();
    let node = world.wait(&["nodes"], |list| list["items"].as_array().unwrap().iter().any(is_ready));
    println!("the node is Ready after {} ms", began.elapsed().as_millis());
    let node = &node["items"][0];
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/arch"], "arm64", "{node:#}");
    assert_eq!(node["status"]["nodeInfo"]["architecture"], "arm64", "{node:#}");

    for name in ["hello", "worker"] {
        world.lichen(&["push", &format!("{ROOT}/runtime/guests/{name}.wasm"), &format!("{name}:v1")]);
    }
    let began = Instant::now();
    world.lichen(&["apply", "-f", &format!("{ROOT}/examples/hello/manifest.yaml")]);
    world.wait(&["deployment", "hello", "-n", "hello"], |deployment| {
        deployment["status"]["readyReplicas"] == 3
    });
    world.wait(&["pod", "worker", "-n", "hello"], |pod| pod["status"]["phase"] == "Succeeded");
    println!("all pods are Ready or done after {} ms", began.elapsed().as_millis());
    assert!(world.lichen(&["logs", "-n", "hello", "worker"]).ends_with("done\n"));

    let service = world.get(&["service", "hello", "-n", "hello"]);
    let address = service["spec"]["clusterIP"].as_str().unwrap().replacen("10.", "127.", 1);
    let answer = world.lichen(&["fetch", &format!("http://{address}:8080/")]);
    assert!(answer.starts_with("Hello from Lichen from hello-") && answer.ends_with(" on arm\n"), "{answer}");

    // What runs there was compiled here, for that machine, and arrived as it was.
    let compiled = world.dir("control/server/artifacts/compiled");
    let profiles: Vec<_> = std::fs::read_dir(&compiled).unwrap().map(|dir| dir.unwrap().path()).collect();
    assert_eq!(profiles.len(), 1, "{profiles:?}");
    let profile = profiles[0].file_name().unwrap().to_string_lossy().into_owned();
    assert!(profile.contains("-aarch64-unknown-linux-gnu-"), "{profile}");
    let (mut made, mut got) = (artifacts(&profiles[0]), artifacts(&world.dir("arm/artifacts")));
    made.sort();
    got.sort();
    assert!(made.len() == 2 && made == got, "the node has what was made for it");
    assert!(made.iter().all(|file| file[18..20] == ELF_AARCH64), "it is machine code for 64-bit ARM");
    agent.stop().unwrap();
    server.stop().unwrap();
}

#[test]
fn a_profile_of_another_version_is_named_in_the_refusal() {
    let worker = |profile: &str| {
        let output =
            Command::new(LICHEN).args(["compile-worker", "--profile", profile]).stdin(Stdio::null()).output();
        let output = output.unwrap();
        assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    for profile in ["wasmtime47-aarch64-unknown-linux-gnu-base-0123abcd", "sparc"] {
        let error = worker(profile);
        assert!(error.starts_with("the node's lichen-agent is not of the server's version: "), "{error}");
        assert!(error.contains(profile), "{error}");
    }
}
