//! The file by which kubectl and every other client finds the cluster and proves who its user is.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lichen_pki::Credentials;
use serde_json::json;

/// What the cluster is called in a kubeconfig.
const CLUSTER: &str = "lichen";

/// A kubeconfig with everything inline. It is JSON, which is YAML.
pub(crate) fn kubeconfig(url: &str, ca_pem: &str, user: &str, credentials: &Credentials) -> String {
    let encode = |text: &str| STANDARD.encode(text);
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": CLUSTER,
            "cluster": { "server": url, "certificate-authority-data": encode(ca_pem) },
        }],
        "users": [{
            "name": user,
            "user": {
                "client-certificate-data": encode(&credentials.chain_pem),
                "client-key-data": encode(&credentials.key_pem),
            },
        }],
        "contexts": [{ "name": CLUSTER, "context": { "cluster": CLUSTER, "user": user } }],
        "current-context": CLUSTER,
    });
    format!("{config:#}\n")
}
