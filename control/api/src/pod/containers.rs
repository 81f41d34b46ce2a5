//! Rules on the containers of a pod.

use std::collections::BTreeSet;

use crate::check::At;
use crate::field::FieldError;
use crate::pod::volumes;
use crate::quantity::Quantity;
use crate::validation;

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

/// Checks init containers and containers of a pod spec.
pub fn validate(spec: &At<'_>, volumes: &BTreeSet<&str>, errors: &mut Vec<FieldError>) {
    let mut names = BTreeSet::new();
    for container in spec.field("containers").items() {
        container_rules(&container, volumes, &mut names, errors);
        for hook in ["postStart", "preStop"] {
            handler(&container.below(&["lifecycle", hook]), errors);
        }
        for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
            validate_probe(&container.field(probe), probe != "readinessProbe", errors);
        }
    }
    for container in spec.field("initContainers").items() {
        container_rules(&container, volumes, &mut names, errors);
        let policy = container.field("restartPolicy");
        let sidecar = policy.text() == "Always";
        for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
            let probe = container.field(probe);
            if !sidecar && !probe.is_absent() {
                errors.push(FieldError::forbidden(
                    &probe.path,
                    "may not be set for init containers without restartPolicy=Always",
                ));
            }
        }
    }
}

fn container_rules<'v>(
    container: &At<'v>,
    volumes: &BTreeSet<&str>,
    names: &mut BTreeSet<&'v str>,
    errors: &mut Vec<FieldError>,
) {
    let name = container.field("name");
    if name.required(errors) {
        name.obeys(validation::dns_label, errors);
        if !names.insert(name.text()) {
            errors.push(FieldError::duplicate(&name.path, name.text()));
        }
    }
    let image = container.field("image");
    if image.required(errors) && image.text() != image.text().trim() {
        image.invalid("must not have leading or trailing whitespace", errors);
    }
    ports(&container.field("ports"), errors);
    environment(container, errors);
    mounts(&container.field("volumeMounts"), volumes, errors);
    container.field("imagePullPolicy").one_of(&["Always", "IfNotPresent", "Never"], errors);
    container.field("terminationMessagePolicy").one_of(&["FallbackToLogsOnError", "File"], errors);
    resources(&container.field("resources"), errors);
}

fn ports(ports: &At<'_>, errors: &mut Vec<FieldError>) {
    let (mut names, mut host_ports) = (BTreeSet::new(), BTreeSet::new());
    for port in ports.items() {
        let name = port.field("name");
        if !name.is_empty() {
            match validation::port_name(name.text()) {
                Err(_) => name.obeys(validation::port_name, errors),
                Ok(()) if !names.insert(name.text()) => {
                    errors.push(FieldError::duplicate(&name.path, name.text()));
                }
                Ok(()) => {}
            }
        }
        port.field("containerPort").port_number(errors);
        let (host_port, protocol) = (port.field("hostPort"), port.field("protocol"));
        if host_port.number().is_some_and(|number| number != 0) {
            host_port.port_number(errors);
            let claim = (protocol.text(), port.field("hostIP").text(), host_port.number());
            if !host_ports.insert(claim) {
                errors.push(FieldError::duplicate(&host_port.path, host_port.value.clone()));
            }
        }
        protocol.one_of(&PROTOCOLS, errors);
    }
}

fn environment(container: &At<'_>, errors: &mut Vec<FieldError>) {
    for variable in container.field("env").items() {
        let name = variable.field("name");
        if name.required(errors) {
            name.obeys(validation::env_name, errors);
        }
        let source = variable.field("valueFrom");
        if source.is_absent() {
            continue;
        }
        let sources = source.entries().count();
        if sources == 0 {
            source.invalid(
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
                errors,
            );
        } else if sources > 1 {
            source.invalid("may not have more than one field specified at a time", errors);
        }
        if !variable.field("value").is_empty() {
            source.invalid("may not be specified when `value` is not empty", errors);
        }
        for kind in ["configMapKeyRef", "secretKeyRef"] {
            let reference = source.field(kind);
            if !reference.is_absent() {
                reference.field("name").required(errors);
                let key = reference.field("key");
                if key.required(errors) {
                    key.obeys(validation::config_key, errors);
                }
            }
        }
        let field = source.field("fieldRef");
        if !field.is_absent() {
            field_path(&field.field("fieldPath"), errors);
        }
    }
    for source in container.field("envFrom").items() {
        let (config, secret) = (source.field("configMapRef"), source.field("secretRef"));
        match (config.is_absent(), secret.is_absent()) {
            (true, true) => source.invalid("must specify one of: `configMapRef` or `secretRef`", errors),
            (false, false) => source.invalid("may not have more than one field specified at a time", errors),
            (false, true) => {
                config.field("name").required(errors);
            }
            (true, false) => {
                secret.field("name").required(errors);
            }
        }
    }
}

