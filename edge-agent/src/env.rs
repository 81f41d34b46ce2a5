//! A container's environment and arguments, with Kubernetes' precedence, expansion and messages.

use std::collections::BTreeMap;

use lichen_api::k8s::api::core::v1::{Container, EnvVarSource, Pod};

use crate::facts::{self, Facts};
use crate::objects::Objects;

/// Variables in the order of their definition.
pub(crate) type Environment = Vec<(String, String)>;

/// The container's environment; the error names what is missing.
pub(crate) fn environment(
    pod: &Pod,
    container: &Container,
    objects: &Objects,
    facts: &Facts,
) -> Result<Environment, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut env = Ordered::default();
    for (name, value) in service_variables(pod, namespace, objects) {
        env.set(name, value);
    }
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(source) = &from.config_map_ref {
            match objects.config_maps.get(&format!("{namespace}/{}", source.name)) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        env.set(format!("{prefix}{key}"), value.clone());
                    }
                }
                None if source.optional == Some(true) => {}
                None => return Err(format!("configmap {:?} not found", source.name)),
            }
        }
        if let Some(source) = &from.secret_ref {
            match objects.secrets.get(&format!("{namespace}/{}", source.name)) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        env.set(format!("{prefix}{key}"), text(&value.0));
                    }
                }
                None if source.optional == Some(true) => {}
                None => return Err(format!("secret {:?} not found", source.name)),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            Some(source) => referenced(pod, container, objects, facts, source)?,
            None => Some(expand(variable.value.as_deref().unwrap_or_default(), &env.values)),
        };
        if let Some(value) = value {
            env.set(variable.name.clone(), value);
        }
    }
    Ok(env.into_list())
}

/// The container's command and its arguments, expanded.
pub(crate) fn command_line(container: &Container, env: &Environment) -> (Vec<String>, Vec<String>) {
    let values: BTreeMap<String, String> = env.iter().cloned().collect();
    let expanded = |words: &Option<Vec<String>>| words.iter().flatten().map(|w| expand(w, &values)).collect();
    (expanded(&container.command), expanded(&container.args))
}

/// The value of a `valueFrom`; none if it is optional and absent.
fn referenced(
    pod: &Pod,
    container: &Container,
    objects: &Objects,
    facts: &Facts,
    source: &EnvVarSource,
) -> Result<Option<String>, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(reference) = &source.config_map_key_ref {
        let optional = reference.optional == Some(true);
        let name = format!("{namespace}/{}", reference.name);
        let value = match objects.config_maps.get(&name) {
            Some(map) => map.data.as_ref().and_then(|data| data.get(&reference.key)).cloned(),
            None if optional => None,
            None => return Err(format!("configmap {:?} not found", reference.name)),
        };
        return match value {
            None if !optional => Err(format!("couldn't find key {} in ConfigMap {name}", reference.key)),
            value => Ok(value),
        };
    }
    if let Some(reference) = &source.secret_key_ref {
        let optional = reference.optional == Some(true);
        let name = format!("{namespace}/{}", reference.name);
        let value = match objects.secrets.get(&name) {
            Some(secret) => {
                secret.data.as_ref().and_then(|data| data.get(&reference.key)).map(|v| text(&v.0))
            }
            None if optional => None,
            None => return Err(format!("secret {:?} not found", reference.name)),
        };
        return match value {
            None if !optional => Err(format!("couldn't find key {} in Secret {name}", reference.key)),
            value => Ok(value),
        };
    }
    if let Some(reference) = &source.field_ref {
        return facts::field(pod, facts, &reference.field_path).map(Some);
    }
    if let Some(reference) = &source.resource_field_ref {
        return facts::resource(pod, container, facts, reference).map(Some);
    }
    Err("an environment variable's source is not supported on this node".to_owned())
}

/// The addresses of the Services that the pod can see.
fn service_variables(pod: &Pod, namespace: &str, objects: &Objects) -> Environment {
    if pod.spec.as_ref().and_then(|s| s.enable_service_links) == Some(false) {
        return Vec::new();
    }
    let mut variables = Vec::new();
    for (key, service) in &objects.services {
        let Some((of, name)) = key.split_once('/') else { continue };
        if of != namespace && key != "default/kubernetes" {
            continue;
        }
        let Some(spec) = &service.spec else { continue };
        let ip = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None");
        let Some(ip) = ip else { continue };
        let prefix = name.to_uppercase().replace('-', "_");
        variables.push((format!("{prefix}_SERVICE_HOST"), ip.to_owned()));
        for (i, port) in spec.ports.iter().flatten().enumerate() {
            if i == 0 {
                variables.push((format!("{prefix}_SERVICE_PORT"), port.port.to_string()));
            }
            if let Some(name) = &port.name {
                let name = name.to_uppercase().replace('-', "_");
                variables.push((format!("{prefix}_SERVICE_PORT_{name}"), port.port.to_string()));
            }
        }
    }
    variables
}

