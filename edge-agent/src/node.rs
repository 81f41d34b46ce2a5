//! The Node that this machine is: what it has, what it runs, how it is.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;

use jiff::Timestamp;
use lichen_api::k8s::api::core::v1::{Node, NodeAddress, NodeCondition, NodeStatus, NodeSystemInfo};
use lichen_api::k8s::apimachinery::pkg::api::resource::Quantity;
use lichen_api::k8s::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use sysinfo::{Disks, MemoryRefreshKind, RefreshKind, System};
use tracing::warn;

use crate::config::Config;

/// Memory that pods can't have: the agent's own.
const RESERVED_BYTES: u64 = 64 << 20;
/// Below this share of free disk a node has disk pressure, and this much of it pods can't have.
const DISK_RESERVED_PERCENT: u64 = 10;
/// Below this much available memory a node has memory pressure.
const MEMORY_LOW_BYTES: u64 = 32 << 20;

/// What the machine has.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Processors.
    pub cpus: usize,
    /// Memory in all.
    pub memory_bytes: u64,
    /// Memory that can be had now.
    pub memory_available_bytes: u64,
    /// The disk in all.
    pub disk_bytes: u64,
    /// What is free of it.
    pub disk_free_bytes: u64,
}

impl Machine {
    /// Looks at the machine. `dir` tells which disk counts.
    pub(crate) fn look(dir: &Path) -> Self {
        let kind = RefreshKind::nothing().with_memory(MemoryRefreshKind::everything());
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        // A machine that won't tell is a machine with nothing to give.
        let disks = Disks::new_with_refreshed_list().inspect_err(|error| warn!(%error, "no disk is known"));
        let (disk_bytes, disk_free_bytes) = disks
            .iter()
            .flat_map(|disks| disks.iter())
            .filter(|disk| dir.starts_with(disk.mount_point()))
            .max_by_key(|disk| disk.mount_point().components().count())
            .map_or((0, 0), |disk| (disk.total_space(), disk.available_space()));
        let system =
            System::new_with_specifics(kind).inspect_err(|error| warn!(%error, "no memory is known"));
        let (memory_bytes, memory_available_bytes) = system.map_or((0, 0), |system| {
            // A container's own limit is what it has, whatever the machine has.
            match system.cgroup_limits() {
                Some(limits) if limits.total_memory > 0 => (
                    limits.total_memory.min(system.total_memory()),
                    limits.free_memory.min(system.available_memory()),
                ),
                _ => (system.total_memory(), system.available_memory()),
            }
        });
        Self { cpus, memory_bytes, memory_available_bytes, disk_bytes, disk_free_bytes }
    }

    fn amounts(&self, pods: u32, memory: u64, disk: u64) -> BTreeMap<String, String> {
        [
            ("cpu", self.cpus.to_string()),
            ("memory", format!("{}Ki", memory / 1024)),
            ("ephemeral-storage", format!("{}Ki", disk / 1024)),
            ("pods", pods.to_string()),
        ]
        .into_iter()
        .map(|(name, amount)| (name.to_owned(), amount))
        .collect()
    }

    /// What pods can have.
    pub(crate) fn allocatable(&self, pods: u32) -> BTreeMap<String, String> {
        let memory = self.memory_bytes.saturating_sub(RESERVED_BYTES);
        self.amounts(pods, memory, self.disk_bytes / 100 * (100 - DISK_RESERVED_PERCENT))
    }
}

