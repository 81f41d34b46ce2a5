//! Which pod has which address.

use std::net::SocketAddr;

use lichen_net::{Pool, PoolError};
use lichen_state::{Change, Space};
use tracing::{debug, error};

use crate::core::{Core, Entry};
use crate::spec::ports;

impl Core {
    /// Takes up the range of pod addresses that the control plane gave the node.
    pub(crate) fn set_pool(&mut self) {
        let Some(cidr) = self.objects.pod_cidr() else { return };
        if self.pool.as_ref().is_some_and(|pool| pool.cidr() == cidr) {
            return;
        }
        match Pool::new(cidr) {
            Ok(mut pool) => {
                self.addresses.retain(|uid, ip| pool.restore(uid, *ip));
                self.pool = Some(pool);
            }
            Err(error) => error!(%error, "the node's pod CIDR is not usable"),
        }
    }

    pub(crate) fn assign(&mut self, uid: &str) -> Result<(), String> {
        let pool = self.pool.as_mut().ok_or("the node has not been given a range of pod addresses yet")?;
        let mode = self.config.address_mode;
        // What a pod listens on while its containers outlive an agent is its own.
        let idle = |entry: &&Entry| !entry.machine.lives();
        let ports: Vec<u16> =
            self.entries.get(uid).filter(idle).map(|entry| ports(entry.machine.pod())).unwrap_or_default();
        let ip = loop {
            let ip = pool.assign(uid).map_err(|error: PoolError| error.to_string())?;
            // No container of the pod runs yet, so a port that is taken is somebody else's: of another cluster on
            // this machine, or of a program that listens on every address.
            let taken = ports.iter().find(|port| self.host.in_use(SocketAddr::from((mode.map(ip), **port))));
            match taken {
                Some(port) => {
                    debug!(%ip, port, "another program listens on a pod address; it is left alone");
                    pool.avoid(uid);
                }
                None => break ip,
            }
        };
        if self.addresses.insert(uid.to_owned(), ip) != Some(ip) {
            self.changes.push(Change::Put(Space::Address, uid.to_owned(), ip.to_string().into_bytes()));
        }
        Ok(())
    }

    pub(crate) fn release(&mut self, uid: &str) {
        if let Some(pool) = &mut self.pool {
            pool.release(uid);
        }
        if self.addresses.remove(uid).is_some() {
            self.changes.push(Change::Remove(Space::Address, uid.to_owned()));
        }
    }
}
