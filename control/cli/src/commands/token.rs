//! `lichen token`: the tokens with which nodes and members join.

use std::time::Duration;

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use lichen_api::table::{duration as duration_text, since};
use lichen_control::{Purpose, TOKEN_NAMESPACE, TOKEN_SECRET_TYPE};
use serde_json::Value;

use super::get::{escaped, resource, text};
use crate::client::{Client, path};
use crate::embedded::duration;
use crate::output::aligned;

/// Manages the tokens with which nodes and members join.
#[derive(clap::Subcommand)]
pub(crate) enum Token {
    /// Make a token and print it. It is shown once; who has it can make a node of this cluster until it expires.
    Create {
        /// Make a token for members of the control plane. Who has it is given everything that the cluster keeps, its
        /// authority included.
        #[arg(long)]
        member: bool,
        /// How long it can be used, for example `30m` or `24h`.
        #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
        ttl: Duration,
    },
    /// Show the tokens, without their secrets.
    List,
    /// Take a token back: nodes and members that have joined with it stay.
    Revoke {
        /// The token's id: what comes before its first dot.
        id: String,
    },
}

/// Runs the command.
pub(crate) async fn run(client: &Client, command: &Token) -> Result<()> {
    match command {
        Token::Create { member, ttl } => {
            let purpose = if *member { Purpose::Member } else { Purpose::Node };
            println!("{}", create(client, *ttl, purpose).await?);
        }
        Token::List => {
            let selector = format!("?fieldSelector=type%3D{}", escaped(TOKEN_SECRET_TYPE));
            let collection = path(resource("secrets")?, Some(TOKEN_NAMESPACE), None);
            let list = client.get(&format!("{collection}{selector}"), None).await?;
            match table(&list["items"], Timestamp::now()) {
                Some(table) => print!("{table}"),
                None => eprintln!("No tokens found; make one with `lichen token create`"),
            }
        }
        Token::Revoke { id } => {
            // Whoever pastes the whole token means the same.
            let id = id.split('.').next().unwrap_or(id);
            let name = lichen_control::token_secret_name(id);
            client.delete(&path(resource("secrets")?, Some(TOKEN_NAMESPACE), Some(&name))).await?;
            println!("token {id} revoked");
        }
    }
    Ok(())
}

/// Makes a token that can be used for `ttl`.
pub(crate) async fn create(client: &Client, ttl: Duration, purpose: Purpose) -> Result<String> {
    let digest = lichen_pki::digest_of_pem(&client.ca_pem)?;
    let (token, secret) = lichen_control::new_token(digest, Timestamp::now(), ttl, purpose);
    client.create(&path(resource("secrets")?, Some(TOKEN_NAMESPACE), None), &secret).await?;
    Ok(token.to_string())
}

/// The tokens as kubectl would show them; none if there are none.
fn table(secrets: &Value, now: Timestamp) -> Option<String> {
    let mut lines = vec![["ID", "FOR", "TTL", "EXPIRES", "AGE"].map(str::to_owned).to_vec()];
    for secret in secrets.as_array()? {
        let field = |name: &str| {
            let bytes = STANDARD.decode(secret["data"][name].as_str()?).ok()?;
            String::from_utf8(bytes).ok()
        };
        let serves = |purpose: &&(Purpose, &str)| field(purpose.0.usage()).as_deref() == Some("true");
        let purposes = [(Purpose::Node, "nodes"), (Purpose::Member, "members")];
        let purpose = purposes.iter().find(serves).map_or("<nothing>", |(_, name)| name);
        let expires = field("expiration");
        let ttl = match &expires {
            None => "<forever>".to_owned(),
            Some(text) => match text.parse::<Timestamp>() {
                Ok(at) if at > now => duration_text(at.as_second() - now.as_second()),
                Ok(_) => "<expired>".to_owned(),
                Err(_) => "<invalid>".to_owned(),
            },
        };
        let age = since(text(&secret["metadata"]["creationTimestamp"]), now);
        lines.push(vec![
            field("token-id").unwrap_or_default(),
            purpose.to_owned(),
            ttl,
            expires.unwrap_or("<never>".into()),
            age,
        ]);
    }
    (lines.len() > 1).then(|| aligned(lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_shows_when_tokens_end_and_no_secret() {
        let at = |second: i64| Timestamp::constant(1_800_000_000 + second, 0);
        let secret = |id: &str, expires: Option<Timestamp>| {
            let mut secret = serde_json::json!({
                "metadata": { "creationTimestamp": at(-60).to_string() },
                "data": { "token-id": STANDARD.encode(id), "token-secret": STANDARD.encode("hidden") },
            });
            let usage = if id == "bbbbbb" { Purpose::Member } else { Purpose::Node }.usage();
            secret["data"][usage] = STANDARD.encode("true").into();
            if let Some(expires) = expires {
                secret["data"]["expiration"] = STANDARD.encode(expires.to_string()).into();
            }
            secret
        };
        let secrets = [secret("aaaaaa", Some(at(90))), secret("bbbbbb", None), secret("cccccc", Some(at(0)))];
        assert_eq!(
            table(&secrets.to_vec().into(), at(0)).unwrap(),
            "ID       FOR       TTL         EXPIRES                AGE\n\
             aaaaaa   nodes     90s         2027-01-15T08:01:30Z   60s\n\
             bbbbbb   members   <forever>   <never>                60s\n\
             cccccc   nodes     <expired>   2027-01-15T08:00:00Z   60s\n"
        );
        assert_eq!(table(&serde_json::json!([]), at(0)), None);
    }

    #[test]
    fn durations_are_written_as_people_do() {
        assert_eq!(duration("24h").unwrap(), Duration::from_secs(86_400));
        assert_eq!(duration("90m").unwrap(), Duration::from_secs(5_400));
        assert_eq!(duration("90d").unwrap(), Duration::from_secs(7_776_000));
        assert!(duration("0s").is_err());
        assert!(duration("-1h").is_err());
        assert!(duration("soon").is_err());
    }
}
