//! A cluster as its users know it: kubectl and the `lichen` command against a process of its own.

use std::path::Path;
use std::time::{Duration, Instant};

use lichen_firmware_tests::cluster::Cluster;
use lichen_firmware_tests::kubectl::Kubectl;

const LICHEN: &str = env!("CARGO_BIN_EXE_lichen");
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

fn guest(name: &str) -> String {
    format!("{ROOT}/runtime/guests/{name}.wasm")
}

/// A cluster with the example components in its registry.
fn cluster() -> Cluster {
    let cluster = Cluster::start(LICHEN).unwrap();
    for name in ["hello", "ticker", "worker"] {
        cluster.lichen(&["push", &guest(name), &format!("{name}:v1")]).unwrap();
    }
    cluster
}

fn apply(cluster: &Cluster, manifest: &str) {
    let file = cluster.data_dir.join("manifest.yaml");
    std::fs::write(&file, manifest).unwrap();
    cluster.lichen(&["apply", "-f", &file.to_string_lossy()]).unwrap();
}

/// Asks until the answer fits; fails with the last answer.
fn eventually(mut ask: impl FnMut() -> String, fits: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask();
        if fits(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "gave up; the last answer was:\n{answer}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn pod(name: &str, restart: &str, image: &str, rest: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{restartPolicy: {restart}, \
         terminationGracePeriodSeconds: 1, containers: [{{name: main, image: '{image}', {rest}}}]}}}}"
    )
}

/// A component that imports what no node offers.
const ASKS_FOR_GPIO: &str = r#"(component
    (import "example:device/gpio@1.0.0" (instance (export "read" (func (result bool)))))
    (core module $m (func (export "run") (result i32) i32.const 0))
    (core instance $i (instantiate $m))
    (func $run (result (result)) (canon lift (core func $i "run")))
    (instance $exports (export "run" (func $run)))
    (export "wasi:cli/run@0.2.0" (instance $exports)))"#;

#[test]
fn a_pod_that_cannot_run_says_why_and_a_pod_that_ends_says_how() {
    let cluster = cluster();
    let status = |name: &'static str| {
        let cluster = &cluster;
        move || cluster.lichen(&["get", "pod", name, "-o", "json"]).unwrap()
    };

    apply(&cluster, &pod("missing", "Always", "absent:v1", ""));
    let answer = eventually(status("missing"), |answer| {
        answer.contains("ImagePullBackOff") || answer.contains("ErrImagePull")
    });
    assert!(answer.contains("absent:v1"), "{answer}");

    apply(
        &cluster,
        &pod("unconfigured", "Always", "worker:v1", "envFrom: [{configMapRef: {name: nowhere}}]"),
    );
    let answer = eventually(status("unconfigured"), |answer| answer.contains("CreateContainerConfigError"));
    assert!(answer.contains(r#"configmap \"nowhere\" not found"#), "{answer}");

    let file = cluster.data_dir.join("asks.wasm");
    std::fs::write(&file, wat::parse_str(ASKS_FOR_GPIO).unwrap()).unwrap();
    cluster.lichen(&["push", &file.to_string_lossy(), "asks:v1"]).unwrap();
    apply(&cluster, &pod("asks", "Always", "asks:v1", ""));
    eventually(status("asks"), |answer| answer.contains("example:device/gpio@1.0.0"));

    apply(&cluster, &pod("three", "Never", "worker:v1", "args: ['--code', '3']"));
    let answer = eventually(status("three"), |answer| answer.contains("\"Failed\""));
    assert!(answer.contains("\"exitCode\": 3"), "{answer}");

    apply(&cluster, &pod("crash", "Always", "worker:v1", "args: ['--code', '1']"));
    eventually(status("crash"), |answer| answer.contains("CrashLoopBackOff"));

    // What was missing appears: the pod recovers by itself.
    apply(&cluster, "{apiVersion: v1, kind: ConfigMap, metadata: {name: nowhere}, data: {A: b}}");
    eventually(status("unconfigured"), |answer| {
        answer.contains("\"restartCount\"") && !answer.contains("CreateContainerConfigError")
    });
    cluster.stop().unwrap();
}

#[test]
fn files_that_are_no_components_are_refused_before_they_are_sent() {
    let cluster = Cluster::start(LICHEN).unwrap();
    let file = cluster.data_dir.join("file.wasm");
    for (content, expect) in [(&b"#!/bin/sh\n"[..], "not"), (b"\0asm\x01\0\0\0", "core"), (b"", "not")] {
        std::fs::write(&file, content).unwrap();
        let error = cluster.lichen(&["push", &file.to_string_lossy(), "x:v1"]).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    }
}

#[test]
fn a_killed_cluster_comes_back_with_the_same_pods() {
    let mut cluster = cluster();
    cluster.lichen(&["apply", "-f", &format!("{ROOT}/examples/hello/manifest.yaml")]).unwrap();
    let pods = |cluster: &Cluster| {
        let json = cluster.lichen(&["get", "pods", "-n", "hello", "-l", "app=hello", "-o", "json"]).unwrap();
        let list: serde_json::Value = serde_json::from_str(&json).unwrap();
        let mut pods: Vec<(String, bool)> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|pod| {
                let ready = pod["status"]["conditions"].as_array().is_some_and(|all| {
                    all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
                });
                (pod["metadata"]["uid"].as_str().unwrap().to_owned(), ready)
            })
            .collect();
        pods.sort();
        pods
    };
    let ready = |pods: &[(String, bool)]| pods.len() == 3 && pods.iter().all(|(_, ready)| *ready);
    let deadline = Instant::now() + PATIENCE;
    while !ready(&pods(&cluster)) {
        assert!(Instant::now() < deadline, "{:?}", pods(&cluster));
        std::thread::sleep(Duration::from_millis(100));
    }
    let before = pods(&cluster);
    cluster.kill_and_restart().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while pods(&cluster) != before {
        assert!(Instant::now() < deadline, "before {before:?}, now {:?}", pods(&cluster));
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_second_server_on_the_same_directory_is_refused() {
    let cluster = Cluster::start(LICHEN).unwrap();
    let data_dir = cluster.data_dir.to_string_lossy().into_owned();
    let arguments =
        ["server", "--data-dir", &data_dir, "--api-addr", "127.0.0.1:0", "--mqtt-addr", "127.0.0.1:0"];
    let output = cluster.command(Path::new(LICHEN), &arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains(&data_dir), "{error}");
}

#[test]
fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--api-addr", "--mqtt-addr"] {
        let folder = tempfile::tempdir().unwrap();
        let other = if flag == "--api-addr" { "--mqtt-addr" } else { "--api-addr" };
        let output = std::process::Command::new(LICHEN)
            .args(["server", flag, &address, other, "127.0.0.1:0", "--data-dir"])
            .arg(folder.path())
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(&address), "{flag}: {error}");
    }
}

