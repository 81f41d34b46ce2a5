//! Reading a kubeconfig: the part of it that names a server and a client certificate.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lichen_pki::Credentials;
use serde::Deserialize;

/// How to reach a cluster's API, and as whom.
#[derive(Clone)]
pub(crate) struct Access {
    /// `https://host:port` of each server, without a trailing slash; the current one first.
    pub(crate) servers: Vec<String>,
    /// The authority that issued the server's certificate, PEM.
    pub(crate) ca_pem: String,
    /// The client certificate.
    pub(crate) credentials: Credentials,
    /// The namespace of the current context.
    pub(crate) namespace: String,
}

/// Where kubectl would look: the option, `KUBECONFIG`, `~/.kube/config`.
pub(crate) fn locate(option: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = option {
        return Ok(path.into());
    }
    if let Some(list) = std::env::var_os("KUBECONFIG").filter(|list| !list.is_empty()) {
        let first = std::env::split_paths(&list).find(|path| path.exists());
        return first.with_context(|| format!("KUBECONFIG names no file that exists: {}", list.display()));
    }
    let home = std::env::var_os("HOME").context("neither KUBECONFIG nor HOME is set; use --kubeconfig")?;
    Ok(PathBuf::from(home).join(".kube/config"))
}

/// Reads the current context of a kubeconfig.
pub(crate) fn read(path: &Path) -> Result<Access> {
    let text = std::fs::read_to_string(path).with_context(|| {
        format!("cannot read the kubeconfig {}; use --kubeconfig or set KUBECONFIG", path.display())
    })?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let file = |file: &Path| std::fs::read_to_string(folder.join(file));
    parse(&text, &file).with_context(|| format!("in the kubeconfig {}", path.display()))
}

/// Reads the current context of a kubeconfig's text, whose other files `file` reads.
pub(crate) fn parse(text: &str, file: &dyn Fn(&Path) -> std::io::Result<String>) -> Result<Access> {
    let config: Kubeconfig = serde_yaml_ng::from_str(text).context("it is no kubeconfig")?;
    config.access(file)
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct Kubeconfig {
    current_context: String,
    clusters: Vec<Named<Cluster>>,
    contexts: Vec<Named<KubeContext>>,
    users: Vec<Named<User>>,
}

#[derive(Deserialize)]
struct Named<T> {
    name: String,
    #[serde(alias = "cluster", alias = "context", alias = "user")]
    value: T,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct Cluster {
    server: String,
    certificate_authority_data: Option<String>,
    certificate_authority: Option<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct KubeContext {
    cluster: String,
    user: String,
    namespace: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    client_certificate_data: Option<String>,
    client_certificate: Option<PathBuf>,
    client_key_data: Option<String>,
    client_key: Option<PathBuf>,
}

impl Cluster {
    fn has_authority_of(&self, other: &Cluster) -> bool {
        (&self.certificate_authority_data, &self.certificate_authority)
            == (&other.certificate_authority_data, &other.certificate_authority)
    }
}

impl Kubeconfig {
    fn access(&self, file: &dyn Fn(&Path) -> std::io::Result<String>) -> Result<Access> {
        if self.current_context.is_empty() {
            bail!("current-context is not set");
        }
        let context = find(&self.contexts, &self.current_context, "context")?;
        let cluster = find(&self.clusters, &context.cluster, "cluster")?;
        let user = find(&self.users, &context.user, "user")?;
        let pem = |data: &Option<String>, path: &Option<PathBuf>, what| pem(data, path, file, what);
        // Clusters of the same authority are the same cluster: other members of its control plane.
        let all = std::iter::once(cluster).chain(self.clusters.iter().map(|named| &named.value));
        let mut servers = Vec::new();
        for same in all.filter(|other| other.has_authority_of(cluster)) {
            let server = same.server.trim_end_matches('/').to_owned();
            if !servers.contains(&server) {
                servers.push(server);
            }
        }
        Ok(Access {
            servers,
            ca_pem: pem(
                &cluster.certificate_authority_data,
                &cluster.certificate_authority,
                "certificate-authority",
            )?,
            credentials: Credentials {
                chain_pem: pem(
                    &user.client_certificate_data,
                    &user.client_certificate,
                    "client-certificate",
                )?,
                key_pem: pem(&user.client_key_data, &user.client_key, "client-key")?,
            },
            namespace: context.namespace.clone().unwrap_or_else(|| "default".into()),
        })
    }
}

fn find<'a, T>(list: &'a [Named<T>], name: &str, what: &str) -> Result<&'a T> {
    let found = list.iter().find(|entry| entry.name == name);
    found.map(|entry| &entry.value).with_context(|| format!("there is no {what} named {name:?}"))
}

fn pem(
    data: &Option<String>,
    path: &Option<PathBuf>,
    file: &dyn Fn(&Path) -> std::io::Result<String>,
    what: &str,
) -> Result<String> {
    if let Some(data) = data {
        let bytes = STANDARD.decode(data.trim()).with_context(|| format!("{what}-data is not base64"))?;
        return String::from_utf8(bytes).with_context(|| format!("{what}-data is not PEM"));
    }
    let path = path
        .as_ref()
        .with_context(|| format!("{what} is missing (only client certificates are supported)"))?;
    file(path).with_context(|| format!("{what}: {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "
apiVersion: v1
kind: Config
current-context: here
clusters:
- {name: other, cluster: {server: 'https://192.0.2.1:6443', certificate-authority-data: b3RoZXI=}}
- {name: c2, cluster: {server: 'https://127.0.0.2:6443', certificate-authority-data: Y2E=}}
- {name: c, cluster: {server: 'https://127.0.0.1:6443/', certificate-authority-data: Y2E=}}
contexts: [{name: here, context: {cluster: c, user: u, namespace: team}}]
users: [{name: u, user: {client-certificate-data: Y2VydA==, client-key: key.pem}}]
";

    #[test]
    fn data_and_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config"), CONFIG).unwrap();
        std::fs::write(folder.path().join("key.pem"), "key").unwrap();
        let access = read(&folder.path().join("config")).unwrap();
        assert_eq!(access.servers, ["https://127.0.0.1:6443", "https://127.0.0.2:6443"]);
        assert_eq!(access.ca_pem, "ca");
        assert_eq!(access.credentials.chain_pem, "cert");
        assert_eq!(access.credentials.key_pem, "key");
        assert_eq!(access.namespace, "team");
    }

    #[test]
    fn what_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let cases = [
            (CONFIG.replace("current-context: here", "current-context: gone"), "no context named \"gone\""),
            (CONFIG.replace("user: u,", "user: x,"), "no user named \"x\""),
            (CONFIG.replace("Y2VydA==", "x.y"), "client-certificate-data is not base64"),
            (CONFIG.into(), "client-key: "),
            ("[".into(), "is no kubeconfig"),
        ];
        for (text, expect) in cases {
            let path = folder.path().join("config");
            std::fs::write(&path, text).unwrap();
            let error = format!("{:#}", read(&path).err().unwrap());
            assert!(error.contains(expect), "{error} should say {expect}");
        }
    }
}
