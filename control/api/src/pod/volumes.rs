//! Rules on the volumes of a pod.

use std::collections::BTreeSet;

use crate::check::At;
use crate::field::FieldError;
use crate::validation;

/// Checks the volumes and gives their names back, for the mounts to refer to.
pub fn validate<'v>(volumes: &At<'v>, errors: &mut Vec<FieldError>) -> BTreeSet<&'v str> {
    let mut names = BTreeSet::new();
    for volume in volumes.items() {
        let name = volume.field("name");
        if name.required(errors) {
            name.obeys(validation::dns_label, errors);
            if !names.insert(name.text()) {
                errors.push(FieldError::duplicate(&name.path, name.text()));
            }
        }
        source(&volume, errors);
    }
    names
}

fn source(volume: &At<'_>, errors: &mut Vec<FieldError>) {
    let sources = volume.entries().filter(|(key, _)| *key != "name").count();
    if sources == 0 {
        errors.push(FieldError::required(&volume.path, "must specify a volume type"));
    } else if sources > 1 {
        let (name, _) =
            volume.entries().filter(|(key, _)| *key != "name").nth(1).unwrap_or(("", volume.clone()));
        errors.push(FieldError::forbidden(
            format!("{}.{name}", volume.path),
            "may not specify more than 1 volume type",
        ));
    }
    for (kind, name) in [
        ("configMap", "name"),
        ("secret", "secretName"),
        ("persistentVolumeClaim", "claimName"),
        ("hostPath", "path"),
    ] {
        let source = volume.field(kind);
        if !source.is_absent() {
            source.field(name).required(errors);
        }
    }
    for kind in ["configMap", "secret", "downwardAPI"] {
        items(&volume.field(kind), kind == "downwardAPI", errors);
    }
    for part in volume.below(&["projected", "sources"]).items() {
        for kind in ["configMap", "secret", "downwardAPI"] {
            items(&part.field(kind), kind == "downwardAPI", errors);
        }
    }
}

fn items(source: &At<'_>, downward: bool, errors: &mut Vec<FieldError>) {
    mode(&source.field("defaultMode"), errors);
    for item in source.field("items").items() {
        if !downward {
            item.field("key").required(errors);
        }
        let path = item.field("path");
        if path.required(errors) {
            local_path(&path, errors);
        }
        mode(&item.field("mode"), errors);
        if downward && item.field("fieldRef").is_absent() && item.field("resourceFieldRef").is_absent() {
            errors.push(FieldError::required(&item.path, "one of fieldRef and resourceFieldRef is required"));
        }
    }
}

fn mode(mode: &At<'_>, errors: &mut Vec<FieldError>) {
    if mode.number().is_some_and(|mode| !(0..=0o777).contains(&mode)) {
        mode.invalid("must be a number between 0 and 0777 (octal), both inclusive", errors);
    }
}

/// A path inside a volume: it must not lead out of it.
pub fn local_path(path: &At<'_>, errors: &mut Vec<FieldError>) {
    if path.text().starts_with('/') {
        path.invalid("must be a relative path", errors);
    }
    if path.text().split('/').any(|part| part == "..") {
        path.invalid("must not contain '..'", errors);
    }
}
