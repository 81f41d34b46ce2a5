//! The control plane's own certificates: issued anew, under the same authority, by the first handshake that finds the one
//! in use near its end. Nothing has to run for that, and no connection that stands is touched.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};

use crate::{Authority, Credentials, PkiError, Validity, tls};

type Issue = dyn Fn(SystemTime) -> Result<Credentials, PkiError> + Send + Sync;

/// A certificate that is issued anew before its end.
pub struct Rotating {
    authority: Arc<Authority>,
    issue: Box<Issue>,
    current: RwLock<Current>,
}

struct Current {
    key: Arc<CertifiedKey>,
    renew_at: SystemTime,
}

impl fmt::Debug for Rotating {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rotating(..)")
    }
}

impl Rotating {
    /// A server's certificate for host names and IP addresses.
    ///
    /// # Errors
    /// [`PkiError::Issue`] when a name is not a valid DNS name.
    pub fn server(authority: Arc<Authority>, names: Vec<String>) -> Result<Arc<Self>, PkiError> {
        let issuer = authority.clone();
        Self::new(authority, Box::new(move |now| issuer.issue_server_at(&names, now)))
    }

    /// A client's certificate; see [`Authority::issue_client`].
    ///
    /// # Errors
    /// [`PkiError::Issue`] when the certificate cannot be made.
    pub fn client(
        authority: Arc<Authority>,
        user: &'static str,
        group: Option<&'static str>,
    ) -> Result<Arc<Self>, PkiError> {
        let issuer = authority.clone();
        Self::new(authority, Box::new(move |now| issuer.issue_client_at(user, group, now)))
    }

    /// The certificate of a member of the control plane; see [`member_name`](crate::member_name).
    ///
    /// # Errors
    /// [`PkiError::Issue`] when the certificate cannot be made.
    pub fn member(authority: Arc<Authority>, id: u64) -> Result<Arc<Self>, PkiError> {
        let issuer = authority.clone();
        Self::new(authority, Box::new(move |now| issuer.issue_member_at(id, now)))
    }

    fn new(authority: Arc<Authority>, issue: Box<Issue>) -> Result<Arc<Self>, PkiError> {
        let current = RwLock::new(issue_now(&issue, SystemTime::now())?);
        Ok(Arc::new(Self { authority, issue, current }))
    }

    /// Settings of a server; see [`crate::server_config`].
    ///
    /// # Errors
    /// When the authority's certificate cannot be used.
    pub fn server_config(self: &Arc<Self>, alpn: &[&[u8]]) -> Result<ServerConfig, PkiError> {
        let builder = tls::server_builder(self.authority.ca_pem())?;
        let mut config = builder.with_cert_resolver(self.clone());
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(config)
    }

    /// Settings of a server that serves nobody without a certificate of the authority.
    ///
    /// # Errors
    /// When the authority's certificate cannot be used.
    pub fn mutual_server_config(self: &Arc<Self>, alpn: &[&[u8]]) -> Result<ServerConfig, PkiError> {
        let builder = tls::mutual_server_builder(self.authority.ca_pem())?;
        let mut config = builder.with_cert_resolver(self.clone());
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(config)
    }

    /// Settings of a client of servers of the same authority.
    ///
    /// # Errors
    /// When the authority's certificate cannot be used.
    pub fn mutual_client_config(self: &Arc<Self>, alpn: &[&[u8]]) -> Result<ClientConfig, PkiError> {
        let mut config =
            self.client_config(&crate::ClientTrust::Authority(self.authority.ca_pem().into()))?;
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(config)
    }

    /// Settings of a client; see [`crate::client_config`].
    ///
    /// # Errors
    /// When the trust cannot be used.
    pub fn client_config(self: &Arc<Self>, trust: &crate::ClientTrust) -> Result<ClientConfig, PkiError> {
        Ok(tls::client_builder(trust)?.with_client_cert_resolver(self.clone()))
    }

    /// The certificate to use at `now`.
    fn at(&self, now: SystemTime) -> Arc<CertifiedKey> {
        {
            let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
            if now < current.renew_at {
                return current.key.clone();
            }
        }
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if now >= current.renew_at
            && let Ok(next) = issue_now(&self.issue, now)
        {
            *current = next;
        }
        // If no other could be made, the one in use serves on: whether its end has come is the peer's to say.
        current.key.clone()
    }
}

fn issue_now(issue: &Issue, now: SystemTime) -> Result<Current, PkiError> {
    let credentials = issue(now)?;
    let renew_at = Validity::of_pem(&credentials.chain_pem)?.renew_at(0.0);
    Ok(Current { key: Arc::new(tls::certified_key(&credentials)?), renew_at })
}

impl ResolvesServerCert for Rotating {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.at(SystemTime::now()))
    }
}

impl ResolvesClientCert for Rotating {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.at(SystemTime::now()))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_member_is_known_by_its_certificate_and_nobody_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::open_or_create(folder.path()).unwrap());
        let now = SystemTime::now();
        let member = |id| Rotating::member(authority.clone(), id).unwrap().at(now).cert[0].to_vec();
        for id in [0, 0xabc, u64::MAX] {
            assert_eq!(crate::member_of(&member(id)), Some(id));
        }
        let name = crate::member_name(7);
        let two = [name.clone(), "localhost".to_owned()];
        for names in [&two[..], &["members.lichen".into()], &["+7.members.lichen".replace('+', "000")]] {
            let der = authority.issue_server_at(names, now).unwrap();
            let der = &tls::certificates(&der.chain_pem, "chain").unwrap()[0];
            assert_eq!(crate::member_of(der), None, "{names:?}");
        }
        assert_eq!(crate::member_of(b"junk"), None);
    }

    #[test]
    fn a_certificate_near_its_end_is_issued_anew_under_the_same_authority() {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        let folder = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::open_or_create(folder.path()).unwrap());
        let rotating = Rotating::server(authority.clone(), vec!["localhost".into()]).unwrap();
        let now = SystemTime::now();
        let at = |days: u32| rotating.at(now + DAY * days);
        let (first, later) = (at(0), at(200));
        assert_eq!(first.cert[0], later.cert[0], "it is not issued before its time");
        let second = at(300);
        assert_ne!(first.cert[0], second.cert[0]);
        assert_eq!(second.cert[0], at(301).cert[0]);
        for key in [&first, &second] {
            assert_eq!(key.cert[1].as_ref(), authority.ca_der());
        }
        let end_entity = rustls::server::ParsedCertificate::try_from(&second.cert[0]).unwrap();
        let in_400_days = rustls::pki_types::UnixTime::since_unix_epoch(
            (now + DAY * 400).duration_since(SystemTime::UNIX_EPOCH).unwrap(),
        );
        let mut store = rustls::RootCertStore::empty();
        store.add(authority.ca_der().to_vec().into()).unwrap();
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &end_entity,
            &store,
            &[],
            in_400_days,
            rustls::crypto::ring::default_provider().signature_verification_algorithms.all,
        )
        .unwrap();
    }
}
