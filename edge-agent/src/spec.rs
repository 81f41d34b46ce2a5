//! What the runtime is given to start a container from.

use std::net::SocketAddr;
use std::path::PathBuf;

use lichen_api::k8s::api::core::v1::{Container, Pod};
use lichen_api::quantity::Quantity;
use lichen_workload::{Artifact, ContainerId, ContainerSpec, Handler, Limits, Mount, Process};

use crate::core::Core;
use crate::env::{self, Environment};
use crate::process::process;

/// The port of a request handler whose container names none.
const PORT_DEFAULT: u16 = 8080;

impl Core {
    pub(crate) fn spec(&self, uid: &str, name: &str, attempt: u32) -> Result<ContainerSpec, String> {
        let entry = self.entries.get(uid).ok_or("the pod is gone")?;
        let pod = entry.machine.pod();
        let container = find(pod, name).ok_or("the container is gone")?;
        let artifact: Artifact = entry.artifacts.get(name).cloned().ok_or("its artifact is not loaded")?;
        let env: Environment = entry.environments.get(name).cloned().ok_or("it is not configured")?;
        let ip = self.addresses.get(uid).copied().ok_or("the pod has no address")?;
        let ip = self.config.address_mode.map(ip);
        let mut serve: Vec<SocketAddr> =
            tcp_ports(container).map(|port| SocketAddr::from((ip, port))).collect();
        if serve.is_empty() {
            serve.push(SocketAddr::from((ip, PORT_DEFAULT)));
        }
        let process = match artifact.handler() {
            Handler::Wasm => Process::default(),
            Handler::Oci => process(pod, container)?,
        };
        let (command, args) = env::command_line(container, &env);
        Ok(ContainerSpec {
            id: ContainerId::of_attempt(uid, name, attempt).map_err(|error| error.to_string())?,
            mounts: self.mounts(uid, pod, container, artifact.handler())?,
            artifact,
            command,
            args,
            env,
            process,
            limits: limits(container)?,
            serve,
            log: self.log_path(uid, name, attempt),
        })
    }

    fn mounts(
        &self,
        uid: &str,
        pod: &Pod,
        container: &Container,
        handler: Handler,
    ) -> Result<Vec<Mount>, String> {
        let root = self.pod_dir(uid).join("volumes");
        let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
        let writable = |name: &str| {
            volumes.into_iter().flatten().any(|volume| volume.name == name && volume.empty_dir.is_some())
        };
        let mounts = container.volume_mounts.iter().flatten();
        mounts
            .map(|mount| {
                let mut host = root.join(&mount.name);
                if let Some(below) = mount.sub_path.as_deref().filter(|path| !path.is_empty()) {
                    if below.split('/').any(|part| part == "..") || below.starts_with('/') {
                        return Err(format!("subPath {below:?} does not stay inside its volume"));
                    }
                    host.push(below);
                    if !host.is_dir() && (handler == Handler::Wasm || !host.is_file()) {
                        return Err(format!(
                            "subPath {below:?} is not there, or no directory: components see directories only"
                        ));
                    }
                }
                let read_only = mount.read_only == Some(true) || !writable(&mount.name);
                Ok(Mount { host, guest: mount.mount_path.clone(), read_only })
            })
            .collect()
    }

    pub(crate) fn log_path(&self, uid: &str, container: &str, attempt: u32) -> PathBuf {
        self.pod_dir(uid).join("logs").join(container).join(format!("{attempt}.log"))
    }
}

/// The ports that a pod's containers serve on.
pub(crate) fn ports(pod: &Pod) -> Vec<u16> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    containers.flat_map(tcp_ports).collect()
}

fn tcp_ports(container: &Container) -> impl Iterator<Item = u16> {
    let ports = container.ports.iter().flatten();
    let tcp = ports.filter(|p| p.protocol.as_deref().is_none_or(|p| p == "TCP"));
    tcp.filter_map(|p| u16::try_from(p.container_port).ok())
}

/// A container by its name, init containers included.
pub(crate) fn find<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    spec.init_containers.iter().flatten().chain(&spec.containers).find(|c| c.name == name)
}

fn limits(container: &Container) -> Result<Limits, String> {
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    let amount = |name: &str| -> Result<Option<Quantity>, String> {
        let Some(text) = limits.and_then(|limits| limits.get(name)) else { return Ok(None) };
        text.0.parse().map(Some).map_err(|_| format!("the limit of {name} is no quantity: {:?}", text.0))
    };
    Ok(Limits {
        memory_bytes: amount("memory")?.and_then(|memory| u64::try_from(memory.units()).ok()),
        cpu_millis: amount("cpu")?.and_then(|cpu| u32::try_from(cpu.milli()).ok()),
    })
}
