//! A program that runs beside a test, and is ended with it.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail, ensure};

/// Lines of a program's log that are shown when its test fails.
const TAIL_LINES: usize = 40;

/// A program that runs. Dropping it kills it, and prints the end of its log if the test fails.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program whose errors go to `NAME.log` in `logs`, and waits until it prints a line that begins with one of
    /// `ready`; with none it does not wait.
    ///
    /// # Errors
    /// When the program cannot be started, or ends before it is ready: with the end of its log.
    pub fn start(name: &str, mut command: Command, logs: &Path, ready: &[&str]) -> Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let errors = append(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("starting {:?}", command.get_program()))?;
        let mut process = Self { name: name.to_owned(), child, log };
        let output = process.child.stdout.take().context("the process has an output")?;
        let mut lines = BufReader::new(output).lines();
        let mut waiting = !ready.is_empty();
        while waiting {
            match lines.next().transpose()? {
                Some(line) => waiting = !ready.iter().any(|ready| line.starts_with(ready)),
                None => {
                    bail!("{name} ended before it was ready: {}\n{}", process.child.wait()?, process.tail())
                }
            }
        }
        // Reading on keeps the program from a broken pipe; the thread ends with it.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Ok(process)
    }

    /// The program's process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends the program as a power cut would.
    ///
    /// # Errors
    /// When the system does.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks the program to end and waits until it has.
    ///
    /// # Errors
    /// When it ends with a failure.
    pub fn stop(mut self) -> Result<()> {
        let id = self.id().to_string();
        ensure!(Command::new("kill").args(["-TERM", &id]).status()?.success(), "kill -TERM {id}");
        let status = self.child.wait()?;
        ensure!(status.success(), "{} ended with {status}\n{}", self.name, self.tail());
        Ok(())
    }

    /// How the program ended, if it has.
    ///
    /// # Errors
    /// When the system does.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// The end of what the program wrote to its standard error.
    pub fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the end of the log of {}:\n{}", self.name, self.tail());
        }
    }
}

fn append(log: &Path) -> Result<File> {
    if let Some(folder) = log.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let file = OpenOptions::new().create(true).append(true).open(log);
    file.with_context(|| format!("opening {}", log.display()))
}

/// A loopback address that nothing listens on. Its port is below those that systems give to connections, so that it is free
/// still when a server starts there again.
pub fn free_address() -> String {
    const PORTS: std::ops::Range<u32> = 10_000..30_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    loop {
        // Tests that run at once begin at ports of their own.
        let next = std::process::id().wrapping_mul(64).wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed));
        let address = format!("127.0.0.1:{}", PORTS.start + next % (PORTS.end - PORTS.start));
        if TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
}
