//! How cluster addresses become socket addresses.
//!
//! The API always holds cluster addresses (10.x.y.z). Without privileges they cannot be bound, so on one
//! machine the first octet is replaced: 10.x.y.z becomes 127.x.y.z, which Linux routes to the loopback device
//! as a whole. The mapping is pure and reversible, so every agent on the machine agrees on it.

use std::net::Ipv4Addr;

/// How cluster addresses are served on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum AddressMode {
    /// Unprivileged, one machine: 10.x.y.z is served as 127.x.y.z.
    #[default]
    Loopback,
}

impl AddressMode {
    /// The address to bind or connect for a cluster address. Addresses outside 10.0.0.0/8 stay as they are.
    pub fn map(self, cluster: Ipv4Addr) -> Ipv4Addr {
        match (self, cluster.octets()) {
            (Self::Loopback, [10, b, c, d]) => Ipv4Addr::new(127, b, c, d),
            _ => cluster,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cluster_addresses_are_mapped() {
        let check = |from: [u8; 4], to: [u8; 4]| {
            assert_eq!(AddressMode::Loopback.map(from.into()), Ipv4Addr::from(to));
        };
        check([10, 96, 0, 1], [127, 96, 0, 1]);
        check([10, 64, 3, 9], [127, 64, 3, 9]);
        check([192, 168, 1, 1], [192, 168, 1, 1]);
        check([127, 0, 0, 1], [127, 0, 0, 1]);
    }
}
