//! Pod addresses out of a node's pod CIDR.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// Why an address can't be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The text is no IPv4 CIDR with room for pods.
    #[error("{0:?} is not an IPv4 CIDR with room for pods")]
    Cidr(String),
    /// All addresses are taken.
    #[error("no free address in {0}")]
    Exhausted(String),
}

/// The addresses of a node. The first of its CIDR names the network, the second is the node's own, the last is
/// the broadcast address; the others are for pods. An address that was given back is the last to be given out
/// again, so that a client of the old pod doesn't reach the new one.
#[derive(Debug, Clone)]
pub struct Pool {
    cidr: String,
    base: u32,
    size: u32,
    next: u32,
    taken: BTreeMap<String, Ipv4Addr>,
    avoided: BTreeSet<Ipv4Addr>,
}

impl Pool {
    /// The pool of a CIDR such as `10.64.3.0/24`.
    pub fn new(cidr: &str) -> Result<Self, PoolError> {
        let bad = || PoolError::Cidr(cidr.to_owned());
        let (address, bits) = cidr.split_once('/').ok_or_else(bad)?;
        let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let bits: u32 = bits.parse().map_err(|_| bad())?;
        if !(8..=29).contains(&bits) {
            return Err(bad());
        }
        let size = 1 << (32 - bits);
        Ok(Self {
            cidr: cidr.to_owned(),
            base: u32::from(address) & !(size - 1),
            size,
            next: 2,
            taken: BTreeMap::new(),
            avoided: BTreeSet::new(),
        })
    }

    /// The CIDR, as it was given.
    pub fn cidr(&self) -> &str {
        &self.cidr
    }

    /// The node's own address.
    pub fn node(&self) -> Ipv4Addr {
        (self.base + 1).into()
    }

    /// Whether an address is one for pods of this node.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address).checked_sub(self.base).is_some_and(|offset| (2..self.size - 1).contains(&offset))
    }

    /// Takes up an assignment out of the checkpoint; `false` if the address is not of this pool or is taken.
    pub fn restore(&mut self, owner: &str, address: Ipv4Addr) -> bool {
        if !self.contains(address) || self.taken.iter().any(|(who, a)| *a == address && who != owner) {
            return false;
        }
        self.taken.insert(owner.to_owned(), address);
        self.next = self.next.max(u32::from(address) - self.base + 1);
        true
    }

    /// The owner's address; a new one if it has none.
    pub fn assign(&mut self, owner: &str) -> Result<Ipv4Addr, PoolError> {
        if let Some(address) = self.taken.get(owner) {
            return Ok(*address);
        }
        let slots = self.size - 3;
        let start = (self.next.max(2) - 2) % slots;
        let base = self.base;
        let free = (0..slots)
            .map(move |i| Ipv4Addr::from(base + 2 + (start + i) % slots))
            .filter(|address| !self.taken.values().any(|taken| taken == address));
        let Some(address) = free.clone().find(|address| !self.avoided.contains(address)) else {
            // Whatever used them may be gone by the time somebody asks again.
            self.avoided.clear();
            return Err(PoolError::Exhausted(self.cidr.clone()));
        };
        self.next = u32::from(address) - self.base + 1;
        self.taken.insert(owner.to_owned(), address);
        Ok(address)
    }

    /// Takes the owner's address away and gives it to nobody any more: something else on this machine uses it.
    /// When nothing else is left, what was avoided is tried again.
    pub fn avoid(&mut self, owner: &str) {
        if let Some(address) = self.taken.remove(owner) {
            self.avoided.insert(address);
        }
    }

    /// Gives the owner's address back.
    pub fn release(&mut self, owner: &str) -> Option<Ipv4Addr> {
        self.taken.remove(owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 64, 3, last)
    }

    #[test]
    fn addresses_are_unique_stable_and_reused_last() {
        let mut pool = Pool::new("10.64.3.0/29").expect("a CIDR");
        assert_eq!(pool.node(), ip(1));
        let taken: Vec<_> = ["a", "b", "c", "d", "e"].map(|o| pool.assign(o)).into_iter().flatten().collect();
        assert_eq!(taken, [2, 3, 4, 5, 6].map(ip));
        assert_eq!(pool.assign("f"), Err(PoolError::Exhausted("10.64.3.0/29".into())));
        assert_eq!(pool.assign("c"), Ok(ip(4)));
        pool.release("b");
        pool.release("d");
        assert_eq!(pool.assign("g"), Ok(ip(3)));
        pool.release("g");
        assert_eq!(pool.assign("h"), Ok(ip(5)), "the freshest comes last");
        pool.avoid("h");
        assert_eq!(pool.assign("h"), Ok(ip(3)));
        assert!(pool.assign("i").is_err());
        assert_eq!(pool.assign("i"), Ok(ip(5)), "what was avoided is tried again when nothing else is left");
    }

    #[test]
    fn a_checkpoint_is_restored() {
        let mut pool = Pool::new("10.64.3.0/24").expect("a CIDR");
        assert!(pool.restore("a", ip(7)));
        assert!(pool.restore("a", ip(7)));
        assert!(!pool.restore("b", ip(7)));
        assert!(!pool.restore("b", ip(1)));
        assert!(!pool.restore("b", ip(255)));
        assert!(!pool.restore("b", Ipv4Addr::new(10, 65, 0, 2)));
        assert_eq!(pool.assign("a"), Ok(ip(7)));
        assert_eq!(pool.assign("b"), Ok(ip(8)));
    }

    #[test]
    fn bad_cidrs() {
        for text in ["", "10.0.0.0", "10.0.0.0/30", "10.0.0.0/x", "fd00::/64", "10.0.0/24", "10.0.0.0/4"] {
            assert!(Pool::new(text).is_err(), "{text}");
        }
    }
}
