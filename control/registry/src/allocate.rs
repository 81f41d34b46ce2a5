//! Addresses, ports and ranges that belong to one object at a time.
//!
//! Each allocation is a key of its own under `/allocations/`, written and removed in the transaction of the object that
//! it belongs to: none can leak or be given out twice.

use std::net::Ipv4Addr;

use lichen_api::{FieldError, Resource};
use lichen_store::{Action, Draft, Key, Op, Precondition};
use serde_json::{Value, json};

use crate::Registry;
use crate::metadata::text;

/// Addresses of Services: 10.96.0.0/16.
pub const SERVICE_RANGE: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 96, 0, 0), 16);
/// Addresses of pods, of which each node gets a /24: 10.64.0.0/11, so that it ends where those of Services begin.
pub const POD_RANGE: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 64, 0, 0), 11);
/// Ports that Services open on every node.
pub const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;

/// Bits of a node's part of the pod range.
const NODE_PREFIX: u8 = 24;
/// Random guesses before the free address or port is searched for in order.
const GUESSES: usize = 16;

/// Where allocations come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocationRanges {
    /// Addresses of Services: network and prefix length.
    pub services: (Ipv4Addr, u8),
    /// Addresses of pods: network and prefix length, at most 24.
    pub pods: (Ipv4Addr, u8),
}

impl Default for AllocationRanges {
    fn default() -> Self {
        Self { services: SERVICE_RANGE, pods: POD_RANGE }
    }
}

impl AllocationRanges {
    /// The first address for Services, which the `kubernetes` Service has.
    #[must_use]
    pub fn api_service(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.services.0) + 1)
    }

    /// How many addresses Services have, the network's and the broadcast one left out.
    fn service_count(&self) -> u32 {
        host_count(self.services.1, 32).saturating_sub(2)
    }

    fn service_at(&self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.services.0) + 1 + index)
    }

    fn has_service(&self, ip: Ipv4Addr) -> bool {
        let offset = u32::from(ip).wrapping_sub(u32::from(self.services.0));
        (1..=self.service_count()).contains(&offset)
    }

    /// The range of the node with a number; number 0 is left out, so that no pod has the network's own address.
    fn node_range(&self, number: u32) -> String {
        let network = u32::from(self.pods.0) + (number << (32 - NODE_PREFIX));
        format!("{}/{NODE_PREFIX}", Ipv4Addr::from(network))
    }
}

fn host_count(from: u8, to: u8) -> u32 {
    1u32.checked_shl(u32::from(to.saturating_sub(from))).unwrap_or(u32::MAX)
}

/// Whether a new object of a kind is given something that no other has.
pub(crate) fn allocates(resource: &Resource) -> bool {
    matches!((resource.group, resource.kind), ("", "Service" | "Node"))
}

impl Registry {
    /// Allocates what a new or changed object needs, writes it into the object, and yields the operations that record
    /// it, with the release of what `old` had and the object no longer has.
    pub(crate) fn allocate(
        &self,
        resource: &Resource,
        object: &mut Value,
        old: Option<&Value>,
    ) -> (Vec<Op>, Vec<FieldError>) {
        let before = old.map(|old| held(resource, old)).unwrap_or_default();
        let mut errors = Vec::new();
        match (resource.group, resource.kind) {
            ("", "Service") => {
                self.service_address(object, &before, &mut errors);
                self.node_ports(object, &before, &mut errors);
            }
            ("", "Node") if old.is_none() => self.pod_range(object, &mut errors),
            _ => return (Vec::new(), Vec::new()),
        }
        if !errors.is_empty() {
            return (Vec::new(), errors);
        }
        let after = held(resource, object);
        let owner = format!("{}/{}", text(object, "namespace"), text(object, "name"));
        let claims = after.iter().filter(|key| !before.contains(key)).map(|key| Op {
            key: key.clone(),
            pre: Precondition::Absent,
            action: Action::Put(Draft::opaque(owner.as_bytes())),
        });
        let mut ops: Vec<Op> = claims.collect();
        ops.extend(before.iter().filter(|key| !after.contains(key)).map(release_one));
        (ops, errors)
    }

    fn taken(&self, key: &Key, before: &[Key]) -> bool {
        !before.contains(key) && self.inner.store.get(key).is_some()
    }

