//! `lichen token`: the tokens with which nodes join.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use jiff::{SignedDuration, Timestamp};
use lichen_control::TOKEN_NAMESPACE;

use super::get::resource;
use crate::client::{Client, path};

/// Manages the tokens with which nodes join.
#[derive(clap::Subcommand)]
pub(crate) enum Token {
    /// Make a token and print it. It is shown once; who has it can make a node of this cluster until it expires.
    Create {
        /// How long it can be used, for example `30m` or `24h`.
        #[arg(long, default_value = "24h", value_parser = duration)]
        ttl: Duration,
    },
    /// Take a token back: nodes that have joined with it stay.
    Revoke {
        /// The token's id: what comes before its first dot.
        id: String,
    },
}

/// Runs the command.
pub(crate) async fn run(client: &Client, command: &Token) -> Result<()> {
    match command {
        Token::Create { ttl } => println!("{}", create(client, *ttl).await?),
        Token::Revoke { id } => {
            let name = lichen_control::token_secret_name(id);
            client.delete(&path(resource("secrets")?, Some(TOKEN_NAMESPACE), Some(&name))).await?;
            println!("token {id} revoked");
        }
    }
    Ok(())
}

/// Makes a token that can be used for `ttl`.
pub(crate) async fn create(client: &Client, ttl: Duration) -> Result<String> {
    let digest = lichen_pki::digest_of_pem(&client.ca_pem)?;
    let (token, secret) = lichen_control::new_token(digest, Timestamp::now(), ttl);
    client.create(&path(resource("secrets")?, Some(TOKEN_NAMESPACE), None), &secret).await?;
    Ok(token.to_string())
}

fn duration(text: &str) -> Result<Duration> {
    let parsed: SignedDuration =
        text.parse().with_context(|| format!("{text:?} is no duration such as 24h"))?;
    match Duration::try_from(parsed) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => bail!("a duration must be more than nothing"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_people_do() {
        assert_eq!(duration("24h").unwrap(), Duration::from_secs(86_400));
        assert_eq!(duration("90m").unwrap(), Duration::from_secs(5_400));
        assert!(duration("0s").is_err());
        assert!(duration("-1h").is_err());
        assert!(duration("soon").is_err());
    }
}
