//! Who the node is: out of the checkpoint, or by joining with a token.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lichen_link::{JoinConfig, JoinError, join};
use lichen_mqtt::Access;
use lichen_pki::{ClientTrust, Credentials, PkiError, Request};
use lichen_state::Identity;
use lichen_wire::join::{JoinError as Exchange, Refusal, Token};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::config::{Config, StartError};

/// How long one attempt to join may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// The pause before the second attempt; it doubles from one to the next.
const PAUSE: Duration = Duration::from_millis(300);
/// The longest pause between attempts.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Joins the cluster that the configuration's token names.
pub(crate) async fn obtain(config: &Config, broker: &Access) -> Result<Identity, StartError> {
    let token = config.token.as_deref().ok_or(StartError::NoToken)?;
    let token: Token = token.trim().parse().map_err(|error| StartError::Join(JoinError::Exchange(error)))?;
    // One request for all attempts: if a reply was lost, the same request may be made again.
    let request = Request::new()?;
    let tls = broker.tls(&ClientTrust::Pinned(*token.ca_digest()), None)?;
    let until = Instant::now() + config.join_timeout;
    let mut pause = PAUSE;
    let mut said = String::new();
    let outcome = loop {
        let attempt = JoinConfig {
            broker: broker.address.clone(),
            server_name: None,
            tls: tls.clone(),
            login: broker.login.clone(),
            token: token.clone(),
            node: config.node_name.clone(),
            csr: request.csr_der.clone(),
            own_broker: is_own(broker),
            timeout: ATTEMPT,
        };
        match join(attempt).await {
            Ok(outcome) => break outcome,
            Err(error) if may_pass(&error, is_own(broker)) && Instant::now() < until => {
                let why = error.to_string();
                if said != why {
                    warn!(error = why, "joining failed and is tried again");
                    said = why;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            Err(error) => return Err(StartError::Join(error)),
        }
    };
    info!(node = config.node_name, "joined the cluster");
    Ok(Identity {
        node_name: config.node_name.clone(),
        certificate_pem: String::from_utf8_lossy(&outcome.certificate).into_owned(),
        key_pem: request.key_pem,
        ca_pem: pem(&outcome.ca),
        session_key: *outcome.key.as_bytes(),
        renewals: 0,
    })
}

/// Whether a broker is the cluster's own: then its certificate is held against the cluster's authority.
pub(crate) fn is_own(broker: &Access) -> bool {
    broker.ca_pem.is_none()
}

/// Whether the same could succeed a little later. What another's broker calls a refusal may have been made up by it.
fn may_pass(error: &JoinError, own_broker: bool) -> bool {
    match error {
        JoinError::Connect { .. } | JoinError::Timeout(_) => true,
        JoinError::Exchange(Exchange::Refused(reason)) => !own_broker || *reason == Refusal::Unavailable,
        JoinError::Exchange(_) => false,
    }
}

/// TLS with the broker; where it is the cluster's own, with the node's certificate.
pub(crate) fn tls(broker: &Access, identity: &Identity) -> Result<Arc<rustls::ClientConfig>, PkiError> {
    let credentials =
        Credentials { chain_pem: identity.certificate_pem.clone(), key_pem: identity.key_pem.clone() };
    let trust = ClientTrust::Authority(identity.ca_pem.clone());
    broker.tls(&trust, Some(&credentials))
}

/// TLS with the broker without the node's certificate: what a node renews with whose certificate counts no more.
pub(crate) fn bare_tls(broker: &Access, identity: &Identity) -> Result<Arc<rustls::ClientConfig>, PkiError> {
    broker.tls(&ClientTrust::Authority(identity.ca_pem.clone()), None)
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        // Base64 is ASCII, so any cut is between characters.
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem + "-----END CERTIFICATE-----\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_as_pem_is_the_same_certificate() {
        let authority = crate::testing::authority();
        let pem = pem(authority.ca_der());
        assert_eq!(lichen_pki::digest_of_pem(&pem).expect("reads"), authority.ca_digest());
    }
}
