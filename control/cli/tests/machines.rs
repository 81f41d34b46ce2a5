//! A server and a node on two machines, which are network namespaces: the README's guide, word for word, and a node that
//! boots without a network.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use lichen_firmware_tests::cluster::succeed;
use lichen_firmware_tests::network::{Host, Network};
use lichen_firmware_tests::process::Process;
use lichen_firmware_tests::tools;

const LICHEN: &str = env!("CARGO_BIN_EXE_lichen");
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const README: &str = include_str!("../../../README.md");
/// The addresses that the guide uses: the laptop's and the Raspberry Pi's.
const ADDRESSES: [&str; 2] = ["192.168.1.10", "192.168.1.20"];
/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the two programs print once they serve.
const READY: [&str; 2] = ["A node joins", "node "];

/// A machine with a home directory of its own.
struct Machine {
    host: Host,
    home: PathBuf,
}

impl Machine {
    /// The commands of a shell on this machine. `bin` comes first on its path.
    fn shell(&self, bin: &Path, script: &str) -> Command {
        let mut command = self.host.command("bash");
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        command.args(["-euo", "pipefail", "-c", script]);
        command.current_dir(ROOT).env("HOME", &self.home).env("PATH", path).env_remove("XDG_STATE_HOME");
        command
    }

    fn run(&self, bin: &Path, script: &str) -> String {
        succeed(self.shell(bin, script).output().unwrap(), &[script]).unwrap()
    }
}

/// Two machines, with `lichen`, `lichen-agent`, kubectl, and an `scp` between their homes.
fn machines(folder: &Path) -> Option<(Network, [Machine; 2], PathBuf)> {
    let kubectl = tools::kubectl()?;
    let network = Network::new(&ADDRESSES)?;
    let bin = folder.join("bin");
    std::fs::create_dir(&bin).unwrap();
    let link = |from: &Path, name: &str| std::os::unix::fs::symlink(from, bin.join(name)).unwrap();
    link(Path::new(LICHEN), "lichen");
    link(&tools::beside(LICHEN, "lichen-agent"), "lichen-agent");
    let kubectl = tools::on_path(&kubectl);
    link(&kubectl, "kubectl");
    let machine = |index: usize, name: &str| {
        let home = folder.join(name);
        std::fs::create_dir(&home).unwrap();
        Machine { host: network.hosts()[index].clone(), home }
    };
    let machines = [machine(0, "laptop"), machine(1, "pi")];
    // The laptop has no SSH server to talk to: a copy between the two homes stands for it.
    let scp = format!("#!/bin/bash\ncp \"${{@:1:$#-1}}\" {}/\n", machines[1].home.display());
    tools::script(&bin.join("scp"), &scp);
    Some((network, machines, bin))
}

/// The guide's commands: on which machine, and which.
fn guide() -> Vec<(String, String)> {
    let (_, section) = README.split_once("\n## Two machines\n").expect("the README has the guide");
    let section = section.split("\n## ").next().unwrap();
    let blocks = section.split("```sh ").skip(1);
    let blocks = blocks.map(|block| block.split_once('\n').unwrap());
    blocks.map(|(machine, rest)| (machine.to_owned(), rest.split("```").next().unwrap().to_owned())).collect()
}

#[test]
fn the_guide_for_two_machines_holds() {
    let folder = tempfile::tempdir().unwrap();
    let Some((_network, [laptop, pi], bin)) = machines(folder.path()) else { return };
    let mut running = Vec::new();
    let mut said = String::new();
    for (machine, script) in guide() {
        let on = match machine.as_str() {
            "laptop" => &laptop,
            "pi" => &pi,
            other => panic!("the guide knows no machine {other}"),
        };
        let last = script.trim_end().lines().last().unwrap();
        // What a terminal is left to runs on.
        if last.starts_with("lichen server") || last.starts_with("lichen-agent run") {
            let name = format!("{machine}-{}", running.len());
            // The shell gives way to the program, so that ending one ends the other.
            let script = script.replace(last, &format!("exec {last}"));
            running.push(Process::start(&name, on.shell(&bin, &script), folder.path(), &READY).unwrap());
        } else {
            // Each block of the laptop is typed into the same terminal.
            let kubeconfig = "export KUBECONFIG=~/.local/state/lichen/server/admin.kubeconfig\n";
            let prelude = if machine == "laptop" { kubeconfig } else { "cd\n" };
            said += &on.run(&bin, &format!("{prelude}{script}"));
        }
    }
    for expect in ["raspberrypi", "successfully rolled out", "Hello from Lichen", "done"] {
        assert!(said.contains(expect), "{expect} is missing:\n{said}");
    }
    // The node ends before the server does, as a user would end them.
    for process in running.into_iter().rev() {
        process.stop().unwrap();
    }
}

