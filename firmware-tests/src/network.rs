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

/// Who has no such address. What is sent to it is taken by nobody.
const NOBODY: &str = "02:00:00:00:00:00";

/// A machine in a network.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its address.
    pub address: String,
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
            self.hosts.push(Host {
                address: (*address).to_owned(),
                namespace: namespace.clone(),
                link: link.clone(),
                hub: hub.clone(),
            });
            let (name, far) = (link.as_str(), namespace.as_str());
            ip(["-n", &hub, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", far])?;
            ip(["-n", &hub, "link", "set", name, "master", "bridge", "up"])?;
            ip(["-n", far, "address", "add", &format!("{address}/24"), "dev", "eth0"])?;
            ip(["-n", far, "link", "set", "eth0", "up"])?;
            ip(["-n", far, "link", "set", "lo", "up"])?;
        }
        Ok(())
    }

    /// Gives the namespace of this process, which must be its own, an address in the network.
    ///
    /// # Errors
    /// When the links cannot be made.
    pub fn attach(&self, address: &str) -> Result<()> {
        let own = std::process::id().to_string();
        let link = ["link", "add", "own", "type", "veth", "peer", "name", "eth0", "netns"];
        ip(["-n", &self.hub].into_iter().chain(link).chain([own.as_str()]))?;
        ip(["-n", &self.hub, "link", "set", "own", "master", "bridge", "up"])?;
        ip(["address", "add", &format!("{address}/24"), "dev", "eth0"])?;
        ip(["link", "set", "eth0", "up"])?;
        ip(["link", "set", "lo", "up"])
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

    /// Loses all that the host sends to another one, which still reaches the host.
    ///
    /// # Errors
    /// When the host's neighbours cannot be changed.
    pub fn cut(&self, other: &Host) -> Result<()> {
        let to = [other.address.as_str(), "lladdr", NOBODY, "dev", "eth0", "nud", "permanent"];
        ip(["-n", &self.namespace, "neigh", "replace"].into_iter().chain(to))
    }

    /// Lets it through again.
    ///
    /// # Errors
    /// As [`Host::cut`].
    pub fn mend(&self, other: &Host) -> Result<()> {
        ip(["-n", &self.namespace, "neigh", "del", &other.address, "dev", "eth0"])
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

fn ip<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let arguments: Vec<&str> = arguments.into_iter().collect();
    let output = Command::new("ip").args(&arguments).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), errors.trim());
    Ok(())
}
