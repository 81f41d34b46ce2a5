//! Three servers as the control plane of two nodes. Whichever leads is killed, again and again: pods go on as if nothing
//! were, every member answers as if there were one server, and what was acknowledged is there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lichen_firmware_tests::cluster::succeed;
use lichen_firmware_tests::kubectl::Kubectl;
use lichen_firmware_tests::process::{Process, free_address};
use lichen_firmware_tests::writer::{BATCH, Writer};
use serde_json::Value;

const LICHEN: &str = env!("CARGO_BIN_EXE_lichen");
const TICKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../runtime/guests/ticker.wasm");
const MEMBERS: usize = 3;
const NODES: [&str; 2] = ["edge-1", "edge-2"];
/// How often the member that leads is killed.
const ROUNDS: usize = 3;
const REPLICAS: usize = 4;
/// How long the cluster may take to be as it should be.
const PATIENCE: Duration = Duration::from_secs(90);
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// What is held by the member that leads.
const LEASES: [&str; 3] = ["kube-controller-manager", "kube-scheduler", "lichen-gateway"];

struct Member {
    api: String,
    mqtt: String,
    peer: String,
    server: Option<Process>,
}

struct World {
    dir: PathBuf,
    members: Vec<Member>,
    agents: Vec<Process>,
}

/// Waits until something is so.
fn until<T>(what: &str, mut is: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = is() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn client(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(LICHEN);
    command.args(arguments).env("KUBECONFIG", dir.join("m0/admin.kubeconfig")).stdin(Stdio::null());
    command
}

impl World {
    fn start(dir: &Path) -> World {
        let member =
            || Member { api: free_address(), mqtt: free_address(), peer: free_address(), server: None };
        let members = std::iter::repeat_with(member).take(MEMBERS).collect();
        let mut world = World { dir: dir.into(), members, agents: Vec::new() };
        world.start_server(0, &["--cluster-init"]);
        let join = format!("https://{}", world.members[0].api);
        for member in 1..MEMBERS {
            let token = world.lichen(&["token", "create", "--member"]);
            world.start_server(member, &["--join", &join, "--token", token.trim()]);
        }
        until("all members vote", || world.all_vote().then_some(()));
        until("the kubeconfig has all members", || world.all_are_listed().then_some(()));
        let brokers: Vec<_> = world.members.iter().map(|member| member.mqtt.clone()).collect();
        let token = world.lichen(&["token", "create"]);
        for node in NODES {
            let mut command = Command::new(LICHEN);
            command.args([
                "agent",
                "--node-name",
                node,
                "--token",
                token.trim(),
                "--server",
                &brokers.join(","),
            ]);
            command.arg("--data-dir").arg(dir.join(node));
            world.agents.push(Process::start(node, command, dir, &["node "]).unwrap());
        }
        world
    }

    fn start_server(&mut self, index: usize, arguments: &[&str]) {
        let member = &mut self.members[index];
        let mut command = Command::new(LICHEN);
        command.args(["server", "--api-addr", &member.api, "--mqtt-addr", &member.mqtt]);
        command.args(["--peer-addr", &member.peer]).args(arguments);
        command.arg("--data-dir").arg(self.dir.join(format!("m{index}")));
        let name = format!("m{index}");
        member.server = Some(Process::start(&name, command, &self.dir, &["A node joins"]).unwrap());
    }

    fn lichen(&self, arguments: &[&str]) -> String {
        succeed(client(&self.dir, arguments).output().unwrap(), arguments).unwrap()
    }

    /// What a command prints as JSON, if it succeeds.
    fn json(&self, arguments: &[&str]) -> Option<Value> {
        let output = client(&self.dir, &[arguments, &["-o", "json"]].concat()).output().unwrap();
        serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success())
    }

    fn items(&self, arguments: &[&str]) -> Vec<Value> {
        let list = self.json(arguments).unwrap_or_default();
        list["items"].as_array().cloned().unwrap_or_default()
    }

    fn all_vote(&self) -> bool {
        let members = self.json(&["member", "list"]).unwrap_or_default();
        let members = members.as_array().cloned().unwrap_or_default();
        let votes = |member: &Value| member["status"] == "Ready" && member["role"] != "learner";
        members.len() == MEMBERS && members.iter().all(votes)
    }

    /// Whether the client's kubeconfig has an entry for each member.
    fn all_are_listed(&self) -> bool {
        let text = std::fs::read_to_string(self.dir.join("m0/admin.kubeconfig")).unwrap();
        self.members.iter().all(|member| text.contains(&member.api))
    }

    /// The member that leads, as the members say, which holds every Lease.
    fn leader(&self) -> Option<usize> {
        let members = self.json(&["member", "list"])?;
        let leader = members.as_array()?.iter().find(|member| member["role"] == "leader")?;
        let id = leader["id"].as_str()?;
        for name in LEASES {
            let lease = self.json(&["get", "leases", name, "-n", "kube-system"])?;
            lease["spec"]["holderIdentity"].as_str().filter(|holder| holder.ends_with(id))?;
        }
        let api = leader["apiUrl"].as_str()?.strip_prefix("https://")?;
        self.members.iter().position(|member| member.api == api && member.server.is_some())
    }

    /// The pods of the Deployment, once all of them are ready.
    fn ready(&self) -> Option<Vec<Value>> {
        let all = self.items(&["get", "pods", "-l", "app=ticker"]);
        (all.len() == REPLICAS && all.iter().all(is_ready)).then_some(all)
    }

    /// What must be the same after whatever happened to the control plane: which pods there are, when their containers
    /// started, and how often.
    fn lives(&self) -> BTreeMap<String, [Value; 3]> {
        let life = |pod: &Value| {
            let container = &pod["status"]["containerStatuses"][0];
            let started = container["state"]["running"]["startedAt"].clone();
            (name(pod), [pod["metadata"]["uid"].clone(), started, container["restartCount"].clone()])
        };
        until("all pods are ready", || self.ready()).iter().map(life).collect()
    }
}

fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap().to_owned()
}

/// A watch of all ConfigMaps through one member.
struct Watch {
    child: std::process::Child,
    file: PathBuf,
    /// What was there when it began.
    listed: BTreeSet<String>,
}

impl Watch {
    fn start(kubectl: &Kubectl, world: &World, member: usize, round: usize) -> Watch {
        let raw = format!("--server https://{} get --raw", world.members[member].api);
        let list = kubectl.run(&format!("{raw} {CONFIG_MAPS}")).good();
        let list: Value = serde_json::from_str(&list.text).unwrap();
        let from = list["metadata"]["resourceVersion"].as_str().unwrap();
        let listed = list["items"].as_array().unwrap().iter().map(name).collect();
        let file = world.dir.join(format!("watch-{round}"));
        let mut command = kubectl.command(&format!("{raw} {CONFIG_MAPS}?watch=1&resourceVersion={from}"));
        command.stdout(std::fs::File::create(&file).unwrap()).stdin(Stdio::null()).stderr(Stdio::null());
        Watch { child: command.spawn().unwrap(), file, listed }
    }

    /// The names that were added, in order, and the revisions at which that was.
    fn seen(&self) -> Vec<(String, u64)> {
        let text = std::fs::read_to_string(&self.file).unwrap();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let events = whole.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let added = events.filter(|event| event["type"] == "ADDED").map(|event| {
            let version = event["object"]["metadata"]["resourceVersion"].as_str().unwrap();
            (name(&event["object"]), version.parse().unwrap())
        });
        added.collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn whoever_leads_may_die() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::start(folder.path());
    let Some(kubectl) = Kubectl::new(&world.dir.join("m0/admin.kubeconfig"), &world.dir) else { return };
    world.lichen(&["push", TICKER, "ticker:v1"]);
    let manifest = world.dir.join("deployment.yaml");
    let deployment = format!(
        "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: ticker}}, spec: {{replicas: {REPLICAS}, selector: \
         {{matchLabels: {{app: ticker}}}}, template: {{metadata: {{labels: {{app: ticker}}}}, spec: {{containers: \
         [{{name: main, image: 'ticker:v1'}}]}}}}}}}}"
    );
    std::fs::write(&manifest, deployment).unwrap();
    world.lichen(&["apply", "-f", &manifest.to_string_lossy()]);
    let lives = world.lives();
    let writer = Writer::start(&world.dir, {
        let dir = world.dir.clone();
        move |arguments| client(&dir, arguments)
    });
    let mut leaders = Vec::new();
    let followed = Followed::start(&world, lives.keys().next().unwrap());

    for round in 0..ROUNDS {
        let leader = until("one member leads", || world.leader());
        leaders.push(leader);
        let follower = (leader + 1) % MEMBERS;
        let watch = Watch::start(&kubectl, &world, follower, round);
        let before = writer.acknowledged().len();
        let last = heard(&kubectl, &world.members[leader].api).unwrap();
        // What is pushed now, to the one that is about to die, is there when it is not.
        world.lichen(&["push", TICKER, &format!("ticker:r{round}")]);
        world.members[leader].server.take().unwrap().kill().unwrap();

        let killed = Instant::now();
        until("another member leads", || world.leader());
        println!("round {round}: another member leads after {:?}", killed.elapsed());
        until("writes go on", || (writer.acknowledged().len() > before + BATCH).then_some(()));
        until("the nodes are back", || {
            // As each member that lives tells it: what only the leader knows comes from there.
            let living = world.members.iter().filter(|member| member.server.is_some());
            let later = |now: Vec<String>| now.iter().zip(&last).all(|(now, last)| now > last);
            living.clone().all(|member| heard(&kubectl, &member.api).is_some_and(later)).then_some(())
        });
        println!("round {round}: the nodes are back after {:?}", killed.elapsed());
        assert_eq!(world.lives(), lives, "pods go on when the member that leads dies");
        for member in world.members.iter().filter(|member| member.server.is_some()) {
            for pod in lives.keys() {
                let logs = format!("--server https://{} logs {pod} --tail=1", member.api);
                assert!(!kubectl.run(&logs).good().text.is_empty(), "{logs}");
            }
        }
        // The watch of a member that lives saw every write once, in order.
        let acknowledged = writer.acknowledged();
        let seen = until("the watch saw what was acknowledged", || {
            let seen = watch.seen();
            let names: BTreeSet<_> =
                seen.iter().map(|(name, _)| name).chain(&watch.listed).cloned().collect();
            acknowledged.is_subset(&names).then_some(seen)
        });
        assert!(seen.is_sorted_by(|one, next| one.1 < next.1), "{seen:?}");
        let names: BTreeSet<_> = seen.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), seen.len(), "a change was told twice");

