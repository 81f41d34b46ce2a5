//! Servers that become members, and those that don't.

use lichen_store::{ErrorKind, Role};

use super::*;
use crate::Join;

fn member(dir: &std::path::Path) -> Config {
    Config { peer_addr: Some("127.0.0.1:0".parse().unwrap()), ..Config::new(dir) }
}

fn joining(dir: &std::path::Path, server: &Server, token: &str) -> Config {
    let join = Join { server: format!("https://{}", server.api_addr()), token: token.to_owned() };
    Config { join: Some(join), ..member(dir) }
}

const HOUR: Duration = Duration::from_secs(3600);

/// Waits until a server sees so many voters.
async fn voters(server: &Server, count: usize) {
    loop {
        let members = server.store.members().unwrap();
        if members.iter().filter(|member| member.role != Role::Learner).count() == count {
            return;
        }
        server.store.members_changed(&members).await;
    }
}

/// Waits until a server knows what the leader knows, however often that changes on a machine that is busy.
async fn follows(server: &Server) {
    while let Err(error) = server.store.barrier().await {
        assert_eq!(error.kind(), ErrorKind::Retryable, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_alone_keeps_what_it_had_when_others_join_it() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let alone = Server::start(Config::new(one.path())).await.unwrap();
    let who = admin(&alone);
    let made = call(&alone, Some(&who), "POST", CONFIG_MAPS, config_map()).await;
    assert_eq!(made.0, 201, "{}", made.1);
    // Nobody can join it yet, and it says what to do.
    let token = alone.create_member_token(HOUR).await.unwrap();
    let error = Server::start(joining(two.path(), &alone, &token)).await.unwrap_err().to_string();
    assert!(error.contains("--cluster-init"), "{error}");
    alone.shutdown().await;

    let first = Server::start(Config { cluster_init: true, ..member(one.path()) }).await.unwrap();
    let second = Server::start(joining(two.path(), &first, &token)).await.unwrap();
    voters(&first, 2).await;
    follows(&second).await;
    let (code, kept) = call(&second, Some(&who), "GET", &format!("{CONFIG_MAPS}/kept"), Value::Null).await;
    assert_eq!((code, &kept["data"]["k"]), (200, &json!("v")), "{kept}");
    assert_eq!(second.ca_pem(), first.ca_pem());
    let key = two.path().join("pki/ca.key");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&key).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);

    // It starts again with nothing said, and with what was said before, though that has expired by then.
    let (code, _) = call(&second, Some(&who), "GET", MEMBERS_PATH, Value::Null).await;
    assert_eq!(code, 200);
    let again = joining(two.path(), &first, &token);
    second.shutdown().await;
    for config in [Config::new(two.path()), again] {
        let second = Server::start(config).await.unwrap();
        follows(&second).await;
        assert_eq!(second.store.members().unwrap().len(), 2);
        second.shutdown().await;
    }
    first.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_does_not_hold_makes_no_member_and_leaves_nothing() {
    let (one, two, three) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = Server::start(member(one.path())).await.unwrap();
    let other = Server::start(member(three.path())).await.unwrap();
    let good = first.create_member_token(HOUR).await.unwrap();
    let (id, rest) = good.split_once('.').unwrap();
    let (secret, digest) = rest.split_once('.').unwrap();
    let flipped: String = secret.chars().rev().collect();
    let check = async |token: String, words: &str| {
        let error = Server::start(joining(two.path(), &first, &token)).await.unwrap_err().to_string();
        assert!(error.contains(words), "{error:?} should say {words:?}");
        assert!(!two.path().join("pki").exists(), "{words}");
    };
    check("nonsense".into(), "not a join token").await;
    check(format!("{id}.{flipped}.{digest}"), "its secret is wrong").await;
    check(format!("zzzzzz.{secret}.{digest}"), "there is no such token").await;
    check(first.create_token(HOUR).await.unwrap(), "the token is for nodes, not for members").await;
    // It has expired, or is cleaned away already.
    check(first.create_member_token(Duration::ZERO).await.unwrap(), "the token is not accepted").await;
    check(other.create_member_token(HOUR).await.unwrap(), "of another cluster than the token").await;
    assert_eq!(first.store.members().unwrap().len(), 1);

    // A directory that holds a cluster joins no other one, nor itself.
    for (token, words) in
        [(&good, "holds another cluster"), (&other.create_member_token(HOUR).await.unwrap(), "itself")]
    {
        let config = joining(three.path(), &first, token);
        let error = member::open(&config).await.err().unwrap().to_string();
        assert!(error.contains(words), "{error:?} should say {words:?}");
    }
    // The directory that was refused before joins with a good token.
    let second = Server::start(joining(two.path(), &first, &good)).await.unwrap();
    voters(&first, 2).await;
    second.shutdown().await;
    first.shutdown().await;
    other.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_of_the_members_is_answered_to_masters_only() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(member(dir.path())).await.unwrap();
    let who = admin(&server);
    let check = async |method: &str, path: &str, code: u16, words: &str| {
        let (found, status) =
            call(&server, Some(&who), method, &format!("{MEMBERS_PATH}{path}"), Value::Null).await;
        assert_eq!(found, code, "{method} {path}: {status}");
        assert!(status.to_string().contains(words), "{method} {path}: {status}");
    };
    let id = format!("{:016x}", server.store.member_id().unwrap());
    check("GET", "", 200, &id).await;
    check("DELETE", &format!("/{id}"), 409, "is the last voter").await;
    check("DELETE", "/7", 409, "there is no member 0000000000000007").await;
    check("DELETE", "/edge-1", 400, "lichen member list").await;
    check("POST", &format!("/{id}/transfer-leader"), 200, "Success").await;
    check("POST", "/7/promote", 409, "there is no member").await;
    check("PUT", "", 405, "").await;
    check("POST", "/7/other", 404, "").await;
    let node = server.authority.issue_client("system:node:edge-1", Some("system:nodes")).unwrap();
    for stranger in [None, Some(&node)] {
        assert_eq!(call(&server, stranger, "GET", MEMBERS_PATH, Value::Null).await.0, 403);
    }
    let (code, status) = call(&server, None, "POST", JOIN_PATH, json!({"protocol": 2})).await;
    assert_eq!(code, 400);
    assert!(status["message"].as_str().unwrap().contains("run the same version of lichen"), "{status}");
    server.shutdown().await;
}
