//! What the command reads from a user's files, over the corpus in `tests/corpus`.

use lichen_fuzz::Fuzz;

use crate::{kubeconfig, manifest};

fn fuzz(name: &str) -> Fuzz {
    Fuzz::new(env!("CARGO_MANIFEST_DIR"), name)
}

#[test]
fn a_kubeconfig_gives_access_or_a_reason() {
    const INLINE: &str = "
apiVersion: v1
kind: Config
current-context: here
clusters: [{name: c, cluster: {server: 'https://127.0.0.1:6443/', certificate-authority-data: Y2E=}}]
contexts: [{name: here, context: {cluster: c, user: u, namespace: team}}, {name: there, context: {cluster: d, user: u}}]
users: [{name: u, user: {client-certificate-data: Y2VydA==, client-key-data: a2V5}}]
";
    let files = INLINE
        .replace("certificate-authority-data: Y2E=", "certificate-authority: ca.pem")
        .replace("client-key-data: a2V5", "client-key: /keys/key.pem");
    let json = r#"{"current-context":"a","clusters":[{"name":"a","cluster":{"server":"https://a","certificate-authority-data":"Y2E="}}],"contexts":[{"name":"a","context":{"cluster":"a","user":"a"}}],"users":[{"name":"a","user":{"client-certificate-data":"Yw==","client-key-data":"aw==","extra":{"a":[1,null]}}}]}"#;
    let examples = [("inline", INLINE), ("files", &files), ("json", json)];
    fuzz("kubeconfig").examples(examples).run(|bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        let Ok(access) = kubeconfig::parse(text, &|_| Ok("pem".to_owned())) else { return false };
        assert!(access.servers.iter().all(|server| !server.ends_with('/')));
        let missing = kubeconfig::parse(text, &|path| Err(std::io::Error::other(path.display().to_string())));
        let files = ["certificate-authority: ", "client-certificate: ", "client-key: "];
        match missing {
            Ok(again) => assert_eq!(again.credentials.key_pem, access.credentials.key_pem),
            Err(why) => assert!(files.iter().any(|file| why.to_string().starts_with(file)), "{why:#}"),
        }
        true
    });
}

#[test]
fn a_manifest_gives_objects_with_a_kind_and_a_name() {
    const MANY: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: a}
---
---
apiVersion: v1
kind: List
items:
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: d, namespace: a}, spec: {replicas: 1.5e3}}
";
    let examples = [
        ("many", MANY),
        ("json", r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"m"},"data":{"a":"b"}}"#),
        (
            "alias",
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m, labels: &l {a: b}, annotations: *l}\n",
        ),
    ];
    fuzz("manifest").examples(examples).run(|bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        let Ok(items) = manifest::parse(text) else { return false };
        assert!(!items.is_empty());
        let list = serde_json::json!({"kind": "List", "items": items.iter().map(|item| &item.object).collect::<Vec<_>>()});
        let again = manifest::parse(&list.to_string()).unwrap();
        let told = |items: &[manifest::Item]| -> Vec<(String, serde_json::Value)> {
            items.iter().map(|item| (item.title(), item.object.clone())).collect()
        };
        assert_eq!(told(&again), told(&items));
        true
    });
}
