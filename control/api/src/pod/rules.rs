//! Rules on a pod spec, in a pod or in a template.

use serde_json::Value;

use crate::check::At;
use crate::field::FieldError;
use crate::metadata;
use crate::pod::{containers, volumes};
use crate::validation;

const OPERATORS: [&str; 6] = ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"];
const TAINT_EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// Rules on a pod spec.
pub fn pod_spec(spec: &At<'_>, errors: &mut Vec<FieldError>) {
    let names = volumes::validate(&spec.field("volumes"), errors);
    let list = spec.field("containers");
    list.required(errors);
    let restart_policy = spec.field("restartPolicy");
    containers::validate(spec, &names, errors);
    restart_policy.one_of(&["Always", "OnFailure", "Never"], errors);
    spec.field("dnsPolicy").one_of(&["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"], errors);
    spec.field("terminationGracePeriodSeconds").not_negative(errors);
    let deadline = spec.field("activeDeadlineSeconds");
    if deadline.number().is_some_and(|seconds| !(1..=i64::from(i32::MAX)).contains(&seconds)) {
        deadline.invalid("must be between 1 and 2147483647, inclusive", errors);
    }
    metadata::labels(&spec.field("nodeSelector"), errors);
    for (field, rule) in [
        ("nodeName", validation::dns_subdomain_name as fn(&str) -> validation::Rule),
        ("serviceAccountName", validation::dns_subdomain_name),
        ("hostname", validation::dns_label),
        ("subdomain", validation::dns_label),
        ("schedulerName", validation::qualified_name),
    ] {
        let value = spec.field(field);
        if !value.is_empty() {
            value.obeys(rule, errors);
        }
    }
    for secret in spec.field("imagePullSecrets").items() {
        secret.field("name").required(errors);
    }
    for toleration in spec.field("tolerations").items() {
        validate_toleration(&toleration, errors);
    }
    node_affinity(&spec.below(&["affinity", "nodeAffinity"]), errors);
}

fn validate_toleration(toleration: &At<'_>, errors: &mut Vec<FieldError>) {
    let (key, operator, effect) =
        (toleration.field("key"), toleration.field("operator"), toleration.field("effect"));
    if !key.is_empty() {
        key.obeys(validation::qualified_name, errors);
    } else if operator.text() != "Exists" {
        operator.invalid(
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            errors,
        );
    }
    if !operator.is_empty() {
        operator.one_of(&["Equal", "Exists"], errors);
    }
    let value = toleration.field("value");
    if operator.text() == "Exists" && !value.is_empty() {
        operator.invalid("value must be empty when `operator` is 'Exists'", errors);
    } else if !value.is_empty() {
        value.obeys(validation::label_value, errors);
    }
    if !effect.is_empty() {
        effect.one_of(&TAINT_EFFECTS, errors);
    }
    if !toleration.field("tolerationSeconds").is_absent() && effect.text() != "NoExecute" {
        effect.invalid("effect must be 'NoExecute' when `tolerationSeconds` is set", errors);
    }
}

fn node_affinity(affinity: &At<'_>, errors: &mut Vec<FieldError>) {
    let required = affinity.field("requiredDuringSchedulingIgnoredDuringExecution");
    if !required.is_absent() {
        let terms = required.field("nodeSelectorTerms");
        if terms.is_empty() {
            errors.push(FieldError::required(&terms.path, "must have at least one node selector term"));
        }
        for term in terms.items() {
            node_selector_term(&term, errors);
        }
    }
    for term in affinity.field("preferredDuringSchedulingIgnoredDuringExecution").items() {
        let weight = term.field("weight");
        if !weight.number().is_some_and(|weight| (1..=100).contains(&weight)) {
            weight.invalid("must be in the range 1-100", errors);
        }
        node_selector_term(&term.field("preference"), errors);
    }
}

