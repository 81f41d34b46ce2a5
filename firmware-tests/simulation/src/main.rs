//! Plays simulations: many seeds, or one with its trace.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use lichen_simulation::{Assets, PLANTS, Report, STORE_PLANTS, Size, Violation, run, store};

/// Plays simulations of whole clusters, each determined by its seed.
#[derive(Parser)]
struct Arguments {
    /// Play the replicated store itself: raft, log and state on a simulated network and disk.
    #[arg(long, conflicts_with = "nodes")]
    store: bool,
    /// The one seed to play.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Print every step of it.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// How many seeds to play.
    #[arg(long, default_value_t = 300)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Have this many nodes in each, instead of what the seed says.
    #[arg(long)]
    nodes: Option<u64>,
    /// Plant a bug, to see it found.
    #[arg(long, value_parser = PLANTS.iter().chain(STORE_PLANTS).map(|plant| plant.name).collect::<Vec<_>>())]
    plant: Option<String>,
    /// How many to play at once.
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, std::num::NonZero::get))]
    threads: usize,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if std::env::var_os("RUST_LOG").is_some() {
        tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    }
    let assets = Assets::new()?;
    let planted =
        PLANTS.iter().chain(STORE_PLANTS).find(|plant| Some(plant.name) == arguments.plant.as_deref());
    let _planted = planted.map(|plant| plant.plant());
    let (first, count) = arguments.seed.map_or((arguments.first, arguments.seeds), |seed| (seed, 1));
    let (next, reports) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads.min(usize::try_from(count).unwrap_or(usize::MAX)) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= count {
                        return;
                    }
                    let took = Instant::now();
                    let played = if arguments.store {
                        played_store(&store::run(first + seed, None, arguments.trace))
                    } else {
                        let size = arguments.nodes.map(|nodes| Size { nodes, ..Size::of(first + seed) });
                        played(&run(first + seed, size, &assets, arguments.trace))
                    };
                    println!("{} ({:.2} s)", played.line, took.elapsed().as_secs_f64());
                    if let Ok(mut reports) = reports.lock() {
                        reports.push(played);
                    }
                }
            });
        }
    });
    let reports = reports.into_inner()?;
    let failed: Vec<u64> = reports.iter().filter(|report| report.failed).map(|report| report.seed).collect();
    let steps: u64 = reports.iter().map(|report| report.steps).sum();
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{} seeds, {} failed, {steps} steps, {:.0} steps a second",
        reports.len(),
        failed.len(),
        steps as f64 / seconds
    );
    let nodes = arguments.nodes.map_or_else(String::new, |nodes| format!(" --nodes {nodes}"));
    let which = if arguments.store { "--store " } else { "" };
    for seed in &failed {
        println!("replay: cargo run -p lichen-simulation -- {which}--seed {seed}{nodes} --trace");
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is told of a simulation.
struct Played {
    seed: u64,
    steps: u64,
    failed: bool,
    line: String,
}

fn how(violation: Option<&Violation>) -> String {
    violation.map_or_else(|| "ok".to_owned(), ToString::to_string)
}

fn played(report: &Report) -> Played {
    let Report { seed, hash, steps, elapsed, size, violation } = report;
    let line = format!(
        "seed {seed}: {hash:016x}, {steps} steps, {} s, {} servers, {} nodes: {}",
        elapsed.as_secs(),
        size.servers,
        size.nodes,
        how(violation.as_ref())
    );
    Played { seed: *seed, steps: *steps, failed: violation.is_some(), line }
}

fn played_store(report: &store::Report) -> Played {
    let store::Report { seed, hash, steps, operations, elapsed, size, violation } = report;
    let line = format!(
        "seed {seed}: {hash:016x}, {steps} steps, {operations} operations, {} s, {} members: {}",
        elapsed.as_secs(),
        size.members,
        how(violation.as_ref())
    );
    Played { seed: *seed, steps: *steps, failed: violation.is_some(), line }
}
