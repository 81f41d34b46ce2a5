//! Nodes that live through all of it: whatever befalls the members, no pod starts anew.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use lichen_firmware_tests::process::Process;
use serde_json::{Value, json};

use crate::world::World;

/// What the pods run.
const TICKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../runtime/guests/ticker.wasm");
/// How many pods there are.
const REPLICAS: usize = 4;

/// What must not change of a pod: its uid, when its container started, and how often.
type Life = [Value; 3];

/// The nodes.
pub(crate) struct Nodes {
    agents: Vec<Process>,
    lives: BTreeMap<String, Life>,
}

impl Nodes {
    /// Starts a node on each machine that is no member's, and pods on them.
    pub(crate) fn start(world: &World) -> Result<Self> {
        let brokers: Vec<String> = world.places.iter().map(|place| place.broker()).collect();
        let token = world.lichen(&["token", "create"])?;
        let mut agents = Vec::new();
        for (index, machine) in world.machines.iter().enumerate() {
            let name = format!("edge-{index}");
            let mut command = machine.command(&world.lichen);
            command.args(["agent", "--node-name", &name, "--token", token.trim()]);
            command.args(["--server", &brokers.join(",")]);
            command.arg("--data-dir").arg(world.dir.join(&name));
            agents.push(Process::start(&name, command, &world.dir, &["node "])?);
        }
        world.lichen(&["push", TICKER, "ticker:v1"])?;
        let pod = json!({"containers": [{"name": "main", "image": "ticker:v1"}]});
        let labels = json!({"app": "ticker"});
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "ticker", "namespace": "default"},
            "spec": {
                "replicas": REPLICAS, "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        });
        let manifest = world.dir.join("deployment.json");
        std::fs::write(&manifest, deployment.to_string())?;
        world.lichen(&["apply", "-f", &manifest.to_string_lossy()])?;
        let mut nodes = Self { agents, lives: BTreeMap::new() };
        nodes.lives = nodes.ready(world)?;
        world.say(&format!("{REPLICAS} pods run on {} nodes", nodes.agents.len()));
        Ok(nodes)
    }

    /// Waits until all is ready, and finds the pods as they were.
    pub(crate) fn check(&mut self, world: &World) -> Result<()> {
        for agent in &mut self.agents {
            let ended = agent.ended()?;
            ensure!(ended.is_none(), "a node's agent ended by itself: {ended:?}\n{}", agent.tail());
        }
        let lives = self.ready(world)?;
        ensure!(lives == self.lives, "pods were {:#?} and are {lives:#?}", self.lives);
        Ok(())
    }

    fn ready(&self, world: &World) -> Result<BTreeMap<String, Life>> {
        let mut seen = Vec::new();
        let waited = world.until("all nodes and pods are ready", || {
            seen =
                ["/api/v1/nodes", "/api/v1/namespaces/default/pods"].map(|path| items(world, path)).concat();
            seen.len() == self.agents.len() + REPLICAS && seen.iter().all(is_ready)
        });
        waited.with_context(|| format!("{seen:#?}"))?;
        let pods = seen.iter().filter(|object| object["metadata"]["namespace"] == "default");
        let life = |pod: &Value| {
            let container = &pod["status"]["containerStatuses"][0];
            let started = container["state"]["running"]["startedAt"].clone();
            let life = [pod["metadata"]["uid"].clone(), started, container["restartCount"].clone()];
            (pod["metadata"]["name"].as_str().unwrap_or_default().to_owned(), life)
        };
        Ok(pods.map(life).collect())
    }
}

fn items(world: &World, path: &str) -> Vec<Value> {
    world.get(path).and_then(|list| list["items"].as_array().cloned()).unwrap_or_default()
}

fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}
