//! The authority: issues certificates and signs what the control plane vouches for.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SigningKey,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{Digest, NODE_USER_PREFIX, NODES_GROUP, PkiError, digest_of_der, files, member_name, tls};

const CA_CERTIFICATE_FILE: &str = "ca.crt";
const CA_KEY_FILE: &str = "ca.key";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How far a fresh certificate's validity reaches back, for devices whose clocks are behind; no further than forth.
const BACKDATED_MAX: Duration = DAY;
const CA_VALID: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
const LEAF_VALID: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A certificate chain (leaf first, then the authority) and its private key, both PEM.
#[derive(Clone)]
pub struct Credentials {
    /// The chain.
    pub chain_pem: String,
    /// The private key, PKCS#8.
    pub key_pem: String,
}

/// A key pair made by whoever wants a certificate, and the request to have it certified.
pub struct Request {
    /// The PKCS#10 request, DER.
    pub csr_der: Vec<u8>,
    /// The private key, PKCS#8 PEM; it never leaves its maker.
    pub key_pem: String,
}

impl Request {
    /// A fresh ECDSA P-256 key with its request. The subject is left to the authority.
    ///
    /// # Errors
    /// [`PkiError::Issue`] when the system has no randomness to give.
    pub fn new() -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        let csr = CertificateParams::default().serialize_request(&key)?;
        Ok(Self { csr_der: csr.der().to_vec(), key_pem: key.serialize_pem() })
    }
}

/// A node's certificate.
#[derive(Clone, Debug)]
pub struct NodeCertificate {
    /// The chain, PEM: the certificate, then the authority's.
    pub chain_pem: String,
    /// The digest of its public key; see [`public_key_digest`].
    pub public_key: Digest,
}

/// An authority on its way to a server that joins.
#[derive(Clone)]
pub struct Handover {
    /// The authority's certificate, PEM.
    pub ca_pem: String,
    /// Its private key, PKCS#8 PEM.
    pub ca_key_pem: String,
}

impl std::fmt::Debug for Handover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handover(..)")
    }
}

/// The cluster's certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
    ca_der: Vec<u8>,
}

impl Authority {
    /// Keeps in `folder` the authority of a cluster that a server joins. The certificate's file is written last: where
    /// there is one, all is there.
    ///
    /// # Errors
    /// Those of writing the two files and of reading them again.
    pub fn adopt(folder: &Path, handover: &Handover) -> Result<Self, PkiError> {
        std::fs::create_dir_all(folder).map_err(|source| PkiError::Io { path: folder.into(), source })?;
        files::write_private(&folder.join(CA_KEY_FILE), &handover.ca_key_pem)?;
        files::write_private(&folder.join(CA_CERTIFICATE_FILE), &handover.ca_pem)?;
        Self::open_or_create(folder)
    }

    /// What a server that joins needs in order to be an equal of this one. It lets its holder do everything.
    pub fn handover(&self) -> Handover {
        Handover { ca_pem: self.ca_pem.clone(), ca_key_pem: self.issuer.key().serialize_pem() }
    }

    /// The digest of the authority in `folder`, if there is one.
    ///
    /// # Errors
    /// When its certificate cannot be read.
    pub fn digest_in(folder: &Path) -> Result<Option<Digest>, PkiError> {
        files::read(&folder.join(CA_CERTIFICATE_FILE))?.map(|pem| crate::digest_of_pem(&pem)).transpose()
    }

    /// Reads the authority in `folder`, or makes one there. The key's file is written first: a certificate
    /// therefore always has its key.
    ///
    /// # Errors
    /// Those of reading, writing and parsing the two files.
    pub fn open_or_create(folder: &Path) -> Result<Self, PkiError> {
        std::fs::create_dir_all(folder).map_err(|source| PkiError::Io { path: folder.into(), source })?;
        let (key_file, ca_file) = (folder.join(CA_KEY_FILE), folder.join(CA_CERTIFICATE_FILE));
        let key = match files::read(&key_file)? {
            Some(pem) => KeyPair::from_pem(&pem)?,
            None => {
                let key = KeyPair::generate()?;
                files::write_private(&key_file, &key.serialize_pem())?;
                key
            }
        };
        let ca_pem = match files::read(&ca_file)? {
            Some(pem) => pem,
            None => {
                let pem = ca_params().self_signed(&key)?.pem();
                files::write_private(&ca_file, &pem)?;
                pem
            }
        };
        let ca_der = tls::certificates(&ca_pem, "CA certificate")?[0].to_vec();
        if public_key(&ca_der)? != key.public_key_raw() {
            return Err(PkiError::Certificate(format!(
                "{} does not belong to {}; restore both files from the same backup",
                ca_file.display(),
                key_file.display()
            )));
        }
        let issuer = Issuer::from_ca_cert_der(&tls::certificates(&ca_pem, "CA certificate")?[0], key)?;
        Ok(Self { issuer, ca_pem, ca_der })
    }

