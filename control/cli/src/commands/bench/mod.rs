//! `lichen bench`: what Lichen costs and how fast it is, measured from outside on a cluster of its own.
//!
//! Server and agents run as separate processes in a folder that ends with the measurement; the load comes from this
//! process. The figures compare with one another and with other systems measured in the same minute on the same
//! machine, not with figures from elsewhere.

mod load;
mod nodes;
mod process;
mod store;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioExecutor;
use lichen_agent::AddressMode;
use lichen_control::Purpose;
use serde_json::{Value, json};

use self::load::Outcome;
use self::process::{Process, Usage};
use super::get::{resource, text};
use super::{apply, push, token};
use crate::client::{Client, path};
use crate::{kubeconfig, manifest, output};

const NODES: [&str; 2] = ["bench-1", "bench-2"];
const NAMESPACE: &str = "bench";
const CONFIG_MAPS: usize = 10_000;
const VALUE_BYTES: usize = 256;
const ONE_CLIENT_OPERATIONS: usize = 1_000;
const LISTS: usize = 20;
const SINGLE_PODS: usize = 50;
const PODS_AT_ONCE: usize = 200;
const HTTP_REQUESTS: usize = 20_000;
/// How long a process rests before its idle state is read.
const SETTLE: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(180);
const HELLO: &[u8] = include_bytes!("../../../../../runtime/guests/hello.wasm");
const IMAGE: &str = "hello:v1";

/// Measures a cluster of its own and prints the figures.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
    /// How long the idle cluster is watched.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    idle: u64,
}

#[derive(clap::Subcommand)]
enum What {
    /// What many nodes cost a server, how they come back, and what a node says in a day.
    Nodes(nodes::Arguments),
    /// The store through the API, beside etcd in the same minutes.
    Store(store::Arguments),
}

/// Runs the command.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.what {
        Some(What::Nodes(arguments)) => return nodes::run(arguments).await,
        Some(What::Store(arguments)) => return store::run(arguments).await,
        None => {}
    }
    let folder = Folder::new()?;
    let bed = Bed::start(&folder.0).await?;
    let mut figures = Figures::default();
    bed.sizes(&mut figures);
    bed.idle(&mut figures, Duration::from_secs(arguments.idle)).await?;
    bed.memory_with_pods(&mut figures).await?;
    bed.pods(&mut figures).await?;
    bed.http(&mut figures).await?;
    bed.api(&mut figures).await?;
    figures.print();
    bed.stop().await
}

/// Figures in the order in which they were measured; each is shown as soon as it is there.
#[derive(Default)]
struct Figures(Vec<[String; 2]>);

impl Figures {
    fn add(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let figure = [name.into(), value.into()];
        eprintln!("{}: {}", figure[0], figure[1]);
        self.0.push(figure);
    }

    fn print(self) {
        print!("{}", output::aligned(self.0.into_iter().map(Vec::from).collect()));
    }
}

/// A folder that ends with its owner.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("lichen-bench-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing depends on it being gone.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The cluster under measurement.
struct Bed {
    server: Process,
    agents: Vec<Process>,
    client: Client,
}

