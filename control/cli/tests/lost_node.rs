//! What kubectl shows of a node while it is connected, while it is lost, and when it is back.
//!
//! Server and agents run inside the test, with a grace period of seconds instead of the usual forty.

use std::path::Path;
use std::time::{Duration, Instant};

use lichen_agent::Agent;
use lichen_control::{Config, Server};
use lichen_firmware_tests::cluster::succeed;
use lichen_firmware_tests::kubectl::Kubectl;

const LICHEN: &str = env!("CARGO_BIN_EXE_lichen");
const TICKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../runtime/guests/ticker.wasm");
const PATIENCE: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(2);
const KEEPALIVE_MS: u32 = 300;

async fn agent(server: &Server, dir: &Path) -> Agent {
    let address = server.mqtt_addr().unwrap().to_string();
    let mut config = lichen_agent::Config::new("edge-1", dir.join("edge-1"), address);
    config.token = Some(server.create_token(PATIENCE).await.unwrap());
    Agent::start(config).await.unwrap()
}

/// Asks until the answer fits.
fn until(kubectl: &Kubectl, line: &str, fits: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let output = kubectl.run(line);
        if fits(&output.text) {
            return output.text;
        }
        assert!(Instant::now() < deadline, "kubectl {line}: {output:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_tells_the_truth_about_a_lost_node() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("admin.kubeconfig");
    let Some(kubectl) = Kubectl::new(&file, dir.path()) else { return };
    let mut config = Config::new(dir.path().join("server"));
    config.silence_grace = GRACE;
    config.timing.keepalive_ms = KEEPALIVE_MS;
    config.compile_worker = vec![LICHEN.to_owned(), "compile-worker".to_owned()];
    let server = Server::start(config).await.unwrap();
    std::fs::write(&file, server.admin_kubeconfig()).unwrap();
    let node = agent(&server, dir.path()).await;

    let push = ["push", TICKER, "ticker:v1"];
    let pushed = std::process::Command::new(LICHEN).args(push).env("KUBECONFIG", &file).output().unwrap();
    succeed(pushed, &push).unwrap();
    for name in ["stays", "deleted", "forced"] {
        kubectl.run(&format!("run {name} --image=ticker:v1")).good();
    }
    kubectl.run("wait --for=condition=Ready pod --all --timeout=60s").good();

    // Connected: the Lease goes on from second to second, and no version of anything does.
    let described = kubectl.run("describe node edge-1").good();
    described.has(&[
        "HolderIdentity:  edge-1",
        "AcquireTime:     <unset>",
        "KubeletReady",
        "Taints:             <none>",
    ]);
    let renewed = "get lease edge-1 -n kube-node-lease -o jsonpath={.spec.renewTime}";
    let versions =
        "get lease/edge-1 node/edge-1 -n kube-node-lease -o jsonpath={.items[*].metadata.resourceVersion}";
    let (first, before) = (kubectl.run(renewed).good().text, kubectl.run(versions).good().text);
    until(&kubectl, renewed, |now| now > first.as_str());
    assert_eq!(kubectl.run(versions).good().text, before);
    let leases = "get leases -n kube-node-lease -o jsonpath={.items[*].spec.renewTime}";
    until(&kubectl, leases, |now| now > first.as_str());
    kubectl.run("get nodes").good().has(&["edge-1   Ready "]);

    // Lost: it says so once the grace period is over, and how long ago the node was last heard of.
    node.shutdown().await;
    kubectl.run("wait --for=condition=Ready=Unknown node/edge-1 --timeout=60s").good();
    kubectl.run("get nodes").good().has(&["edge-1   NotReady "]);
    let last = kubectl.run(renewed).good().text;
    let unknown = |text: &str| text.matches("Kubelet stopped posting node status.").count() == 4;
    let described = until(&kubectl, "describe node edge-1", |text| {
        unknown(text)
            && text.contains("node.kubernetes.io/unreachable:NoSchedule")
            && text.contains("NodeNotReady")
    });
    for expect in ["NodeStatusUnknown", "HolderIdentity:  edge-1"] {
        assert!(described.contains(expect), "{described}");
    }
    let heartbeats = "get node edge-1 -o jsonpath={.status.conditions[*].lastHeartbeatTime}";
    let beats = kubectl.run(heartbeats).good().text;
    for beat in beats.split_whitespace() {
        assert_eq!(beat[..19], last[..19], "both say when the node was last heard of");
    }
    // Its pods are where they were, and not ready.
    kubectl.run("wait --for=condition=Ready=false pod --all --timeout=60s").good();
    let pods = kubectl.run("get pods").good().text;
    assert_eq!(pods.matches("Running").count(), 3, "{pods}");
    kubectl.run("delete pod deleted --wait=false").good();
    kubectl.run("get pods").good().has(&["Terminating"]);
    kubectl.run("delete pod forced --force --grace-period=0").good().has(&["force deleted"]);
    kubectl.run("get pod forced").bad().has(&["NotFound"]);
    assert_eq!(
        (kubectl.run(renewed).good().text, kubectl.run(heartbeats).good().text),
        (last.clone(), beats)
    );

    // Back: what was to end ends, what was to stay is ready again.
    let node = agent(&server, dir.path()).await;
    kubectl.run("wait --for=condition=Ready node/edge-1 --timeout=60s").good();
    kubectl.run("wait --for=delete pod/deleted --timeout=60s").good();
    kubectl.run("wait --for=condition=Ready pod/stays --timeout=60s").good();
    until(&kubectl, "describe node edge-1", |text| {
        text.contains("Taints:             <none>") && text.contains("NodeReady")
    });
    until(&kubectl, renewed, |now| now > last.as_str());
    node.shutdown().await;
    server.shutdown().await;
}
