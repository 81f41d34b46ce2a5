//! Who a peer is, as its certificate says.

use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::PkiError;

/// The group that may do everything.
pub const MASTERS_GROUP: &str = "system:masters";
/// The group of every node.
pub const NODES_GROUP: &str = "system:nodes";
/// A node's user name is this and the node's name.
pub const NODE_USER_PREFIX: &str = "system:node:";
/// The user that the administrator's kubeconfig carries.
pub const ADMIN_USER: &str = "admin";
/// The user under which the gateway speaks to a broker.
pub const GATEWAY_USER: &str = "system:gateway";

/// The domain of the names of members.
const MEMBERS_DOMAIN: &str = ".members.lichen";

/// The name of a member of the control plane, as its certificate has it.
pub fn member_name(id: u64) -> String {
    format!("{id:016x}{MEMBERS_DOMAIN}")
}

/// The id of the member that a certificate, which TLS has already verified, names; `None` for one of somebody else.
pub fn member_of(der: &[u8]) -> Option<u64> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let [GeneralName::DNSName(name)] = names.value.general_names.as_slice() else { return None };
    let id = u64::from_str_radix(name.strip_suffix(MEMBERS_DOMAIN)?, 16).ok()?;
    (member_name(id) == *name).then_some(id)
}

/// A user and the groups it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate's common name.
    pub user: String,
    /// The certificate's organisations.
    pub groups: Vec<String>,
}

impl Identity {
    /// Reads the subject of a certificate that TLS has already verified.
    ///
    /// # Errors
    /// [`PkiError::Certificate`] when the bytes are no certificate, or its subject has no common name.
    pub fn from_certificate(der: &[u8]) -> Result<Self, PkiError> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|e| PkiError::Certificate(e.to_string()))?;
        let subject = certificate.subject();
        let user = subject
            .iter_common_name()
            .next()
            .and_then(|name| name.as_str().ok())
            .ok_or_else(|| PkiError::Certificate("its subject has no common name".into()))?
            .to_owned();
        let groups =
            subject.iter_organization().filter_map(|name| name.as_str().ok()).map(str::to_owned).collect();
        Ok(Self { user, groups })
    }

    /// The name of the node this is, if it is one: both the user and the group must say so.
    pub fn node(&self) -> Option<&str> {
        let name = self.user.strip_prefix(NODE_USER_PREFIX)?;
        self.groups.iter().any(|group| group == NODES_GROUP).then_some(name)
    }
}