/// Replaces `$(NAME)` by the variable's value; `$$` stands for a dollar, and what is not defined stays.
pub(crate) fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match env.get(name) {
                Some(value) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Variables in the order of their first definition, with their last value.
#[derive(Default)]
struct Ordered {
    order: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Ordered {
    fn set(&mut self, name: String, value: String) {
        if self.values.insert(name.clone(), value).is_none() {
            self.order.push(name);
        }
    }

    fn into_list(mut self) -> Environment {
        let values = &mut self.values;
        self.order.into_iter().filter_map(|name| Some((name.clone(), values.remove(&name)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn objects() -> Objects {
        let mut objects = Objects::default();
        for (kind, key, value) in [
            ("ConfigMap", "ns/cm", json!({ "data": { "a": "1", "b": "2" } })),
            ("Secret", "ns/s", json!({ "data": { "k": "aGk=" } })),
            (
                "Service",
                "ns/my-web",
                json!({ "spec": { "clusterIP": "10.96.0.9", "ports": [{ "name": "http", "port": 80 }] } }),
            ),
            (
                "Service",
                "other/x",
                json!({ "spec": { "clusterIP": "10.96.0.8", "ports": [{ "port": 80 }] } }),
            ),
        ] {
            objects.put(kind, key, &serde_cbor::to_vec(&value).expect("encodes")).expect("reads");
        }
        objects
    }

    fn run(links: bool, container: Value) -> Result<Vec<String>, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "p", "namespace": "ns" },
            "spec": { "containers": [], "enableServiceLinks": links },
        }))
        .expect("a pod");
        let mut value = container;
        value["name"] = json!("c");
        let container: Container = serde_json::from_value(value).expect("a container");
        let env = environment(&pod, &container, &objects(), &Facts::default())?;
        Ok(env.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
    }

    #[test]
    fn sources() {
        let check = |container: Value, expect: Result<&[&str], &str>| {
            let expect = expect.map(|l| l.iter().map(|s| (*s).to_owned()).collect()).map_err(str::to_owned);
            assert_eq!(run(false, container), expect);
        };
        let from = |source: Value| json!({ "env": [{ "name": "X", "valueFrom": source }] });
        check(from(json!({ "configMapKeyRef": { "name": "cm", "key": "a" } })), Ok(&["X=1"]));
        check(from(json!({ "secretKeyRef": { "name": "s", "key": "k" } })), Ok(&["X=hi"]));
        check(from(json!({ "fieldRef": { "fieldPath": "metadata.name" } })), Ok(&["X=p"]));
        check(
            from(json!({ "configMapKeyRef": { "name": "no", "key": "a" } })),
            Err("configmap \"no\" not found"),
        );
        check(
            from(json!({ "configMapKeyRef": { "name": "cm", "key": "z" } })),
            Err("couldn't find key z in ConfigMap ns/cm"),
        );
        check(from(json!({ "configMapKeyRef": { "name": "cm", "key": "z", "optional": true } })), Ok(&[]));
        check(from(json!({ "secretKeyRef": { "name": "no", "key": "a" } })), Err("secret \"no\" not found"));
        check(
            from(json!({ "secretKeyRef": { "name": "s", "key": "z" } })),
            Err("couldn't find key z in Secret ns/s"),
        );
        check(from(json!({ "secretKeyRef": { "name": "no", "key": "a", "optional": true } })), Ok(&[]));
        check(
            json!({ "envFrom": [{ "prefix": "P_", "configMapRef": { "name": "cm" } }],
                "env": [{ "name": "P_b", "value": "over" }, { "name": "Y", "value": "$(P_a)-$(P_b)-$(none)-$$(P_a)" }] }),
            Ok(&["P_a=1", "P_b=over", "Y=1-over-$(none)-$(P_a)"]),
        );
        check(json!({ "envFrom": [{ "secretRef": { "name": "no" } }] }), Err("secret \"no\" not found"));
        check(json!({ "envFrom": [{ "secretRef": { "name": "no", "optional": true } }] }), Ok(&[]));
    }

    #[test]
    fn services_of_the_namespace_are_seen() {
        let env = run(true, json!({})).expect("resolves");
        assert_eq!(
            env,
            ["MY_WEB_SERVICE_HOST=10.96.0.9", "MY_WEB_SERVICE_PORT=80", "MY_WEB_SERVICE_PORT_HTTP=80"]
        );
    }

    #[test]
    fn expansion() {
        let env: BTreeMap<String, String> = [("A".to_owned(), "x".to_owned())].into();
        for (text, expect) in [
            ("$(A)", "x"),
            ("$$(A)", "$(A)"),
            ("$(B)", "$(B)"),
            ("a$", "a$"),
            ("$(A", "$(A"),
            ("$A$$", "$A$"),
        ] {
            assert_eq!(expand(text, &env), expect, "{text}");
        }
    }
}
