//! Nodes that go for good: decommissioned in good order, or revoked since their device is in the wrong hands.
//!
//! An annotation on the Node orders it ([`ORDER_ANNOTATION`]), so that whoever may change Nodes may do it through the API.
//! What is to be done follows from what there is: [`next`] decides one step at a time, and each can be taken again after a
//! crash. The Node goes last, which says that all is done.
//!
//! Deliberately absent: a Node that is deleted without such an order. Its machine is still trusted and registers again.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lichen_api::{Status, fields, kinds};
use lichen_registry::{
    DeleteOptions, Filter, Identity, ListOptions, NODE_LEASE_NAMESPACE, Registry, WriteOptions, key_of,
};
use lichen_store::{Event, Record, Watch};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::Shared;
use crate::hub::Nodes;
use crate::item::Kind;
use crate::members::{self, Depends, MemberError};
use crate::node::Input;
use crate::token;

/// The annotation on a Node that orders its removal.
pub const ORDER_ANNOTATION: &str = "lichen.dev/removal";
/// The annotation on a Node that says what a revocation found, as JSON: whether the node had joined, the token that it
/// joined with, which is taken back, and the Secrets (`namespace/name`) that its device may have seen.
pub const RESULT_ANNOTATION: &str = "lichen.dev/removal-result";
/// The pause before a step that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Times that a write is tried again when the Node changed meanwhile.
const ATTEMPTS: usize = 10;

/// What an order wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Its pods end with grace; the machine is told to leave and wipes what made it a node.
    Decommission,
    /// Its trust ends at once, and so does everything that it had.
    Revoke,
}

impl Order {
    /// The annotation's value.
    pub fn name(self) -> &'static str {
        match self {
            Order::Decommission => "decommission",
            Order::Revoke => "revoke",
        }
    }

    /// The order that a Node bears, if any.
    pub(crate) fn of(node: &Value) -> Option<Order> {
        let wanted = node["metadata"]["annotations"][ORDER_ANNOTATION].as_str()?;
        [Order::Decommission, Order::Revoke].into_iter().find(|order| order.name() == wanted)
    }
}

/// Whether a node may not set this annotation on its own Node.
fn is_reserved(annotation: &str) -> bool {
    annotation == ORDER_ANNOTATION || annotation == RESULT_ANNOTATION
}

/// Annotations as a node may set them.
pub(crate) fn without_reserved(annotations: &Value) -> Value {
    let mut annotations = annotations.clone();
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.retain(|name, _| !is_reserved(name));
    }
    annotations
}

/// What there is of a node that is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    order: Order,
    member: Trust,
    /// Whether the node is there to end its pods and to be told.
    ready: bool,
    cordoned: bool,
    /// Whether the result says what is known now.
    told: bool,
    pods: Pods,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    None,
    Member,
    Leaving,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pods {
    None,
    /// All of them have been told to end.
    Ending,
    Some,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    TakeTrust,
    Tell,
    Cordon,
    EndPods { force: bool },
    AskToLeave,
    Wait,
    Finish,
}

fn next(found: &Found) -> Step {
    match (found.order, found.pods, found.member) {
        (Order::Revoke, _, Trust::Member | Trust::Leaving) => Step::TakeTrust,
        (Order::Revoke, ..) if !found.told => Step::Tell,
        (Order::Revoke, Pods::Some | Pods::Ending, _) => Step::EndPods { force: true },
        (Order::Revoke, Pods::None, Trust::None) => Step::Finish,
        (Order::Decommission, ..) if !found.cordoned => Step::Cordon,
        (Order::Decommission, Pods::Some | Pods::Ending, _) if !found.ready => Step::EndPods { force: true },
        (Order::Decommission, Pods::Some, _) => Step::EndPods { force: false },
        (Order::Decommission, Pods::Ending, _) => Step::Wait,
        (Order::Decommission, Pods::None, Trust::Member) => Step::AskToLeave,
        // A node that is away hears of it when it comes back, for as long as it could.
        (Order::Decommission, Pods::None, Trust::Leaving) if found.ready => Step::Wait,
        (Order::Decommission, Pods::None, Trust::None | Trust::Leaving) => Step::Finish,
    }
}

/// The Nodes that bear an order and that nobody attends to yet.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    waiting: Mutex<BTreeSet<String>>,
    changed: Notify,
}

impl Orders {
    /// Takes notice of an object of the store.
    pub(crate) fn look(&self, kind: Kind, key: &str, record: Option<&Record>) {
        let ordered = |record: &Record| record.value().is_ok_and(|node| Order::of(&node).is_some());
        if kind == Kind::Node && record.is_some_and(ordered) {
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned());
            self.changed.notify_one();
        }
    }

    async fn taken(&self) -> BTreeSet<String> {
        loop {
            let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            if !waiting.is_empty() {
                return waiting;
            }
            self.changed.notified().await;
        }
    }
}

/// Removes nodes.
#[derive(Clone)]
pub(crate) struct Remover {
    pub(crate) shared: Arc<Shared>,
    pub(crate) nodes: Arc<Nodes>,
    /// How long a node that is away is told to leave should it come back: as long as its certificate may hold.
    pub(crate) told_for: Duration,
}