fn node_selector_term(term: &At<'_>, errors: &mut Vec<FieldError>) {
    for expression in term.field("matchExpressions").items() {
        let (operator, values) = (expression.field("operator"), expression.field("values"));
        expression.field("key").obeys(validation::qualified_name, errors);
        match operator.text() {
            "In" | "NotIn" if values.is_empty() => errors.push(FieldError::required(
                &values.path,
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::forbidden(
                &values.path,
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "Gt" | "Lt" if values.items().count() != 1 => errors.push(FieldError::required(
                &values.path,
                "must be specified single value when `operator` is 'Lt' or 'Gt'",
            )),
            known if OPERATORS.contains(&known) => {}
            _ => operator.invalid("not a valid selector operator", errors),
        }
    }
}

/// Rules on the selector of a workload and on whether it selects its own template's pods.
pub fn workload_selector(spec: &At<'_>, errors: &mut Vec<FieldError>) {
    let selector = spec.field("selector");
    if selector.required(errors) {
        label_selector(&selector, errors);
    }
    let labels = spec.below(&["template", "metadata", "labels"]);
    let matches = match crate::labels::Selector::from_object(selector.value) {
        Ok(parsed) => !parsed.is_everything() && parsed.matches(labels.value),
        Err(_) => false,
    };
    if !matches {
        errors.push(FieldError::invalid(
            &labels.path,
            labels.value.clone(),
            "`selector` does not match template `labels`",
        ));
    }
}

/// Rules on a `LabelSelector`.
pub fn label_selector(selector: &At<'_>, errors: &mut Vec<FieldError>) {
    metadata::labels(&selector.field("matchLabels"), errors);
    for expression in selector.field("matchExpressions").items() {
        let (operator, values) = (expression.field("operator"), expression.field("values"));
        match operator.text() {
            "In" | "NotIn" if values.is_empty() => errors.push(FieldError::required(
                &values.path,
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::forbidden(
                &values.path,
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => operator.invalid("not a valid selector operator", errors),
        }
        expression.field("key").obeys(validation::qualified_name, errors);
        for value in values.items() {
            value.obeys(validation::label_value, errors);
        }
    }
}

/// Rules on the template of a workload whose pods are always restarted.
pub fn template(template: &At<'_>, errors: &mut Vec<FieldError>) {
    let template_metadata = template.field("metadata");
    metadata::labels(&template_metadata.field("labels"), errors);
    metadata::annotations(&template_metadata.field("annotations"), errors);
    let spec = template.field("spec");
    pod_spec(&spec, errors);
    let policy = spec.field("restartPolicy");
    if matches!(policy.text(), "OnFailure" | "Never") {
        policy.one_of(&["Always"], errors);
    }
}

/// What an update of a pod may change; anything else is refused as a whole.
pub fn pod_update(new: &At<'_>, old: &At<'_>, errors: &mut Vec<FieldError>) {
    let mut allowed = new.value.clone();
    for list in ["containers", "initContainers"] {
        let old_list = old.field(list);
        let olds: Vec<At<'_>> = old_list.items().collect();
        if let Some(items) = allowed.get_mut(list).and_then(Value::as_array_mut)
            && items.len() == olds.len()
        {
            for (item, old) in items.iter_mut().zip(&olds) {
                if !item["image"].as_str().unwrap_or_default().trim().is_empty() {
                    item["image"] = old.field("image").value.clone();
                }
            }
        }
    }
    let deadline = |at: &At<'_>| at.field("activeDeadlineSeconds").number();
    if deadline(new).is_some() && deadline(old).is_none_or(|old| deadline(new) <= Some(old)) {
        crate::strategy::copy(&mut allowed, old.value, "activeDeadlineSeconds");
    }
    let new_tolerations = new.field("tolerations");
    let kept =
        old.field("tolerations").items().all(|old| new_tolerations.items().any(|new| new.value == old.value));
    if kept {
        crate::strategy::copy(&mut allowed, old.value, "tolerations");
    }
    let grace = |at: &At<'_>| at.field("terminationGracePeriodSeconds").number();
    if grace(old).is_some_and(|seconds| seconds < 0) && grace(new) == Some(1) {
        crate::strategy::copy(&mut allowed, old.value, "terminationGracePeriodSeconds");
    }
    if &allowed != old.value {
        errors.push(FieldError::forbidden(
            &new.path,
            format!(
                "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
                 `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
                 `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n{}",
                differences(&allowed, old.value)
            ),
        ));
    }
}

/// The fields that differ, by name: a hint for whoever reads the message.
fn differences(new: &Value, old: &Value) -> String {
    let empty = serde_json::Map::new();
    let (new, old) = (new.as_object().unwrap_or(&empty), old.as_object().unwrap_or(&empty));
    let mut names: Vec<&str> = new
        .keys()
        .chain(old.keys())
        .filter(|key| new.get(*key) != old.get(*key))
        .map(String::as_str)
        .collect();
    names.sort_unstable();
    names.dedup();
    format!("changed: {}", names.join(", "))
}
