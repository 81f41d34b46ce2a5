//! Service: one address for the pods that a selector finds. Which address is the registry's to say.

use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};

use crate::check::At;
use crate::field::FieldError;
use crate::metadata;
use crate::pod::containers::port_reference;
use crate::resource::{FieldSelector, Resource};
use crate::strategy::{Hooks, Typed, copy, items, set};
use crate::{table, validation};

/// The range that node ports come from.
pub const NODE_PORTS: std::ops::RangeInclusive<i64> = 30000..=32767;

/// The table entry of Service.
pub static RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    namespaced: true,
    delete_collection: true,
    create_on_update: false,
    update_needs_version: false,
    subresources: &["status"],
    columns: &[
        table::NAME,
        table::column("Type", "How the service is exposed."),
        table::column("Cluster-IP", "The address of the service inside the cluster."),
        table::column("External-IP", "Addresses of the service outside the cluster."),
        table::column("Port(s)", "The ports that the service exposes."),
        table::AGE,
        table::wide("Selector", "The labels of the pods behind the service."),
    ],
    row,
    fields: &[
        FieldSelector {
            name: "spec.clusterIP",
            get: |object| table::text(object, "/spec/clusterIP").to_owned(),
        },
        FieldSelector { name: "spec.type", get: |object| table::text(object, "/spec/type").to_owned() },
    ],
    strategy: &STRATEGY,
    stored_as: None,
    deprecation: None,
};

static STRATEGY: Typed<Service> = Typed::new(Hooks {
    name: validation::service_name,
    has_status: true,
    default,
    prepare_create,
    prepare_update,
    validate,
    validate_update,
    ..Hooks::NONE
});