        let late = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: late-{round}}}, spec: {{containers: [{{name: main, \
             image: 'ticker:r{round}'}}]}}}}"
        );
        std::fs::write(&manifest, late).unwrap();
        world.lichen(&["apply", "-f", &manifest.to_string_lossy()]);
        let name = format!("late-{round}");
        until("what was pushed to the dead runs", || world.json(&["get", "pods", &name]).filter(is_ready));

        world.start_server(leader, &[]);
        until("all members vote again", || world.all_vote().then_some(()));
    }

    followed.check();
    let acknowledged = writer.finish().unwrap();
    for member in &world.members {
        let maps = kubectl.run(&format!("--server https://{} get configmaps -o name", member.api)).good();
        let there: BTreeSet<_> = maps.text.lines().filter_map(|line| line.split('/').nth(1)).collect();
        let lost: Vec<_> = acknowledged.iter().filter(|name| !there.contains(name.as_str())).collect();
        assert!(lost.is_empty(), "{} lacks {lost:?}", member.api);
    }
    assert_eq!(world.lives(), lives);
    println!("{} writes acknowledged, killed while they led: {leaders:?}", acknowledged.len());
}

/// A pod's log as `lichen logs -f` shows it.
struct Followed {
    child: std::process::Child,
    file: PathBuf,
}

impl Followed {
    fn start(world: &World, pod: &str) -> Followed {
        let file = world.dir.join("followed");
        let mut command = client(&world.dir, &["logs", "-f", pod]);
        let child = command.stdout(std::fs::File::create(&file).unwrap()).spawn().unwrap();
        Followed { child, file }
    }

    fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.file).unwrap();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(str::to_owned).collect()
    }

    /// It goes on, and every line came once.
    fn check(&self) {
        let before = self.lines().len();
        let lines =
            until("the log is followed still", || Some(self.lines()).filter(|lines| lines.len() > before));
        let expect: Vec<_> = (1..=lines.len()).map(|tick| format!("tick {tick}")).collect();
        assert_eq!(lines, expect);
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// When the nodes were last heard of, as a member tells it.
fn heard(kubectl: &Kubectl, api: &str) -> Option<Vec<String>> {
    let leases = kubectl.run(&format!("--server https://{api} get leases -n kube-node-lease -o json"));
    let leases: Value = serde_json::from_str(&leases.text).ok()?;
    let times = leases["items"].as_array()?.iter().map(|lease| lease["spec"]["renewTime"].to_string());
    Some(times.collect()).filter(|times: &Vec<_>| times.len() == NODES.len())
}
