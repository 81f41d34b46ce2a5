//! Join tokens as Secrets, in the form that Kubernetes gave bootstrap tokens.
//!
//! Source: Kubernetes, "Authenticating with Bootstrap Tokens". Beyond it, Lichen's token text carries the digest of the
//! cluster's authority, so that the secret never has to cross the wire.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use lichen_api::{Status, kinds};
use lichen_registry::{DeleteOptions, Identity, Registry, WriteOptions, key_of};
use lichen_store::{Key, Revision};
use lichen_wire::join::Token;
use rand::RngExt;
use serde_json::{Value, json};

/// The namespace and the type of token Secrets.
pub use lichen_api::kinds::secret::{
    BOOTSTRAP_TOKEN_NAMESPACE as TOKEN_NAMESPACE, BOOTSTRAP_TOKEN_TYPE as TOKEN_SECRET_TYPE,
};

const ID_CHARS: usize = 6;
/// 32 of 36 characters: 165 bits, out of reach of guessing against a recorded join.
const SECRET_CHARS: usize = 32;
const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// What a token lets its holder become. One for one thing is no good for the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A node.
    Node,
    /// A member of the control plane.
    Member,
}

impl Purpose {
    /// The field of the Secret that allows this.
    pub fn usage(self) -> &'static str {
        match self {
            Purpose::Node => "usage-bootstrap-authentication",
            Purpose::Member => "usage-bootstrap-member",
        }
    }

    fn other(self) -> Purpose {
        match self {
            Purpose::Node => Purpose::Member,
            Purpose::Member => Purpose::Node,
        }
    }
}

/// Why a Secret is no valid token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// There is no Secret.
    #[error("there is no such token, or it was revoked")]
    Unknown,
    /// It is for something else.
    #[error("{}", match .0 {
        Purpose::Node => "the token is for nodes, not for members: make one with `lichen token create --member`",
        Purpose::Member => "the token is for members, not for nodes: make one with `lichen token create`",
    })]
    Other(Purpose),
    /// A field is missing or malformed, or the Secret is of another type.
    #[error("the Secret is not a bootstrap token: {0}")]
    Malformed(&'static str),
    /// It may not be used for joining.
    #[error("the token's {} is not \"true\"", .0.usage())]
    Usage(Purpose),
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
}

/// The name of the Secret of a token.
pub fn token_secret_name(id: &str) -> String {
    format!("bootstrap-token-{id}")
}

/// A fresh token, and the Secret that makes it valid until `now + ttl`.
pub fn new_token(ca_digest: [u8; 32], now: Timestamp, ttl: Duration, purpose: Purpose) -> (Token, Value) {
    loop {
        let (id, secret) = (random_text(ID_CHARS), random_text(SECRET_CHARS));
        // Always so, since both are made of the alphabet that tokens allow.
        let Some(token) = Token::new(&id, &secret, ca_digest) else { continue };
        let expires = Timestamp::from_second(now.as_second().saturating_add_unsigned(ttl.as_secs()))
            .unwrap_or(Timestamp::MAX);
        let object = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": token_secret_name(&id), "namespace": TOKEN_NAMESPACE},
            "type": TOKEN_SECRET_TYPE,
            "stringData": {
                "token-id": id,
                "token-secret": secret,
                "expiration": expires.to_string(),
                purpose.usage(): "true",
            },
        });
        return (token, object);
    }
}

/// The token that a stored Secret makes valid at `now`.
///
/// # Errors
/// When it is none, may not be used for joining, or has expired.
pub fn token_of(
    secret: &Value,
    ca_digest: [u8; 32],
    now: Timestamp,
    purpose: Purpose,
) -> Result<Token, TokenError> {
    if secret["type"] != TOKEN_SECRET_TYPE {
        return Err(TokenError::Malformed("its type is another"));
    }
    let field = |name: &str| {
        let bytes = STANDARD.decode(secret["data"][name].as_str()?).ok()?;
        String::from_utf8(bytes).ok()
    };
    let allows = |purpose: Purpose| field(purpose.usage()).as_deref() == Some("true");
    if !allows(purpose) {
        let other = purpose.other();
        return Err(if allows(other) { TokenError::Other(other) } else { TokenError::Usage(purpose) });
    }
    if let Some(expiration) = field("expiration") {
        let expiration: Timestamp =
            expiration.parse().map_err(|_| TokenError::Malformed("expiration is no RFC 3339 time"))?;
        if expiration <= now {
            return Err(TokenError::Expired);
        }
    }
    let id = field("token-id").ok_or(TokenError::Malformed("token-id is missing"))?;
    if secret["metadata"]["name"] != token_secret_name(&id) {
        return Err(TokenError::Malformed("its name and token-id differ"));
    }
    let text = field("token-secret").ok_or(TokenError::Malformed("token-secret is missing"))?;
    Token::new(&id, &text, ca_digest)
        .ok_or(TokenError::Malformed("token-id or token-secret has forbidden characters"))
}

