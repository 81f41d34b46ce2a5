//! Components as containers: what the adapter adds to the conformance suite.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use futures_util::StreamExt;
use lichen_workload::{
    Artifact, ContainerId, ContainerSpec, Event, Exit, Limits, LogLimits, LogOptions, Mount, Runtime,
    RuntimeError, State,
};
use support::Node;

const LONG: Duration = Duration::from_secs(60);

fn id(text: &str) -> ContainerId {
    ContainerId::new(text).unwrap()
}

async fn run(node: &Node, spec: ContainerSpec) -> (Exit, String) {
    let id = spec.id.clone();
    let mut events = node.runtime.events();
    node.runtime.create(spec).await.unwrap();
    node.runtime.start(&id).await.unwrap();
    let exit = loop {
        if let Event::Exited { exit, .. } = tokio::time::timeout(LONG, events.recv()).await.unwrap().unwrap()
        {
            break exit;
        }
    };
    (exit, log(node, &id).await)
}

async fn log(node: &Node, id: &ContainerId) -> String {
    let mut chunks = node.runtime.logs(id, LogOptions::default()).unwrap();
    let mut all = Vec::new();
    while let Some(chunk) = chunks.next().await {
        all.extend_from_slice(&chunk.unwrap());
    }
    String::from_utf8(all).unwrap()
}