    /// The authority's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The authority's certificate, DER.
    pub fn ca_der(&self) -> &[u8] {
        &self.ca_der
    }

    /// What a join token pins: SHA-256 of the authority's certificate.
    pub fn ca_digest(&self) -> Digest {
        digest_of_der(&self.ca_der)
    }

    /// A server certificate for host names and IP addresses.
    ///
    /// # Errors
    /// [`PkiError::Issue`] when a name is not a valid DNS name.
    pub fn issue_server(&self, names: &[String]) -> Result<Credentials, PkiError> {
        self.issue_server_at(names, SystemTime::now())
    }

    pub(crate) fn issue_server_at(&self, names: &[String], now: SystemTime) -> Result<Credentials, PkiError> {
        let mut params = leaf_params("lichen", None, ExtendedKeyUsagePurpose::ServerAuth, now, LEAF_VALID);
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        self.issue_with_fresh_key(&params)
    }

    /// A client certificate: `user` becomes the common name, `group` the organisation.
    ///
    /// # Errors
    /// [`PkiError::Issue`] when the certificate cannot be made.
    pub fn issue_client(&self, user: &str, group: Option<&str>) -> Result<Credentials, PkiError> {
        self.issue_client_at(user, group, SystemTime::now())
    }

    pub(crate) fn issue_client_at(
        &self,
        user: &str,
        group: Option<&str>,
        now: SystemTime,
    ) -> Result<Credentials, PkiError> {
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        self.issue_with_fresh_key(&leaf_params(user, group, usage, now, LEAF_VALID))
    }

    /// The certificate of a member of the control plane, for both sides of what members say to each other; see
    /// [`member_name`](crate::member_name).
    ///
    /// # Errors
    /// [`PkiError::Issue`] when the certificate cannot be made.
    pub(crate) fn issue_member_at(&self, id: u64, now: SystemTime) -> Result<Credentials, PkiError> {
        let name = member_name(id);
        let mut params = leaf_params(&name, None, ExtendedKeyUsagePurpose::ServerAuth, now, LEAF_VALID);
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        self.issue_with_fresh_key(&params)
    }

    /// Certifies a node's own key for `valid` from now on. Only the public key is taken from the request, whose signature
    /// must prove possession; the subject is ours.
    ///
    /// # Errors
    /// [`PkiError::Issue`] when the request is malformed or its signature does not verify.
    pub fn certify_node(
        &self,
        csr_der: &[u8],
        node: &str,
        valid: Duration,
    ) -> Result<NodeCertificate, PkiError> {
        let request = CertificateSigningRequestParams::from_der(&csr_der.into())?;
        let user = format!("{NODE_USER_PREFIX}{node}");
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        let params = leaf_params(&user, Some(NODES_GROUP), usage, SystemTime::now(), valid);
        let certificate = params.signed_by(&request.public_key, &self.issuer)?;
        Ok(NodeCertificate {
            chain_pem: format!("{}{}", certificate.pem(), self.ca_pem),
            public_key: digest_of_der(request.public_key.der_bytes()),
        })
    }

    /// Signs `message` under `context`, which keeps signatures of one purpose from serving another; see [`verify`].
    ///
    /// # Errors
    /// [`PkiError::Issue`] when the system has no randomness to give.
    pub fn sign(&self, context: &str, message: &[u8]) -> Result<Vec<u8>, PkiError> {
        Ok(self.issuer.key().sign(&signed_bytes(context, message))?)
    }

    fn issue_with_fresh_key(&self, params: &CertificateParams) -> Result<Credentials, PkiError> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let chain_pem = format!("{}{}", certificate.pem(), self.ca_pem);
        Ok(Credentials { chain_pem, key_pem: key.serialize_pem() })
    }
}

/// Checks a signature made by [`Authority::sign`] against the authority's certificate (PEM).
///
/// # Errors
/// [`PkiError::Signature`] when it does not verify.
pub fn verify(ca_pem: &str, context: &str, message: &[u8], signature: &[u8]) -> Result<(), PkiError> {
    let key = public_key(&tls::certificates(ca_pem, "CA certificate")?[0])?;
    ring::signature::UnparsedPublicKey::new(&ring::signature::ECDSA_P256_SHA256_ASN1, key)
        .verify(&signed_bytes(context, message), signature)
        .map_err(|_| PkiError::Signature)
}

