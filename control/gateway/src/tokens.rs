//! Join tokens, kept as Kubernetes keeps them: Secrets of type `bootstrap.kubernetes.io/token` in kube-system.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::{SignedDuration, Timestamp};
use lichen_api::{Status, kinds, names};
use lichen_registry::{Identity, Registry, WriteOptions};
use lichen_wire::join::Token;
use rand::RngExt;
use serde_json::{Value, json};

const NAMESPACE: &str = "kube-system";
const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
const ID_BYTES: usize = 6;
/// About 124 bits.
const SECRET_BYTES: usize = 24;

/// Why a join token was not made.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// A token must hold for some time.
    #[error("a join token must hold for at least a second")]
    Ttl,
    /// The Secret could not be written.
    #[error("cannot keep the join token: {0}")]
    Write(#[from] Status),
}

/// Makes a join token that holds for `ttl` and pins the CA with this digest. Its text is
/// `<id>.<secret>.<sha256 of the CA in hex>`; only the holder of the text knows the secret besides the cluster.
pub async fn create_token(
    registry: &Registry,
    identity: &Identity,
    ca_digest: [u8; 32],
    ttl: std::time::Duration,
) -> Result<Token, TokenError> {
    let ttl = SignedDuration::try_from(ttl).map_err(|_| TokenError::Ttl)?;
    let expires = registry.now().checked_add(ttl).map_err(|_| TokenError::Ttl)?;
    if ttl < SignedDuration::from_secs(1) {
        return Err(TokenError::Ttl);
    }
    let (id, secret) = (random_text(ID_BYTES), random_text(SECRET_BYTES));
    let object = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": secret_name(&id), "namespace": NAMESPACE },
        "type": SECRET_TYPE,
        "data": {
            "token-id": BASE64.encode(&id),
            "token-secret": BASE64.encode(&secret),
            "expiration": BASE64.encode(names::rfc3339(expires)),
            "usage-bootstrap-authentication": BASE64.encode("true"),
            "usage-bootstrap-signing": BASE64.encode("true"),
        },
    });
    let resource = &kinds::secret::RESOURCE;
    registry.create(identity, resource, Some(NAMESPACE), object, &WriteOptions::default()).await?;
    // The alphabet and the lengths are those of a token.
    Token::new(&id, &secret, ca_digest).ok_or(TokenError::Ttl)
}

/// The token with an id, if there is one and it holds at `now`.
pub(crate) async fn find(
    registry: &Registry,
    id: &str,
    ca_digest: [u8; 32],
    now: Timestamp,
) -> Result<Option<Token>, Status> {
    let record = match registry.get(&kinds::secret::RESOURCE, Some(NAMESPACE), &secret_name(id)).await {
        Ok(record) => record,
        Err(status) if status.code == 404 => return Ok(None),
        Err(status) => return Err(status),
    };
    Ok(record.value().ok().and_then(|secret| token_of(&secret, id, ca_digest, now)))
}

fn token_of(secret: &Value, id: &str, ca_digest: [u8; 32], now: Timestamp) -> Option<Token> {
    let field = |name: &str| {
        let raw = BASE64.decode(secret["data"][name].as_str()?).ok()?;
        String::from_utf8(raw).ok()
    };
    let expired = match field("expiration") {
        // A date that can't be read is no licence to join for ever.
        Some(text) => text.parse::<Timestamp>().map_or(true, |expires| expires <= now),
        None => false,
    };
    let usable = secret["type"] == SECRET_TYPE
        && secret["metadata"]["deletionTimestamp"].is_null()
        && field("token-id").as_deref() == Some(id)
        && field("usage-bootstrap-authentication").as_deref() == Some("true")
        && !expired;
    if usable { Token::new(id, &field("token-secret")?, ca_digest) } else { None }
}

fn secret_name(id: &str) -> String {
    format!("bootstrap-token-{id}")
}

fn random_text(len: usize) -> String {
    let mut random = rand::rng();
    (0..len).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_unexpired_token_counts() {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        let secret = |change: &dyn Fn(&mut Value)| {
            let mut secret = json!({
                "type": SECRET_TYPE, "metadata": {},
                "data": {
                    "token-id": BASE64.encode("abcdef"),
                    "token-secret": BASE64.encode("0123456789abcdef"),
                    "expiration": BASE64.encode("2026-11-22T12:00:01Z"),
                    "usage-bootstrap-authentication": BASE64.encode("true"),
                },
            });
            change(&mut secret);
            token_of(&secret, "abcdef", [7; 32], now).is_some()
        };
        assert!(secret(&|_| {}));
        assert!(secret(&|s| drop(s["data"].as_object_mut().unwrap().remove("expiration"))));
        assert!(!secret(&|s| s["data"]["expiration"] = json!(BASE64.encode("2026-11-22T12:00:00Z"))));
        assert!(!secret(&|s| s["data"]["expiration"] = json!(BASE64.encode("soon"))));
        assert!(!secret(&|s| s["data"]["usage-bootstrap-authentication"] = json!(BASE64.encode("false"))));
        assert!(!secret(&|s| s["data"]["token-id"] = json!(BASE64.encode("fedcba"))));
        assert!(!secret(&|s| s["data"]["token-secret"] = json!("%%%")));
        assert!(!secret(&|s| s["type"] = json!("Opaque")));
        assert!(!secret(&|s| s["metadata"]["deletionTimestamp"] = json!("2026-11-22T12:00:00Z")));
    }
}
