//! `lichen bench nodes`: what many nodes cost a server, how they come back, and what one says in a day.
//!
//! The many are simulated: each joins, connects over TLS and MQTT and keeps its session as an agent does, and reports a
//! Node, but runs nothing. What a node says in a day is measured on agents that are real, through a relay that counts what
//! passes: bytes, and the TLS records in them, each of which is a frame or an MQTT packet.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use lichen_control::Purpose;
use lichen_link::{JoinConfig, Link, LinkEvent, join};
use lichen_pki::{ClientTrust, Credentials, Request, client_config};
use lichen_wire::join::Token;
use lichen_wire::session::{AgentConfig, Limits, Timing};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::process::Process;
use super::{
    Bed, Figures, Folder, HELLO, IMAGE, NAMESPACE, PATIENCE, SETTLE, free_address, has_condition, mib, pod,
};
use crate::client::{Client, path};
use crate::commands::get::{resource, text};
use crate::commands::{push, token};
use crate::{kubeconfig, limits};

/// How many nodes join at the same time.
const JOINS_MAX: usize = 16;
/// The pods of the node that is not idle.
const PODS: usize = 10;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// The type of a TLS record that carries data.
const APPLICATION_DATA: u8 = 23;

/// Measures what many nodes cost, and prints the figures.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How many nodes are simulated.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    count: usize,
    /// How long is listened to what real nodes say.
    #[arg(long, value_name = "MINUTES", default_value_t = 5)]
    minutes: u64,
}

/// Runs the command.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    limits::raise_descriptors();
    let folder = Folder::new()?;
    let mut figures = Figures::default();
    traffic(&mut figures, &folder.0.join("traffic"), Duration::from_secs(60 * arguments.minutes)).await?;
    crowd(&mut figures, &folder.0.join("crowd"), arguments.count).await?;
    figures.print();
    Ok(())
}

/// A server of its own, and how to start it again.
struct Server {
    arguments: Vec<String>,
    mqtt: String,
    process: Process,
    client: Client,
}

impl Server {
    async fn start(folder: &Path) -> Result<Self> {
        let (mqtt, api) = (free_address()?, free_address()?);
        let data_dir = folder.to_string_lossy();
        let arguments = ["server", "--data-dir", &data_dir, "--api-addr", &api, "--mqtt-addr", &mqtt];
        let arguments = arguments.map(str::to_owned).to_vec();
        let process = Process::start(&arguments, "A node joins").await?;
        let client = Client::new(&kubeconfig::read(&folder.join("admin.kubeconfig"))?)?;
        Ok(Self { arguments, mqtt, process, client })
    }

    /// The store's revision.
    async fn revision(&self) -> Result<u64> {
        let nodes =
            self.client.get(&format!("{}?limit=1", path(resource("nodes")?, None, None)), None).await?;
        text(&nodes["metadata"]["resourceVersion"]).parse().context("the list has no revision")
    }

    async fn ready_nodes(&self) -> Result<usize> {
        let nodes = self.client.get(&path(resource("nodes")?, None, None), None).await?;
        let all = nodes["items"].as_array().map_or(&[][..], Vec::as_slice);
        Ok(all.iter().filter(|node| has_condition(node, "Ready")).count())
    }
}

