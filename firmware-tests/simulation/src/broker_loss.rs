//! A broker that is gone for a while: nobody can reach it, or the nodes can't, however often they try.
//!
//! Unlike in a seed's trouble nothing else goes wrong, so that all that is written and started in that time is the loss's
//! doing. The grace after which a node is called silent is the one that ships.

use std::sync::Arc;
use std::time::Duration;

use lichen_api::kinds;
use serde_json::{Value, json};

use crate::client::NAMESPACE;
use crate::node::Node;
use crate::trace::note;
use crate::world::{Report, World, simulate};
use crate::{Assets, Size};

/// After this, whatever was to be written about a beginning is.
const REST: Duration = Duration::from_secs(120);
/// A node comes back within its longest pause between two attempts, and the session after that.
const BACK: Duration = Duration::from_secs(30);

/// Who can't reach the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nobody can: the gateway can't know how the nodes are.
    All,
    /// The gateway can, and hears nothing of its nodes.
    Nodes,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerLoss {
    /// Containers that ran before it.
    pub running: usize,
    /// Keys written while the broker was away, apart from what the client asked for.
    pub written_away: Vec<String>,
    /// Keys written once it was back, until all was as wanted and at rest.
    pub written_back: Vec<String>,
    /// Containers that were started after the loss.
    pub started: usize,
    /// Sessions that came to stand once it was back.
    pub sessions: usize,
}

/// Has a cluster lose its broker for a while, in which a client changes what all nodes are to know.
pub fn broker_loss(
    seed: u64,
    nodes: u64,
    cut: Cut,
    away: Duration,
    assets: &Arc<Assets>,
) -> (Report, Option<BrokerLoss>) {
    let size = Size { servers: 1, nodes, actions: 0, faults: 0, trouble: Duration::ZERO };
    let (report, lost) = simulate(seed, Some(size), assets, false, async |world: &mut World| {
        world.lose_broker(cut, away).await
    });
    (report, lost.flatten())
}

impl World {
    async fn lose_broker(&mut self, cut: Cut, away: Duration) -> Option<BrokerLoss> {
        self.begin().await;
        self.client.insist(&kinds::deployment::RESOURCE, NAMESPACE, deployment(self.size.nodes)).await;
        self.client.insist(&kinds::service::RESOURCE, NAMESPACE, service()).await;
        if !self.converge().await {
            return None;
        }
        tokio::time::sleep(REST).await;
        let running = self.nodes.iter().map(|node| node.running().len()).sum();
        let (starts, sessions) = (self.checks.starts(), self.checks.sessions());

        note!(self.trace, "the broker is lost");
        self.reach_broker(cut, false);
        let before = self.log.revision();
        tokio::time::sleep(away / 2).await;
        let mut written_away = self.checks.since(before);
        let patch = json!({ "data": { "value": "changed while the broker was away" } });
        self.client.patch(&kinds::configmap::RESOURCE, "c0", patch).await;
        let changed = self.log.revision();
        tokio::time::sleep(away / 2).await;
        written_away.extend(self.checks.since(changed));

        note!(self.trace, "the broker is back");
        let back = self.log.revision();
        self.reach_broker(cut, true);
        tokio::time::sleep(BACK).await;
        self.judge().await;
        Some(BrokerLoss {
            running,
            written_away,
            written_back: self.checks.since(back),
            started: self.checks.starts() - starts,
            sessions: self.checks.sessions() - sessions,
        })
    }

    fn reach_broker(&self, cut: Cut, reachable: bool) {
        if cut == Cut::All {
            self.net.cut(!reachable);
        }
        self.nodes.iter().for_each(|node: &Node| node.reach(reachable));
    }
}

/// Two pods a node, all of which need the configuration that is changed.
fn deployment(nodes: u64) -> Value {
    let map = json!({ "name": "c0", "key": "value" });
    let container = json!({
        "name": "main", "image": "app:v1",
        "env": [{ "name": "VALUE", "valueFrom": { "configMapKeyRef": map } }],
        "resources": { "requests": { "cpu": "100m", "memory": "16Mi" } },
        "readinessProbe": { "tcpSocket": { "port": 80 }, "periodSeconds": 5 },
    });
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "app" },
        "spec": {
            "replicas": nodes * 2,
            "selector": { "matchLabels": { "app": "app" } },
            "template": { "metadata": { "labels": { "app": "app" } }, "spec": { "containers": [container] } },
        },
    })
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "app" },
        "spec": { "selector": { "app": "app" }, "ports": [{ "port": 80, "targetPort": 8080 }] },
    })
}
