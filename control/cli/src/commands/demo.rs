//! `lichen demo`: a whole cluster at work, from nothing to answers, in one command.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use lichen_agent::AddressMode;
use serde_json::Value;

use super::get::{resource, text};
use super::{apply, fetch, push};
use crate::client::{Client, TABLE, path};
use crate::embedded::{Cluster, ServerArguments, interrupted};
use crate::manifest;
use crate::{kubeconfig, output};

const NODES: [&str; 2] = ["edge-1", "edge-2"];
const NAMESPACE: &str = "hello";
const SERVICE: &str = "hello";
const REPLICAS: usize = 3;
const MANIFEST: &str = include_str!("../../../../examples/hello/manifest.yaml");
const COMPONENTS: [(&str, &[u8]); 3] = [
    ("hello:v1", include_bytes!("../../../../runtime/guests/hello.wasm")),
    ("ticker:v1", include_bytes!("../../../../runtime/guests/ticker.wasm")),
    ("worker:v1", include_bytes!("../../../../runtime/guests/worker.wasm")),
];
/// How often the Service is called to see several pods answer.
const CALLS: u32 = 24;
/// How long the demo waits for any one thing before it says what is missing.
const PATIENCE: Duration = Duration::from_secs(120);

/// Starts a cluster of two nodes, deploys an example, calls it, and keeps it running.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    server: ServerArguments,
    /// End after the first round instead of serving until Ctrl-C; fails if anything did.
    #[arg(long)]
    exit: bool,
}

/// Runs the command.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    let data_dir = arguments.server.data_dir("demo")?;
    let began = Instant::now();
    let cluster = Cluster::start(&arguments.server, &data_dir, &NODES.map(str::to_owned)).await?;
    step(&format!("server and {} agents run", NODES.len()), began);
    let shown = tokio::select! {
        shown = show(&cluster.kubeconfig) => shown,
        stopped = interrupted() => stopped.and_then(|()| bail!("interrupted")),
    };
    if shown.is_ok() && !arguments.exit {
        println!("\nServing until Ctrl-C. State: {}", data_dir.display());
        interrupted().await?;
    }
    cluster.shutdown().await;
    shown
}

/// Everything that the demo shows, as a client of the cluster.
async fn show(kubeconfig: &Path) -> Result<()> {
    let client = Client::new(&kubeconfig::read(kubeconfig)?)?;

    let began = Instant::now();
    wait(&client, "nodes", None, "nodes ready", NODES.len(), |node| has_condition(node, "Ready")).await?;
    step("nodes are ready", began);

    let began = Instant::now();
    for (reference, component) in COMPONENTS {
        push::push(&client, &reference.parse()?, Bytes::from_static(component)).await?;
    }
    step("components are in the registry", began);

    let items = manifest::parse(MANIFEST)?;
    let applied = Instant::now();
    for item in &items {
        println!("  {} {}", item.title(), apply::apply(&client, item, None, false).await?);
    }
    step("examples/hello/manifest.yaml is applied", applied);

    let url = service_url(&client).await?;
    let first = first_answer(&url);
    let pods = wait(&client, "pods", Some(NAMESPACE), "pods ready", REPLICAS, |pod| {
        is_of_service(pod) && has_condition(pod, "Ready")
    });
    let (first, pods) = tokio::join!(first, pods);
    let to_first_answer = first?.duration_since(applied);
    pods?;
    wait(&client, "pods", Some(NAMESPACE), "pods done", 1, |pod| {
        pod["metadata"]["name"] == "worker" && pod["status"]["phase"] == "Succeeded"
    })
    .await?;
    step("pods are ready", applied);

    for (kind, namespace) in [("nodes", None), ("pods", Some(NAMESPACE)), ("services", Some(NAMESPACE))] {
        let table = client.get(&path(resource(kind)?, namespace, None), Some(TABLE)).await?;
        print!("\n{}", output::table(&table, true, false));
    }

    let answers = call_from_outside(&url).await?;
    report(&answers)?;
    println!("\nThe Service:                {url}");
    println!("From apply to first answer: {:.0} ms", to_first_answer.as_secs_f64() * 1000.0);
    println!("Use kubectl with it:        export KUBECONFIG={}", kubeconfig.display());
    Ok(())
}