/// The context comes first and ends in a zero byte, so these bytes can be no certificate (DER starts with 0x30)
/// and no two contexts share a message.
fn signed_bytes(context: &str, message: &[u8]) -> Vec<u8> {
    [b"lichen ", context.as_bytes(), &[0], message].concat()
}

/// SHA-256 of a certificate's public key: it names the key pair, whatever certificate it has.
///
/// # Errors
/// [`PkiError::Certificate`] when the bytes are no certificate.
pub fn public_key_digest(certificate_der: &[u8]) -> Result<Digest, PkiError> {
    Ok(digest_of_der(&public_key(certificate_der)?))
}

fn public_key(der: &[u8]) -> Result<Vec<u8>, PkiError> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|e| PkiError::Certificate(e.to_string()))?;
    Ok(certificate.public_key().subject_public_key.data.to_vec())
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "lichen-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    set_validity(&mut params, SystemTime::now(), CA_VALID);
    params
}

fn leaf_params(
    user: &str,
    group: Option<&str>,
    usage: ExtendedKeyUsagePurpose,
    now: SystemTime,
    valid: Duration,
) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, now, valid);
    params
}

fn set_validity(params: &mut CertificateParams, now: SystemTime, valid: Duration) {
    params.not_before = (now - valid.min(BACKDATED_MAX)).into();
    params.not_after = (now + valid).into();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Identity, MASTERS_GROUP};

    fn authority() -> (tempfile::TempDir, Authority) {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(folder.path()).unwrap();
        (folder, authority)
    }

    #[test]
    fn an_authority_is_the_same_when_opened_again() {
        let (folder, first) = authority();
        let second = Authority::open_or_create(folder.path()).unwrap();
        assert_eq!(first.ca_digest(), second.ca_digest());
        let signature = second.sign("test", b"message").unwrap();
        verify(first.ca_pem(), "test", b"message", &signature).unwrap();
    }

    #[test]
    fn a_key_of_another_authority_is_refused() {
        let ((one, _), (two, _)) = (authority(), authority());
        std::fs::copy(one.path().join(CA_KEY_FILE), two.path().join(CA_KEY_FILE)).unwrap();
        let error = Authority::open_or_create(two.path()).err().unwrap();
        assert!(error.to_string().contains("does not belong to"), "{error}");
    }

    #[test]
    fn the_key_is_readable_by_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let (folder, _) = authority();
        let mode = std::fs::metadata(folder.path().join(CA_KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_signature_holds_for_its_message_context_and_authority_only() {
        let ((_a, ours), (_b, other)) = (authority(), authority());
        let signature = ours.sign("artifact", b"message").unwrap();
        verify(ours.ca_pem(), "artifact", b"message", &signature).unwrap();
        for (ca, context, message) in [
            (ours.ca_pem(), "artifact", b"massage"),
            (ours.ca_pem(), "another", b"message"),
            (other.ca_pem(), "artifact", b"message"),
        ] {
            assert!(matches!(verify(ca, context, message, &signature), Err(PkiError::Signature)));
        }
    }

    #[test]
    fn identities_come_back_as_they_were_issued() {
        let (_folder, authority) = authority();
        let admin = authority.issue_client("admin", Some(MASTERS_GROUP)).unwrap();
        let der = &tls::certificates(&admin.chain_pem, "chain").unwrap()[0];
        let identity = Identity::from_certificate(der).unwrap();
        assert_eq!(identity.user, "admin");
        assert_eq!(identity.groups, [MASTERS_GROUP]);
        assert_eq!(identity.node(), None);
    }

    #[test]
    fn a_node_gets_our_subject_whatever_its_request_says() {
        let (_folder, authority) = authority();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "admin");
        params.distinguished_name.push(DnType::OrganizationName, MASTERS_GROUP);
        let csr = params.serialize_request(&key).unwrap();
        let issued = authority.certify_node(csr.der(), "edge-1", DAY).unwrap();
        let der = &tls::certificates(&issued.chain_pem, "chain").unwrap()[0];
        let identity = Identity::from_certificate(der).unwrap();
        assert_eq!(identity.node(), Some("edge-1"));
        assert_eq!(identity.groups, [NODES_GROUP]);
        assert_eq!(public_key_digest(der).unwrap(), issued.public_key);
        assert_ne!(public_key_digest(authority.ca_der()).unwrap(), issued.public_key);
    }

    #[test]
    fn a_request_that_was_tampered_with_is_refused() {
        let (_folder, authority) = authority();
        let mut csr = Request::new().unwrap().csr_der;
        let last = csr.len() - 1;
        csr[last] ^= 1;
        assert!(authority.certify_node(&csr, "edge-1", DAY).is_err());
        assert!(authority.certify_node(b"junk", "edge-1", DAY).is_err());
    }
}