impl Bed {
    async fn start(folder: &Path) -> Result<Self> {
        let flag = |name: &str, value: &str| [name.to_owned(), value.to_owned()];
        let mqtt = free_address()?;
        let mut arguments = vec!["server".to_owned()];
        arguments.extend(flag("--data-dir", &folder.to_string_lossy()));
        arguments.extend(flag("--api-addr", "127.0.0.1:0"));
        arguments.extend(flag("--mqtt-addr", &mqtt));
        let server = Process::start(&arguments, "A node joins").await?;
        let access = kubeconfig::read(&folder.join("admin.kubeconfig"))?;
        let client = Client::new(&access)?;
        push::push(&client, &IMAGE.parse()?, Bytes::from_static(HELLO)).await?;
        let mut agents = Vec::new();
        for node in NODES {
            let token = token::create(&client, Duration::from_secs(600), Purpose::Node).await?;
            let mut arguments = vec!["agent".to_owned()];
            arguments.extend(flag("--server", &mqtt));
            arguments.extend(flag("--token", &token));
            arguments.extend(flag("--node-name", node));
            arguments.extend(flag("--data-dir", &folder.join(node).to_string_lossy()));
            agents.push(Process::start(&arguments, "node ").await?);
        }
        let bed = Self { server, agents, client };
        bed.wait("nodes", None, NODES.len(), |node| has_condition(node, "Ready")).await?;
        bed.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})).await?;
        Ok(bed)
    }

    async fn stop(self) -> Result<()> {
        for agent in self.agents {
            agent.stop().await?;
        }
        self.server.stop().await
    }

    fn sizes(&self, figures: &mut Figures) {
        let Ok(own) = std::env::current_exe() else { return };
        for program in [own.clone(), own.with_file_name("lichen-agent")] {
            if let Ok(file) = std::fs::metadata(&program) {
                let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
                figures.add(format!("size of {name}"), mib(file.len()));
            }
        }
    }

    async fn idle(&self, figures: &mut Figures, time: Duration) -> Result<()> {
        tokio::time::sleep(SETTLE).await;
        let before = self.usage()?;
        tokio::time::sleep(time).await;
        let after = self.usage()?;
        for ((who, before), (_, after)) in before.iter().zip(&after) {
            figures.add(format!("{who} idle, PSS"), mib(after.pss_bytes));
            let cpu = (after.cpu - before.cpu).as_secs_f64() * 1000.0;
            figures.add(format!("{who} idle, CPU over {} s", time.as_secs()), format!("{cpu:.0} ms"));
            let written = after.written_bytes - before.written_bytes;
            figures.add(format!("{who} idle, bytes written over {} s", time.as_secs()), written.to_string());
        }
        Ok(())
    }

    fn usage(&self) -> Result<[(&'static str, Usage); 2]> {
        let agent = self.agents.first().context("there is an agent")?;
        Ok([("server", self.server.usage()?), ("agent", agent.usage()?)])
    }

    async fn memory_with_pods(&self, figures: &mut Figures) -> Result<()> {
        for count in [1, 10, 100] {
            for index in 0..count {
                self.apply(pod(&format!("memory-{index}"), Some(NODES[0]))).await?;
            }
            self.wait_pods("memory-", count).await?;
            tokio::time::sleep(SETTLE).await;
            for (who, usage) in self.usage()? {
                figures.add(format!("{who} with {count} pods, PSS"), mib(usage.pss_bytes));
            }
        }
        self.delete_pods().await
    }

    async fn pods(&self, figures: &mut Figures) -> Result<()> {
        let mut took = Vec::new();
        for index in 0..SINGLE_PODS {
            let name = format!("single-{index}");
            let collection = path(resource("pods")?, Some(NAMESPACE), None);
            let query = format!("{collection}?watch=true&fieldSelector=metadata.name%3D{name}");
            let mut events = self.client.stream(&query).await?;
            let began = Instant::now();
            self.apply(pod(&name, None)).await?;
            while let Some(line) = events.next().await? {
                let event: Value = serde_json::from_slice(&line)?;
                if has_condition(&event["object"], "Ready") {
                    break;
                }
            }
            took.push(began.elapsed());
        }
        let wall = took.iter().sum();
        let outcome = Outcome::of(took, wall);
        figures.add("pod, create to Ready seen by a watch", percentiles(&outcome));
        self.delete_pods().await?;

        let began = Instant::now();
        let client = self.client.clone();
        load::run(16, PODS_AT_ONCE, move |index| create_pod(client.clone(), format!("many-{index}"))).await?;
        self.wait_pods("many-", PODS_AT_ONCE).await?;
        figures
            .add(format!("{PODS_AT_ONCE} pods at once, create to all Ready"), milliseconds(began.elapsed()));
        self.delete_pods().await
    }

    async fn http(&self, figures: &mut Figures) -> Result<()> {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "bench", "namespace": NAMESPACE},
            "spec": {"selector": {"app": "bench"}, "ports": [{"port": 8080}]},
        });
        self.apply(service).await?;
        self.apply(pod("http-0", Some(NODES[0]))).await?;
        self.wait_pods("http-", 1).await?;
        let pod = self.client.get(&path(resource("pods")?, Some(NAMESPACE), Some("http-0")), None).await?;
        let service =
            self.client.get(&path(resource("services")?, Some(NAMESPACE), Some("bench")), None).await?;
        for (what, address) in [("pod", &pod["status"]["podIP"]), ("Service", &service["spec"]["clusterIP"])]
        {
            let address: Ipv4Addr =
                text(address).parse().with_context(|| format!("the {what} has no address"))?;
            let url: hyper::Uri = format!("http://{}:8080/", AddressMode::Loopback.map(address)).parse()?;
            let http = Arc::new(
                hyper_util::client::legacy::Client::builder(TokioExecutor::new())
                    .build_http::<Empty<Bytes>>(),
            );
            let deadline = Instant::now() + PATIENCE;
            while let Err(error) = http.get(url.clone()).await {
                if Instant::now() > deadline {
                    return Err(error).context(format!("the {what} does not answer at {url}"));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let before = self.agents.first().context("there is an agent")?.usage()?;
            let outcome = load::run(16, HTTP_REQUESTS, move |_| {
                let (http, url) = (http.clone(), url.clone());
                async move {
                    let reply = http.get(url).await?;
                    let status = reply.status();
                    reply.into_body().collect().await?;
                    if !status.is_success() {
                        bail!("the answer was {status}");
                    }
                    Ok(())
                }
            })
            .await?;
            let after = self.agents.first().context("there is an agent")?.usage()?;
            figures.add(format!("hello through the {what}, 16 clients"), summary(&outcome, before, after));
        }
        self.delete_pods().await
    }

    async fn api(&self, figures: &mut Figures) -> Result<()> {
        let collection = path(resource("configmaps")?, Some(NAMESPACE), None);
        let rest = CONFIG_MAPS - ONE_CLIENT_OPERATIONS;
        for (clients, first, count) in [(1, 0, ONE_CLIENT_OPERATIONS), (16, ONE_CLIENT_OPERATIONS, rest)] {
            let (client, to) = (self.client.clone(), collection.clone());
            let create = move |index: usize| {
                let (client, to) = (client.clone(), to.clone());
                async move { client.create(&to, &config_map(first + index)).await.map(drop) }
            };
            let before = self.server.usage()?.written_bytes;
            self.measure(figures, "create a ConfigMap", clients, count, create).await?;
            // What was applied last is brought to rest a moment later.
            tokio::time::sleep(SETTLE).await;
            let written = (self.server.usage()?.written_bytes - before) / count as u64;
            figures.add(
                format!("create a ConfigMap, {clients} client(s), bytes written each"),
                written.to_string(),
            );
        }
        for (clients, count) in [(1, ONE_CLIENT_OPERATIONS), (16, CONFIG_MAPS)] {
            let (client, from) = (self.client.clone(), collection.clone());
            let get = move |index: usize| {
                let (client, from) = (client.clone(), format!("{from}/{}", config_map_name(index)));
                async move { client.get(&from, None).await.map(drop) }
            };
            self.measure(figures, "get a ConfigMap", clients, count, get).await?;
        }
        for clients in [1, 16] {
            let (client, from) = (self.client.clone(), collection.clone());
            let list = move |_| {
                let (client, from) = (client.clone(), from.clone());
                async move { client.bytes(&from).await.map(drop) }
            };
            self.measure(figures, "list 10,000 ConfigMaps", clients, LISTS, list).await?;
        }
        Ok(())
    }

    async fn measure<O, F>(
        &self,
        figures: &mut Figures,
        what: &str,
        clients: usize,
        count: usize,
        operation: O,
    ) -> Result<()>
    where
        O: Fn(usize) -> F + Clone + Send + 'static,
        F: Future<Output = Result<()>> + Send,
    {
        let before = self.server.usage()?;
        let outcome = load::run(clients, count, operation).await?;
        let after = self.server.usage()?;
        figures.add(format!("{what}, {clients} client(s)"), summary(&outcome, before, after));
        Ok(())
    }

    async fn apply(&self, object: Value) -> Result<()> {
        let item = manifest::parse(&object.to_string())?.remove(0);
        apply::apply(&self.client, &item, None, true).await.map(drop)
    }

    async fn wait_pods(&self, prefix: &str, count: usize) -> Result<()> {
        let ready =
            |pod: &Value| text(&pod["metadata"]["name"]).starts_with(prefix) && has_condition(pod, "Ready");
        self.wait("pods", Some(NAMESPACE), count, ready).await
    }

    /// Waits until `count` objects of a kind fulfil `done`.
    async fn wait(
        &self,
        kind: &str,
        namespace: Option<&str>,
        count: usize,
        done: impl Fn(&Value) -> bool,
    ) -> Result<()> {
        let collection = path(resource(kind)?, namespace, None);
        let watched = async {
            let mut events = self.client.stream(&format!("{collection}?watch=true")).await?;
            let mut satisfied = BTreeSet::new();
            while satisfied.len() < count {
                let line = events.next().await?.context("the watch ended")?;
                let event: Value = serde_json::from_slice(&line)?;
                if done(&event["object"]) {
                    satisfied.insert(text(&event["object"]["metadata"]["name"]).to_owned());
                }
            }
            Ok(())
        };
        tokio::time::timeout(PATIENCE, watched)
            .await
            .with_context(|| format!("waiting for {count} {kind}"))?
    }

    async fn delete_pods(&self) -> Result<()> {
        let collection = path(resource("pods")?, Some(NAMESPACE), None);
        let mut events = self.client.stream(&format!("{collection}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true")).await?;
        let pods = self.client.get(&collection, None).await?;
        let mut left: BTreeSet<String> = BTreeSet::new();
        for pod in pods["items"].as_array().into_iter().flatten() {
            let name = text(&pod["metadata"]["name"]);
            self.client.delete(&format!("{collection}/{name}?gracePeriodSeconds=1")).await?;
            left.insert(name.to_owned());
        }
        while !left.is_empty() {
            let line = tokio::time::timeout(PATIENCE, events.next()).await??.context("the watch ended")?;
            let event: Value = serde_json::from_slice(&line)?;
            if event["type"] == "DELETED" {
                left.remove(text(&event["object"]["metadata"]["name"]));
            }
        }
        Ok(())
    }
}

