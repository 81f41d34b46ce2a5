//! What the tests share: guests compiled for this machine, a sink that remembers, a small HTTP client.

#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::future::Future;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use lichen_engine::ProfileId;
use lichen_runtime::{ComponentHost, HostConfig, LineSink, Loaded, Output};
use tokio::sync::Notify;

/// A host, and a folder for what it loads.
pub(crate) struct Bench {
    pub(crate) host: ComponentHost,
    pub(crate) dir: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self { host: ComponentHost::new(&HostConfig::default()).unwrap(), dir: tempfile::tempdir().unwrap() }
    }

    /// A committed guest, loaded.
    pub(crate) fn guest(&self, name: &str) -> Arc<Loaded> {
        self.load(name, &guest_bytes(name)).unwrap()
    }

    /// A component in text form, loaded.
    pub(crate) fn text(&self, name: &str, wat: &str) -> Result<Arc<Loaded>, lichen_runtime::HostError> {
        self.load(name, &wat::parse_str(wat).unwrap())
    }

    fn load(&self, name: &str, wasm: &[u8]) -> Result<Arc<Loaded>, lichen_runtime::HostError> {
        let compiled = lichen_engine::compile(wasm, &ProfileId::host()).unwrap();
        let path = self.dir.path().join(format!("{name}.cwasm"));
        std::fs::write(&path, compiled).unwrap();
        self.host.load(name, &path)
    }
}

pub(crate) fn guests_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guests")
}

pub(crate) fn guest_bytes(name: &str) -> Vec<u8> {
    std::fs::read(guests_dir().join(format!("{name}.wasm"))).unwrap()
}

/// Remembers what guests print.
#[derive(Default)]
pub(crate) struct Collect {
    lines: Mutex<Vec<(Output, String)>>,
    more: Notify,
}

impl Collect {
    pub(crate) fn lines(&self, output: Output) -> Vec<String> {
        let lines = self.lines.lock().unwrap();
        lines.iter().filter(|(of, _)| *of == output).map(|(_, text)| text.clone()).collect()
    }

    /// Waits until stdout has this line.
    pub(crate) async fn wait_for(&self, line: &str) {
        loop {
            let more = self.more.notified();
            if self.lines(Output::Stdout).iter().any(|text| text == line) {
                return;
            }
            more.await;
        }
    }
}

impl LineSink for Collect {
    fn line(&self, output: Output, text: &[u8], _: bool) {
        self.lines.lock().unwrap().push((output, String::from_utf8_lossy(text).into_owned()));
        self.more.notify_waiters();
    }

    fn room(&self) -> usize {
        usize::MAX
    }

    fn wait_for_room(&self) -> Pin<Box<dyn Future<Output = ()> + Send + 'static>> {
        Box::pin(std::future::ready(()))
    }
}

pub(crate) fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// The status and the body of a GET.
pub(crate) fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}
