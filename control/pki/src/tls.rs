//! TLS settings: rustls with ring, certificates of the cluster's authority only.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WantsClientCert, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientCertVerifierBuilder, WantsServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, ConfigBuilder, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme,
};

use crate::{Credentials, Digest, PkiError, digest_of_der};

/// Which servers a client believes.
#[derive(Debug, Clone)]
pub enum ClientTrust {
    /// Those whose certificate this authority (PEM) issued.
    Authority(String),
    /// Those whose chain holds an authority with this digest; how a node that joins knows the cluster.
    Pinned(Digest),
}

/// Settings of a server that asks for a client certificate and serves those without one too: who may do what is
/// decided later, by identity.
///
/// # Errors
/// When the credentials or the authority's certificate cannot be used.
pub fn server_config(
    credentials: &Credentials,
    ca_pem: &str,
    alpn: &[&[u8]],
) -> Result<ServerConfig, PkiError> {
    let mut config = server_builder(ca_pem)?
        .with_single_cert(certificates(&credentials.chain_pem, "server certificate")?, key(credentials)?)?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

pub(crate) fn server_builder(ca_pem: &str) -> Result<ConfigBuilder<ServerConfig, WantsServerCert>, PkiError> {
    verified_by(client_verifier(ca_pem)?.allow_unauthenticated())
}

/// The same for a server that serves nobody without a certificate.
pub(crate) fn mutual_server_builder(
    ca_pem: &str,
) -> Result<ConfigBuilder<ServerConfig, WantsServerCert>, PkiError> {
    verified_by(client_verifier(ca_pem)?)
}

fn client_verifier(ca_pem: &str) -> Result<ClientCertVerifierBuilder, PkiError> {
    Ok(WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca_pem)?), provider()))
}

fn verified_by(
    verifier: ClientCertVerifierBuilder,
) -> Result<ConfigBuilder<ServerConfig, WantsServerCert>, PkiError> {
    Ok(ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier.build()?))
}

/// Settings of a client, with its certificate if it has one.
///
/// # Errors
/// When the credentials or the authority's certificate cannot be used.
pub fn client_config(
    trust: &ClientTrust,
    credentials: Option<&Credentials>,
) -> Result<ClientConfig, PkiError> {
    let builder = client_builder(trust)?;
    Ok(match credentials {
        Some(own) => {
            builder.with_client_auth_cert(certificates(&own.chain_pem, "client certificate")?, key(own)?)?
        }
        None => builder.with_no_client_auth(),
    })
}

pub(crate) fn client_builder(
    trust: &ClientTrust,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, PkiError> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    Ok(match trust {
        ClientTrust::Authority(ca_pem) => builder.with_root_certificates(roots(ca_pem)?),
        ClientTrust::Pinned(digest) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(PinnedAuthority { digest: *digest })),
    })
}

pub(crate) fn certified_key(credentials: &Credentials) -> Result<CertifiedKey, PkiError> {
    let chain = certificates(&credentials.chain_pem, "certificate")?;
    Ok(CertifiedKey::new(chain, provider().key_provider.load_private_key(key(credentials)?)?))
}

/// The certificates in a PEM text; at least one.
pub(crate) fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let all = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| PkiError::Pem { what, reason: error.to_string() })?;
    if all.is_empty() {
        return Err(PkiError::Pem { what, reason: "it holds no certificate".into() });
    }
    Ok(all)
}

fn key(credentials: &Credentials) -> Result<PrivateKeyDer<'static>, PkiError> {
    PrivateKeyDer::from_pem_slice(credentials.key_pem.as_bytes())
        .map_err(|error| PkiError::Pem { what: "private key", reason: error.to_string() })
}

fn roots(ca_pem: &str) -> Result<RootCertStore, PkiError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca_pem, "CA certificate")? {
        roots.add(certificate)?;
    }
    Ok(roots)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Believes a server whose chain holds the pinned authority and was issued by it.
#[derive(Debug)]
struct PinnedAuthority {
    digest: Digest,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned = intermediates
            .iter()
            .find(|certificate| digest_of_der(certificate) == self.digest)
            .ok_or_else(|| Error::General("the server is of another cluster than the token".into()))?;
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| Error::General(error.to_string()))?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Authority;

    /// Runs a handshake in memory and says whether both sides completed it.
    fn handshake(client: ClientConfig, server: ServerConfig, name: &str) -> Result<(), Error> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(client), name)?;
        let mut server = rustls::ServerConnection::new(Arc::new(server))?;
        while client.is_handshaking() || server.is_handshaking() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            server.read_tls(&mut bytes.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut bytes = Vec::new();
            server.write_tls(&mut bytes).unwrap();
            client.read_tls(&mut bytes.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok(())
    }

    #[test]
    fn who_believes_whom() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [ours, other] = [0, 1].map(|i: usize| Authority::open_or_create(folders[i].path()).unwrap());
        let credentials = ours.issue_server(&["127.0.0.1".into(), "localhost".into()]).unwrap();
        let admin = ours.issue_client("admin", None).unwrap();
        let stranger = other.issue_client("admin", None).unwrap();
        let server = || server_config(&credentials, ours.ca_pem(), &[]).unwrap();
        let cases = [
            ("our authority", ClientTrust::Authority(ours.ca_pem().into()), None, "localhost", true),
            (
                "with a certificate",
                ClientTrust::Authority(ours.ca_pem().into()),
                Some(&admin),
                "127.0.0.1",
                true,
            ),
            (
                "a stranger's certificate",
                ClientTrust::Authority(ours.ca_pem().into()),
                Some(&stranger),
                "localhost",
                false,
            ),
            ("another authority", ClientTrust::Authority(other.ca_pem().into()), None, "localhost", false),
            ("another name", ClientTrust::Authority(ours.ca_pem().into()), None, "example.com", false),
            ("our pin", ClientTrust::Pinned(ours.ca_digest()), None, "localhost", true),
            ("another pin", ClientTrust::Pinned(other.ca_digest()), None, "localhost", false),
            ("our pin, another name", ClientTrust::Pinned(ours.ca_digest()), None, "example.com", false),
        ];
        for (what, trust, own, name, expect) in cases {
            let client = client_config(&trust, own).unwrap();
            assert_eq!(handshake(client, server(), name).is_ok(), expect, "{what}");
        }
    }
}