    fn service_address(&self, object: &mut Value, before: &[Key], errors: &mut Vec<FieldError>) {
        let spec = &mut object["spec"];
        if spec.get("type").and_then(Value::as_str) == Some("ExternalName") {
            return;
        }
        let ranges = &self.inner.ranges;
        let asked = spec.get("clusterIP").and_then(Value::as_str).unwrap_or_default().to_owned();
        let address = match asked.as_str() {
            "None" => asked,
            "" => {
                let count = ranges.service_count();
                let free = |index: u32| {
                    let ip = ranges.service_at(index);
                    (!self.taken(&service_key(ip), before) && ip != ranges.api_service()).then_some(ip)
                };
                match self.pick(count, free) {
                    Some(ip) => ip.to_string(),
                    None => {
                        errors.push(FieldError::invalid(
                            "spec.clusterIPs",
                            json!([]),
                            "failed to allocate a serviceIP: range is full",
                        ));
                        return;
                    }
                }
            }
            text => {
                let why = match text.parse::<Ipv4Addr>() {
                    // Not an address at all: validation says so.
                    Err(_) => return,
                    Ok(ip) if !ranges.has_service(ip) => {
                        "the provided network does not match the current range"
                    }
                    Ok(ip) if self.taken(&service_key(ip), before) => "provided IP is already allocated",
                    Ok(_) => "",
                };
                if !why.is_empty() {
                    let why = format!("failed to allocate IP {text}: {why}");
                    errors.push(FieldError::invalid("spec.clusterIPs", json!([text]), why));
                    return;
                }
                asked
            }
        };
        spec["clusterIP"] = json!(address);
        spec["clusterIPs"] = json!([address]);
        if spec.get("ipFamilies").is_none() {
            spec["ipFamilies"] = json!(["IPv4"]);
        }
        if spec.get("ipFamilyPolicy").is_none() {
            spec["ipFamilyPolicy"] = json!("SingleStack");
        }
    }

    fn node_ports(&self, object: &mut Value, before: &[Key], errors: &mut Vec<FieldError>) {
        let opens = match object["spec"].get("type").and_then(Value::as_str) {
            Some("NodePort") => true,
            Some("LoadBalancer") => {
                object["spec"].get("allocateLoadBalancerNodePorts") != Some(&json!(false))
            }
            _ => false,
        };
        let mut chosen: Vec<Key> = Vec::new();
        let Some(ports) = object["spec"].get_mut("ports").and_then(Value::as_array_mut) else { return };
        for (index, port) in ports.iter_mut().enumerate() {
            let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("TCP").to_owned();
            let asked = port.get("nodePort").and_then(Value::as_i64).filter(|number| *number != 0);
            let field = || format!("spec.ports[{index}].nodePort");
            match asked {
                Some(number) => {
                    let Some(valid) = u16::try_from(number).ok().filter(|number| NODE_PORTS.contains(number))
                    else {
                        errors.push(FieldError::invalid(
                            field(),
                            number,
                            "provided port is not in the valid range. The range of valid ports is 30000-32767",
                        ));
                        continue;
                    };
                    let key = port_key(&protocol, valid);
                    if self.taken(&key, before) || chosen.contains(&key) {
                        errors.push(FieldError::invalid(
                            field(),
                            number,
                            "provided port is already allocated",
                        ));
                    }
                    chosen.push(key);
                }
                None if opens => {
                    let count = u32::from(NODE_PORTS.end() - NODE_PORTS.start()) + 1;
                    let free = |index: u32| {
                        let number = NODE_PORTS.start() + u16::try_from(index).ok()?;
                        let key = port_key(&protocol, number);
                        (!self.taken(&key, before) && !chosen.contains(&key)).then_some(number)
                    };
                    match self.pick(count, free) {
                        Some(number) => {
                            port["nodePort"] = json!(number);
                            chosen.push(port_key(&protocol, number));
                        }
                        None => errors.push(FieldError::invalid(
                            field(),
                            0,
                            "failed to allocate a nodePort: range is full",
                        )),
                    }
                }
                None => {}
            }
        }
    }

