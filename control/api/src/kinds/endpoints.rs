//! Endpoints: where the pods behind a Service are, as clients older than EndpointSlice ask for it.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Endpoints;
use serde_json::{Value, json};

use crate::check::At;
use crate::field::FieldError;
use crate::resource::Resource;
use crate::strategy::{Hooks, Typed, items, set};
use crate::{table, validation};

/// The table entry of Endpoints.
pub static RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    kind: "Endpoints",
    plural: "endpoints",
    singular: "endpoints",
    short_names: &["ep"],
    categories: &[],
    namespaced: true,
    delete_collection: true,
    create_on_update: true,
    update_needs_version: false,
    subresources: &[],
    columns: &[
        table::NAME,
        table::column("Endpoints", "The addresses that serve, each with its port."),
        table::AGE,
    ],
    row: |object, now| vec![table::name(object), shown(object), table::age(object, now)],
    fields: &[],
    strategy: &STRATEGY,
    stored_as: None,
    deprecation: Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
};

static STRATEGY: Typed<Endpoints> = Typed::new(Hooks { default, validate, ..Hooks::NONE });

fn default(object: &mut Value) {
    for subset in items(object, "subsets") {
        for port in items(subset, "ports") {
            set(port, "protocol", "TCP");
        }
    }
}

fn validate(object: &At<'_>, errors: &mut Vec<FieldError>) {
    for subset in object.field("subsets").items() {
        let (ready, unready) = (subset.field("addresses"), subset.field("notReadyAddresses"));
        if ready.is_empty() && unready.is_empty() {
            errors
                .push(FieldError::required(&subset.path, "must specify `addresses` or `notReadyAddresses`"));
        }
        ready.items().chain(unready.items()).for_each(|address| validate_address(&address, errors));
        let ports = subset.field("ports");
        let several = ports.items().count() > 1;
        for port in ports.items() {
            let name = port.field("name");
            if several && name.is_empty() {
                errors.push(FieldError::required(&name.path, ""));
            } else if !name.is_empty() {
                name.obeys(validation::dns_label, errors);
            }
            port.field("port").port_number(errors);
            port.field("protocol").one_of(&["SCTP", "TCP", "UDP"], errors);
        }
    }
}

fn validate_address(address: &At<'_>, errors: &mut Vec<FieldError>) {
    let ip = address.field("ip");
    let Ok(parsed) = ip.text().parse::<IpAddr>() else {
        ip.invalid("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)", errors);
        return;
    };
    for (field, rule) in
        [("hostname", validation::dns_label as fn(&str) -> _), ("nodeName", validation::dns_subdomain)]
    {
        let text = address.field(field);
        if !text.is_empty() {
            text.obeys(rule, errors);
        }
    }
    let (local, multicast) = match parsed {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(ip) => (ip.is_unicast_link_local(), ip.segments()[0] & 0xff0f == 0xff02),
    };
    let refused = [
        (parsed.is_unspecified(), format!("may not be unspecified ({parsed})")),
        (parsed.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned()),
        (local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned()),
        (multicast, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned()),
    ];
    for (_, why) in refused.into_iter().filter(|(is, _)| *is) {
        ip.invalid(why, errors);
    }
}

fn shown(object: &Value) -> Value {
    let subsets = table::list(object, "/subsets");
    let mut all = Vec::new();
    for subset in subsets {
        let addresses =
            || table::list(subset, "/addresses").iter().map(|address| table::text(address, "/ip"));
        let ports = table::list(subset, "/ports");
        if ports.is_empty() {
            all.extend(addresses().map(str::to_owned));
        }
        for port in ports {
            let number = table::number(port, "/port");
            all.extend(addresses().map(|ip| match ip.contains(':') {
                true => format!("[{ip}]:{number}"),
                false => format!("{ip}:{number}"),
            }));
        }
    }
    match (subsets, all.as_slice()) {
        ([], _) => json!("<none>"),
        (_, []) => json!(""),
        (_, all) => table::few(all),
    }
}
