//! `lichen member`: the members of the control plane.

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use lichen_control::{MEMBERS_PATH, Purpose};
use serde_json::Value;

use super::get::text;
use super::token;
use crate::client::Client;
use crate::embedded::duration;
use crate::output::aligned;

/// Manages the members of the control plane. Any member can be asked.
#[derive(clap::Subcommand)]
pub(crate) enum Member {
    /// Show the members.
    List {
        /// How to print.
        #[arg(short, long)]
        output: Option<Format>,
    },
    /// Make a token for a new member and print the command that joins with it, to be run on another machine.
    ///
    /// Whoever runs it is given everything that the cluster keeps, its authority included.
    Add {
        /// How long the command can be used, for example `30m` or `24h`.
        #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
        ttl: Duration,
    },
    /// Remove a member for good: it stops to serve, and its id never comes back.
    ///
    /// Its machine may join anew once its data directory is deleted.
    Remove {
        /// The member's id.
        id: String,
    },
    /// Let a member vote that has caught up. Members that join are promoted by themselves.
    Promote {
        /// The member's id.
        id: String,
    },
    /// Let another member lead.
    TransferLeader {
        /// The member's id.
        id: String,
    },
}

/// How to print.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub(crate) enum Format {
    /// JSON.
    Json,
    /// With more columns.
    Wide,
}

/// Runs the command.
pub(crate) async fn run(client: &Client, command: &Member) -> Result<()> {
    match command {
        Member::List { output } => {
            let list = client.get(MEMBERS_PATH, None).await?;
            match output {
                Some(Format::Json) => println!("{}", serde_json::to_string_pretty(&list["items"])?),
                output => print!("{}", table(&list["items"], *output == Some(Format::Wide))),
            }
        }
        Member::Add { ttl } => {
            // A server that none can join says so before a token is made.
            let list = client.get(MEMBERS_PATH, None).await?;
            let url = reachable(&list["items"]);
            let url = match url {
                Some(url) => url,
                None => {
                    eprintln!(
                        "Warning: every member serves the API on this machine only; start one with --api-addr \
                         0.0.0.0:6443 before a server on another machine joins"
                    );
                    client.server()
                }
            };
            let token = token::create(client, *ttl, Purpose::Member).await?;
            println!("lichen server --join {url} --token {token}");
        }
        Member::Remove { id } => {
            client.delete(&path(id, None)).await?;
            println!("member {id} removed");
        }
        Member::Promote { id } => {
            client.post(&path(id, Some("promote"))).await?;
            println!("member {id} votes");
        }
        Member::TransferLeader { id } => {
            client.post(&path(id, Some("transfer-leader"))).await?;
            println!("member {id} leads");
        }
    }
    Ok(())
}

/// The URL of a member that serves other machines, the leader's before others.
fn reachable(members: &Value) -> Option<&str> {
    let mut members: Vec<&Value> = members.as_array()?.iter().collect();
    members.sort_by_key(|member| member["role"] != "leader");
    let urls = members.into_iter().map(|member| text(&member["apiUrl"]));
    let local = |url: &&str| {
        let host = url.trim_start_matches("https://");
        ["127.", "localhost:", "[::1]"].iter().any(|own| host.starts_with(own))
    };
    urls.filter(|url| !url.is_empty()).find(|url| !local(url))
}

fn path(id: &str, action: Option<&str>) -> String {
    let action = action.map(|action| format!("/{action}")).unwrap_or_default();
    format!("{MEMBERS_PATH}/{}{action}", super::get::escaped(id))
}

/// The members as kubectl would show them.
fn table(members: &Value, wide: bool) -> String {
    let header = ["ID", "ROLE", "STATUS", "PEER-ADDRESS", "API", "MQTT", "VERSION"];
    let columns = if wide { header.len() } else { 5 };
    let mut lines = vec![header[..columns].iter().map(|&name| name.to_owned()).collect::<Vec<_>>()];
    for member in members.as_array().into_iter().flatten() {
        let fields = ["id", "role", "status", "peerAddress", "apiUrl", "mqttAddress", "version"];
        let cell = |field: &&str| match text(&member[field]) {
            "" => "<unknown>".to_owned(),
            text => text.to_owned(),
        };
        lines.push(fields[..columns].iter().map(cell).collect());
    }
    aligned(lines)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn members_are_shown_as_kubectl_shows_objects() {
        let members = json!([
            { "id": "00c0ffee00c0ffee", "role": "leader", "status": "Ready", "peerAddress": "10.0.0.1:6444",
              "apiUrl": "https://10.0.0.1:6443", "mqttAddress": "10.0.0.1:8883", "version": "0.1.0" },
            { "id": "0000000000000007", "role": "learner", "status": "NotReady", "peerAddress": "b:6444",
              "apiUrl": "", "mqttAddress": "", "version": "" },
        ]);
        assert_eq!(
            table(&members, false),
            "ID                 ROLE      STATUS     PEER-ADDRESS    API\n\
             00c0ffee00c0ffee   leader    Ready      10.0.0.1:6444   https://10.0.0.1:6443\n\
             0000000000000007   learner   NotReady   b:6444          <unknown>\n"
        );
        assert!(table(&members, true).lines().nth(1).unwrap().ends_with("10.0.0.1:8883   0.1.0"));
    }

    #[test]
    fn others_join_where_they_can() {
        let at = |role: &str, url: &str| json!({ "role": role, "apiUrl": url });
        let check = |members: Value, expect: Option<&str>| assert_eq!(reachable(&members), expect);
        let (one, two) = ("https://10.0.0.1:6443", "https://b.example:6443");
        check(json!([at("voter", one), at("leader", two)]), Some(two));
        check(json!([at("voter", one), at("leader", "https://127.0.0.1:6443")]), Some(one));
        check(json!([at("leader", "https://127.0.0.1:6443"), at("voter", "")]), None);
    }
}