#[test]
fn kubectl_deploys_watches_scales_logs_and_deletes() {
    let cluster = cluster();
    let Some(kubectl) = Kubectl::new(&cluster.kubeconfig(), &cluster.data_dir) else { return };
    let run = |line: &str| kubectl.run(line).good().text;
    let apply = format!("apply -f {ROOT}/examples/hello/manifest.yaml");
    run(&apply);
    run("-n hello rollout status deployment/hello --timeout=60s");
    run("-n hello wait --for=jsonpath={.status.phase}=Succeeded pod/worker --timeout=60s");
    assert!(run(&apply).lines().all(|line| line.ends_with("unchanged")));

    let nodes = run("get nodes");
    assert_eq!(nodes.matches(" Ready ").count(), 2, "{nodes}");
    assert!(run("-n hello logs worker").contains("done"));
    let described = run("-n hello describe pod worker");
    for expect in ["Successfully assigned hello/worker to edge-", "Started"] {
        assert!(described.contains(expect), "{described}");
    }
    assert!(run("describe node edge-1").contains("Allocated resources"));

    run("-n hello scale deployment/hello --replicas=4");
    run("-n hello rollout status deployment/hello --timeout=60s");
    run(r#"-n hello patch deployment hello -p {"spec":{"template":{"metadata":{"labels":{"v":"2"}}}}}"#);
    run("-n hello rollout status deployment/hello --timeout=60s");
    let pods = run("-n hello get pods -l app=hello,v=2 -o name");
    assert_eq!(pods.lines().count(), 4, "{pods}");

    // A log that is followed shows what comes after it was asked for.
    run("run ticker --image=ticker:v1 --restart=Never --env=TICK_MS=200");
    run("wait --for=condition=Ready pod/ticker --timeout=60s");
    let mut follow = kubectl.spawn("logs -f ticker");
    let lines = std::io::BufRead::lines(std::io::BufReader::new(follow.stdout.take().unwrap()));
    let seen: Vec<String> = lines.map_while(Result::ok).take(5).collect();
    assert_eq!(seen, ["tick 1", "tick 2", "tick 3", "tick 4", "tick 5"]);
    follow.kill().unwrap();
    follow.wait().unwrap();

    run("delete pod ticker");
    run("delete namespace hello --timeout=60s");
    kubectl.run("get namespace hello").bad().has(&["NotFound"]);
    let events = run("events -A");
    assert!(events.contains("Scheduled"), "{events}");
    cluster.stop().unwrap();
}