async fn create_pod(client: Client, name: String) -> Result<()> {
    client.create(&path(resource("pods")?, Some(NAMESPACE), None), &pod(&name, None)).await.map(drop)
}

fn pod(name: &str, node: Option<&str>) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": "bench"}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "hello", "image": IMAGE, "ports": [{"containerPort": 8080}],
                "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}},
            }],
        },
    })
}

fn config_map_name(index: usize) -> String {
    format!("bench-{index:05}")
}

fn config_map(index: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": config_map_name(index), "namespace": NAMESPACE},
        "data": {"value": "x".repeat(VALUE_BYTES)},
    })
}

fn has_condition(object: &Value, kind: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == kind && one["status"] == "True"))
}

/// A loopback address with a port that was free a moment ago.
fn free_address() -> Result<String> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

fn summary(outcome: &Outcome, before: Usage, after: Usage) -> String {
    let cpu = (after.cpu - before.cpu).as_secs_f64() * 1000.0 / outcome.count().max(1) as f64;
    format!("{:.0}/s, {}, CPU {cpu:.2} ms each", outcome.rate, percentiles(outcome))
}

fn percentiles(outcome: &Outcome) -> String {
    format!("p50 {}, p99 {}", milliseconds(outcome.percentile(50)), milliseconds(outcome.percentile(99)))
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