/// What an idle node and one with pods say in so long.
async fn traffic(figures: &mut Figures, folder: &Path, time: Duration) -> Result<()> {
    let server = Server::start(folder).await?;
    push::push(&server.client, &IMAGE.parse()?, Bytes::from_static(HELLO)).await?;
    let mut agents = Vec::new();
    for (name, pods) in [("idle", 0), ("busy", PODS)] {
        let relay = Relay::start(&server.mqtt).await?;
        let token = token::create(&server.client, Duration::from_secs(600), Purpose::Node).await?;
        let data_dir = folder.join(name);
        let arguments =
            ["agent", "--server", &relay.address, "--token", &token, "--node-name", name, "--data-dir"];
        let mut arguments = arguments.map(str::to_owned).to_vec();
        arguments.push(data_dir.to_string_lossy().into_owned());
        let process = Process::start(&arguments, "node ").await?;
        agents.push((pods, relay, process));
    }
    let bed = Bed { server: server.process, agents: Vec::new(), client: server.client };
    bed.wait("nodes", None, agents.len(), |node| has_condition(node, "Ready")).await?;
    bed.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})).await?;
    for index in 0..PODS {
        bed.apply(pod(&format!("pod-{index}"), Some("busy"))).await?;
    }
    bed.wait_pods("pod-", PODS).await?;
    tokio::time::sleep(SETTLE).await;
    let before: Vec<[Passed; 2]> = agents.iter().map(|(_, relay, _)| relay.passed()).collect();
    tokio::time::sleep(time).await;
    for ((pods, relay, _), before) in agents.iter().zip(before) {
        for ((way, after), before) in
            ["to the server", "to the node"].into_iter().zip(relay.passed()).zip(before)
        {
            let per_day = |count: u64| count as f64 * DAY.as_secs_f64() / time.as_secs_f64();
            let (records, bytes) = (after.records - before.records, after.bytes - before.bytes);
            figures.add(
                format!("node with {pods} pods, {way}, a day"),
                format!(
                    "{:.0} frames, {:.2} MiB ({records} and {bytes} B in {} s)",
                    per_day(records),
                    per_day(bytes) / f64::from(1 << 20),
                    time.as_secs()
                ),
            );
        }
    }
    for (_, _, agent) in agents {
        agent.stop().await?;
    }
    bed.stop().await
}

/// What many nodes cost the server, and how they come back once it was gone.
async fn crowd(figures: &mut Figures, folder: &Path, count: usize) -> Result<()> {
    let mut server = Server::start(folder).await?;
    let token: Token =
        token::create(&server.client, Duration::from_secs(3600), Purpose::Node).await?.parse()?;
    tokio::time::sleep(SETTLE).await;
    let before = server.process.usage()?;

    let began = Instant::now();
    let (heard, mut synced) = watch::channel(BTreeMap::new());
    let heard = Arc::new(heard);
    let mut joining = JoinSet::new();
    let mut nodes = Vec::new();
    for index in 0..count {
        if joining.len() >= JOINS_MAX {
            nodes.extend(joining.join_next().await.transpose()?.transpose()?);
        }
        joining.spawn(simulate(server.mqtt.clone(), token.clone(), format!("sim-{index:05}"), heard.clone()));
    }
    while let Some(joined) = joining.join_next().await {
        nodes.push(joined??);
    }
    all_synced(&mut synced, 1, count).await?;
    wait_ready(&server, count).await?;
    figures.add(format!("{count} nodes, join to all Ready"), seconds(began.elapsed()));
    tokio::time::sleep(SETTLE).await;
    let after = server.process.usage()?;
    let each = after.pss_bytes.saturating_sub(before.pss_bytes) / count.max(1) as u64;
    figures.add(
        format!("server with {count} idle nodes, PSS"),
        format!("{}, {:.1} KiB each", mib(after.pss_bytes), each as f64 / 1024.0),
    );
    tokio::time::sleep(Duration::from_secs(60)).await;
    let later = server.process.usage()?;
    figures.add(
        format!("server with {count} idle nodes, over 60 s"),
        format!(
            "CPU {:.0} ms, {} B written",
            (later.cpu - after.cpu).as_secs_f64() * 1000.0,
            later.written_bytes - after.written_bytes
        ),
    );

    let (revision, sessions) = (server.revision().await?, highest(&synced));
    server.process.stop().await?;
    let began = Instant::now();
    server.process = Process::start(&server.arguments, "A node joins").await?;
    let started = began.elapsed();
    all_synced(&mut synced, sessions + 1, count).await?;
    let took = began.elapsed();
    tokio::time::sleep(SETTLE).await;
    wait_ready(&server, count).await?;
    let written = server.revision().await? - revision;
    figures.add(
        format!("server killed, {count} nodes, start to all synced"),
        format!("{} (the server itself {}), {written} revisions written", seconds(took), seconds(started)),
    );
    let usage = server.process.usage()?;
    figures.add("server after that", format!("PSS {}, CPU {}", mib(usage.pss_bytes), seconds(usage.cpu)));
    for node in nodes {
        node.abort();
    }
    server.process.stop().await
}