fn default(object: &mut Value) {
    set(object, "spec", json!({}));
    let spec = &mut object["spec"];
    set(spec, "sessionAffinity", "None");
    if spec["sessionAffinity"] == "ClientIP" {
        set(spec, "sessionAffinityConfig", json!({}));
        set(&mut spec["sessionAffinityConfig"], "clientIP", json!({}));
        set(&mut spec["sessionAffinityConfig"]["clientIP"], "timeoutSeconds", 10800);
    }
    set(spec, "type", "ClusterIP");
    for port in items(spec, "ports") {
        set(port, "protocol", "TCP");
        let number = port["port"].clone();
        set(port, "targetPort", number);
    }
    let kind = spec["type"].as_str().unwrap_or_default().to_owned();
    if kind == "ExternalName" {
        return;
    }
    set(spec, "internalTrafficPolicy", "Cluster");
    if kind != "ClusterIP" {
        set(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", true);
    }
}

fn prepare_create(object: &mut Value) {
    object["status"] = json!({"loadBalancer": {}});
    set(object, "spec", json!({}));
    let spec = &mut object["spec"];
    if spec["type"] != "ExternalName" {
        set(spec, "ipFamilyPolicy", "SingleStack");
        set(spec, "ipFamilies", json!(["IPv4"]));
        cluster_addresses(spec);
    }
}

/// `clusterIP` and `clusterIPs[0]` are the same thing, said by clients of different age.
fn cluster_addresses(spec: &mut Value) {
    let one = table::text(spec, "/clusterIP").to_owned();
    let first = table::text(spec, "/clusterIPs/0").to_owned();
    if !one.is_empty() && first.is_empty() {
        spec["clusterIPs"] = json!([one]);
    } else if one.is_empty() && !first.is_empty() {
        spec["clusterIP"] = json!(first);
    }
}

fn prepare_update(new: &mut Value, old: &Value) {
    let external = |object: &Value| object.pointer("/spec/type") == Some(&json!("ExternalName"));
    if external(new) || external(old) {
        return;
    }
    // A client that leaves the allocated address out means to keep it.
    let spec = &mut new["spec"];
    for field in ["ipFamilies", "ipFamilyPolicy"] {
        if spec.get(field).is_none() {
            copy(spec, &old["spec"], field);
        }
    }
    match (table::text(spec, "/clusterIP"), table::text(spec, "/clusterIPs/0")) {
        ("", "") => {
            copy(spec, &old["spec"], "clusterIP");
            copy(spec, &old["spec"], "clusterIPs");
        }
        (one, first) if one != first => {
            // A patch changed only one of the two: the changed one counts.
            let old_one = table::text(old, "/spec/clusterIP");
            let second = one.is_empty() || (one == old_one && !first.is_empty());
            let chosen = if second { first.to_owned() } else { one.to_owned() };
            spec["clusterIP"] = json!(chosen);
            spec["clusterIPs"] = json!([chosen]);
        }
        _ => {}
    }
    for port in items(spec, "ports") {
        let same = table::list(old, "/spec/ports")
            .iter()
            .find(|known| known["port"] == port["port"] && known["protocol"] == port["protocol"]);
        let wanted = old.pointer("/spec/type").is_some_and(|kind| kind != "ClusterIP");
        if let Some(number) = same.and_then(|known| known.get("nodePort"))
            && wanted
        {
            set(port, "nodePort", number.clone());
        }
    }
    if spec["type"] == "ClusterIP" && old.pointer("/spec/type") != Some(&json!("ClusterIP")) {
        for port in items(spec, "ports") {
            if let Some(fields) = port.as_object_mut() {
                fields.remove("nodePort");
            }
        }
        if let Some(fields) = spec.as_object_mut() {
            fields.remove("externalTrafficPolicy");
        }
    }
}

fn validate(object: &At<'_>, errors: &mut Vec<FieldError>) {
    let spec = object.field("spec");
    let kind = spec.field("type");
    let ports = spec.field("ports");
    let headless = spec.field("clusterIP").text() == "None";
    if ports.is_empty() && !headless && kind.text() != "ExternalName" {
        errors.push(FieldError::required(&ports.path, ""));
    }
    if kind.text() == "ExternalName" {
        let name = spec.field("externalName");
        if name.required(errors) {
            name.obeys(validation::dns_subdomain, errors);
        }
    }
    kind.one_of(&["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], errors);
    spec.field("sessionAffinity").one_of(&["ClientIP", "None"], errors);
    let several = ports.items().count() > 1;
    let (mut names, mut numbers) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
    for port in ports.items() {
        let name = port.field("name");
        if name.is_empty() {
            if several {
                errors.push(FieldError::required(&name.path, ""));
            }
        } else {
            name.obeys(validation::dns_label, errors);
            if !names.insert(name.text()) {
                errors.push(FieldError::duplicate(&name.path, name.text()));
            }
        }
        port.field("port").port_number(errors);
        port.field("protocol").one_of(&["SCTP", "TCP", "UDP"], errors);
        port_reference(&port.field("targetPort"), errors);
        if !numbers.insert((port.field("protocol").text(), port.field("port").number())) {
            errors.push(FieldError::duplicate(&port.path, port.value.clone()));
        }
        node_port(&port.field("nodePort"), kind.text(), errors);
    }
    metadata::labels(&spec.field("selector"), errors);
    addresses(&spec, errors);
}

fn node_port(port: &At<'_>, kind: &str, errors: &mut Vec<FieldError>) {
    match port.number() {
        None | Some(0) => {}
        Some(_) if matches!(kind, "ClusterIP" | "ExternalName") => {
            errors.push(FieldError::forbidden(&port.path, format!("may not be used when `type` is '{kind}'")))
        }
        Some(number) if !NODE_PORTS.contains(&number) => port.invalid(
            "provided port is not in the valid range. The range of valid ports is 30000-32767",
            errors,
        ),
        Some(_) => {}
    }
}

fn addresses(spec: &At<'_>, errors: &mut Vec<FieldError>) {
    let external_name = spec.field("type").text() == "ExternalName";
    let list = spec.field("clusterIPs");
    if external_name && !list.is_empty() {
        errors.push(FieldError::forbidden(&list.path, "may not be set when `type` is 'ExternalName'"));
    }
    for (index, address) in list.items().enumerate() {
        let text = address.text();
        if text == "None" && index == 0 && list.items().count() == 1 {
            continue;
        }
        if text.parse::<std::net::IpAddr>().is_err() {
            address.invalid("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)", errors);
        }
    }
    for address in spec.field("externalIPs").items() {
        if address.text().parse::<std::net::IpAddr>().is_err() {
            address.invalid("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)", errors);
        }
    }
}

fn validate_update(new: &At<'_>, old: &At<'_>, errors: &mut Vec<FieldError>) {
    let kind = |at: &At<'_>| at.below(&["spec", "type"]).text() == "ExternalName";
    let (list, old_list) = (new.below(&["spec", "clusterIPs"]), old.below(&["spec", "clusterIPs"]));
    if !kind(new) && !kind(old) && !old_list.is_empty() && list.value.get(0) != old_list.value.get(0) {
        errors.push(FieldError::invalid(
            format!("{}[0]", list.path),
            list.value.clone(),
            "may not change once set",
        ));
    }
}

fn row(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let ports: Vec<String> = table::list(object, "/spec/ports")
        .iter()
        .map(|port| {
            let (number, protocol) = (table::number(port, "/port"), table::text(port, "/protocol"));
            match table::number(port, "/nodePort") {
                0 => format!("{number}/{protocol}"),
                node_port => format!("{number}:{node_port}/{protocol}"),
            }
        })
        .collect();
    vec![
        table::name(object),
        json!(table::text(object, "/spec/type")),
        json!(table::or(table::text(object, "/spec/clusterIP"), "<none>")),
        json!(external_addresses(object)),
        json!(table::or(&ports.join(","), "<none>")),
        table::age(object, now),
        table::pairs(object, "/spec/selector"),
    ]
}

fn external_addresses(object: &Value) -> String {
    let mut addresses: Vec<&str> = Vec::new();
    let kind = table::text(object, "/spec/type");
    if kind == "ExternalName" {
        return table::text(object, "/spec/externalName").to_owned();
    }
    if kind == "LoadBalancer" {
        for ingress in table::list(object, "/status/loadBalancer/ingress") {
            addresses.push(table::or(table::text(ingress, "/ip"), table::text(ingress, "/hostname")));
        }
    }
    addresses.extend(table::list(object, "/spec/externalIPs").iter().filter_map(Value::as_str));
    match (addresses.is_empty(), kind) {
        (true, "LoadBalancer") => "<pending>".to_owned(),
        (true, _) => "<none>".to_owned(),
        _ => addresses.join(","),
    }
}
