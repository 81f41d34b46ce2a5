//! Measures the host with the committed guests: loading, starting, and requests by a few clients.
//!
//! `cargo run --release -p lichen-runtime --example measure`

use std::future::Future;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lichen_engine::{ProfileId, compile};
use lichen_runtime::{ComponentHost, GuestMount, GuestSpec, HostConfig, LineSink, Loaded, Output};

const ROUNDS: usize = 200;
const REQUESTS: usize = 4000;

struct Discard;

impl LineSink for Discard {
    fn line(&self, _: Output, _: &[u8], _: bool) {}

    fn room(&self) -> usize {
        usize::MAX
    }

    fn wait_for_room(&self) -> Pin<Box<dyn Future<Output = ()> + Send + 'static>> {
        Box::pin(std::future::ready(()))
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let host = ComponentHost::new(&HostConfig::default())?;

    println!("resident with a host               {}", resident());

    let (worker, path) = load(&host, dir.path(), "worker")?;
    let fresh = median(ROUNDS, || {
        let host = &host;
        let started = Instant::now();
        // Each digest is loaded anew; those before it are forgotten.
        let loaded = host.load(&format!("{:?}", started), &path);
        loaded.map(|_| started.elapsed())
    })?;
    println!("load a compiled component        {fresh:?}");

    let run = median(ROUNDS, || {
        let started = Instant::now();
        let guest = host.run(&worker, GuestSpec::default(), Arc::new(Discard))?;
        runtime.block_on(guest.wait());
        Ok::<_, lichen_runtime::HostError>(started.elapsed())
    })?;
    println!("run a command, start to exit     {run:?}");

    let (hello, _) = load(&host, dir.path(), "hello")?;
    let serve = median(ROUNDS, || {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let started = Instant::now();
        let guest = host.serve(&hello, GuestSpec::default(), Arc::new(Discard), vec![listener])?;
        exchange(&mut TcpStream::connect(address)?, "/healthz")?;
        let elapsed = started.elapsed();
        drop(guest);
        Ok::<_, Box<dyn std::error::Error>>(elapsed)
    })?;
    println!("serve a handler to first answer  {serve:?}");

    println!("resident with the pool and guests  {}", resident());
    std::fs::write(dir.path().join("greeting"), "Hi")?;
    let mount = GuestMount { host: dir.path().to_owned(), guest: "/config".to_owned(), read_only: true };
    let spec = GuestSpec { mounts: vec![mount], ..GuestSpec::default() };
    for (name, path) in [("/healthz", "/healthz"), ("/ (reads its greeting from a file)", "/")] {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let guest = host.serve(&hello, spec.clone(), Arc::new(Discard), vec![listener])?;
        for clients in [1, 16] {
            let started = Instant::now();
            load_with(address, path, clients)?;
            let each = started.elapsed() / u32::try_from(REQUESTS)?;
            let rate = 1.0 / each.as_secs_f64();
            println!("hello {name}, {clients} clients: {rate:.0} requests/s");
        }
        let usage = guest.usage();
        println!(
            "  CPU of guest code per request  {:?}",
            Duration::from_nanos(usage.cpu_ns / usage.requests)
        );
    }
    Ok(())
}

fn load(
    host: &ComponentHost,
    dir: &Path,
    name: &str,
) -> Result<(Arc<Loaded>, std::path::PathBuf), Box<dyn std::error::Error>> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests").join(format!("{name}.wasm"));
    let started = Instant::now();
    let compiled = compile(&std::fs::read(source)?, &ProfileId::host())?;
    println!("compile {name}: {:?}, {} bytes", started.elapsed(), compiled.len());
    let path = dir.join(format!("{name}.cwasm"));
    std::fs::write(&path, compiled)?;
    Ok((host.load(name, &path)?, path))
}

fn median<E>(rounds: usize, mut once: impl FnMut() -> Result<Duration, E>) -> Result<Duration, E> {
    let mut times = (0..rounds).map(|_| once()).collect::<Result<Vec<_>, E>>()?;
    times.sort();
    Ok(times[rounds / 2])
}

fn load_with(address: SocketAddr, path: &'static str, clients: usize) -> std::io::Result<()> {
    let client = move || {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        (0..REQUESTS / clients).try_for_each(|_| exchange(&mut stream, path))
    };
    let threads: Vec<_> = (0..clients).map(|_| std::thread::spawn(client)).collect();
    threads.into_iter().try_for_each(|thread| {
        thread.join().unwrap_or_else(|_| Err(std::io::Error::other("a client failed")))
    })
}

/// One request on a connection that stays open. The guest says how long its answer is.
fn exchange(stream: &mut TcpStream, path: &str) -> std::io::Result<()> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n").as_bytes())?;
    let (mut answer, mut block) = (Vec::new(), [0; 4096]);
    loop {
        let count = stream.read(&mut block)?;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        answer.extend_from_slice(&block[..count]);
        let text = String::from_utf8_lossy(&answer);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if length.and_then(|length| length.parse().ok()) == Some(body.len()) {
                return Ok(());
            }
        }
    }
}

/// What of this process is in memory, compiler and all.
fn resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.map_or_else(|| "unknown".to_owned(), |size| size.trim().to_owned())
}
