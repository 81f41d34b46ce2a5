//! A node's command line, shared by every program that can be a node.

use std::path::PathBuf;

use anyhow::Context;
use lichen_api::kinds::node::may_label_itself;
use lichen_api::validation;

use crate::{Agent, BrokerArguments, Config};

/// What the command line says of a node.
#[derive(Clone, clap::Args)]
#[group(id = "node")]
pub struct Arguments {
    /// The broker that the node's session goes through, HOST:PORT or mqtts://HOST:PORT: the server's own, unless it was
    /// given another. Of several servers name each, with commas in between: the node finds the one that leads. It
    /// remembers them, and how it proves itself there.
    #[arg(long, env = "LICHEN_SERVER")]
    server: Option<String>,
    #[command(flatten)]
    broker: BrokerArguments,
    /// The join token; needed at the first start only.
    #[arg(long, env = "LICHEN_TOKEN", hide_env_values = true, conflicts_with = "token_file")]
    token: Option<String>,
    /// A file that holds the join token.
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// Where identity, checkpoint, artifacts, volumes and logs are kept.
    #[arg(long, env = "LICHEN_DATA_DIR")]
    data_dir: PathBuf,
    /// The node's name; the machine's unless told otherwise.
    #[arg(long, env = "LICHEN_NODE_NAME")]
    node_name: Option<String>,
    /// A label for the Node, NAME=VALUE; may be given more than once.
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// How many pods the node takes.
    #[arg(long, default_value_t = 110)]
    pods_max: u32,
}

impl Arguments {
    /// Runs the node until `stop` is ready, then stops it with grace.
    ///
    /// # Errors
    /// When the node cannot start, or `stop` fails.
    pub async fn run(self, stop: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
        let config = self.config()?;
        let data_dir = config.data_dir.clone();
        let mut agent = Agent::start(config).await?;
        println!("node {} runs", agent.node_name());
        let stopped = tokio::select! {
            stopped = stop => stopped,
            () = agent.left() => {
                println!("node {} was removed from the cluster; {} is wiped", agent.node_name(), data_dir.display());
                Ok(())
            }
        };
        agent.shutdown().await;
        stopped
    }

    fn config(self) -> anyhow::Result<Config> {
        let node_name = match self.node_name {
            Some(name) => name,
            None => sysinfo::System::host_name()
                .context("the machine has no name: say --node-name")?
                .to_ascii_lowercase(),
        };
        let mut config = Config::new(node_name, self.data_dir, "");
        config.broker = self.server.map(|server| self.broker.access(&server)).transpose()?;
        if config.broker.is_none() && !self.broker.is_empty() {
            anyhow::bail!("--mqtt-* says how to reach a broker: say which with --server");
        }
        config.token = match self.token_file {
            Some(path) => {
                let text = std::fs::read_to_string(&path);
                Some(text.with_context(|| format!("the token file {}", path.display()))?)
            }
            None => self.token,
        };
        config.labels = self.labels.into_iter().collect();
        config.pods_max = self.pods_max;
        // A node that is a program of its own is restarted to be updated; what can run on meanwhile does.
        config.keep_containers = true;
        Ok(config)
    }
}

/// A label that the control plane will take from a node: one that it would not take is told at the start.
fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("a label reads NAME=VALUE")?;
    validation::qualified_name(name).map_err(|why| format!("{name:?}: {}", why.join("; ")))?;
    validation::label_value(value).map_err(|why| format!("{value:?}: {}", why.join("; ")))?;
    if !may_label_itself(name) {
        return Err(format!(
            "a node may not set {name} on itself: it is for administrators to set, with `kubectl label node`"
        ));
    }
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        node: Arguments,
    }

    #[test]
    fn the_command_line() {
        let parse = |args: &[&str]| {
            let args = ["node", "--server", "h:1", "--data-dir", "/d"].iter().chain(args);
            Cli::try_parse_from(args)?.node.config()
        };
        let config = parse(&["--node-name", "n", "--label", "a=b", "--label", "c="]).expect("parses");
        assert_eq!(config.node_name, "n");
        assert_eq!(config.labels.len(), 2);
        assert_eq!(config.broker.expect("told").address, "h:1");
        assert!(parse(&["--node-name", "n", "--mqtt-ca", "/nowhere"]).is_err());
        for (label, words) in [
            ("nothing", "NAME=VALUE"),
            ("a b=c", "name part"),
            ("a=b c", "a valid label"),
            ("node-role.kubernetes.io/control-plane=", "for administrators"),
        ] {
            let error = parse(&["--node-name", "n", "--label", label]).expect_err(label).to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!(parse(&["--token", "x", "--token-file", "y"]).is_err());
        assert!(parse(&["--node-name", "n", "--token-file", "/nowhere"]).is_err());
    }
}