/// Waits until `count` objects of a kind fulfil `done`, showing how many do.
async fn wait(
    client: &Client,
    kind: &str,
    namespace: Option<&str>,
    title: &str,
    count: usize,
    done: impl Fn(&Value) -> bool,
) -> Result<()> {
    let style = ProgressStyle::with_template("  {spinner} {msg}: {pos}/{len}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(count as u64).with_message(title.to_owned()).with_style(style);
    let watched = async {
        let collection = path(resource(kind)?, namespace, None);
        let mut events = client.stream(&format!("{collection}?watch=true&allowWatchBookmarks=true")).await?;
        let mut satisfied = BTreeSet::new();
        while let Some(line) = events.next().await? {
            let event: Value = serde_json::from_slice(&line)?;
            let object = &event["object"];
            let name = text(&object["metadata"]["name"]).to_owned();
            match text(&event["type"]) {
                "ERROR" => bail!("watching {kind}: {}", text(&object["message"])),
                "BOOKMARK" => continue,
                "DELETED" => _ = satisfied.remove(&name),
                _ if done(object) => _ = satisfied.insert(name.clone()),
                _ => _ = satisfied.remove(&name),
            }
            if kind == "pods" {
                bar.suspend(|| println!("  {name}: {}", phase(object)));
            }
            bar.set_position(satisfied.len() as u64);
            if satisfied.len() >= count {
                return Ok(());
            }
        }
        bail!("the watch of {kind} ended")
    };
    let outcome = tokio::time::timeout(PATIENCE, watched).await;
    bar.finish_and_clear();
    match outcome {
        Ok(outcome) => outcome,
        Err(_) => bail!(
            "gave up waiting for {count} {title} after {} s; look at them with `kubectl describe {kind}`",
            PATIENCE.as_secs()
        ),
    }
}

/// Where the Service can be called on this machine.
async fn service_url(client: &Client) -> Result<String> {
    let service = client.get(&path(resource("services")?, Some(NAMESPACE), Some(SERVICE)), None).await?;
    let address: Ipv4Addr =
        text(&service["spec"]["clusterIP"]).parse().context("the Service has no ClusterIP")?;
    let port = service["spec"]["ports"][0]["port"].as_u64().context("the Service has no port")?;
    Ok(format!("http://{}:{port}/", AddressMode::Loopback.map(address)))
}

/// When the Service answered for the first time.
async fn first_answer(url: &str) -> Result<Instant> {
    let (url, began) = (url.parse()?, Instant::now());
    loop {
        match fetch::get(&url).await {
            Ok(_) => return Ok(Instant::now()),
            Err(error) if began.elapsed() > PATIENCE => {
                return Err(error.context("the Service never answered"));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Calls the Service as any program on this machine would: from another process.
async fn call_from_outside(url: &str) -> Result<Vec<String>> {
    let output = tokio::process::Command::new(std::env::current_exe()?)
        .args(["fetch", url, "--count", &CALLS.to_string()])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

/// Says who answered, and fails unless several pods on every node did.
fn report(answers: &[String]) -> Result<()> {
    let distinct: BTreeSet<&str> = answers.iter().map(String::as_str).collect();
    println!("\n{} calls from another process were answered by:", answers.len());
    for answer in &distinct {
        let times = answers.iter().filter(|given| given == answer).count();
        println!("  {times:>3} x {answer}");
    }
    ensure!(distinct.len() == REPLICAS, "{} pods answered, not {REPLICAS}", distinct.len());
    for node in NODES {
        let ending = format!(" on {node}");
        ensure!(distinct.iter().any(|answer| answer.ends_with(&ending)), "no answer came from {node}");
    }
    Ok(())
}

fn is_of_service(pod: &Value) -> bool {
    pod["metadata"]["labels"]["app"] == SERVICE && pod["metadata"]["deletionTimestamp"].is_null()
}

fn has_condition(object: &Value, kind: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == kind && one["status"] == "True"))
}

/// A pod's state in a word, with its node.
fn phase(pod: &Value) -> String {
    let phase = if has_condition(pod, "Ready") { "Ready" } else { text(&pod["status"]["phase"]) };
    let waiting = pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].as_str();
    let reason = waiting.map(|reason| format!(" ({reason})")).unwrap_or_default();
    match pod["spec"]["nodeName"].as_str() {
        Some(node) => format!("{phase}{reason} on {node}"),
        None => format!("{phase}{reason}"),
    }
}

fn step(what: &str, began: Instant) {
    println!("{what} ({:.2} s)", began.elapsed().as_secs_f64());
}