    fn pod_range(&self, object: &mut Value, errors: &mut Vec<FieldError>) {
        let ranges = &self.inner.ranges;
        let spec = &mut object["spec"];
        let asked = spec.get("podCIDR").and_then(Value::as_str).unwrap_or_default().to_owned();
        let range = if asked.is_empty() {
            let numbers = 1..host_count(ranges.pods.1, NODE_PREFIX);
            let mut free = numbers.map(|number| ranges.node_range(number));
            match free.find(|range| self.inner.store.get(&range_key(range)).is_none()) {
                Some(range) => range,
                None => {
                    errors.push(FieldError::invalid(
                        "spec.podCIDR",
                        "",
                        "failed to allocate a range: all are in use",
                    ));
                    return;
                }
            }
        } else if self.inner.store.get(&range_key(&asked)).is_some() {
            errors.push(FieldError::invalid("spec.podCIDR", asked, "provided range is already allocated"));
            return;
        } else {
            asked
        };
        spec["podCIDR"] = json!(range);
        spec["podCIDRs"] = json!([range]);
    }

    /// Finds something free among `count`: by guessing, so that two writers seldom meet, then in order.
    fn pick<T>(&self, count: u32, free: impl Fn(u32) -> Option<T>) -> Option<T> {
        if count == 0 {
            return None;
        }
        let start = (self.inner.sources.bits() % u64::from(count)) as u32;
        let guess = |_| free((self.inner.sources.bits() % u64::from(count)) as u32);
        (0..GUESSES).find_map(guess).or_else(|| (0..count).find_map(|step| free((start + step) % count)))
    }
}

/// Carries over what an update of a Service left out and may not lose.
pub(crate) fn keep_allocated(resource: &Resource, new: &mut Value, old: &Value) {
    if (resource.group, resource.kind) != ("", "Service") {
        return;
    }
    let kind =
        |object: &Value| object["spec"].get("type").and_then(Value::as_str).unwrap_or("ClusterIP").to_owned();
    let (new_kind, old_kind) = (kind(new), kind(old));
    if new_kind == "ExternalName" || old_kind == "ExternalName" {
        return;
    }
    let spec = &mut new["spec"];
    if spec.get("clusterIP").and_then(Value::as_str).unwrap_or_default().is_empty() {
        for field in ["clusterIP", "clusterIPs"] {
            spec[field] = old["spec"][field].clone();
        }
    }
    if new_kind == "ClusterIP" || old_kind == "ClusterIP" {
        return;
    }
    let same = |a: &Value, b: &Value| a["port"] == b["port"] && a["protocol"] == b["protocol"];
    let old_ports = old["spec"]["ports"].as_array().map_or(&[][..], Vec::as_slice);
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if port.get("nodePort").is_none()
            && let Some(node_port) =
                old_ports.iter().find(|old| same(old, port)).and_then(|old| old.get("nodePort"))
        {
            port["nodePort"] = node_port.clone();
        }
    }
}

/// The operations that give back everything an object has.
pub(crate) fn release(resource: &Resource, object: &Value) -> Vec<Op> {
    held(resource, object).iter().map(release_one).collect()
}

fn release_one(key: &Key) -> Op {
    Op { key: key.clone(), pre: Precondition::Any, action: Action::Delete }
}

/// The keys of everything that an object holds.
fn held(resource: &Resource, object: &Value) -> Vec<Key> {
    let spec = &object["spec"];
    match (resource.group, resource.kind) {
        ("", "Service") => {
            let ip = spec["clusterIP"].as_str().and_then(|text| text.parse::<Ipv4Addr>().ok());
            let mut keys: Vec<Key> = ip.into_iter().map(service_key).collect();
            for port in spec["ports"].as_array().into_iter().flatten() {
                let number = port["nodePort"].as_u64().and_then(|number| u16::try_from(number).ok());
                if let Some(number) = number.filter(|number| *number != 0) {
                    let key = port_key(port["protocol"].as_str().unwrap_or("TCP"), number);
                    if !keys.contains(&key) {
                        keys.push(key);
                    }
                }
            }
            keys
        }
        ("", "Node") => {
            spec["podCIDR"].as_str().into_iter().filter(|text| !text.is_empty()).map(range_key).collect()
        }
        _ => Vec::new(),
    }
}

fn service_key(ip: Ipv4Addr) -> Key {
    Key::from(format!("/allocations/serviceips/{ip}"))
}

fn port_key(protocol: &str, number: u16) -> Key {
    Key::from(format!("/allocations/nodeports/{protocol}/{number}"))
}

fn range_key(range: &str) -> Key {
    Key::from(format!("/allocations/podcidrs/{}", range.replace('/', "_")))
}
