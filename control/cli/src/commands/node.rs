//! `lichen node`: takes nodes out of the cluster for good.
//!
//! An annotation on the Node orders it and the gateway carries it out, so that interrupting the command stops nothing.

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use lichen_control::{ORDER_ANNOTATION, Order, RESULT_ANNOTATION};
use serde_json::{Value, json};

use super::get::{resource, text};
use crate::client::{Client, path};
use crate::output::aligned;

/// Takes nodes out of the cluster for good.
#[derive(clap::Subcommand)]
pub(crate) enum Node {
    /// Decommission a node: its pods end with their grace, then the machine wipes what made it a node.
    ///
    /// A node that is away is removed without it; it is told to leave should it come back. `kubectl delete node` does not
    /// do this: it removes the object, and the machine, which is still trusted, registers again.
    Remove {
        /// The node's name.
        name: String,
    },
    /// Revoke a node whose device was stolen or lost: its sessions end at once and it is not let in again.
    ///
    /// Prints the Secrets that the device may have seen, which are then to be changed. Run again, it prints them again.
    Revoke {
        /// The node's name.
        name: String,
        /// How to print.
        #[arg(short, long)]
        output: Option<Format>,
    },
}

/// How to print.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub(crate) enum Format {
    /// JSON.
    Json,
}

/// Runs the command.
pub(crate) async fn run(client: &Client, command: &Node) -> Result<()> {
    match command {
        Node::Remove { name } => {
            eprintln!("node \"{name}\" is being removed; interrupting this command does not stop that");
            order(client, name, Order::Decommission).await?;
            println!("node \"{name}\" removed");
        }
        Node::Revoke { name, output } => {
            let node = order(client, name, Order::Revoke).await?;
            let result = text(&node["metadata"]["annotations"][RESULT_ANNOTATION]);
            let result: Value = serde_json::from_str(result)
                .context("the server did not say what the device may have seen")?;
            if result["joined"] != true {
                bail!("no machine had joined as {name:?}: there was nothing to revoke");
            }
            match output {
                Some(Format::Json) => println!("{}", serde_json::to_string_pretty(&as_json(name, &result))?),
                None => print!("{}", as_text(name, &result)),
            }
        }
    }
    Ok(())
}

/// Orders a removal and waits until it is done. Returns the Node as it was last.
async fn order(client: &Client, name: &str, order: Order) -> Result<Value> {
    let (nodes, node) = (path(resource("nodes")?, None, None), path(resource("nodes")?, None, Some(name)));
    let annotations = json!({ ORDER_ANNOTATION: order.name() });
    let ordered = match (client.find(&node).await?, order) {
        // What was deleted may still be trusted: the order needs a Node to stand on.
        (None, Order::Revoke) => {
            let object = json!({
                "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "annotations": annotations },
            });
            client.create(&nodes, &object).await?
        }
        // The server's own words for a Node that is not there come from the patch.
        _ => {
            let patch = json!({ "metadata": { "annotations": annotations } });
            client.patch(&node, "application/merge-patch+json", &patch).await?
        }
    };
    let version = text(&ordered["metadata"]["resourceVersion"]);
    let query = format!("watch=1&fieldSelector=metadata.name%3D{name}&resourceVersion={version}");
    let mut lines = client.stream(&format!("{nodes}?{query}")).await?;
    while let Some(line) = lines.next().await? {
        let event: Value = serde_json::from_slice(&line).context("an event of the watch is no JSON")?;
        if event["type"] == "DELETED" {
            return Ok(event["object"].clone());
        }
    }
    bail!("the server went away; the removal of node {name:?} goes on, run the command again to see it end")
}

fn secrets(result: &Value) -> Vec<(&str, &str)> {
    let named = result["secrets"].as_array().into_iter().flatten();
    named.filter_map(|secret| secret.as_str()?.split_once('/')).collect()
}

fn as_json(name: &str, result: &Value) -> Value {
    let secrets: Vec<Value> = secrets(result)
        .into_iter()
        .map(|(namespace, name)| json!({ "namespace": namespace, "name": name }))
        .collect();
    json!({ "node": name, "tokens": result["tokens"], "secrets": secrets })
}

fn as_text(name: &str, result: &Value) -> String {
    let mut out = format!("node \"{name}\" revoked\n");
    for token in result["tokens"].as_array().into_iter().flatten() {
        out += &format!("token {} revoked: the node had joined with it\n", text(token));
    }
    let secrets = secrets(result);
    if secrets.is_empty() {
        return out + "Its device has seen no Secrets.\n";
    }
    let rows = secrets.into_iter().map(|(namespace, name)| vec![namespace.to_owned(), name.to_owned()]);
    let header = ["NAMESPACE", "NAME"].map(str::to_owned).to_vec();
    out + "Its device may have seen these Secrets; change what they hold, here and wherever it is used:\n"
        + &aligned(std::iter::once(header).chain(rows).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revocation_says_what_to_change() {
        let result = json!({ "joined": true, "tokens": ["abc123"], "secrets": ["default/db", "shop/tls"] });
        assert_eq!(
            as_text("edge-1", &result),
            "node \"edge-1\" revoked\n\
             token abc123 revoked: the node had joined with it\n\
             Its device may have seen these Secrets; change what they hold, here and wherever it is used:\n\
             NAMESPACE   NAME\n\
             default     db\n\
             shop        tls\n"
        );
        let json = as_json("edge-1", &result);
        assert_eq!(json["secrets"][1], json!({ "namespace": "shop", "name": "tls" }));
        let nothing = json!({ "joined": true, "tokens": [], "secrets": [] });
        assert_eq!(as_text("a", &nothing), "node \"a\" revoked\nIts device has seen no Secrets.\n");
    }
}
