//! A cluster in memory for tests: an API server that knows what matters to controllers, the driver's rules, and nodes
//! that run pods when they are told to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use lichen_api::k8s::api::core::v1::Pod;
use lichen_api::view::{Kind, Object, ObjectId, View, owners_of};
use serde_json::{Value, json};

use crate::{Action, Event, Propagation, RECONCILERS};

/// A run that takes more steps than this does not converge.
const STEPS_MAX: usize = 20_000;

pub(crate) struct Cluster {
    pub(crate) view: View,
    pub(crate) now: Timestamp,
    pub(crate) events: Vec<Event>,
    /// Writes so far.
    pub(crate) writes: usize,
    /// Checked after every write.
    pub(crate) invariant: Box<dyn Fn(&View)>,
    /// Nodes, by name, that confirm deletions at once; a pod on any other ends when a test says so.
    pub(crate) quick: bool,
    objects: BTreeMap<ObjectId, Value>,
    revision: u64,
    queue: BTreeSet<(usize, ObjectId)>,
    timers: BTreeSet<(Timestamp, usize, ObjectId)>,
}

impl Cluster {
    /// A cluster with the namespace `default` and two nodes.
    pub(crate) fn new() -> Cluster {
        let mut cluster = Cluster {
            view: View::new(),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            events: Vec::new(),
            writes: 0,
            invariant: Box::new(|_| {}),
            quick: true,
            objects: BTreeMap::new(),
            revision: 1,
            queue: BTreeSet::new(),
            timers: BTreeSet::new(),
        };
        cluster.create(namespace("default"));
        for name in ["n1", "n2"] {
            cluster.create(node(name));
        }
        cluster
    }

    pub(crate) fn value(&self, id: &ObjectId) -> Option<&Value> {
        self.objects.get(id)
    }

    /// Creates an object as a user would.
    pub(crate) fn create(&mut self, mut object: Value) -> ObjectId {
        let id = id_of(&object);
        if id.kind == Kind::POD {
            lichen_api::kinds::pod::RESOURCE.strategy.prepare_create(&mut object);
        }
        assert!(!self.objects.contains_key(&id), "{id} already exists");
        self.revision += 1;
        let meta = object["metadata"].as_object_mut().unwrap();
        meta.insert("uid".into(), json!(format!("uid-{}-{}", id.key.name, self.revision)));
        meta.insert("creationTimestamp".into(), json!(self.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()));
        meta.insert("generation".into(), json!(1));
        self.store(id.clone(), Some(object));
        id
    }

    /// Changes an object as a user would.
    pub(crate) fn edit(&mut self, id: &ObjectId, edit: impl FnOnce(&mut Value)) {
        let mut object = self.objects[id].clone();
        edit(&mut object);
        self.update(id, object, None);
    }

    /// Deletes an object as a user would.
    pub(crate) fn delete(&mut self, id: &ObjectId, propagation: Option<Propagation>) {
        self.apply(Action::Delete {
            id: id.clone(),
            uid: self.objects[id]["metadata"]["uid"].as_str().unwrap().to_owned(),
            resource_version: None,
            propagation,
            grace_seconds: None,
        });
    }

    /// Reconciles until nothing is left to do now. Returns the writes that took.
    pub(crate) fn settle(&mut self) -> usize {
        let before = self.writes;
        for _ in 0..STEPS_MAX {
            let due: Vec<_> = self.timers.iter().take_while(|(at, ..)| *at <= self.now).cloned().collect();
            for timer in due {
                self.timers.remove(&timer);
                self.queue.insert((timer.1, timer.2));
            }
            let Some((index, id)) = self.queue.pop_first() else { return self.writes - before };
            let outcome = RECONCILERS[index].reconcile(&self.view, &id, self.now);
            if let Some(wait) = outcome.requeue_after {
                self.set_timer(wait, index, id.clone());
            }
            let mut written = BTreeSet::new();
            for step in outcome.steps {
                if !matches!(step.action, Action::Record(_)) {
                    assert!(written.insert(step.action.id().clone()), "two steps for {}", step.action.id());
                }
                if let Some(given) = &step.given {
                    let version = &self.objects[&given.id]["metadata"]["resourceVersion"];
                    assert_eq!(*version, json!(given.resource_version), "{}", given.id);
                }
                self.apply(step.action);
                self.events.extend(step.done);
            }
        }
        panic!("does not converge");
    }

