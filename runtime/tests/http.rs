//! Request handlers that misbehave, and those of WASI 0.3.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use lichen_runtime::{Guest, GuestExit, GuestSpec, Output, World};
use support::{Bench, Collect, get, listener};

const LONG: Duration = Duration::from_secs(60);

fn serve(bench: &Bench, guest: &str, spec: GuestSpec) -> (Guest, SocketAddr, Arc<Collect>) {
    let sink = Arc::new(Collect::default());
    let (listener, address) = listener();
    let component = bench.guest(guest);
    assert_eq!(component.world(), World::Http);
    (bench.host.serve(&component, spec, sink.clone(), vec![listener]).unwrap(), address, sink)
}

async fn fetch(address: SocketAddr, path: &'static str) -> (u16, String) {
    tokio::task::spawn_blocking(move || get(address, path)).await.unwrap()
}

#[tokio::test]
async fn a_request_that_fails_takes_no_other_with_it() {
    let bench = Bench::new();
    let spec = GuestSpec { request_timeout: Duration::from_millis(200), ..GuestSpec::default() };
    let (guest, address, sink) = serve(&bench, "probe-http", spec);
    assert_eq!(fetch(address, "/trap").await, (500, "Internal Server Error\n".to_owned()));
    assert_eq!(fetch(address, "/silent").await.0, 500);
    assert_eq!(fetch(address, "/spin").await, (504, "Gateway Timeout\n".to_owned()));
    assert_eq!(fetch(address, "/print").await, (200, chunked("printed\n")));
    assert_eq!(fetch(address, "/absent").await.0, 404);
    assert_eq!(sink.lines(Output::Stdout), ["printed"]);
    let told = sink.lines(Output::Stderr);
    assert!(told[0].contains("unreachable"), "{told:?}");
    assert_eq!(told[2], "the handler took too long");
    assert_eq!(guest.usage().requests, 5);
    assert_eq!(guest.stop(LONG).await, GuestExit::Code(0));
    assert_eq!(guest.usage().memory_bytes, 0);
}

#[tokio::test]
async fn a_request_for_too_much_memory_is_refused_alone() {
    let bench = Bench::new();
    let spec = GuestSpec { memory_bytes: Some(16 << 20), ..GuestSpec::default() };
    let (guest, address, sink) = serve(&bench, "probe-http", spec);
    assert_eq!(fetch(address, "/allocate").await.0, 503);
    assert_eq!(sink.lines(Output::Stderr), ["the handler ran out of memory"]);
    assert_eq!(fetch(address, "/print").await.0, 200);
    drop(guest);

    let (_guest, address, _) = serve(&bench, "probe-http", GuestSpec::default());
    assert_eq!(fetch(address, "/allocate").await, (200, chunked(&(64 << 20).to_string())));
    // More than a slot of the pool holds: such a guest runs without the pool.
    let large = GuestSpec { memory_bytes: Some(1 << 30), ..GuestSpec::default() };
    let (_guest, address, _) = serve(&bench, "probe-http", large);
    assert_eq!(fetch(address, "/allocate").await.0, 200);
}

#[tokio::test]
async fn connections_that_only_stand_open_do_not_hold_up_a_stop() {
    let bench = Bench::new();
    let (guest, address, _) = serve(&bench, "probe-http", GuestSpec::default());
    let silent = TcpStream::connect(address).unwrap();
    let kept = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /print HTTP/1.1\r\nhost: t\r\n\r\n").unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        stream
    });
    let kept = kept.await.unwrap();
    // Far beyond what it takes; if either connection held it up, this would be `Killed`.
    assert_eq!(guest.stop(LONG / 2).await, GuestExit::Code(0));
    drop((silent, kept));
}

#[tokio::test]
async fn a_handler_that_does_not_even_fit_its_limit_ends() {
    let bench = Bench::new();
    let spec = GuestSpec { memory_bytes: Some(64 << 10), ..GuestSpec::default() };
    let (guest, ..) = serve(&bench, "probe-http", spec);
    assert_eq!(guest.wait().await, GuestExit::OutOfMemory);
}

#[tokio::test]
async fn requests_of_a_handler_are_denied() {
    let bench = Bench::new();
    let (_guest, address, _) = serve(&bench, "probe-http", GuestSpec::default());
    let (status, told) = fetch(address, "/fetch").await;
    assert!(status == 200 && told.contains("HttpRequestDenied"), "{told}");
}

#[tokio::test]
async fn bodies_go_through_whole() {
    let bench = Bench::new();
    let (_guest, address, _) = serve(&bench, "probe-http", GuestSpec::default());
    let body: String = (0..50_000).map(|number| format!("{number} ")).collect();
    let sent = body.clone();
    let echo = move || {
        let mut stream = TcpStream::connect(address).unwrap();
        let head = format!(
            "POST /echo HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            sent.len()
        );
        let mut writer = stream.try_clone().unwrap();
        let writing = std::thread::spawn(move || {
            writer.write_all(head.as_bytes()).unwrap();
            writer.write_all(sent.as_bytes()).unwrap();
        });
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        writing.join().unwrap();
        unchunked(&answer)
    };
    assert_eq!(tokio::task::spawn_blocking(echo).await.unwrap(), body);
}

/// The body of a chunked answer.
fn unchunked(answer: &[u8]) -> String {
    let start = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    let (mut rest, mut body) = (&answer[start..], Vec::new());
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n").unwrap();
        let len = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        if len == 0 {
            return String::from_utf8(body).unwrap();
        }
        body.extend_from_slice(&rest[end + 2..end + 2 + len]);
        rest = &rest[end + 4 + len..];
    }
}

#[tokio::test]
async fn a_request_without_a_host_is_a_bad_one() {
    let bench = Bench::new();
    let (_guest, address, sink) = serve(&bench, "probe-http", GuestSpec::default());
    let ask = move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(tokio::task::spawn_blocking(ask).await.unwrap().starts_with("HTTP/1.0 400 "));
    assert!(sink.lines(Output::Stderr).is_empty(), "a client's fault is not in the guest's log");
}

#[tokio::test]
async fn a_handler_of_wasi_0_3_keeps_its_instance() {
    let bench = Bench::new();
    let (guest, address, sink) = serve(&bench, "probe-p3", GuestSpec::default());
    assert_eq!(fetch(address, "/").await, (200, chunked("request 1\n")));
    assert_eq!(fetch(address, "/trap").await.0, 500);
    assert_eq!(fetch(address, "/").await.0, 200);
    assert!(!sink.lines(Output::Stderr).is_empty());
    assert_eq!(guest.stop(LONG).await, GuestExit::Code(0));
}

/// An answer whose length is not known before: one chunk, and the last.
fn chunked(text: &str) -> String {
    format!("{:X}\r\n{text}\r\n0\r\n\r\n", text.len())
}
