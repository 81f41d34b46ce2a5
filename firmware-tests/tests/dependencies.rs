//! The rooms' rules, held against what cargo says: dependencies point down, heavy ones stay fenced, pure stays pure.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Every crate and its layer. A crate may depend on crates of lower layers only.
const LAYERS: &[(&str, u8)] = &[
    ("base2histogram", 0),
    ("lichen-api", 0),
    ("lichen-engine", 0),
    ("lichen-fuzz", 0),
    ("lichen-pki", 0),
    ("lichen-wire", 0),
    ("lichen-controllers", 1),
    ("lichen-mqtt", 1),
    ("lichen-pods", 1),
    ("lichen-scheduler", 1),
    ("lichen-artifacts", 2),
    ("lichen-link", 2),
    ("lichen-net", 2),
    ("lichen-runtime", 2),
    ("lichen-state", 2),
    ("lichen-store", 2),
    ("lichen-peers", 3),
    ("lichen-registry", 3),
    ("lichen-workload", 3),
    ("lichen-apiserver", 4),
    ("lichen-gateway", 4),
    ("lichen-agent", 5),
    ("lichen-control", 5),
    ("lichen", 6),
    ("lichen-firmware-tests", 7),
    ("lichen-faults", 8),
    ("lichen-simulation", 8),
];

/// Dependencies that may be named by these crates alone.
const FENCES: &[(&str, &[&str])] = &[
    ("openraft", &["lichen-store"]),
    ("rcgen", &["lichen-pki"]),
    ("redb", &["lichen-store", "lichen-state"]),
    ("rumqttc", &["lichen-mqtt"]),
    ("wasmtime", &["lichen-engine", "lichen-runtime"]),
    ("wasmtime-wasi", &["lichen-runtime"]),
    ("wasmtime-wasi-http", &["lichen-runtime"]),
];

/// Crates that decide: none of these may be within their reach.
const PURE: &[&str] = &["lichen-api", "lichen-controllers", "lichen-pods", "lichen-scheduler", "lichen-wire"];
const IMPURE: &[&str] = &["hyper", "mio", "rand", "redb", "rumqttc", "socket2", "tokio"];

/// What no build of the small agent may contain.
const NOT_IN_AGENT: &[&str] =
    &["cranelift-codegen", "lichen-store", "openraft", "wasmtime-internal-cranelift"];

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo prints UTF-8")
}

/// The normal dependencies that each of our crates names.
fn named() -> BTreeMap<String, BTreeSet<String>> {
    let metadata: Value =
        serde_json::from_str(&cargo(&["metadata", "--format-version=1", "--no-deps"])).expect("JSON");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let array = |value: &Value| value.as_array().cloned().unwrap_or_default();
    array(&metadata["packages"])
        .iter()
        .map(|package| {
            let dependencies = array(&package["dependencies"])
                .iter()
                .filter(|dependency| dependency["kind"].is_null())
                .map(|dependency| text(&dependency["name"]))
                .collect();
            (text(&package["name"]), dependencies)
        })
        .collect()
}

/// Every package in a crate's normal dependency tree, as built alone with its default features.
fn reach(package: &str) -> BTreeSet<String> {
    cargo(&["tree", "-p", package, "-e", "normal", "--prefix", "none", "--format", "{p}"])
        .lines()
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn dependencies_point_down() {
    let layers: BTreeMap<_, _> = LAYERS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (name, dependencies) in named() {
        let Some(layer) = layers.get(name.as_str()) else {
            wrong.push(format!("{name} has no layer: give it one in this file and in ARCHITECTURE.md"));
            continue;
        };
        for dependency in &dependencies {
            if layers.get(dependency.as_str()).is_some_and(|below| below >= layer) {
                wrong.push(format!("{name} (layer {layer}) depends on {dependency}, which is not below it"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn heavy_dependencies_stay_behind_their_fences() {
    let mut wrong = Vec::new();
    for (name, dependencies) in named() {
        for (fenced, allowed) in FENCES {
            if dependencies.contains(*fenced) && !allowed.contains(&name.as_str()) {
                wrong.push(format!("{name} names {fenced}, which belongs behind {allowed:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_control_plane_never_reaches_the_node() {
    for package in ["lichen-control", "lichen-gateway", "lichen-apiserver"] {
        let reach = reach(package);
        for node in
            ["lichen-agent", "lichen-link", "lichen-net", "lichen-pods", "lichen-runtime", "lichen-state"]
        {
            assert!(!reach.contains(node), "{package} reaches {node}");
        }
    }
}

#[test]
fn what_decides_is_pure() {
    for package in PURE {
        let reach = reach(package);
        for impure in IMPURE {
            assert!(!reach.contains(*impure), "{package} reaches {impure}");
        }
    }
    for package in ["lichen-wire", "lichen-runtime"] {
        for kubernetes in ["k8s-openapi", "lichen-api"] {
            assert!(!reach(package).contains(kubernetes), "{package} reaches {kubernetes}");
        }
    }
}

#[test]
fn the_small_agent_has_no_compiler() {
    let reach = reach("lichen-agent");
    for unwanted in NOT_IN_AGENT {
        assert!(!reach.contains(*unwanted), "lichen-agent reaches {unwanted}");
    }
}