    /// Reconciles everything there is; a cluster at rest stays at rest.
    pub(crate) fn assert_at_rest(&mut self) {
        for id in self.objects.keys() {
            self.queue.extend((0..RECONCILERS.len()).map(|index| (index, id.clone())));
        }
        assert_eq!(self.settle(), 0, "a cluster at rest was written to");
    }

    /// Lets time pass.
    pub(crate) fn wait(&mut self, wait: Duration) {
        self.now = self.now.checked_add(wait).unwrap();
    }

    /// Binds every pod and lets all of them run and be ready, reconciling in between, until nothing changes.
    pub(crate) fn run(&mut self) {
        loop {
            self.settle();
            let Some(pod) = self.pods().into_iter().find(|pod| !is_ready(pod)) else { break };
            self.run_pod(&pod);
        }
    }

    pub(crate) fn run_pod(&mut self, pod: &Pod) {
        let index = self.revision;
        let on = |node: &str| self.view.pods_on(node).count();
        let node = if on("n1") <= on("n2") { "n1" } else { "n2" };
        self.set_pod(pod, |value, now| {
            value["spec"]["nodeName"] = json!(node);
            value["status"] = json!({
                "phase": "Running", "podIP": format!("10.64.{}.{}", index / 250 % 250, index % 250 + 1),
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}],
            });
        });
    }

    pub(crate) fn set_pod(&mut self, pod: &Pod, edit: impl FnOnce(&mut Value, String)) {
        let id = ObjectId { kind: Kind::POD, key: lichen_api::view::ObjectKey::of(&pod.metadata) };
        let now = self.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        self.edit(&id, |value| edit(value, now));
    }

    /// Pods that are not being deleted.
    pub(crate) fn pods(&self) -> Vec<Pod> {
        let pods = self.view.pods.values().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        pods.map(|pod| (**pod).clone()).collect()
    }

    /// Confirms the end of a pod that is being deleted.
    pub(crate) fn confirm(&mut self, pod: &Pod) {
        let id = ObjectId { kind: Kind::POD, key: lichen_api::view::ObjectKey::of(&pod.metadata) };
        self.store(id, None);
    }

    pub(crate) fn count(&self, kind: Kind) -> usize {
        self.objects.keys().filter(|id| id.kind == kind).count()
    }

    fn apply(&mut self, action: Action) {
        match action {
            Action::Create { id, object } => {
                let space = &id.key.namespace;
                let closed = self
                    .view
                    .namespaces
                    .get("", space)
                    .is_none_or(|n| n.metadata.deletion_timestamp.is_some());
                assert!(space.is_empty() || !closed, "creation of {id} in a closed namespace");
                assert_eq!(self.create(object), id);
            }
            Action::Update { id, object, subresource } => self.update(&id, object, subresource),
            Action::Patch { id, patch } => {
                let mut object = self.objects[&id].clone();
                assert_eq!(
                    patch["metadata"]["resourceVersion"], object["metadata"]["resourceVersion"],
                    "{id}"
                );
                merge(&mut object, &patch);
                self.update(&id, object, None);
            }
            Action::Delete { id, uid, resource_version, propagation, grace_seconds } => {
                let mut object = self.objects[&id].clone();
                let meta = &mut object["metadata"];
                assert_eq!(meta["uid"], json!(uid), "{id}");
                if let Some(version) = resource_version {
                    assert_eq!(meta["resourceVersion"], json!(version), "{id}");
                }
                let extra = match propagation {
                    Some(Propagation::Foreground) => Some("foregroundDeletion"),
                    Some(Propagation::Orphan) => Some("orphan"),
                    _ => None,
                };
                if let Some(extra) = extra {
                    let mut finalizers = meta["finalizers"].as_array().cloned().unwrap_or_default();
                    finalizers.push(json!(extra));
                    meta["finalizers"] = json!(finalizers);
                }
                meta["deletionTimestamp"] = json!(self.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
                let graceful = id.kind == Kind::POD
                    && object["spec"]["nodeName"].is_string()
                    && grace_seconds != Some(0)
                    && !self.quick;
                let held = graceful || is_held(&object);
                self.store(id, held.then_some(object));
            }
            Action::Record(event) => self.events.push(event),
        }
    }

    fn update(&mut self, id: &ObjectId, mut object: Value, subresource: Option<&str>) {
        let current = self.objects.get(id).unwrap_or_else(|| panic!("{id} is not there"));
        assert_eq!(
            current["metadata"]["resourceVersion"], object["metadata"]["resourceVersion"],
            "conflict: {id}"
        );
        match subresource {
            Some("status") => {
                let status = object["status"].take();
                object = current.clone();
                object["status"] = status;
            }
            Some("finalize") => {
                let spec = object["spec"].take();
                object = current.clone();
                object["spec"] = spec;
            }
            _ => {
                if id.kind == Kind::DEPLOYMENT || id.kind == Kind::REPLICA_SET {
                    object["status"] = current["status"].clone();
                }
                if object["spec"] != current["spec"] {
                    let generation = current["metadata"]["generation"].as_i64().unwrap_or(0);
                    object["metadata"]["generation"] = json!(generation + 1);
                }
            }
        }
        // A pod ends when its node says so.
        let waits = id.kind == Kind::POD && !self.quick;
        let gone = !waits && object["metadata"]["deletionTimestamp"].is_string() && !is_held(&object);
        self.store(id.clone(), (!gone).then_some(object));
    }

    /// Stores an object, tells every controller, and checks the invariant.
    fn store(&mut self, id: ObjectId, object: Option<Value>) {
        self.revision += 1;
        self.writes += 1;
        let decoded = object.map(|mut object| {
            object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
            let decoded = Object::decode(id.kind, object.to_string().as_bytes()).unwrap();
            self.objects.insert(id.clone(), object);
            decoded
        });
        if decoded.is_none() {
            self.objects.remove(&id);
        }
        self.view.advance(self.revision);
        let Some(change) = self.view.apply(id, decoded) else { return };
        (self.invariant)(&self.view);
        for (index, reconciler) in RECONCILERS.iter().enumerate() {
            for interest in reconciler.interest(&self.view, &change) {
                if interest.after == Duration::ZERO {
                    self.queue.insert((index, interest.id));
                } else {
                    self.set_timer(interest.after, index, interest.id);
                }
            }
        }
    }

    fn set_timer(&mut self, wait: Duration, index: usize, id: ObjectId) {
        self.timers.insert((self.now.checked_add(wait).unwrap(), index, id));
    }
}

