//! EndpointSlice: where the pods behind a Service are.

use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use crate::check::At;
use crate::field::FieldError;
use crate::resource::Resource;
use crate::strategy::{Hooks, Typed, items, set};
use crate::table;

const ENDPOINTS_MAX: usize = 1000;
const PORTS_MAX: usize = 100;

/// The table entry of EndpointSlice.
pub static RESOURCE: Resource = Resource {
    group: "discovery.k8s.io",
    version: "v1",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    short_names: &[],
    categories: &[],
    namespaced: true,
    delete_collection: true,
    create_on_update: false,
    update_needs_version: false,
    subresources: &[],
    columns: &[
        table::NAME,
        table::column("AddressType", "The type of all addresses in this slice."),
        table::column("Ports", "The ports that each endpoint in this slice exposes."),
        table::column("Endpoints", "The endpoints in this slice."),
        table::AGE,
    ],
    row,
    fields: &[],
    strategy: &STRATEGY,
    stored_as: None,
    deprecation: None,
};

static STRATEGY: Typed<EndpointSlice> =
    Typed::new(Hooks { has_generation: true, default, validate, validate_update, ..Hooks::NONE });

fn default(object: &mut Value) {
    set(object, "endpoints", json!([]));
    for port in items(object, "ports") {
        set(port, "name", "");
        set(port, "protocol", "TCP");
    }
}

fn validate(object: &At<'_>, errors: &mut Vec<FieldError>) {
    let kind = object.field("addressType");
    if kind.required(errors) {
        kind.one_of(&["FQDN", "IPv4", "IPv6"], errors);
    }
    let (endpoints, ports) = (object.field("endpoints"), object.field("ports"));
    for (list, max) in [(&endpoints, ENDPOINTS_MAX), (&ports, PORTS_MAX)] {
        let count = list.items().count();
        if count > max {
            errors.push(FieldError::too_many(&list.path, count, max));
        }
    }
    for endpoint in endpoints.items() {
        let addresses = endpoint.field("addresses");
        if addresses.is_empty() {
            errors.push(FieldError::required(&addresses.path, "must contain at least 1 address"));
        }
        for address in addresses.items() {
            let fits = match kind.text() {
                "IPv4" => address.text().parse::<std::net::Ipv4Addr>().is_ok(),
                "IPv6" => address.text().parse::<std::net::Ipv6Addr>().is_ok(),
                _ => true,
            };
            if !fits {
                address.invalid(format!("must be a valid {} address", kind.text()), errors);
            }
        }
    }
    let mut names = std::collections::BTreeSet::new();
    for port in ports.items() {
        let name = port.field("name");
        if !names.insert(name.text()) {
            errors.push(FieldError::duplicate(&name.path, name.text()));
        }
        port.field("protocol").one_of(&["SCTP", "TCP", "UDP"], errors);
    }
}

fn validate_update(new: &At<'_>, old: &At<'_>, errors: &mut Vec<FieldError>) {
    new.field("addressType").immutable(&old.field("addressType"), errors);
}

fn row(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let ports: Vec<String> = table::list(object, "/ports")
        .iter()
        .map(|port| match port["port"].as_i64() {
            Some(number) => number.to_string(),
            None => table::or(table::text(port, "/name"), "*").to_owned(),
        })
        .collect();
    let addresses: Vec<String> = table::list(object, "/endpoints")
        .iter()
        .flat_map(|endpoint| table::list(endpoint, "/addresses"))
        .map(|address| address.as_str().unwrap_or_default().to_owned())
        .collect();
    vec![
        table::name(object),
        json!(table::text(object, "/addressType")),
        table::few(&ports),
        table::few(&addresses),
        table::age(object, now),
    ]
}