/// Makes a join token that holds for `ttl`, and keeps its Secret.
///
/// # Errors
/// Those of creating the Secret.
pub async fn create_token(
    registry: &Registry,
    identity: &Identity,
    ca_digest: [u8; 32],
    ttl: Duration,
    purpose: Purpose,
) -> Result<Token, Status> {
    let (token, secret) = new_token(ca_digest, registry.now(), ttl, purpose);
    let resource = &kinds::secret::RESOURCE;
    registry.create(identity, resource, Some(TOKEN_NAMESPACE), secret, &WriteOptions::default()).await?;
    Ok(token)
}

/// The token with an id, if there is a Secret that makes it valid now, and where and at which revision that Secret is.
///
/// # Errors
/// When the Secret can't be read.
pub async fn find_token(
    registry: &Registry,
    id: &str,
    ca_digest: [u8; 32],
    purpose: Purpose,
) -> Result<Result<(Token, (Key, Revision)), TokenError>, Status> {
    let name = token_secret_name(id);
    let record = match registry.get(&kinds::secret::RESOURCE, Some(TOKEN_NAMESPACE), &name).await {
        Ok(record) => record,
        Err(status) if status.code == 404 => return Ok(Err(TokenError::Unknown)),
        Err(status) => return Err(status),
    };
    let secret = record.value().map_err(|_| Status::internal("a token's Secret can't be parsed"))?;
    if !secret["metadata"]["deletionTimestamp"].is_null() {
        return Ok(Err(TokenError::Unknown));
    }
    let token = token_of(&secret, ca_digest, registry.now(), purpose);
    if let Err(error) = &token {
        tracing::info!(token = id, %error, "a token that is not valid was used");
    }
    let key = key_of(&kinds::secret::RESOURCE, Some(TOKEN_NAMESPACE), &name);
    Ok(token.map(|token| (token, (key, record.revision()))))
}

/// Takes a token back.
pub(crate) async fn take_back(registry: &Registry, identity: &Identity, id: &str) -> Result<(), Status> {
    let (resource, name) = (&kinds::secret::RESOURCE, token_secret_name(id));
    let options = DeleteOptions::default();
    match registry.delete(identity, resource, Some(TOKEN_NAMESPACE), &name, &options).await {
        Ok(_) => Ok(()),
        Err(status) if status.code == 404 => Ok(()),
        Err(status) => Err(status),
    }
}

fn random_text(chars: usize) -> String {
    let mut rng = rand::rng();
    (0..chars).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: [u8; 32] = [7; 32];
    const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

    /// What the API server makes of `stringData`.
    fn stored(mut secret: Value) -> Value {
        let plain = secret["stringData"].take();
        for (key, value) in plain.as_object().unwrap() {
            secret["data"][key] = STANDARD.encode(value.as_str().unwrap()).into();
        }
        secret
    }

    #[test]
    fn a_new_token_is_valid_until_it_expires() {
        let (token, secret) = new_token(DIGEST, NOW, Duration::from_secs(60), Purpose::Node);
        let secret = stored(secret);
        let at = |seconds: i64| {
            token_of(&secret, DIGEST, Timestamp::constant(1_800_000_000 + seconds, 0), Purpose::Node)
                .map(|found| found.to_string())
        };
        assert_eq!(at(59), Ok(token.to_string()));
        assert_eq!(at(60), Err(TokenError::Expired));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let check = |change: fn(&mut Value), expect: TokenError| {
            let (_, secret) = new_token(DIGEST, NOW, Duration::from_secs(60), Purpose::Node);
            let mut secret = stored(secret);
            change(&mut secret);
            assert_eq!(token_of(&secret, DIGEST, NOW, Purpose::Node).err(), Some(expect));
        };
        check(|secret| secret["type"] = "Opaque".into(), TokenError::Malformed("its type is another"));
        check(
            |secret| secret["data"]["usage-bootstrap-authentication"] = "".into(),
            TokenError::Usage(Purpose::Node),
        );
        check(
            |secret| secret["metadata"]["name"] = "x".into(),
            TokenError::Malformed("its name and token-id differ"),
        );
        check(
            |secret| secret["data"]["expiration"] = "eA==".into(),
            TokenError::Malformed("expiration is no RFC 3339 time"),
        );
    }
    #[test]
    fn a_token_is_for_one_thing_only() {
        for (purpose, other) in [(Purpose::Node, Purpose::Member), (Purpose::Member, Purpose::Node)] {
            let (token, secret) = new_token(DIGEST, NOW, Duration::from_secs(60), purpose);
            let secret = stored(secret);
            assert_eq!(token_of(&secret, DIGEST, NOW, purpose).unwrap().to_string(), token.to_string());
            assert_eq!(token_of(&secret, DIGEST, NOW, other).err(), Some(TokenError::Other(purpose)));
        }
    }
}