/// Why a step was not taken. It is tried again.
#[derive(Debug, thiserror::Error)]
enum RemovalError {
    #[error("{0}")]
    Status(#[from] Status),
    #[error(transparent)]
    Member(#[from] MemberError),
    #[error("an object is not readable: {0}")]
    Unreadable(String),
}

impl Remover {
    /// Carries out orders for as long as the gateway runs.
    pub(crate) async fn run(self) {
        let mut running: JoinSet<String> = JoinSet::new();
        let mut busy = BTreeSet::new();
        loop {
            tokio::select! {
                biased;
                nodes = self.shared.orders.taken() => for node in nodes {
                    // One that is attended to looks at its Node again by itself.
                    if busy.insert(node.clone()) {
                        let remover = self.clone();
                        running.spawn(async move {
                            remover.remove(&node).await;
                            node
                        });
                    }
                },
                Some(done) = running.join_next() => match done {
                    Ok(node) => drop(busy.remove(&node)),
                    Err(error) => tracing::error!(%error, "a removal ended without a result"),
                },
            }
        }
    }

    /// Carries out the order that a Node bears, until it bears none or is gone.
    async fn remove(&self, node: &str) {
        let registry = &self.shared.registry;
        loop {
            let Ok(mut watch) = registry.store().watch("/", registry.revision()) else { continue };
            loop {
                match self.step(node).await {
                    Ok(Some(Step::Wait | Step::EndPods { .. })) => {
                        if !changed(&mut watch, node).await {
                            break;
                        }
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => return,
                    Err(error) => {
                        tracing::warn!(node, %error, "the removal of a node waits");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        }
    }

    /// Takes one step; none if nothing is ordered.
    async fn step(&self, node: &str) -> Result<Option<Step>, RemovalError> {
        let registry = &self.shared.registry;
        let object = match registry.get(&kinds::node::RESOURCE, None, node).await {
            Ok(record) => record.value().map_err(|error| RemovalError::Unreadable(error.to_string()))?,
            Err(status) if status.code == 404 => return Ok(None),
            Err(status) => return Err(status.into()),
        };
        let Some(order) = Order::of(&object) else { return Ok(None) };
        let pods = pods_on(registry, node).await?;
        let member = members::find(registry, node)?;
        let mut result = Value::Null;
        if order == Order::Revoke {
            result = self.result(node, &pods, &object)?;
        }
        let found = Found {
            order,
            member: match &member {
                None => Trust::None,
                Some((member, _)) if member.leaves_until.is_some() => Trust::Leaving,
                Some(_) => Trust::Member,
            },
            ready: is_ready(&object),
            cordoned: object["spec"]["unschedulable"] == true,
            told: object["metadata"]["annotations"][RESULT_ANNOTATION].as_str() == Some(&*result.to_string()),
            pods: match &pods[..] {
                [] => Pods::None,
                pods if pods.iter().all(|pod| !pod["metadata"]["deletionTimestamp"].is_null()) => {
                    Pods::Ending
                }
                _ => Pods::Some,
            },
        };
        let step = next(&found);
        tracing::info!(node, order = order.name(), ?step, "a node is being removed");
        match (step, member) {
            (Step::TakeTrust, Some((member, at))) => {
                // The token first: with it the device could join again.
                if !member.token.is_empty() {
                    token::take_back(registry, &identity(), &member.token).await?;
                }
                members::revoke(registry, node, &member, at).await?;
                self.nodes.end(&self.shared, node).await;
            }
            (Step::Tell, _) => {
                // It is kept for whoever asks again once the pods that name some of them are gone.
                let named = result["secrets"].as_array().into_iter().flatten().filter_map(Value::as_str);
                let reach = named.map(str::to_owned).collect();
                members::keep_reach(registry, node, &reach).await?;
                self.change(node, |object| {
                    object["metadata"]["annotations"][RESULT_ANNOTATION] = json!(result.to_string());
                    object["spec"]["unschedulable"] = json!(true);
                })
                .await?;
            }
            (Step::Cordon, _) => {
                self.change(node, |object| object["spec"]["unschedulable"] = json!(true)).await?;
            }
            (Step::EndPods { force }, _) => {
                for pod in &pods {
                    end_pod(registry, pod, force).await?;
                }
            }
            (Step::AskToLeave, Some((mut member, at))) => {
                let told_for = i64::try_from(self.told_for.as_secs()).unwrap_or(i64::MAX);
                member.leaves_until = Some(registry.now().as_second().saturating_add(told_for));
                members::keep(registry, node, &member, Some(at), Depends::default()).await?;
                self.nodes.tell(node, Input::Leave).await;
            }
            (Step::Finish, member) => {
                if member.is_none() {
                    self.nodes.end(&self.shared, node).await;
                }
                self.finish(node, &object, order).await?;
            }
            _ => {}
        }
        Ok(Some(step))
    }

    /// What a revocation has to say, and has said already.
    fn result(&self, node: &str, pods: &[Value], object: &Value) -> Result<Value, RemovalError> {
        let registry = &self.shared.registry;
        let mut secrets = members::reach(registry, node)?;
        let said = object["metadata"]["annotations"][RESULT_ANNOTATION].as_str();
        let said: Value = said.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let named = said["secrets"].as_array().into_iter().flatten();
        secrets.extend(named.filter_map(Value::as_str).map(str::to_owned));
        pods.iter().for_each(|pod| secrets.extend(secrets_of(pod)));
        let revoked = members::revoked_of(registry, node)?;
        let tokens: BTreeSet<&str> =
            revoked.iter().map(|one| &*one.token).filter(|id| !id.is_empty()).collect();
        Ok(json!({ "joined": !revoked.is_empty(), "tokens": tokens, "secrets": secrets }))
    }

    async fn finish(&self, node: &str, object: &Value, order: Order) -> Result<(), RemovalError> {
        let registry = &self.shared.registry;
        let lease = (&kinds::lease::RESOURCE, Some(NODE_LEASE_NAMESPACE));
        delete(registry, lease.0, lease.1, node, &DeleteOptions::default()).await?;
        if order == Order::Decommission {
            members::forget_reach(registry, node).await?;
        }
        let uid = object["metadata"]["uid"].as_str().map(str::to_owned);
        let options = DeleteOptions { uid, ..DeleteOptions::default() };
        delete(registry, &kinds::node::RESOURCE, None, node, &options).await?;
        tracing::info!(node, "a node was removed");
        Ok(())
    }

    /// Changes the Node.
    async fn change(&self, node: &str, change: impl Fn(&mut Value)) -> Result<(), RemovalError> {
        let (registry, resource) = (&self.shared.registry, &kinds::node::RESOURCE);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let record = registry.get(resource, None, node).await?;
            let mut object = record.value().map_err(|error| RemovalError::Unreadable(error.to_string()))?;
            change(&mut object);
            let options = WriteOptions::default();
            match registry.update(&identity(), resource, None, node, object, None, &options).await {
                Err(status) if status.reason == "Conflict" && attempt < ATTEMPTS => {}
                other => return other.map(drop).map_err(Into::into),
            }
        }
    }
}

fn identity() -> Identity {
    Identity::component("system:gateway")
}

async fn end_pod(registry: &Registry, pod: &Value, force: bool) -> Result<(), Status> {
    let ending = !pod["metadata"]["deletionTimestamp"].is_null();
    if ending && !force {
        return Ok(());
    }
    let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
    let options = DeleteOptions {
        uid: Some(text("uid").to_owned()),
        grace_seconds: force.then_some(0),
        ..DeleteOptions::default()
    };
    delete(registry, &kinds::pod::RESOURCE, Some(text("namespace")), text("name"), &options).await
}

/// Deletes what may be gone already, or may have been replaced by a namesake.
async fn delete(
    registry: &Registry,
    resource: &'static lichen_api::Resource,
    namespace: Option<&str>,
    name: &str,
    options: &DeleteOptions,
) -> Result<(), Status> {
    match registry.delete(&identity(), resource, namespace, name, options).await {
        Err(status) if !matches!(status.code, 404 | 409) => Err(status),
        _ => Ok(()),
    }
}

async fn pods_on(registry: &Registry, node: &str) -> Result<Vec<Value>, RemovalError> {
    let fields = fields::Selector::parse(&format!("spec.nodeName={node}"))
        .map_err(|error| RemovalError::Unreadable(format!("{error:?}")))?;
    let options = ListOptions { filter: Filter { fields, ..Filter::default() }, ..ListOptions::default() };
    let list = registry.list(&kinds::pod::RESOURCE, None, &options).await?;
    let pods = list.items.iter().map(|record| record.value());
    pods.collect::<Result<_, _>>().map_err(|error| RemovalError::Unreadable(error.to_string()))
}

/// Waits until something changed that a removal depends on; false if the watch cannot tell any more.
async fn changed(watch: &mut Watch, node: &str) -> bool {
    let own = [key_of(&kinds::node::RESOURCE, None, node), members::member_key(node)];
    loop {
        match watch.next().await {
            Ok(Event::Change(change)) => {
                if own.contains(&change.key) || change.key.as_str().starts_with(Kind::Pod.prefix()) {
                    // What else has come by now is seen in one go.
                    while let Ok(Some(_)) = watch.try_next() {}
                    return true;
                }
            }
            Ok(Event::Progress(_)) => {}
            Err(_) => return false,
        }
    }
}

fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

/// The Secrets that a pod names, as `namespace/name`: those that its node is sent, and those that images are pulled with.
fn secrets_of(pod: &Value) -> BTreeSet<String> {
    let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
    let sent =
        crate::item::refs(pod).into_iter().filter(|(kind, _)| *kind == Kind::Secret).map(|(_, key)| key);
    let pulls = pod["spec"]["imagePullSecrets"].as_array().into_iter().flatten();
    let pulls = pulls.filter_map(|one| Some(format!("{namespace}/{}", one["name"].as_str()?)));
    sent.chain(pulls).collect()
}

#[cfg(test)]
mod tests;
