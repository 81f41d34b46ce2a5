//! Mosquitto, configured as `examples/mosquitto` says.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::process::Process;
use crate::tools::missing;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/mosquitto");
/// The line of the example's configuration that a test changes: it listens elsewhere.
const LISTENER: &str = "listener 8883\n";
/// How long the broker may take to listen.
const PATIENCE: Duration = Duration::from_secs(30);

/// How clients prove themselves: which of the example's files counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// By certificates.
    Certificates,
    /// By passwords.
    Passwords,
}

/// A Mosquitto on a free port of the loopback, in a folder that ends with it.
pub struct Mosquitto {
    address: SocketAddr,
    folder: tempfile::TempDir,
    process: Option<Process>,
}

impl Mosquitto {
    /// Starts Mosquitto with the example's configuration; `None` where it is not installed. `authority` and `certificate`
    /// are PEM, `key` is the certificate's; `users` have passwords.
    ///
    /// # Errors
    /// When it does not start.
    ///
    /// # Panics
    /// With `CI=true` and no Mosquitto.
    pub fn start(
        proof: Proof,
        authority: &str,
        certificate: &str,
        key: &str,
        users: &[(String, String)],
    ) -> Result<Option<Self>> {
        if program("mosquitto").is_none() || program("mosquitto_passwd").is_none() {
            missing("no mosquitto; install it (apt-get install mosquitto)");
            return Ok(None);
        }
        let folder = tempfile::tempdir()?;
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text);
        write("ca.crt", authority)?;
        write("server.crt", certificate)?;
        write("server.key", key)?;
        std::fs::copy(Path::new(EXAMPLE).join("acl"), folder.path().join("acl"))?;
        let name = match proof {
            Proof::Certificates => "certificates.conf",
            Proof::Passwords => {
                let lines: String =
                    users.iter().map(|(user, password)| format!("{user}:{password}\n")).collect();
                write("passwords", &lines)?;
                let hashed = Command::new("mosquitto_passwd")
                    .arg("-U")
                    .arg(folder.path().join("passwords"))
                    .output()?;
                ensure!(
                    hashed.status.success(),
                    "mosquitto_passwd: {}",
                    String::from_utf8_lossy(&hashed.stderr)
                );
                "passwords.conf"
            }
        };
        let example = std::fs::read_to_string(Path::new(EXAMPLE).join(name))?;
        ensure!(example.contains(LISTENER), "{name} has a line {LISTENER:?}");
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let here = format!("listener {} {}\n", address.port(), address.ip());
        // Started by root it would become another user, who can't read this folder.
        write("mosquitto.conf", &format!("{}\nuser root\n", example.replace(LISTENER, &here)))?;
        let mut mosquitto = Self { address, folder, process: None };
        mosquitto.restart()?;
        Ok(Some(mosquitto))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Ends it as a power cut would.
    ///
    /// # Errors
    /// When the system does.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.kill())
    }

    /// Starts it again on the same port.
    ///
    /// # Errors
    /// When it does not listen in time.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        let mut command = Command::new(program("mosquitto").context("mosquitto is installed")?);
        command.args(["-c", "mosquitto.conf"]).current_dir(self.folder.path());
        let process = Process::start("mosquitto", command, self.folder.path(), &[])?;
        let process = self.process.insert(process);
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(self.address).is_err() {
            let ended = process.ended()?;
            ensure!(ended.is_none() && Instant::now() < deadline, "mosquitto: {ended:?}\n{}", process.tail());
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

/// Debian keeps daemons where not every user's path leads.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders.map(|folder| folder.join(name)).find(|path| path.exists())
}
