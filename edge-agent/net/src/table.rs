//! Services and EndpointSlices as routes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use lichen_api::k8s::api::core::v1::Service;
use lichen_api::k8s::api::discovery::v1::EndpointSlice;

/// Where a Service is reached: a cluster address and a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// The cluster address.
    pub ip: Ipv4Addr,
    /// The port.
    pub port: u16,
}

/// Where a connection may go: a pod's cluster address and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// The cluster address.
    pub ip: Ipv4Addr,
    /// The port.
    pub port: u16,
}

/// One port of one Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub service: String,
    /// Sorted, each once; empty if nothing is ready.
    pub backends: Vec<Backend>,
}

/// All routes.
pub type Routes = BTreeMap<Frontend, Route>;

/// Namespace and name.
type Name = (String, String);

/// What is known of Services and EndpointSlices.
#[derive(Debug, Clone, Default)]
pub struct Table {
    services: BTreeMap<Name, Ports>,
    slices: BTreeMap<Name, Slice>,
}

#[derive(Debug, Clone)]
struct Ports {
    ip: Ipv4Addr,
    /// Names and numbers of the TCP ports.
    ports: Vec<(String, u16)>,
    publish_unready: bool,
}

#[derive(Debug, Clone)]
struct Slice {
    service: String,
    /// Names and numbers of the TCP ports.
    ports: Vec<(String, u16)>,
    endpoints: Vec<(Ipv4Addr, Health)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Ready,
    /// On its way out and still able to serve: used only if nothing else is left.
    Leaving,
    Unfit,
}

/// The label by which a slice names its Service.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

impl Table {
    /// Takes up a Service, new or changed.
    pub fn set_service(&mut self, namespace: &str, name: &str, service: &Service) {
        let key = (namespace.to_owned(), name.to_owned());
        let spec = service.spec.as_ref();
        // A headless Service says "None", which is no address and so has no route.
        let ip = spec.and_then(|s| s.cluster_ip.as_deref()).and_then(|ip| ip.parse().ok());
        let (Some(ip), Some(spec)) = (ip, spec) else {
            self.services.remove(&key);
            return;
        };
        let ports = spec
            .ports
            .iter()
            .flatten()
            .filter(|p| is_tcp(p.protocol.as_deref()))
            .filter_map(|p| Some((p.name.clone().unwrap_or_default(), port(p.port)?)))
            .collect();
        let publish_unready = spec.publish_not_ready_addresses == Some(true);
        self.services.insert(key, Ports { ip, ports, publish_unready });
    }

    /// Forgets a Service.
    pub fn remove_service(&mut self, namespace: &str, name: &str) {
        self.services.remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Takes up an EndpointSlice, new or changed.
    pub fn set_slice(&mut self, namespace: &str, name: &str, slice: &EndpointSlice) {
        let key = (namespace.to_owned(), name.to_owned());
        let labels = slice.metadata.labels.as_ref();
        let Some(service) = labels.and_then(|l| l.get(SERVICE_NAME_LABEL)).cloned() else {
            self.slices.remove(&key);
            return;
        };
        let ports = slice
            .ports
            .iter()
            .flatten()
            .filter(|p| is_tcp(p.protocol.as_deref()))
            .filter_map(|p| Some((p.name.clone().unwrap_or_default(), port(p.port?)?)))
            .collect();
        let endpoints = slice
            .endpoints
            .iter()
            .flatten()
            .filter_map(|endpoint| {
                let conditions = endpoint.conditions.clone().unwrap_or_default();
                let health = if conditions.ready != Some(false) {
                    Health::Ready
                } else if conditions.serving == Some(true) && conditions.terminating == Some(true) {
                    Health::Leaving
                } else {
                    Health::Unfit
                };
                let first: Option<Ipv4Addr> = endpoint.addresses.first().and_then(|a| a.parse().ok());
                first.map(|ip| (ip, health))
            })
            .collect();
        self.slices.insert(key, Slice { service, ports, endpoints });
    }

    /// Forgets an EndpointSlice.
    pub fn remove_slice(&mut self, namespace: &str, name: &str) {
        self.slices.remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// The routes that follow.
    pub fn routes(&self) -> Routes {
        let mut routes = Routes::new();
        for ((namespace, name), service) in &self.services {
            for (port_name, port) in &service.ports {
                routes.insert(
                    Frontend { ip: service.ip, port: *port },
                    Route {
                        namespace: namespace.clone(),
                        service: name.clone(),
                        backends: self.backends(namespace, name, port_name, service.publish_unready),
                    },
                );
            }
        }
        routes
    }

    fn backends(&self, namespace: &str, service: &str, port_name: &str, unready: bool) -> Vec<Backend> {
        let of = |wanted: &dyn Fn(Health) -> bool| {
            let mut backends: Vec<Backend> = self
                .slices
                .iter()
                .filter(|((ns, _), slice)| ns == namespace && slice.service == service)
                .flat_map(|(_, slice)| {
                    let ports =
                        slice.ports.iter().filter(|(name, _)| name == port_name).map(|(_, port)| *port);
                    ports.flat_map(|port| {
                        let fit = slice.endpoints.iter().filter(|(_, health)| wanted(*health));
                        fit.map(move |(ip, _)| Backend { ip: *ip, port })
                    })
                })
                .collect();
            backends.sort_unstable();
            backends.dedup();
            backends
        };
        let ready = of(&|health| unready || health == Health::Ready);
        if ready.is_empty() { of(&|health| health == Health::Leaving) } else { ready }
    }
}

fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|p| p == "TCP")
}

