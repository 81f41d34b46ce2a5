//! Compares defaults, tables and errors with the recorded replies of a Kubernetes 1.36 API server (`fixtures/`, data only).

use std::fs;
use std::path::PathBuf;

use lichen_api::apply::{Applier, Config, apply};
use lichen_api::taints::{NOT_READY, UNREACHABLE};
use lichen_api::{RESOURCES, Resource, Status, by_kind, by_plural, table};
use serde_json::{Value, json};

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

fn read(path: &PathBuf) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap()
}

fn directory(resource: &Resource) -> PathBuf {
    let group = if resource.group.is_empty() { "core" } else { resource.group };
    fixture(&format!("kinds/{group}_{}_{}", resource.version, resource.plural))
}

/// The pure part of a create: what the registry does but for allocation and system fields.
fn create(resource: &Resource, request: Value) -> Value {
    let mut object = resource.strategy.decode(request, &mut |path| panic!("unknown field {path}")).unwrap();
    resource.strategy.default(&mut object);
    resource.strategy.prepare_create(&mut object);
    object
}

/// Takes out what differs on purpose or is not this crate's: system fields, allocated addresses, the recorded server's admission plugins,
/// and zero values that Go prints and nobody reads.
fn comparable(resource: &Resource, mut object: Value) -> Value {
    let metadata = object["metadata"].as_object_mut().unwrap();
    for key in ["managedFields", "resourceVersion", "uid", "creationTimestamp", "namespace"] {
        metadata.remove(key);
    }
    let remove = |object: &mut Value, pointer: &str, key: &str| {
        if let Some(Value::Object(fields)) = object.pointer_mut(pointer) {
            fields.remove(key);
        }
    };
    match resource.kind {
        "Pod" => {
            // A pod stays on a lost node here, where Kubernetes has it leave after five minutes.
            let tolerations = object.pointer_mut("/spec/tolerations").and_then(Value::as_array_mut);
            for toleration in tolerations.into_iter().flatten() {
                if [NOT_READY, UNREACHABLE].iter().any(|key| toleration["key"] == *key)
                    && toleration["tolerationSeconds"] == 300
                {
                    toleration.as_object_mut().unwrap().remove("tolerationSeconds");
                }
            }
            let is_token =
                |item: &Value| item["name"].as_str().unwrap_or_default().starts_with("kube-api-access");
            for (pointer, list) in [("/spec", "volumes"), ("/spec/containers/0", "volumeMounts")] {
                if let Some(Value::Array(items)) = object.pointer_mut(&format!("{pointer}/{list}")) {
                    items.retain(|item| !is_token(item));
                    if items.is_empty() {
                        remove(&mut object, pointer, list);
                    }
                }
            }
        }
        "Service" => {
            for key in ["clusterIP", "clusterIPs", "healthCheckNodePort"] {
                remove(&mut object, "/spec", key);
            }
            let ports = object.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
            for port in ports.into_iter().flatten() {
                port.as_object_mut().unwrap().remove("nodePort");
            }
        }
        "Node" => {
            remove(&mut object, "/spec", "taints");
            for key in ["daemonEndpoints", "nodeInfo", "conditions"] {
                remove(&mut object, "/status", key);
            }
            for key in ["spec", "status"] {
                if object[key] == json!({}) {
                    remove(&mut object, "", key);
                }
            }
        }
        "EndpointSlice" if object["endpoints"].is_null() => object["endpoints"] = json!([]),
        _ => {}
    }
    for key in ["ports", "eventTime", "reportingComponent", "reportingInstance", "deprecatedSource"] {
        let value = &object[key];
        if value.is_null() || value == "" || *value == json!({}) {
            remove(&mut object, "", key);
        }
    }
    object
}

#[test]
fn creates_default_as_recorded() {
    let mut count = 0;
    for resource in RESOURCES {
        for entry in fs::read_dir(directory(resource)).unwrap() {
            let path = entry.unwrap().path();
            let Some(stem) = path.to_str().unwrap().strip_suffix(".request.json") else { continue };
            let got = create(resource, read(&path));
            let expect = read(&PathBuf::from(format!("{stem}.reply.json")));
            // Both sides go through the codec once, so that only meaning is compared.
            let expect =
                resource.strategy.decode(expect, &mut |path| panic!("unknown field {path}")).unwrap();
            assert_eq!(comparable(resource, got.clone()), comparable(resource, expect), "{stem}");
            let mut again = got.clone();
            resource.strategy.default(&mut again);
            assert_eq!(again, got, "defaults of {stem} are idempotent");
            let mut whole = got;
            whole["metadata"]["namespace"] = json!("kinds");
            assert_eq!(resource.strategy.validate(&whole), [], "{stem}");
            count += 1;
        }
    }
    assert!(count >= 20, "only {count} recorded creates");
}