/// In which of its sessions, counted from 1, each node last had all of its desired state.
type Synced = BTreeMap<String, u64>;

fn highest(synced: &watch::Receiver<Synced>) -> u64 {
    synced.borrow().values().copied().max().unwrap_or(0)
}

/// Waits until every node is synced in its session of that number or a later one.
async fn all_synced(synced: &mut watch::Receiver<Synced>, session: u64, count: usize) -> Result<()> {
    let done = |all: &Synced| all.values().filter(|at| **at >= session).count() >= count;
    let waited = tokio::time::timeout(PATIENCE, synced.wait_for(done)).await;
    match waited {
        Ok(result) => result.map(drop).context("the nodes have ended"),
        Err(_) => bail!("not all nodes were synced within {} s", PATIENCE.as_secs()),
    }
}

async fn wait_ready(server: &Server, count: usize) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while server.ready_nodes().await? < count {
        if Instant::now() > deadline {
            bail!("{} of {count} nodes are Ready", server.ready_nodes().await?);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// Joins as a node, and keeps its session.
async fn simulate(
    broker: String,
    token: Token,
    name: String,
    synced: Arc<watch::Sender<Synced>>,
) -> Result<tokio::task::AbortHandle> {
    let request = Request::new()?;
    let pinned = Arc::new(client_config(&ClientTrust::Pinned(*token.ca_digest()), None)?);
    let joined = join(JoinConfig {
        broker: broker.clone(),
        server_name: None,
        tls: pinned.clone(),
        login: None,
        token,
        node: name.clone(),
        csr: request.csr_der.clone(),
        own_broker: true,
        timeout: PATIENCE,
    })
    .await?;
    let own = Credentials { chain_pem: String::from_utf8(joined.certificate)?, key_pem: request.key_pem };
    let trust = ClientTrust::Pinned(lichen_pki::digest_of_der(&joined.ca));
    let session = AgentConfig {
        node: fit(&name)?,
        key: joined.key,
        boot_id: rand::random(),
        agent_version: fit(env!("CARGO_PKG_VERSION"))?,
        profile: fit("none")?,
        epoch_seen: 0,
        synced: None,
        limits: Limits::SERVER,
        timing: Timing::DEFAULT,
    };
    let tls = Arc::new(client_config(&trust, Some(&own))?);
    let (link, events) = Link::spawn(lichen_link::Config::new(broker, tls, session));
    Ok(tokio::spawn(live(link, events, name, synced)).abort_handle())
}

async fn live(
    link: Link,
    mut events: mpsc::Receiver<LinkEvent>,
    name: String,
    synced: Arc<watch::Sender<Synced>>,
) -> Result<()> {
    let (handle, report) = (link.handle(), serde_cbor::to_vec(&node(&name))?);
    let mut session = 0;
    while let Some(event) = events.recv().await {
        match event {
            LinkEvent::Connected { .. } => {
                session += 1;
                handle.report("Node", &name, "", report.clone()).await?;
            }
            LinkEvent::SnapshotEnd { .. } | LinkEvent::Synced { .. } => {
                synced.send_modify(|all| {
                    all.insert(name.clone(), session);
                });
            }
            _ => {}
        }
    }
    Ok(())
}

fn fit<const N: usize>(value: &str) -> Result<lichen_wire::heapless::String<N>> {
    value.try_into().map_err(|_| anyhow::anyhow!("{value:?} is too long"))
}

/// A Node as an agent reports it.
fn node(name: &str) -> Value {
    let amounts =
        json!({"cpu": "4", "memory": "4006912Ki", "ephemeral-storage": "30428648Ki", "pods": "110"});
    let condition = |kind: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": "False", "reason": reason, "message": message,
            "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    };
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64",
            "lichen.dev/runtime.wasm": "true",
        }},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": name}],
            "capacity": amounts, "allocatable": amounts,
            "conditions": [
                condition("MemoryPressure", "KubeletHasSufficientMemory", "the node has memory available"),
                condition("DiskPressure", "KubeletHasNoDiskPressure", "the node's disk has room"),
                condition("PIDPressure", "KubeletHasSufficientPID", "components need no processes"),
            ],
            "nodeInfo": {
                "architecture": "arm64", "operatingSystem": "linux", "kernelVersion": "6.12.0",
                "osImage": "Debian GNU/Linux 13 (trixie)", "containerRuntimeVersion": "wasmtime://48",
                "kubeletVersion": env!("CARGO_PKG_VERSION"), "kubeProxyVersion": "",
                "machineID": name, "systemUUID": name, "bootID": name,
            },
        },
    })
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// What passed one way.
#[derive(Clone, Copy)]
struct Passed {
    bytes: u64,
    records: u64,
}

