//! Machines of a network of their own: namespaces joined by a bridge, so that a test can part them.

use std::ffi::OsStr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, ensure};

/// Networks that this process has made; it makes their names unique.
static MADE: AtomicU32 = AtomicU32::new(0);

/// A network. Dropping it removes its namespaces and all that runs on their links.
pub struct Network {
    /// The namespace of the bridge.
    hub: String,
    hosts: Vec<Host>,
}

/// A machine in a network.
#[derive(Clone, Debug)]
pub struct Host {
    namespace: String,
    link: String,
    hub: String,
}

impl Network {
    /// Makes a network with a host for each address, in a network of 256 addresses. `None` where the machine does not
    /// allow it: with `CI=true` that is a failure, elsewhere the reason is printed.
    ///
    /// # Panics
    /// With `CI=true`, when namespaces cannot be made.
    pub fn new(addresses: &[&str]) -> Option<Self> {
        let id = format!("{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let mut network = Self { hub: format!("lichen-{id}"), hosts: Vec::new() };
        match network.build(&id, addresses) {
            Ok(()) => Some(network),
            Err(error) => {
                crate::tools::missing(&format!("network namespaces cannot be made: {error:#}"));
                None
            }
        }
    }

    fn build(&mut self, id: &str, addresses: &[&str]) -> Result<()> {
        ip(["netns", "add", &self.hub])?;
        let hub = self.hub.clone();
        ip(["-n", &hub, "link", "add", "bridge", "type", "bridge"])?;
        ip(["-n", &hub, "link", "set", "bridge", "up"])?;
        for (index, address) in addresses.iter().enumerate() {
            let (namespace, link) = (format!("lichen-{id}-{index}"), format!("host{index}"));
            ip(["netns", "add", &namespace])?;
            self.hosts.push(Host { namespace: namespace.clone(), link: link.clone(), hub: hub.clone() });
            let (name, far) = (link.as_str(), namespace.as_str());
            ip(["-n", &hub, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", far])?;
            ip(["-n", &hub, "link", "set", name, "master", "bridge", "up"])?;
            ip(["-n", far, "address", "add", &format!("{address}/24"), "dev", "eth0"])?;
            ip(["-n", far, "link", "set", "eth0", "up"])?;
            ip(["-n", far, "link", "set", "lo", "up"])?;
        }
        Ok(())
    }

    /// The hosts, in the order of their addresses.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in self.hosts.iter().map(|host| &host.namespace).chain([&self.hub]) {
            // It may not have been made.
            let _ = ip(["netns", "del", namespace]);
        }
    }
}

impl Host {
    /// A command that runs on this host.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).arg(program);
        command
    }

    /// Pulls the host's cable.
    ///
    /// # Errors
    /// When the link cannot be set.
    pub fn unplug(&self) -> Result<()> {
        ip(["-n", &self.hub, "link", "set", &self.link, "down"])
    }

    /// Puts it back.
    ///
    /// # Errors
    /// When the link cannot be set.
    pub fn plug(&self) -> Result<()> {
        ip(["-n", &self.hub, "link", "set", &self.link, "up"])
    }
}

fn ip<const N: usize>(arguments: [&str; N]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), errors.trim());
    Ok(())
}