#[test]
fn columns_are_kubectls() {
    for resource in RESOURCES {
        let recorded = read(&directory(resource).join("table.json"));
        let now = "2026-11-22T02:19:20Z".parse().unwrap();
        let ours = table::to_table(resource, &[], json!({}), table::IncludeObject::Metadata, true, now);
        let shape = |document: &Value| -> Vec<Value> {
            let columns = document["columnDefinitions"].as_array().unwrap();
            columns
                .iter()
                .map(|column| json!([column["name"], column["type"], column["format"], column["priority"]]))
                .collect()
        };
        assert_eq!(shape(&ours), shape(&recorded), "{}", resource.kind);
    }
}

#[test]
fn cells_are_kubectls() {
    let mut count = 0;
    for resource in RESOURCES {
        let recorded = read(&directory(resource).join("table.json"));
        for row in recorded["rows"].as_array().unwrap() {
            let name = row["object"]["metadata"]["name"].as_str().unwrap();
            let suffix = format!("-{}", resource.singular);
            let variant = name.strip_suffix(&suffix).unwrap_or_default();
            let path = directory(resource).join(format!("{variant}.later.json"));
            if !path.exists() {
                continue;
            }
            let object = read(&path);
            // The age column tells when the table was made.
            let age = resource.columns.iter().position(|column| column.name == "Age");
            let now = "2026-11-22T02:19:15Z".parse().unwrap();
            let mut got = (resource.row)(&object, now);
            let mut expect = row["cells"].as_array().unwrap().clone();
            if let Some(age) = age {
                assert!(got[age].as_str().unwrap().ends_with('s'), "{name}: {}", got[age]);
                expect[age] = Value::Null;
                got[age] = Value::Null;
            }
            assert_eq!(got, expect, "{name}");
            count += 1;
        }
    }
    assert!(count >= 15, "only {count} recorded rows");
}

/// The kind that a recorded request's path is about, and the object's name in it.
fn target(path: &str) -> (&'static Resource, String) {
    let path = path.split('?').next().unwrap();
    let mut parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (group, version) = match parts.remove(0) {
        "api" => ("", parts.remove(0)),
        _ => (parts.remove(0), parts.remove(0)),
    };
    if parts[0] == "namespaces" && parts.len() > 2 {
        parts.drain(..2);
    }
    let resource = by_plural(group, version, parts[0]).unwrap_or_else(|| panic!("{path}"));
    (resource, parts.get(1).copied().unwrap_or_default().to_owned())
}

fn refused_create(resource: &Resource, request: Value) -> Status {
    let kind = resource.kind;
    let cannot = |why: String| {
        Status::bad_request(format!("{kind} in version \"v1\" cannot be handled as a {kind}: {why}"))
    };
    let mut unknown = Vec::new();
    let decoded =
        resource.strategy.decode(request, &mut |path| unknown.push(format!("unknown field \"{path}\"")));
    let mut object = match decoded {
        Ok(object) => object,
        Err(error) => return cannot(error.message),
    };
    if !unknown.is_empty() {
        return cannot(format!("strict decoding error: {}", unknown.join(", ")));
    }
    resource.strategy.default(&mut object);
    resource.strategy.prepare_create(&mut object);
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    Status::invalid(resource, &name, resource.strategy.validate(&object))
}

#[test]
fn bad_objects_are_refused_as_recorded() {
    let mut count = 0;
    for entry in fs::read_dir(fixture("errors")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if !["invalid.", "name.", "wrongtype.", "fieldvalidation."]
            .iter()
            .any(|start| name.starts_with(start))
        {
            continue;
        }
        let case = read(&path);
        let (resource, _) = target(case["request"]["path"].as_str().unwrap());
        let body = match case["request"]["body_text"].as_str() {
            Some(text) => serde_json::from_str(text).unwrap(),
            None => case["request"]["body"].clone(),
        };
        assert_eq!(refused_create(resource, body).to_json(), case["reply"]["body"], "{name}");
        count += 1;
    }
    assert!(count >= 20, "only {count} recorded refusals");
}