#[derive(Default)]
struct Counter {
    bytes: AtomicU64,
    records: AtomicU64,
}

/// Passes connections on and counts: first what goes to the server, then what comes from it.
struct Relay {
    address: String,
    counters: [Arc<Counter>; 2],
}

impl Relay {
    async fn start(to: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let counters: [Arc<Counter>; 2] = Default::default();
        let (to, [up, down]) = (to.to_owned(), counters.clone());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(&to).await else { continue };
                // A connection that counts delays nothing itself.
                let _ = (near.set_nodelay(true), far.set_nodelay(true));
                let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                tokio::spawn(pass(near_in, far_out, up.clone()));
                tokio::spawn(pass(far_in, near_out, down.clone()));
            }
        });
        Ok(Self { address, counters })
    }

    fn passed(&self) -> [Passed; 2] {
        [0, 1].map(|way: usize| Passed {
            bytes: self.counters[way].bytes.load(Ordering::Relaxed),
            records: self.counters[way].records.load(Ordering::Relaxed),
        })
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    counter: Arc<Counter>,
) -> std::io::Result<()> {
    let (mut buffer, mut records) = (vec![0; 64 * 1024], Records::default());
    loop {
        let len = from.read(&mut buffer).await?;
        if len == 0 {
            return to.shutdown().await;
        }
        counter.bytes.fetch_add(len as u64, Ordering::Relaxed);
        counter.records.fetch_add(records.count(&buffer[..len]), Ordering::Relaxed);
        to.write_all(&buffer[..len]).await?;
    }
}

/// Finds the records in a stream of TLS.
#[derive(Default)]
struct Records {
    header: Vec<u8>,
    left: usize,
}

impl Records {
    /// How many records of data end in these bytes, which go on from those before.
    fn count(&mut self, bytes: &[u8]) -> u64 {
        let (mut rest, mut count) = (bytes, 0);
        while !rest.is_empty() {
            if self.header.len() < 5 {
                self.header.push(rest[0]);
                rest = &rest[1..];
                if self.header.len() == 5 {
                    self.left = usize::from(self.header[3]) << 8 | usize::from(self.header[4]);
                }
                continue;
            }
            let taken = self.left.min(rest.len());
            (self.left, rest) = (self.left - taken, &rest[taken..]);
            if self.left == 0 {
                count += u64::from(self.header[0] == APPLICATION_DATA);
                self.header.clear();
            }
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_counted_wherever_they_are_cut() {
        let handshake = [22, 3, 3, 0, 2, 9, 9];
        let data = [23, 3, 3, 0, 3, 23, 23, 23];
        let stream = [&handshake[..], &data, &data, &handshake, &data].concat();
        for step in 1..stream.len() {
            let mut records = Records::default();
            let count: u64 = stream.chunks(step).map(|piece| records.count(piece)).sum();
            assert_eq!(count, 3, "{step}");
        }
    }
}