/// The Node to register and report.
pub(crate) fn node(config: &Config, machine: &Machine, ip: Option<Ipv4Addr>, now: Timestamp) -> Node {
    let quantities = |amounts: BTreeMap<String, String>| -> BTreeMap<String, Quantity> {
        amounts.into_iter().map(|(name, amount)| (name, Quantity(amount))).collect()
    };
    let mut labels: BTreeMap<String, String> = [
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", std::env::consts::OS),
        ("kubernetes.io/arch", architecture()),
        ("lichen.dev/runtime.wasm", "true"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect();
    labels.extend(config.labels.clone());
    let address = |kind: &str, address: String| NodeAddress { type_: kind.to_owned(), address };
    let mut addresses = vec![address("Hostname", config.node_name.clone())];
    addresses.splice(0..0, ip.map(|ip| address("InternalIP", ip.to_string())));
    let capacity = machine.amounts(config.pods_max, machine.memory_bytes, machine.disk_bytes);
    let low_disk = machine.disk_free_bytes < machine.disk_bytes / 100 * DISK_RESERVED_PERCENT;
    let conditions = [
        condition(
            "MemoryPressure",
            machine.memory_available_bytes < MEMORY_LOW_BYTES,
            ("KubeletHasInsufficientMemory", "the node has little memory left"),
            ("KubeletHasSufficientMemory", "the node has memory available"),
            now,
        ),
        condition(
            "DiskPressure",
            low_disk,
            ("KubeletHasDiskPressure", "the node's disk is nearly full"),
            ("KubeletHasNoDiskPressure", "the node's disk has room"),
            now,
        ),
        condition(
            "PIDPressure",
            false,
            ("KubeletHasInsufficientPID", ""),
            ("KubeletHasSufficientPID", "components need no processes"),
            now,
        ),
        condition("Ready", true, ("AgentReady", "the agent is running"), ("", ""), now),
    ];
    Node {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels),
            ..Default::default()
        },
        spec: None,
        status: Some(NodeStatus {
            addresses: Some(addresses),
            capacity: Some(quantities(capacity)),
            allocatable: Some(quantities(machine.allocatable(config.pods_max))),
            conditions: Some(conditions.into()),
            node_info: Some(info()),
            ..Default::default()
        }),
    }
}

fn condition(
    kind: &str,
    holds: bool,
    (reason, message): (&str, &str),
    (otherwise, fine): (&str, &str),
    now: Timestamp,
) -> NodeCondition {
    let (reason, message) = if holds { (reason, message) } else { (otherwise, fine) };
    NodeCondition {
        type_: kind.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_heartbeat_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

fn info() -> NodeSystemInfo {
    let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    NodeSystemInfo {
        architecture: architecture().to_owned(),
        boot_id: file("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: format!("wasmtime://{}", lichen_engine::WASMTIME_MAJOR),
        kernel_version: System::kernel_version().unwrap_or_default(),
        kube_proxy_version: String::new(),
        kubelet_version: format!("v1.36.0-lichen.{}", env!("CARGO_PKG_VERSION")),
        machine_id: file("/etc/machine-id"),
        operating_system: std::env::consts::OS.to_owned(),
        os_image: System::long_os_version().unwrap_or_default(),
        system_uuid: file("/etc/machine-id"),
        ..Default::default()
    }
}

/// The architecture, by the name that Kubernetes has for it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_says_what_it_has() {
        let mut config = Config::new("edge-1", "/tmp", "localhost:1");
        config.labels.insert("zone".into(), "a".into());
        let machine = Machine::look(Path::new("/tmp"));
        assert!(machine.memory_bytes > 0 && machine.cpus > 0);
        let machine = Machine {
            cpus: 4,
            memory_bytes: 1 << 30,
            memory_available_bytes: 1 << 29,
            disk_bytes: 100 << 30,
            disk_free_bytes: 5 << 30,
        };
        let node = node(&config, &machine, Some(Ipv4Addr::new(10, 64, 3, 1)), Timestamp::UNIX_EPOCH);
        let labels = node.metadata.labels.expect("labels");
        assert_eq!(labels["kubernetes.io/hostname"], "edge-1");
        assert_eq!(labels["zone"], "a");
        let status = node.status.expect("a status");
        assert_eq!(status.addresses.expect("addresses")[0].address, "10.64.3.1");
        let allocatable = status.allocatable.expect("amounts");
        assert_eq!(allocatable["memory"].0, "983040Ki");
        assert_eq!(allocatable["pods"].0, "110");
        let pressure: Vec<_> =
            status.conditions.expect("conditions").into_iter().map(|c| (c.type_, c.status)).collect();
        assert_eq!(pressure[0], ("MemoryPressure".into(), "False".into()));
        assert_eq!(pressure[1], ("DiskPressure".into(), "True".into()));
    }
}
