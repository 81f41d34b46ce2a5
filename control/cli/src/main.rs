//! The `lichen` command: a cluster's control plane, nodes, and the tools to use them.

mod client;
mod commands;
mod embedded;
#[cfg(test)]
mod fuzz;
mod kubeconfig;
mod limits;
mod manifest;
mod output;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use client::Client;
use tracing_subscriber::EnvFilter;

/// A lightweight orchestrator of WebAssembly components with the Kubernetes API, for edge devices.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// The kubeconfig of the cluster to talk to [default: KUBECONFIG, then ~/.kube/config].
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// What to log, for example `info` or `lichen_gateway=debug`.
    #[arg(long, global = true, value_name = "FILTER", env = "LICHEN_LOG", default_value = "warn")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show a whole cluster at work: start it, deploy an example, call it.
    Demo(commands::demo::Arguments),
    /// Run a whole cluster in one process.
    Up(commands::up::Arguments),
    /// Run the control plane.
    Server(commands::server::Arguments),
    /// Run a node.
    Agent(commands::agent::Arguments),
    /// Manage the tokens with which nodes and members join.
    #[command(subcommand)]
    Token(commands::token::Token),
    /// Manage the members of the control plane.
    #[command(subcommand)]
    Member(commands::member::Member),
    /// Take nodes out of the cluster.
    #[command(subcommand)]
    Node(commands::node::Node),
    /// Look after the encryption of Secrets in the servers' files.
    #[command(subcommand)]
    Secrets(commands::secrets::Secrets),
    /// Look after the files of a server that does not run.
    #[command(subcommand)]
    Store(commands::store::Store),
    /// Save a running cluster's state in a file.
    Backup(commands::backup::Backup),
    /// Make the state of a new cluster out of a backup.
    Restore(commands::backup::Restore),
    /// Put a component into the cluster's registry.
    Push(commands::push::Arguments),
    /// Make the cluster's objects what a manifest says.
    Apply(commands::apply::Arguments),
    /// Show objects.
    Get(commands::get::Arguments),
    /// Remove objects.
    Delete(commands::delete::Arguments),
    /// Show what a container has written.
    Logs(commands::logs::Arguments),
    /// Measure a cluster of its own.
    Bench(commands::bench::Arguments),
    #[command(hide = true)]
    Fetch(commands::fetch::Arguments),
    #[command(hide = true)]
    CompileWorker(commands::compile_worker::Arguments),
    #[command(hide = true)]
    OciShim(commands::oci_shim::Arguments),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // What openraft does by itself matters to few, and what goes wrong between members is told by those who carry its
    // messages, once and not with each of them. Whoever wants more names it.
    let filter = EnvFilter::try_new(format!("openraft=error,{}", cli.log));
    let filter = match filter {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("lichen: --log {:?}: {error}", cli.log);
            return ExitCode::FAILURE;
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    // Whoever runs a compile worker passes on what it says, and knows who says it.
    let name = if matches!(cli.command, Command::CompileWorker(_)) { "" } else { "lichen: " };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    // The compile worker is one short computation under tight limits: it starts no runtime.
    if let Command::CompileWorker(arguments) = &cli.command {
        return commands::compile_worker::run(arguments);
    }
    // A container's shim is there as long as its container, and stays as small as it can.
    if let Command::OciShim(arguments) = &cli.command {
        return commands::oci_shim::run(arguments);
    }
    limits::tune_allocator();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(dispatch(cli))
}

async fn dispatch(cli: Cli) -> Result<()> {
    let client = || Client::new(&kubeconfig::read(&kubeconfig::locate(cli.kubeconfig.as_deref())?)?);
    match &cli.command {
        Command::Demo(arguments) => commands::demo::run(arguments).await,
        Command::Up(arguments) => commands::up::run(arguments).await,
        Command::Server(arguments) => commands::server::run(arguments).await,
        Command::Agent(arguments) => commands::agent::run(arguments).await,
        Command::Token(command) => commands::token::run(&client()?, command).await,
        Command::Member(command) => commands::member::run(&client()?, command).await,
        Command::Node(command) => commands::node::run(&client()?, command).await,
        Command::Secrets(command) => commands::secrets::run(&client()?, command).await,
        Command::Store(command) => commands::store::run(command).await,
        Command::Backup(arguments) => commands::backup::backup(&client()?, arguments).await,
        Command::Restore(arguments) => commands::backup::restore(arguments).await,
        Command::Push(arguments) => commands::push::run(&client()?, arguments).await,
        Command::Apply(arguments) => commands::apply::run(&client()?, arguments).await,
        Command::Get(arguments) => commands::get::run(&client()?, arguments).await,
        Command::Delete(arguments) => commands::delete::run(&client()?, arguments).await,
        Command::Logs(arguments) => commands::logs::run(&client()?, arguments).await,
        Command::Bench(arguments) => commands::bench::run(arguments).await,
        Command::Fetch(arguments) => commands::fetch::run(arguments).await,
        Command::CompileWorker(arguments) => commands::compile_worker::run(arguments),
        Command::OciShim(arguments) => commands::oci_shim::run(arguments),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
