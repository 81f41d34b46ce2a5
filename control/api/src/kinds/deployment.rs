//! Deployment: replicas of a pod, replaced step by step when their template changes.

use k8s_openapi::api::apps::v1::Deployment;
use serde_json::{Value, json};

use crate::check::At;
use crate::field::FieldError;
use crate::pod::{defaults, rules};
use crate::resource::Resource;
use crate::strategy::{Hooks, Typed, set};
use crate::table;

/// The table entry of Deployment.
pub static RESOURCE: Resource = Resource {
    group: "apps",
    version: "v1",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    categories: &["all"],
    namespaced: true,
    delete_collection: true,
    create_on_update: false,
    update_needs_version: false,
    subresources: &["scale", "status"],
    columns: &[
        table::NAME,
        table::column("Ready", "How many pods are ready, and how many are wanted."),
        table::column("Up-to-date", "How many pods have the wanted template."),
        table::column("Available", "How many pods have been ready long enough."),
        table::AGE,
        table::wide("Containers", "Names of each container in the template."),
        table::wide("Images", "Images referenced by each container in the template."),
        table::wide("Selector", "Label selector for pods."),
    ],
    row,
    fields: &[],
    strategy: &STRATEGY,
    stored_as: None,
    deprecation: None,
};

static STRATEGY: Typed<Deployment> = Typed::new(Hooks {
    has_status: true,
    has_generation: true,
    default,
    prepare_create: |object| object["status"] = json!({}),
    validate,
    validate_update: |new, old, errors| {
        new.below(&["spec", "selector"]).immutable(&old.below(&["spec", "selector"]), errors);
    },
    warnings: dns_label_recommended,
    ..Hooks::NONE
});

fn default(object: &mut Value) {
    set(object, "spec", json!({}));
    let spec = &mut object["spec"];
    template(spec);
    set(spec, "replicas", 1);
    set(spec, "strategy", json!({}));
    let strategy = &mut spec["strategy"];
    set(strategy, "type", "RollingUpdate");
    if strategy["type"] == "RollingUpdate" {
        set(strategy, "rollingUpdate", json!({}));
        set(&mut strategy["rollingUpdate"], "maxUnavailable", "25%");
        set(&mut strategy["rollingUpdate"], "maxSurge", "25%");
    }
    set(spec, "revisionHistoryLimit", 10);
    set(spec, "progressDeadlineSeconds", 600);
}

/// Defaults of a workload's pod template.
pub(super) fn template(spec: &mut Value) {
    set(spec, "template", json!({}));
    set(&mut spec["template"], "spec", json!({}));
    defaults::pod_spec(&mut spec["template"]["spec"]);
}

/// Pods are named after the workload, and a pod's name becomes its hostname.
pub(super) fn dns_label_recommended(object: &At<'_>, warnings: &mut Vec<String>) {
    let name = object.below(&["metadata", "name"]);
    if let Err(reasons) = crate::validation::dns_label_name(name.text())
        && !name.is_empty()
    {
        warnings.push(format!(
            "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: \
             [{}]",
            reasons.join(" ")
        ));
    }
}

fn validate(object: &At<'_>, errors: &mut Vec<FieldError>) {
    let spec = object.field("spec");
    for field in ["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
        spec.field(field).not_negative(errors);
    }
    rules::workload_selector(&spec, errors);
    rules::template(&spec.field("template"), errors);
    rollout(&spec.field("strategy"), errors);
    let (deadline, ready) = (spec.field("progressDeadlineSeconds"), spec.field("minReadySeconds"));
    if deadline.number().is_some_and(|deadline| deadline <= ready.number().unwrap_or_default()) {
        deadline.invalid("must be greater than minReadySeconds", errors);
    }
}

fn rollout(strategy: &At<'_>, errors: &mut Vec<FieldError>) {
    let (kind, rolling) = (strategy.field("type"), strategy.field("rollingUpdate"));
    match kind.text() {
        "Recreate" if !rolling.is_absent() => errors.push(FieldError::forbidden(
            &rolling.path,
            "may not be specified when strategy `type` is 'Recreate'",
        )),
        "Recreate" => {}
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.field("maxUnavailable"), rolling.field("maxSurge"));
            share(&unavailable, errors);
            share(&surge, errors);
            if is_zero(unavailable.value) && is_zero(surge.value) {
                unavailable.invalid("may not be 0 when `maxSurge` is 0", errors);
            }
        }
        _ => kind.one_of(&["Recreate", "RollingUpdate"], errors),
    }
}

fn is_zero(value: &Value) -> bool {
    value.as_i64() == Some(0) || value == "0%"
}

/// An integer or a percentage, not below zero.
fn share(share: &At<'_>, errors: &mut Vec<FieldError>) {
    share.not_negative(errors);
    if let Some(text) = share.value.as_str() {
        let percent = text.strip_suffix('%').filter(|digits| !digits.is_empty());
        if !percent.is_some_and(|digits| digits.chars().all(|c| c.is_ascii_digit())) {
            share.invalid(
                "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
                errors,
            );
        }
    }
}

fn row(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let [containers, images] = table::containers_and_images(object);
    let (ready, wanted) =
        (table::number(object, "/status/readyReplicas"), table::number(object, "/spec/replicas"));
    vec![
        table::name(object),
        json!(format!("{ready}/{wanted}")),
        json!(table::number(object, "/status/updatedReplicas")),
        json!(table::number(object, "/status/availableReplicas")),
        table::age(object, now),
        containers,
        images,
        table::selector(object, "/spec/selector"),
    ]
}