/// The fields that a variable may take its value from.
const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn field_path(path: &At<'_>, errors: &mut Vec<FieldError>) {
    if !path.required(errors) {
        return;
    }
    let text = path.text();
    let keyed = ["metadata.labels['", "metadata.annotations['"]
        .iter()
        .any(|start| text.starts_with(start) && text.ends_with("']"));
    if !keyed && !ENV_FIELDS.contains(&text) {
        path.one_of(&ENV_FIELDS, errors);
    }
}

fn mounts(mounts: &At<'_>, volumes: &BTreeSet<&str>, errors: &mut Vec<FieldError>) {
    let mut paths = BTreeSet::new();
    for mount in mounts.items() {
        let (name, path, sub_path) = (mount.field("name"), mount.field("mountPath"), mount.field("subPath"));
        if name.required(errors) && !volumes.contains(name.text()) {
            errors.push(FieldError::not_found(&name.path, name.text()));
        }
        if path.required(errors) && !paths.insert(path.text()) {
            path.invalid("must be unique", errors);
        }
        if !sub_path.is_empty() {
            volumes::local_path(&sub_path, errors);
        }
    }
}

fn resources(resources: &At<'_>, errors: &mut Vec<FieldError>) {
    let amount = |at: &At<'_>| at.text().parse::<Quantity>().ok();
    let (limits, requests) = (resources.field("limits"), resources.field("requests"));
    for list in [&limits, &requests] {
        for (name, quantity) in list.entries() {
            if !name.contains('/') && !is_standard_resource(name) {
                errors.push(FieldError::invalid(
                    &list.path,
                    name,
                    "must be a standard resource type or fully qualified",
                ));
            }
            if amount(&quantity).is_some_and(|amount| amount.is_negative()) {
                quantity.invalid("must be greater than or equal to 0", errors);
            }
        }
    }
    for (name, request) in requests.entries() {
        let limit = limits.field(name);
        if let (Some(asked), Some(most)) = (amount(&request), amount(&limit))
            && asked > most
        {
            errors.push(FieldError::invalid(
                &requests.path,
                request.text(),
                format!("must be less than or equal to {name} limit of {most}"),
            ));
        }
    }
}

fn is_standard_resource(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-")
}

fn validate_probe(probe: &At<'_>, single_success: bool, errors: &mut Vec<FieldError>) {
    if probe.is_absent() {
        return;
    }
    handler(probe, errors);
    for field in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        probe.field(field).not_negative(errors);
    }
    let success = probe.field("successThreshold");
    if single_success && success.number().is_some_and(|number| number != 1) {
        success.invalid("must be 1", errors);
    }
}

/// An action of a probe or a lifecycle hook: exactly one.
fn handler(handler: &At<'_>, errors: &mut Vec<FieldError>) {
    if handler.is_absent() {
        return;
    }
    let actions = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];
    let given: Vec<At<'_>> =
        actions.iter().map(|action| handler.field(action)).filter(|action| !action.is_absent()).collect();
    if given.is_empty() {
        errors.push(FieldError::required(&handler.path, "must specify a handler type"));
    }
    for extra in given.iter().skip(1) {
        errors.push(FieldError::forbidden(&extra.path, "may not specify more than 1 handler type"));
    }
    let exec = handler.field("exec");
    if !exec.is_absent() {
        exec.field("command").required(errors);
    }
    let http = handler.field("httpGet");
    if !http.is_absent() {
        port_reference(&http.field("port"), errors);
        http.field("scheme").one_of(&["HTTP", "HTTPS"], errors);
    }
    let tcp = handler.field("tcpSocket");
    if !tcp.is_absent() {
        port_reference(&tcp.field("port"), errors);
    }
}

/// A port by number or by name.
pub fn port_reference(port: &At<'_>, errors: &mut Vec<FieldError>) {
    if port.value.is_string() {
        port.obeys(validation::port_name, errors);
    } else {
        port.port_number(errors);
    }
}