#[test]
fn forbidden_changes_are_refused_as_recorded() {
    let base = |kind: &str, extra: Value| {
        let (api_version, spec) = match kind {
            "Deployment" => (
                "apps/v1",
                json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
                    "spec": {"containers": [{"name": "c", "image": "registry.example/app:1"}]}}}}),
            ),
            "Service" => ("v1", json!({"spec": {"ports": [{"port": 80}], "clusterIP": "10.96.0.9"}})),
            _ => ("v1", json!({})),
        };
        let mut object =
            json!({"apiVersion": api_version, "kind": kind, "metadata": {"uid": "u", "namespace": "errs"}});
        for part in [spec, extra] {
            json_patch::merge(&mut object, &part);
        }
        object
    };
    let check = |name: &str, old: Value| {
        let case = read(&fixture(&format!("errors/{name}.json")));
        let (resource, object_name) = target(case["request"]["path"].as_str().unwrap());
        let mut old = create(resource, old);
        old["metadata"]["name"] = json!(object_name);
        let mut new = old.clone();
        lichen_api::patch::strategic(&mut new, &case["request"]["body"], resource).unwrap();
        resource.strategy.prepare_update(&mut new, &old, None);
        resource.strategy.default(&mut new);
        let errors = resource.strategy.validate_update(&new, &old, None);
        let got = Status::invalid(resource, &object_name, errors).to_json();
        assert_eq!(got["message"], case["reply"]["body"]["message"], "{name}");
        assert_eq!(got["details"]["causes"][0], case["reply"]["body"]["details"]["causes"][0], "{name}");
    };
    check("immutable.configmap.data", base("ConfigMap", json!({"data": {"a": "1"}, "immutable": true})));
    check("immutable.configmap.unset", base("ConfigMap", json!({"data": {"a": "1"}, "immutable": true})));
    check("immutable.deployment.selector", base("Deployment", json!({})));
    check("immutable.secret.type", base("Secret", json!({})));
    check("immutable.service.clusterip", base("Service", json!({})));
    check("immutable.metadata.uid", base("ConfigMap", json!({})));
}

#[test]
fn statuses_are_as_recorded() {
    let configmaps = by_plural("", "v1", "configmaps").unwrap();
    let deployments = by_plural("apps", "v1", "deployments").unwrap();
    let namespaces = by_plural("", "v1", "namespaces").unwrap();
    let media = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
    let alice = |rest: &str| {
        format!(
            "User \"alice\" cannot {rest} resource \"configmaps\" in API group \"\" in the namespace \"errs\""
        )
    };
    let token =
        read(&fixture("errors/410.continue-expired.json"))["reply"]["body"]["metadata"]["continue"].clone();
    let cases = [
        ("notfound.get", Status::not_found(configmaps, "nope")),
        ("notfound.get.deployment", Status::not_found(deployments, "nope")),
        ("conflict.put-stale-rv", Status::stale(configmaps, "a")),
        ("alreadyexists", Status::already_exists(configmaps, "a")),
        ("405.binding-get", Status::method_not_allowed()),
        ("410.continue-expired", Status::continue_expired(token.as_str().unwrap())),
        ("notfound.unknown-resource", Status::unknown_path()),
        ("415.post", Status::unsupported_media_type(&media)),
        ("401.bad-token", Status::unauthorized()),
        ("403.list", Status::forbidden(configmaps, "", &alice("list"))),
        ("403.nonresource", Status::forbidden_path("alice", "get", "/metrics")),
        (
            "delete.default-namespace",
            Status::forbidden(namespaces, "default", "this namespace may not be deleted"),
        ),
    ];
    for (name, status) in cases {
        let recorded = &read(&fixture(&format!("errors/{name}.json")))["reply"]["body"];
        assert_eq!(&status.to_json(), recorded, "{name}");
        assert_eq!(status.code, recorded["code"], "{name}");
    }
    let recorded = &read(&fixture("errors/rv.too-large.json"))["reply"]["body"];
    assert_eq!(&Status::future_revision(99_999_999, 964).to_json(), recorded);
    let recorded = &read(&fixture("errors/delete.ok-status.json"))["reply"]["body"];
    let uid = recorded["details"]["uid"].as_str().unwrap();
    assert_eq!(&Status::deleted(configmaps, "page0", uid), recorded);
}