fn is_held(object: &Value) -> bool {
    let any = |list: &Value| list.as_array().is_some_and(|list| !list.is_empty());
    any(&object["metadata"]["finalizers"])
        || object["kind"] == "Namespace" && any(&object["spec"]["finalizers"])
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    crate::pods::is_ready(pod)
}

pub(crate) fn owner_uids(object: &Object) -> Vec<String> {
    owners_of(object.metadata()).iter().map(|owner| owner.uid.clone()).collect()
}

/// The id of an object as JSON.
pub(crate) fn id_of(object: &Value) -> ObjectId {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let resource = lichen_api::by_kind(&text(&object["apiVersion"]), &text(&object["kind"])).unwrap();
    let kind = Kind { group: resource.group, version: resource.version, kind: resource.kind };
    ObjectId::new(kind, text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]))
}

pub(crate) fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name},
           "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})
}

pub(crate) fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
           "status": {"conditions": [{"type": "Ready", "status": "True"}]}})
}

pub(crate) fn deployment(name: &str, replicas: i32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"namespace": "default", "name": name, "annotations": {"team": "a"}},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}}, "progressDeadlineSeconds": 600,
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "hello:v1"}]}},
        },
    })
}

pub(crate) fn service(name: &str, app: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": name},
        "spec": {"selector": {"app": app}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    })
}

pub(crate) fn config_map(name: &str, owners: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap",
           "metadata": {"namespace": "default", "name": name, "ownerReferences": owners}})
}
