//! A client that writes while everything around it dies.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};

/// How many objects are written by one command.
pub const BATCH: usize = 20;

/// Writes ConfigMaps, each of which holds its own name as `value`, until it is told to stop, and keeps which writes were
/// acknowledged.
pub struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<BTreeSet<String>>>,
    thread: JoinHandle<Result<()>>,
}

impl Writer {
    /// Starts to write, with the client program that `client` runs with arguments. Its manifest lies in `dir`.
    pub fn start(dir: &Path, client: impl Fn(&[&str]) -> Command + Send + 'static) -> Writer {
        let (stop, acknowledged) = (Arc::<AtomicBool>::default(), Arc::<Mutex<BTreeSet<_>>>::default());
        let (stopped, kept, file) = (stop.clone(), acknowledged.clone(), dir.join("writes.yaml"));
        let thread = std::thread::spawn(move || {
            let path = file.to_str().context("the folder's name is text")?;
            let mut batch = 0;
            while !stopped.load(Ordering::Relaxed) {
                std::fs::write(&file, manifest(batch)?)?;
                // It may fail at any write, since a server may die at any time: what it printed was acknowledged.
                let output = client(&["apply", "-f", path]).output()?;
                let lines = String::from_utf8_lossy(&output.stdout).into_owned();
                let names =
                    lines.lines().filter_map(|line| line.strip_prefix("configmap/")?.split(' ').next());
                kept.lock().unwrap_or_else(PoisonError::into_inner).extend(names.map(str::to_owned));
                batch += 1;
            }
            Ok(())
        });
        Writer { stop, acknowledged, thread }
    }

    /// The names of the objects whose writes were acknowledged so far.
    pub fn acknowledged(&self) -> BTreeSet<String> {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops, and says what was acknowledged.
    ///
    /// # Errors
    /// When the client could not be run.
    pub fn finish(self) -> Result<BTreeSet<String>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the writer panicked"))??;
        let acknowledged = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(acknowledged)
    }
}

fn manifest(batch: u64) -> Result<String> {
    let mut manifest = String::new();
    for item in 0..BATCH {
        let name = format!("w{batch}-{item}");
        let object = format!("kind: ConfigMap, metadata: {{name: {name}}}, data: {{value: {name}}}");
        writeln!(manifest, "---\n{{apiVersion: v1, {object}}}")?;
    }
    Ok(manifest)
}