const CONFIGURED: &str = "
{apiVersion: v1, kind: ConfigMap, metadata: {name: config}, data: {greeting: from the checkpoint}}
---
{apiVersion: v1, kind: Secret, metadata: {name: secret}, stringData: {word: mellon}}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
  - name: web
    image: hello:v1
    ports: [{containerPort: 8080}]
    env:
    - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: WORD, valueFrom: {secretKeyRef: {name: secret, key: word}}}
    volumeMounts: [{name: config, mountPath: /config}]
  volumes: [{name: config, configMap: {name: config}}]
---
apiVersion: v1
kind: Pod
metadata: {name: once}
spec:
  restartPolicy: Never
  containers: [{name: once, image: 'ticker:v1'}]
";

#[test]
fn a_node_boots_without_a_network_and_reports_when_it_returns() {
    let folder = tempfile::tempdir().unwrap();
    let Some((_network, [laptop, pi], bin)) = machines(folder.path()) else { return };
    let start = |name: &str, on: &Machine, script: &str| {
        Process::start(name, on.shell(&bin, script), folder.path(), &READY).unwrap()
    };
    let _server = start(
        "server",
        &laptop,
        "exec lichen server --api-addr 127.0.0.1:6443 --mqtt-addr 0.0.0.0:8883 --name 192.168.1.10",
    );
    let on_laptop = |script: &str| {
        laptop
            .run(&bin, &format!("export KUBECONFIG=~/.local/state/lichen/server/admin.kubeconfig\n{script}"))
    };
    on_laptop(
        "lichen push runtime/guests/hello.wasm hello:v1; lichen push runtime/guests/ticker.wasm ticker:v1
         lichen token create > ~/token; scp ~/token pi@192.168.1.20:",
    );
    std::fs::write(laptop.home.join("pods.yaml"), CONFIGURED).unwrap();
    let agent = "exec lichen-agent run --server 192.168.1.10:8883 --token-file ~/token --data-dir ~/lichen --node-name pi";
    let mut node = start("agent", &pi, agent);
    on_laptop(
        "kubectl apply -f ~/pods.yaml; kubectl wait --for=condition=Ready pod/web pod/once --timeout=60s",
    );
    let address = on_laptop("kubectl get pod web -o 'jsonpath={.status.podIP}'").replacen("10.", "127.", 1);
    let ask = || {
        let output = pi.shell(&bin, &format!("curl -fsS http://{address}:8080/")).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(ask().contains("from the checkpoint"), "{}", ask());

    // Its network goes, then its power; it boots with the first still away.
    pi.host.unplug().unwrap();
    node.kill().unwrap();
    assert_eq!(ask(), "");
    let node = start("agent", &pi, agent);
    let deadline = Instant::now() + PATIENCE;
    while !ask().contains("from the checkpoint") {
        assert!(Instant::now() < deadline, "the pod did not come back\n{}", node.tail());
        std::thread::sleep(Duration::from_millis(100));
    }
    // Nobody can know yet, and meanwhile the cluster moves on.
    let restarts = "kubectl get pod web -o 'jsonpath={.status.containerStatuses[0].restartCount}'";
    assert_eq!(on_laptop(restarts), "0");
    on_laptop("kubectl delete pod once --wait=false; kubectl label pod web seen=late");

    pi.host.plug().unwrap();
    on_laptop(
        "kubectl wait --for=jsonpath='{.status.containerStatuses[0].restartCount}'=1 pod/web --timeout=60s
         kubectl wait --for=condition=Ready pod/web --timeout=60s
         kubectl wait --for=delete pod/once --timeout=60s",
    );
    let last = on_laptop(
        "kubectl get pod web -o 'jsonpath={.status.containerStatuses[0].lastState.terminated.reason}'",
    );
    assert_eq!(last, "ContainerStatusUnknown");
    node.stop().unwrap();
}