async fn get(address: SocketAddr, path: &'static str) -> (u16, String) {
    let exchange = move || {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    };
    tokio::task::spawn_blocking(exchange).await.unwrap()
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_container_sees_its_environment_and_its_mounts_and_nothing_else() {
    let node = Node::new();
    let folders = ["config", "scratch"].map(|name| node.dir.path().join(name));
    folders.iter().for_each(|folder| std::fs::create_dir(folder).unwrap());
    std::fs::write(folders[0].join("key"), "value").unwrap();
    // As the kubelet lays a ConfigMap out: the file is a link to one in a folder of its version.
    std::fs::create_dir(folders[0].join("..v1")).unwrap();
    std::fs::write(folders[0].join("..v1/linked"), "through").unwrap();
    std::os::unix::fs::symlink("..v1", folders[0].join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/linked", folders[0].join("linked")).unwrap();
    let args = [
        "env",
        "SET",
        "env",
        "HOME",
        "read",
        "/config/key",
        "read",
        "/config/linked",
        "write",
        "/config/key",
        "read",
        "/etc/hostname",
        "read",
        "/config/../../etc/hostname",
        "write",
        "/scratch/new",
        "read",
        "/scratch/new",
        "warn",
        "oops",
    ];
    let mut spec = node.spec(id("mounts"), "probe", &args);
    spec.env = vec![("SET".to_owned(), "yes".to_owned())];
    let [config, scratch] = folders;
    spec.mounts = vec![
        Mount { host: config, guest: "/config".to_owned(), read_only: true },
        Mount { host: scratch, guest: "/scratch".to_owned(), read_only: false },
    ];
    let (exit, log) = run(&node, spec).await;
    assert_eq!(exit, Exit::Code(0), "{log}");
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[..4], ["yes", "environment variable not found", "value", "through"]);
    assert!(lines[4..7].iter().all(|line| line.starts_with("error: ")), "{lines:?}");
    assert_eq!(lines[7..], ["written", "written", "oops"]);
    assert!(
        std::fs::read_to_string(node.dir.path().join("mounts.log")).unwrap().contains(" stderr F oops\n")
    );
}

#[tokio::test]
async fn a_container_cannot_reach_the_network() {
    let node = Node::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (exit, log) =
        run(&node, node.spec(id("net"), "probe", &["connect", &address, "connect", "localhost:80"])).await;
    assert_eq!(exit, Exit::Code(0));
    assert!(log.lines().count() == 2 && log.lines().all(|line| line.starts_with("error: ")), "{log}");
}

#[tokio::test]
async fn memory_beyond_the_limit_is_its_own_kind_of_exit() {
    let node = Node::new();
    let limited = |name: &str| {
        let mut spec = node.spec(id(name), "probe", &["print", "before", "allocate", "32", "print", "after"]);
        spec.limits = Limits { memory_bytes: Some(16 << 20), cpu_millis: None };
        spec
    };
    assert_eq!(run(&node, limited("little")).await, (Exit::OutOfMemory, "before\n".to_owned()));
    let mut enough = limited("enough");
    enough.limits.memory_bytes = Some(64 << 20);
    assert_eq!(run(&node, enough).await.0, Exit::Code(0));
    let stats = node.runtime.stats(&id("enough")).unwrap();
    assert!(stats.memory_bytes == 0 && stats.memory_peak_bytes > 32 << 20, "{stats:?}");
}

#[tokio::test]
async fn a_panic_is_a_trap_with_its_message_in_the_log() {
    let node = Node::new();
    let (exit, log) = run(&node, node.spec(id("panic"), "probe", &["panic"])).await;
    assert!(matches!(exit, Exit::Trap(_)), "{exit:?}");
    assert!(log.contains("as asked"), "{log}");
}

#[tokio::test]
async fn a_container_that_does_not_listen_is_ended() {
    let node = Node::new();
    let spinning = node.spec(id("spin"), "probe", &["print", "spinning", "spin"]);
    let mut events = node.runtime.events();
    node.runtime.create(spinning).await.unwrap();
    node.runtime.start(&id("spin")).await.unwrap();
    assert_eq!(node.runtime.stop(&id("spin"), Duration::from_millis(50)).await.unwrap(), Exit::Killed);
    assert_eq!(events.recv().await.unwrap(), Event::Started { id: id("spin") });
    assert_eq!(events.recv().await.unwrap(), Event::Exited { id: id("spin"), exit: Exit::Killed });
}

#[tokio::test]
async fn a_flood_of_lines_stays_within_the_bound_and_loses_no_late_one() {
    let node = Node::with_logs(LogLimits { bytes_max: 100_000 });
    let (exit, log) = run(&node, node.spec(id("flood"), "probe", &["lines", "20000"])).await;
    assert_eq!(exit, Exit::Code(0));
    let kept: Vec<&str> = log.lines().collect();
    assert_eq!(kept.last(), Some(&"line 19999"));
    let first = 20_000 - kept.len();
    assert!(kept.iter().enumerate().all(|(index, line)| *line == format!("line {}", first + index)));
    assert!(std::fs::metadata(node.dir.path().join("flood.log")).unwrap().len() <= 100_000);
}

#[tokio::test]
async fn a_handler_is_served_where_the_specification_says() {
    let node = Node::new();
    let address = free_address();
    let mut spec = node.spec(id("hello"), "hello", &[]);
    spec.env = [("GREETING", "Hi"), ("POD_NAME", "p"), ("NODE_NAME", "n")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
    spec.serve = vec![address];
    node.runtime.create(spec.clone()).await.unwrap();
    node.runtime.start(&spec.id).await.unwrap();
    assert_eq!(get(address, "/").await, (200, "Hi from p on n\n".to_owned()));
    assert_eq!(node.runtime.stats(&spec.id).unwrap().requests, 1);

    let second = ContainerSpec { id: id("second"), ..spec.clone() };
    node.runtime.create(second.clone()).await.unwrap();
    let taken = node.runtime.start(&second.id).await;
    assert!(
        matches!(&taken, Err(RuntimeError::Listen { address: taken, .. }) if *taken == address),
        "{taken:?}"
    );
    assert!(taken.unwrap_err().is_retryable());
    assert_eq!(node.runtime.state(&second.id).unwrap(), State::Created);

    assert_eq!(node.runtime.stop(&spec.id, LONG).await.unwrap(), Exit::Code(0));
    node.runtime.start(&second.id).await.unwrap();
    assert_eq!(get(address, "/healthz").await.0, 200);
    node.runtime.stop(&second.id, LONG).await.unwrap();
}

#[tokio::test]
async fn what_cannot_run_is_refused_before_the_start() {
    let node = Node::new();
    let no_port = node.runtime.create(node.spec(id("port"), "hello", &[])).await;
    assert!(matches!(no_port, Err(RuntimeError::InvalidSpec(_))));
    let image = Artifact::Image { path: "/image".into() };
    assert!(matches!(node.runtime.prepare(&image).await, Err(RuntimeError::Unsupported { .. })));
    let absent = Artifact::Component { path: "/absent.cwasm".into(), digest: "sha256:absent".to_owned() };
    assert!(matches!(node.runtime.prepare(&absent).await, Err(RuntimeError::BadArtifact { .. })));
    let mut no_log = node.spec(id("log"), "probe", &[]);
    no_log.log = "/absent/log".into();
    assert!(matches!(node.runtime.create(no_log).await, Err(RuntimeError::Log(_))));
    assert!(node.runtime.list().is_empty(), "a refused container leaves nothing");
}
