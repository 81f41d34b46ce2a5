//! A whole server, from its data directory to its sockets.

use std::error::Error;

use base64::Engine as _;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use lichen_pki::{ClientTrust, Credentials};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::*;

mod members;

/// The admin's credentials, out of the kubeconfig.
fn admin(server: &Server) -> Credentials {
    let config: Value = serde_json::from_str(&server.admin_kubeconfig()).unwrap();
    let user = &config["users"][0]["user"];
    let decode = |field: &str| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(user[field].as_str().unwrap()).unwrap();
        String::from_utf8(bytes).unwrap()
    };
    Credentials { chain_pem: decode("client-certificate-data"), key_pem: decode("client-key-data") }
}

async fn call(
    server: &Server,
    who: Option<&Credentials>,
    method: &str,
    path: &str,
    body: Value,
) -> (u16, Value) {
    let trust = ClientTrust::Authority(server.ca_pem().to_owned());
    let tls = TlsConnector::from(Arc::new(lichen_pki::client_config(&trust, who).unwrap()));
    let stream = TcpStream::connect(server.api_addr()).await.unwrap();
    let stream = tls.connect("127.0.0.1".try_into().unwrap(), stream).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "lichen")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    drop(sender);
    connection.await.unwrap().ok();
    (code, serde_json::from_slice(&bytes).unwrap_or_default())
}

fn config_map() -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept"}, "data": {"k": "v"}})
}

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(Config::new(dir.path())).await.unwrap();
    let who = admin(&server);
    let (code, made) = call(&server, Some(&who), "POST", CONFIG_MAPS, config_map()).await;
    assert_eq!(code, 201, "{made}");
    let ca = server.ca_pem().to_owned();
    server.shutdown().await;

    let server = Server::start(Config::new(dir.path())).await.unwrap();
    assert_eq!(server.ca_pem(), ca);
    // Certificates of the run before are still good: the authority is the same.
    let (code, kept) = call(&server, Some(&who), "GET", &format!("{CONFIG_MAPS}/kept"), Value::Null).await;
    assert_eq!(
        (code, &kept["metadata"]["uid"], &kept["data"]["k"]),
        (200, &made["metadata"]["uid"], &json!("v"))
    );
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_masters_use_the_api_and_its_artifacts() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(Config::new(dir.path())).await.unwrap();
    let who = admin(&server);
    assert_eq!(call(&server, Some(&who), "GET", "/api/v1/namespaces", Value::Null).await.0, 200);
    assert_eq!(call(&server, Some(&who), "GET", "/v2/", Value::Null).await.0, 200);
    let node = server.authority.issue_client("system:node:edge-1", Some("system:nodes")).unwrap();
    for path in ["/api/v1/nodes", CONFIG_MAPS, "/v2/"] {
        assert_eq!(call(&server, Some(&node), "GET", path, Value::Null).await.0, 403, "{path}");
        assert_eq!(call(&server, None, "GET", path, Value::Null).await.0, 403, "{path}");
    }
    let token = server.create_token(Duration::from_secs(60)).await.unwrap();
    assert_eq!(token.split('.').count(), 3);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_the_same_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(Config::new(dir.path())).await.unwrap();
    let error = Server::start(Config::new(dir.path())).await.unwrap_err();
    assert!(error.source().unwrap().to_string().contains("in use by another process"), "{error:?}");
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named_and_leaves_the_directory_free() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for broken in [
        Config { api_addr: address, ..Config::new(dir.path()) },
        Config { broker: Broker::Embedded(address), ..Config::new(dir.path()) },
    ] {
        let error = Server::start(broken).await.unwrap_err();
        assert!(error.source().unwrap().to_string().contains(&address.to_string()), "{error:?}");
    }
    Server::start(Config::new(dir.path())).await.unwrap().shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_that_is_a_file_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Server::start(Config::new(file.path().join("data"))).await.unwrap_err();
    assert!(error.to_string().contains(&file.path().display().to_string()), "{error:?}");
}