fn port(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|p| *p > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn table(service: Value, slices: &[Value]) -> Table {
        let mut table = Table::default();
        table.set_service("ns", "web", &serde_json::from_value(service).expect("a Service"));
        for (i, slice) in slices.iter().enumerate() {
            let slice = serde_json::from_value(slice.clone()).expect("an EndpointSlice");
            table.set_slice("ns", &format!("web-{i}"), &slice);
        }
        table
    }

    fn service(ip: &str) -> Value {
        json!({ "spec": { "clusterIP": ip, "ports": [
            { "name": "http", "port": 8080 }, { "name": "dns", "port": 53, "protocol": "UDP" },
        ] } })
    }

    fn slice(endpoints: Value) -> Value {
        json!({ "addressType": "IPv4", "metadata": { "labels": { SERVICE_NAME_LABEL: "web" } },
            "ports": [{ "name": "http", "port": 80, "protocol": "TCP" }, { "name": "other", "port": 81 }],
            "endpoints": endpoints })
    }

    fn endpoint(ip: &str, ready: bool, serving: bool, terminating: bool) -> Value {
        json!({ "addresses": [ip],
            "conditions": { "ready": ready, "serving": serving, "terminating": terminating } })
    }

    fn check(table: &Table, expect: &[&str]) {
        let text: Vec<_> = table
            .routes()
            .iter()
            .map(|(f, r)| {
                let to: Vec<_> = r.backends.iter().map(|b| format!("{}:{}", b.ip, b.port)).collect();
                format!("{}:{} -> {}", f.ip, f.port, to.join(","))
            })
            .collect();
        assert_eq!(text, expect);
    }

    #[test]
    fn readiness_decides() {
        let a = endpoint("10.64.0.2", true, true, false);
        let starting = endpoint("10.64.0.3", false, false, false);
        let leaving = endpoint("10.64.0.4", false, true, true);
        let check = |endpoints: Value, expect| {
            check(&table(service("10.96.0.9"), &[slice(endpoints)]), &[expect]);
        };
        check(json!([a, starting, leaving]), "10.96.0.9:8080 -> 10.64.0.2:80");
        check(json!([starting, leaving]), "10.96.0.9:8080 -> 10.64.0.4:80");
        check(json!([starting]), "10.96.0.9:8080 -> ");
        check(json!([{ "addresses": ["10.64.0.5"] }]), "10.96.0.9:8080 -> 10.64.0.5:80");
    }

    #[test]
    fn slices_add_up_and_go() {
        let one = slice(json!([endpoint("10.64.0.2", true, true, false)]));
        let two = slice(json!([
            endpoint("10.64.0.2", true, true, false),
            endpoint("10.64.1.2", true, true, false)
        ]));
        let mut table = table(service("10.96.0.9"), &[one, two]);
        check(&table, &["10.96.0.9:8080 -> 10.64.0.2:80,10.64.1.2:80"]);
        table.remove_slice("ns", "web-1");
        check(&table, &["10.96.0.9:8080 -> 10.64.0.2:80"]);
        table.remove_service("ns", "web");
        check(&table, &[]);
    }

    #[test]
    fn a_headless_service_has_no_route() {
        check(&table(service("None"), &[]), &[]);
    }
}