#[test]
fn updates_keep_what_a_client_may_not_change() {
    let resource = by_kind("apps/v1", "Deployment").unwrap();
    let mut old = create(resource, read(&directory(resource).join("minimal.request.json")));
    old["metadata"]["uid"] = json!("u");
    old["status"] = json!({"replicas": 1});
    let update = |change: Value, sub: Option<&str>| {
        let mut new = old.clone();
        json_patch::merge(&mut new, &change);
        resource.strategy.prepare_update(&mut new, &old, sub);
        new
    };
    let generation = |object: &Value| object["metadata"]["generation"].as_i64().unwrap();
    let scaled = update(json!({"spec": {"replicas": 5}, "status": {"replicas": 9}}), None);
    assert_eq!(
        (generation(&scaled), &scaled["status"], &scaled["spec"]["replicas"]),
        (2, &old["status"], &json!(5))
    );
    // Leaving a default out changes nothing.
    let same = update(json!({"spec": {"replicas": null}, "metadata": {"generation": 7, "uid": null}}), None);
    assert_eq!(same, old);
    let status = update(json!({"spec": {"replicas": 5}, "status": {"replicas": 9}}), Some("status"));
    assert_eq!(
        (generation(&status), &status["status"]["replicas"], &status["spec"]),
        (1, &json!(9), &old["spec"])
    );

    let pods = by_kind("v1", "Pod").unwrap();
    let mut old = create(pods, read(&directory(pods).join("minimal.request.json")));
    old["metadata"]["uid"] = json!("u");
    let check = |change: Value, allowed: bool| {
        let mut new = old.clone();
        json_patch::merge(&mut new, &change);
        pods.strategy.prepare_update(&mut new, &old, None);
        let errors = pods.strategy.validate_update(&new, &old, None);
        assert_eq!(errors.is_empty(), allowed, "{change}: {errors:?}");
    };
    let mut image = old["spec"]["containers"].clone();
    image[0]["image"] = json!("registry.example/app:2");
    check(json!({"spec": {"containers": image}}), true);
    check(json!({"metadata": {"labels": {"new": "label"}}}), true);
    let mut tolerations = old["spec"]["tolerations"].clone();
    tolerations.as_array_mut().unwrap().push(json!({"key": "k", "operator": "Exists"}));
    check(json!({"spec": {"tolerations": tolerations}}), true);
    check(json!({"spec": {"tolerations": [{"key": "k", "operator": "Exists"}]}}), false);
    check(json!({"spec": {"hostNetwork": true}}), false);
    check(json!({"spec": {"nodeName": "other"}}), false);
    check(json!({"metadata": {"uid": "another"}}), false);
}

/// The managers but the recorded cluster's controllers, whose status writes fell between.
fn managers(object: &Value) -> Vec<Value> {
    let all = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    let theirs = all.into_iter().flatten().filter(|entry| entry["manager"] != "kube-controller-manager");
    theirs.cloned().collect()
}

#[test]
fn applies_are_as_recorded() {
    let mut count = 0;
    for entry in fs::read_dir(fixture("apply")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let case = read(&path);
        let (before, after) = (&case["before"], &case["after"]);
        let url = case["request"]["path"].as_str().unwrap();
        let (resource, object_name) = target(url);
        let query = url.split_once('?').unwrap().1;
        // A change is as old as the newest manager after it.
        let now = managers(after).iter().filter_map(|entry| entry["time"].as_str()).max().map(str::to_owned);
        let by = Applier {
            manager: query.split('&').find_map(|pair| pair.strip_prefix("fieldManager=")).unwrap(),
            force: query.contains("force=true"),
            subresource: "",
            now: now.map_or(jiff::Timestamp::UNIX_EPOCH, |now| now.parse().unwrap()),
        };
        let config = Config::read(resource, &object_name, "", case["request"]["body"].clone()).unwrap();
        let live = (before["kind"] != "Status").then_some(before);
        let applied = match apply(resource, live, &config, &by) {
            Ok(applied) => applied,
            Err(status) => {
                assert_eq!(&status.to_json(), after, "{name}");
                count += 1;
                continue;
            }
        };
        let mut object = resource.strategy.decode(applied.clone(), &mut |path| panic!("{path}")).unwrap();
        match live {
            Some(live) => {
                let mut live = resource.strategy.decode(live.clone(), &mut |_| {}).unwrap();
                resource.strategy.default(&mut live);
                resource.strategy.prepare_update(&mut object, &live, None);
            }
            None => resource.strategy.prepare_create(&mut object),
        }
        resource.strategy.default(&mut object);
        assert_eq!(managers(&applied), managers(after), "{name}");
        let mut expect = resource.strategy.decode(after.clone(), &mut |_| {}).unwrap();
        for object in [&mut object, &mut expect] {
            // The status is the controllers', annotations too, and generations count what was not recorded.
            object.as_object_mut().unwrap().remove("status");
            for field in ["annotations", "generation"] {
                object["metadata"].as_object_mut().unwrap().remove(field);
            }
        }
        assert_eq!(comparable(resource, object), comparable(resource, expect), "{name}");
        count += 1;
    }
    assert!(count >= 13, "only {count} recorded applies");
}

#[test]
fn bad_configurations_are_refused_as_recorded() {
    for name in
        ["no-kind", "name-mismatch", "wrong-gvk", "with-managedfields", "dup-list-key", "unknown-field"]
    {
        let case = read(&fixture(&format!("errors/apply.{name}.json")));
        let (resource, object_name) = target(case["request"]["path"].as_str().unwrap());
        let body = match name {
            "unknown-field" => {
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ap"}, "nope": 1})
            }
            _ => case["request"]["body"].clone(),
        };
        let status = Config::read(resource, &object_name, "", body).unwrap_err();
        assert_eq!(json!(status.message), case["reply"]["body"]["message"], "{name}");
        // The recorded server calls the last two its own fault.
        assert_eq!(status.code, 400, "{name}");
    }
}
