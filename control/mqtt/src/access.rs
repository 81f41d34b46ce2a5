//! How a client reaches a broker, and proves itself to it.

use std::fmt;
use std::sync::Arc;

use lichen_pki::{ClientTrust, Credentials, PkiError, client_config};
use thiserror::Error;

/// The scheme of MQTT over TLS, the only one spoken.
const SCHEME: &str = "mqtts://";

/// A text that names no broker.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "the broker {0:?} is not HOST:PORT, for example server.example:8883, or several of them with commas in between; only MQTT \
     over TLS (mqtts) is spoken"
)]
pub struct AddressError(String);

/// A user name and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The user.
    pub username: String,
    /// The password. It is never shown.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

/// How a client reaches a broker that is not necessarily the cluster's own, and proves itself to it.
#[derive(Clone, Default)]
pub struct Access {
    /// `host:port`, or several; see [`address`].
    pub address: String,
    /// The authority of the broker's certificate (PEM); the cluster's own unless told otherwise.
    pub ca_pem: Option<String>,
    /// What the client shows the broker; its cluster identity unless told otherwise or there is a login.
    pub credentials: Option<Credentials>,
    /// The user that the client is to the broker.
    pub login: Option<Login>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Access");
        debug.field("address", &self.address).field("login", &self.login).finish_non_exhaustive()
    }
}

impl Access {
    /// A broker of the cluster itself.
    pub fn new(address: impl Into<String>) -> Self {
        Self { address: address.into(), ..Self::default() }
    }

    /// TLS for this broker. `cluster` is whom to believe, and `own` what to show, where nothing else is said.
    ///
    /// # Errors
    /// When a certificate or a key can't be used.
    pub fn tls(
        &self,
        cluster: &ClientTrust,
        own: Option<&Credentials>,
    ) -> Result<Arc<rustls::ClientConfig>, PkiError> {
        let trust = match &self.ca_pem {
            Some(pem) => &ClientTrust::Authority(pem.clone()),
            None => cluster,
        };
        let own = self.credentials.as_ref().or(own.filter(|_| self.login.is_none()));
        Ok(Arc::new(client_config(trust, own)?))
    }
}

/// The `host:port` of a broker that is written as such or as `mqtts://host:port`; of several, if there are commas in
/// between.
///
/// # Errors
/// When one of them is neither.
pub fn address(text: &str) -> Result<String, AddressError> {
    let one = |text: &str| {
        let text = text.trim();
        let address = text.strip_prefix(SCHEME).unwrap_or(text).trim_end_matches('/');
        let valid = host(address).is_some_and(|host| !host.is_empty() && !host.contains(['/', '@']));
        if valid { Ok(address.to_owned()) } else { Err(AddressError(text.to_owned())) }
    };
    let all: Vec<String> = text.split(',').map(one).collect::<Result<_, _>>()?;
    Ok(all.join(","))
}

/// Each address of a list.
pub(crate) fn addresses(list: &str) -> impl ExactSizeIterator<Item = &str> {
    list.split(',').map(str::trim).collect::<Vec<_>>().into_iter()
}

/// The host of `host:port`, without the brackets of an IPv6 address.
pub(crate) fn host(address: &str) -> Option<&str> {
    let (host, port) = address.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    match host.strip_prefix('[') {
        Some(host) => host.strip_suffix(']'),
        None => (!host.contains(':')).then_some(host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let check = |text: &str, expect: Option<&str>| {
            assert_eq!(address(text).ok().as_deref(), expect, "{text}");
        };
        check("broker.example:8883", Some("broker.example:8883"));
        check("mqtts://broker.example:8883", Some("broker.example:8883"));
        check("mqtts://[::1]:8883/", Some("[::1]:8883"));
        check("mqtts://broker.example", None);
        check("mqtt://broker.example:1883", None);
        check("wss://broker.example:443", None);
        check("mqtts://user@broker.example:8883", None);
        check("::1:8883", None);
        check(":8883", None);
        check("host:port", None);
        check("a.example:1, mqtts://[::1]:2/,b:3", Some("a.example:1,[::1]:2,b:3"));
        check("a.example:1,", None);
        check("a.example:1,b", None);
        assert_eq!(host("[::1]:1"), Some("::1"));
    }

    #[test]
    fn a_password_is_not_shown() {
        let login = Login { username: "edge-1".into(), password: "secret".into() };
        let access = Access { login: Some(login), ..Access::new("b:1") };
        assert!(!format!("{access:?}").contains("secret"));
    }
}
