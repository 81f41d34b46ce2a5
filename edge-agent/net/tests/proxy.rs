//! The proxy over real sockets. Every test has cluster addresses of its own, so they run side by side.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use lichen_net::{AddressMode, Backend, Frontend, Proxy, ProxyConfig, Route, Routes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A backend that greets with its name, reads until the client half-closes, and repeats what it read.
async fn backend(name: &'static str) -> (Backend, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("has an address").port();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut text = String::new();
                let _ = stream.write_all(name.as_bytes()).await;
                let _ = stream.read_to_string(&mut text).await;
                let _ = stream.write_all(text.as_bytes()).await;
            });
        }
    });
    (Backend { ip: Ipv4Addr::LOCALHOST, port }, task)
}

fn routes(ip: [u8; 4], backends: &[Backend]) -> (Frontend, Routes) {
    let frontend = Frontend { ip: ip.into(), port: 18080 };
    let route = Route { namespace: "ns".into(), service: "web".into(), backends: backends.to_vec() };
    (frontend, Routes::from([(frontend, route)]))
}

fn proxy() -> Proxy {
    Proxy::new(ProxyConfig::new(AddressMode::Loopback, 0))
}

async fn connect(frontend: Frontend) -> std::io::Result<TcpStream> {
    TcpStream::connect((AddressMode::Loopback.map(frontend.ip), frontend.port)).await
}

async fn ask(frontend: Frontend, text: &str) -> std::io::Result<String> {
    let mut stream = connect(frontend).await?;
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn connections_go_round_and_half_close_is_passed_on() {
    let ((a, _a), (b, _b)) = (backend("a").await, backend("b").await);
    let (frontend, routes) = routes([10, 250, 1, 1], &[a, b]);
    let mut proxy = proxy();
    assert!(proxy.apply(&routes).is_empty());
    let mut answers = Vec::new();
    for i in 0..4 {
        answers.push(ask(frontend, &i.to_string()).await.expect("an answer"));
    }
    assert_eq!(answers, ["a0", "b1", "a2", "b3"]);
    proxy.shutdown(Duration::from_secs(1)).await;
    assert!(connect(frontend).await.is_err());
}

#[tokio::test]
async fn a_dead_backend_is_passed_over() {
    let (a, _a) = backend("a").await;
    let (dead, task) = backend("dead").await;
    task.abort();
    let _ = task.await;
    let (frontend, routes) = routes([10, 250, 1, 2], &[dead, a]);
    let mut proxy = proxy();
    assert!(proxy.apply(&routes).is_empty());
    for _ in 0..4 {
        assert_eq!(ask(frontend, "").await.expect("an answer"), "a");
    }
}

#[tokio::test]
async fn without_backends_a_connection_is_reset() {
    let (frontend, empty) = routes([10, 250, 1, 3], &[]);
    let mut proxy = proxy();
    assert!(proxy.apply(&empty).is_empty());
    let answer = ask(frontend, "").await;
    assert!(answer.is_err(), "{answer:?}");
    let (a, _a) = backend("a").await;
    proxy.apply(&routes([10, 250, 1, 3], &[a]).1);
    assert_eq!(ask(frontend, "").await.expect("an answer"), "a");
}

#[tokio::test]
async fn agents_of_one_machine_share_an_address() {
    let (a, _a) = backend("a").await;
    let (frontend, routes) = routes([10, 250, 1, 4], &[a]);
    let (mut one, mut two) = (proxy(), proxy());
    assert!(one.apply(&routes).is_empty());
    assert!(two.apply(&routes).is_empty());
    for _ in 0..8 {
        assert_eq!(ask(frontend, "").await.expect("an answer"), "a");
    }
}

#[tokio::test]
async fn a_port_in_use_is_reported_and_tried_again() {
    let (a, _a) = backend("a").await;
    let (frontend, routes) = routes([10, 250, 1, 5], &[a]);
    let squatter = TcpListener::bind("127.250.1.5:18080").await.expect("binds");
    let mut proxy = proxy();
    let errors = proxy.apply(&routes);
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].source.kind(), std::io::ErrorKind::AddrInUse);
    assert!(errors[0].to_string().starts_with("service ns/web: cannot listen on 127.250.1.5:18080"));
    drop(squatter);
    assert!(proxy.apply(&routes).is_empty());
    assert_eq!(ask(frontend, "").await.expect("an answer"), "a");
}

#[tokio::test]
async fn a_removed_route_lets_its_connections_end() {
    let (a, _a) = backend("a").await;
    let (frontend, routes) = routes([10, 250, 1, 6], &[a]);
    let mut proxy = proxy();
    proxy.apply(&routes);
    let mut open = connect(frontend).await.expect("connects");
    let mut hello = [0; 1];
    open.read_exact(&mut hello).await.expect("a greeting");
    proxy.apply(&Routes::new());
    // The listener closes in its own task.
    let mut refused = BTreeSet::new();
    for _ in 0..200 {
        refused.insert(connect(frontend).await.is_err());
        if refused.contains(&true) {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert!(refused.contains(&true));
    open.write_all(b"still").await.expect("writes");
    open.shutdown().await.expect("half-closes");
    let mut answer = String::new();
    open.read_to_string(&mut answer).await.expect("reads");
    assert_eq!(answer, "still");
}
