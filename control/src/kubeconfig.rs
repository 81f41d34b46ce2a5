//! The file by which kubectl and every other client finds the cluster and proves who its user is.
//!
//! It has an entry for each member. kubectl uses the first, which is the member that wrote the file, and others by
//! `--context`; `lichen` tries them in turn. The file follows the members as they come and go.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lichen_peers::{MEMBERS_PREFIX, MemberRecord};
use lichen_pki::Credentials;
use lichen_store::{Store, WatchError};
use serde_json::{Value, json};

/// What the cluster is called in a kubeconfig.
const CLUSTER: &str = "lichen";

/// What goes into an administrator's kubeconfig, beside the members.
#[derive(Clone)]
pub(crate) struct Kubeconfig {
    /// The URL of this member's API.
    pub(crate) url: String,
    /// The cluster's authority.
    pub(crate) ca_pem: String,
    /// The user's name.
    pub(crate) user: &'static str,
    /// Who the user proves to be.
    pub(crate) credentials: Credentials,
}

impl Kubeconfig {
    /// A kubeconfig with everything inline. It is JSON, which is YAML.
    pub(crate) fn text(&self, store: &Store) -> String {
        let others = MemberRecord::all(store).into_iter().map(|(_, record)| record.api_url);
        self.with(others.filter(|url| !url.is_empty()))
    }

    fn with(&self, members: impl Iterator<Item = String>) -> String {
        let mut urls = vec![(CLUSTER.to_owned(), self.url.clone())];
        for url in members {
            if urls.iter().all(|(_, known)| *known != url) {
                urls.push((format!("{CLUSTER}@{}", url.trim_start_matches("https://")), url));
            }
        }
        let encode = |text: &str| STANDARD.encode(text);
        let ca = encode(&self.ca_pem);
        let clusters: Vec<Value> = urls
            .iter()
            .map(|(name, url)| {
                json!({"name": name, "cluster": {"server": url, "certificate-authority-data": ca}})
            })
            .collect();
        let contexts: Vec<Value> = urls
            .iter()
            .map(|(name, _)| json!({"name": name, "context": {"cluster": name, "user": self.user}}))
            .collect();
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": clusters,
            "users": [{
                "name": self.user,
                "user": {
                    "client-certificate-data": encode(&self.credentials.chain_pem),
                    "client-key-data": encode(&self.credentials.key_pem),
                },
            }],
            "contexts": contexts,
            "current-context": CLUSTER,
        });
        format!("{config:#}\n")
    }

    /// Writes the file whenever the members change, until the store closes.
    pub(crate) async fn keep(self, path: PathBuf, store: Store) {
        let mut written = self.text(&store);
        loop {
            let Ok(mut watch) = store.watch(MEMBERS_PREFIX, store.revision()) else { continue };
            loop {
                let text = self.text(&store);
                if text != written {
                    match write_private(&path, &text) {
                        Ok(()) => written = text,
                        Err(error) => {
                            tracing::warn!(%error, path = %path.display(), "cannot write the kubeconfig")
                        }
                    }
                }
                match watch.next().await {
                    Ok(_) => {}
                    Err(WatchError::Lagged) => break,
                    Err(WatchError::Closed) => return,
                }
            }
        }
    }
}

/// Writes a file that its owner alone may read, whole or not at all.
pub(crate) fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_has_an_entry() {
        let credentials = Credentials { chain_pem: "chain".into(), key_pem: "key".into() };
        let url = "https://10.0.0.1:6443".to_owned();
        let config = Kubeconfig { url: url.clone(), ca_pem: "ca".into(), user: "admin", credentials };
        let text = config.with([url, "https://10.0.0.2:6443".to_owned()].into_iter());
        let value: Value = serde_json::from_str(&text).unwrap();
        let servers: Vec<_> =
            value["clusters"].as_array().unwrap().iter().map(|one| &one["cluster"]["server"]).collect();
        assert_eq!(servers, ["https://10.0.0.1:6443", "https://10.0.0.2:6443"]);
        assert_eq!(value["contexts"][1]["name"], "lichen@10.0.0.2:6443");
        assert_eq!(value["current-context"], value["contexts"][0]["name"]);
    }
}
