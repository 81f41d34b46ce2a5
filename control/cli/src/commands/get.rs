//! `lichen get`: objects as tables, as kubectl prints them.

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use lichen_api::Resource;
use serde_json::Value;

use crate::client::{Client, TABLE, path};
use crate::output;

/// Shows objects.
#[derive(clap::Args)]
#[command(after_help = kinds())]
pub(crate) struct Arguments {
    /// The kind: its plural, singular or short name (pods, pod, po).
    kind: String,
    /// The object's name; all objects of the kind where none is given.
    name: Option<String>,
    /// The namespace to look in.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Look in all namespaces.
    #[arg(short = 'A', long, conflicts_with_all = ["namespace", "name"])]
    all_namespaces: bool,
    /// Only objects with these labels, for example `app=hello,tier!=test`.
    #[arg(short = 'l', long, conflicts_with = "name")]
    selector: Option<String>,
    /// How to print.
    #[arg(short, long)]
    output: Option<Format>,
}

/// How to print.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    /// A table with more columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// `kind/name`, a line each.
    Name,
}

/// Runs the command.
pub(crate) async fn run(client: &Client, arguments: &Arguments) -> Result<()> {
    let resource = resource(&arguments.kind)?;
    let namespace = arguments.namespace.as_deref().unwrap_or(&client.namespace);
    let namespace = (!arguments.all_namespaces).then_some(namespace);
    let mut path = path(resource, namespace, arguments.name.as_deref());
    if let Some(selector) = &arguments.selector {
        path = format!("{path}?labelSelector={}", escaped(selector));
    }
    match arguments.output {
        None | Some(Format::Wide) => {
            let table = client.get(&path, Some(TABLE)).await?;
            if table["rows"].as_array().is_none_or(Vec::is_empty) {
                match namespace.filter(|_| resource.namespaced) {
                    Some(namespace) => eprintln!("No resources found in {namespace} namespace."),
                    None => eprintln!("No resources found"),
                }
                return Ok(());
            }
            let namespaces = arguments.all_namespaces && resource.namespaced;
            print!("{}", output::table(&table, arguments.output.is_some(), namespaces));
        }
        Some(Format::Json) => println!("{}", serde_json::to_string_pretty(&client.get(&path, None).await?)?),
        Some(Format::Yaml) => print!("{}", serde_yaml_ng::to_string(&client.get(&path, None).await?)?),
        Some(Format::Name) => {
            let reply = client.get(&path, None).await?;
            let one = vec![reply.clone()];
            for object in reply["items"].as_array().unwrap_or(&one) {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                match resource.group {
                    "" => println!("{}/{name}", resource.singular),
                    group => println!("{}.{group}/{name}", resource.singular),
                }
            }
        }
    }
    Ok(())
}

/// The kind that a user's word names.
pub(crate) fn resource(word: &str) -> Result<&'static Resource> {
    let word = word.to_lowercase();
    let (plain, group) =
        word.split_once('.').map_or((word.as_str(), None), |(plain, group)| (plain, Some(group)));
    let named = |resource: &&&'static Resource| {
        group.is_none_or(|group| resource.group == group)
            && (resource.plural == plain
                || resource.singular == plain
                || resource.short_names.contains(&plain))
    };
    let found = lichen_api::RESOURCES.iter().find(named).copied();
    match found {
        Some(resource) => Ok(resource),
        None if plain == "all" => bail!("`all` is kubectl's; name a kind"),
        None => found.with_context(|| format!("there is no kind {word:?}\n\n{}", kinds())),
    }
}

fn kinds() -> String {
    let mut lines = vec![vec!["KIND".into(), "SHORT".into()]];
    for resource in lichen_api::RESOURCES {
        lines.push(vec![resource.plural.into(), resource.short_names.join(",")]);
    }
    format!("Kinds:\n{}", output::aligned(lines))
}

/// Percent-encodes what a query's value may not hold.
pub(crate) fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// An object's field as text, for messages.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_goes_by_all_its_names() {
        for word in ["pods", "pod", "po", "Pod"] {
            assert_eq!(resource(word).unwrap().kind, "Pod");
        }
        assert_eq!(resource("deployments.apps").unwrap().kind, "Deployment");
        assert!(resource("gadgets").err().unwrap().to_string().contains("there is no kind \"gadgets\""));
    }

    #[test]
    fn selectors_survive_a_query() {
        assert_eq!(escaped("app=a,b!=c d"), "app%3Da%2Cb%21%3Dc%20d");
    }
}
