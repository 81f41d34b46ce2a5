//! How the node reaches its broker: as it is told, else as it was told before.

use std::path::{Path, PathBuf};

use anyhow::Context;
use lichen_mqtt::{Access, Login, address};
use lichen_pki::Credentials;
use lichen_state::Broker;

/// How to prove oneself to an MQTT broker that is not the cluster's own, and whom to believe there. Server and nodes are
/// told alike.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(id = "broker")]
pub struct BrokerArguments {
    /// The authority of the broker's certificate, a PEM file; the cluster's own unless told otherwise.
    #[arg(long, value_name = "FILE")]
    mqtt_ca: Option<PathBuf>,
    /// The certificate to show the broker, a PEM file; the one that the cluster issued unless told otherwise.
    #[arg(long, value_name = "FILE", requires = "mqtt_key")]
    mqtt_cert: Option<PathBuf>,
    /// The private key of that certificate, a PEM file.
    #[arg(long, value_name = "FILE", requires = "mqtt_cert")]
    mqtt_key: Option<PathBuf>,
    /// The user name for a broker that wants one.
    #[arg(long, value_name = "NAME", requires = "mqtt_password_file")]
    mqtt_username: Option<String>,
    /// A file that holds that user's password.
    #[arg(long, value_name = "FILE", requires = "mqtt_username")]
    mqtt_password_file: Option<PathBuf>,
}

impl BrokerArguments {
    /// Reads the files. `broker` is `mqtts://HOST:PORT` or `HOST:PORT`.
    ///
    /// # Errors
    /// When the broker's name is not usable or a file cannot be read.
    pub fn access(&self, broker: &str) -> anyhow::Result<Access> {
        let read =
            |path: &Option<PathBuf>, what: &str| path.as_deref().map(|path| read(path, what)).transpose();
        let certificate = read(&self.mqtt_cert, "--mqtt-cert")?;
        let key = read(&self.mqtt_key, "--mqtt-key")?;
        let password = read(&self.mqtt_password_file, "--mqtt-password-file")?;
        Ok(Access {
            address: address(broker)?,
            ca_pem: read(&self.mqtt_ca, "--mqtt-ca")?,
            credentials: certificate.zip(key).map(|(chain_pem, key_pem)| Credentials { chain_pem, key_pem }),
            login: self.mqtt_username.clone().zip(password).map(|(username, password)| Login {
                username,
                password: password.trim_end_matches(['\r', '\n']).to_owned(),
            }),
        })
    }

    /// Whether nothing was said.
    pub fn is_empty(&self) -> bool {
        let files = [&self.mqtt_ca, &self.mqtt_cert, &self.mqtt_password_file];
        files.into_iter().all(Option::is_none)
    }
}

fn read(path: &Path, what: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("{what} {}", path.display()))
}

/// What the checkpoint keeps of it.
pub(crate) fn keep(access: &Access) -> Broker {
    let credentials = access.credentials.clone();
    let login = access.login.clone();
    Broker {
        address: access.address.clone(),
        ca_pem: access.ca_pem.clone(),
        certificate_pem: credentials.map(|own| (own.chain_pem, own.key_pem)),
        login: login.map(|login| (login.username, login.password)),
    }
}

/// What the checkpoint has kept.
pub(crate) fn kept(broker: Broker) -> Access {
    Access {
        address: broker.address,
        ca_pem: broker.ca_pem,
        credentials: broker.certificate_pem.map(|(chain_pem, key_pem)| Credentials { chain_pem, key_pem }),
        login: broker.login.map(|(username, password)| Login { username, password }),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        broker: BrokerArguments,
    }

    #[test]
    fn what_is_said_is_read_and_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("writes");
            path.to_string_lossy().into_owned()
        };
        let (ca, cert, key) = (file("ca", "CA"), file("cert", "CERT"), file("key", "KEY"));
        let password = file("password", "a b \n");
        let parse =
            |arguments: &[&str]| Cli::try_parse_from(["node"].iter().chain(arguments)).map(|cli| cli.broker);
        let all = ["--mqtt-ca", &ca, "--mqtt-cert", &cert, "--mqtt-key", &key, "--mqtt-username", "u"];
        let all = [&all[..], &["--mqtt-password-file", &password]].concat();
        let access = parse(&all).expect("parses").access("mqtts://b:8883").expect("reads");
        assert_eq!(access.address, "b:8883");
        assert_eq!(access.ca_pem.as_deref(), Some("CA"));
        assert_eq!(access.credentials.as_ref().map(|own| own.key_pem.as_str()), Some("KEY"));
        assert_eq!(access.login, Some(Login { username: "u".into(), password: "a b ".into() }));
        assert_eq!(keep(&kept(keep(&access))), keep(&access));
        assert!(!format!("{:?}", keep(&access)).contains("a b"));

        assert!(parse(&[]).expect("parses").is_empty());
        for half in [["--mqtt-cert", &cert], ["--mqtt-key", &key], ["--mqtt-username", "u"]] {
            assert!(parse(&half).is_err(), "{half:?}");
        }
        let error =
            parse(&["--mqtt-ca", "/nowhere"]).expect("parses").access("b:1").expect_err("no such file");
        assert!(error.to_string().contains("--mqtt-ca /nowhere"), "{error}");
        assert!(parse(&[]).expect("parses").access("mqtt://b:1883").is_err());
    }
}
