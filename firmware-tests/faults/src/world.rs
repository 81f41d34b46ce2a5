//! The members: each a process on a machine and a disk of its own, and what can be done to them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lichen_firmware_tests::cluster::succeed;
use lichen_firmware_tests::network::{Host, Network};
use lichen_firmware_tests::process::Process;
use lichen_firmware_tests::{mounts, tools};
use serde_json::Value;
use tokio::runtime::Handle;

use crate::api::Api;
use crate::disk::{self, Disk};

/// The network of all machines; a member's number is the last part of its address.
const NETWORK: &str = "10.77.0";
/// The number of the first machine that is no member's.
const MACHINES: usize = 101;
/// The clients' address.
const CLIENTS: &str = "10.77.0.254";
/// What a server prints once it serves.
const READY: &str = "A node joins";
/// How long the cluster may take to begin, and to be well again.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// How long a command may take; one that asks a member that stands still waits for ever.
const COMMAND_SECONDS: &str = "20";
/// How long a member may take to say who leads.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// How often it is looked whether something is so.
const LOOK: Duration = Duration::from_millis(100);
/// Where members are shown.
const MEMBERS: &str = "/lichen/v1/members";

/// All members, and what is between them.
pub(crate) struct World {
    /// Where logs and disks are.
    pub(crate) dir: PathBuf,
    /// The members' places.
    pub(crate) places: Vec<Place>,
    /// A client of all of them.
    pub(crate) api: Api,
    /// Machines that are no member's.
    pub(crate) machines: Vec<Host>,
    /// The program that is tried.
    pub(crate) lichen: PathBuf,
    /// Where requests run.
    pub(crate) handle: Handle,
    began: Instant,
    /// How many faults cut one host off another, by their places.
    cuts: Mutex<BTreeMap<(usize, usize), u32>>,
    failures: Mutex<Vec<String>>,
    _network: Network,
}

/// Where a member is: what stays when its process ends, or another member takes its place.
pub(crate) struct Place {
    /// What it is called.
    pub(crate) name: String,
    host: Host,
    /// Its disk.
    pub(crate) disk: Disk,
    server: Mutex<Option<Process>>,
    /// Whether something happens to it.
    claimed: AtomicBool,
}

/// The right to do something to a place. It ends with its owner.
pub(crate) struct Claim<'a> {
    /// Its number.
    pub(crate) index: usize,
    place: &'a Place,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.place.claimed.store(false, Ordering::SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Place {
    /// The URL of its API.
    pub(crate) fn url(&self) -> String {
        format!("https://{}:6443", self.host.address)
    }

    /// Where nodes reach it.
    pub(crate) fn broker(&self) -> String {
        format!("{}:8883", self.host.address)
    }

    fn make(index: usize, host: &Host, dir: &Path) -> Result<Self> {
        let name = format!("m{index}");
        let disk = Disk::make(dir, &name)?;
        let claimed = AtomicBool::new(false);
        Ok(Self { name, host: host.clone(), disk, server: Mutex::default(), claimed })
    }

    fn start(&self, lichen: &Path, dir: &Path, arguments: &[&str]) -> Result<()> {
        let address = &self.host.address;
        let mut command = self.host.command(lichen);
        command.arg("server");
        for (option, port) in [("--api-addr", 6443), ("--mqtt-addr", 8883), ("--peer-addr", 6444)] {
            command.arg(option).arg(format!("{address}:{port}"));
        }
        command.arg("--data-dir").arg(&self.disk.data).args(arguments);
        self.disk.deceive(&mut command);
        let server = Process::start(&self.name, command, dir, &[READY])?;
        *lock(&self.server) = Some(server);
        Ok(())
    }
}

impl World {
    /// Starts so many members in namespaces that this process must be alone in, and makes machines for others. Nothing
    /// where that can't be.
    pub(crate) fn start(
        lichen: &Path,
        dir: &Path,
        (members, machines): (usize, usize),
        handle: Handle,
    ) -> Result<Option<Self>> {
        if let Some(why) = disk::unavailable() {
            tools::missing(why);
            return Ok(None);
        }
        let numbers = (1..=members).chain(MACHINES..MACHINES + machines);
        let addresses: Vec<String> = numbers.map(|number| format!("{NETWORK}.{number}")).collect();
        mounts::mount(&["-t", "tmpfs", "none"], Path::new("/run/netns"));
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let Some(network) = Network::new(&addresses) else { return Ok(None) };
        network.attach(CLIENTS)?;
        let (hosts, machines) = network.hosts().split_at(members);
        let machines = machines.to_vec();
        let hosts = hosts.iter().enumerate();
        let places = hosts.map(|(index, host)| Place::make(index, host, dir)).collect::<Result<Vec<_>>>()?;
        places[0].start(lichen, dir, &["--cluster-init"])?;
        let kubeconfig = dir.join("admin.kubeconfig");
        std::fs::copy(places[0].disk.data.join("admin.kubeconfig"), &kubeconfig)?;
        let world = Self {
            dir: dir.to_owned(),
            api: Api::new(&kubeconfig)?,
            handle,
            lichen: lichen.to_owned(),
            began: Instant::now(),
            cuts: Mutex::default(),
            failures: Mutex::default(),
            _network: network,
            machines,
            places,
        };
        for index in 1..members {
            let claim = world.claim(index).context("nothing happens yet")?;
            world.join(&claim, 0)?;
        }
        world.until("all members vote", || world.all_vote())?;
        let own = world.places[0].disk.data.join("admin.kubeconfig");
        world.until("the kubeconfig has all members", || {
            let text = std::fs::read_to_string(&own).unwrap_or_default();
            world.places.iter().all(|place| text.contains(&place.url()))
        })?;
        std::fs::copy(own, kubeconfig)?;
        Ok(Some(world))
    }

    /// Says something, and when.
    pub(crate) fn say(&self, what: &str) {
        println!("{:8.1} s  {what}", self.began.elapsed().as_secs_f64());
    }

    /// Remembers what must not be.
    pub(crate) fn fail(&self, what: String) {
        self.say(&format!("FAILED: {what}"));
        lock(&self.failures).push(what);
    }

    /// What must not be and was.
    pub(crate) fn failures(&self) -> Vec<String> {
        lock(&self.failures).clone()
    }

    /// Runs `lichen` as the administrator, who knows of all members.
    pub(crate) fn lichen(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("timeout");
        command.arg(COMMAND_SECONDS).arg(&self.lichen).args(arguments).stdin(Stdio::null());
        command.env("KUBECONFIG", self.dir.join("admin.kubeconfig"));
        succeed(command.output()?, arguments)
    }

    /// Waits until something is so.
    pub(crate) fn until(&self, what: &str, mut is: impl FnMut() -> bool) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while !is() {
            ensure!(Instant::now() < end, "{} s passed in vain until {what}", PATIENCE.as_secs());
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// What the first member that answers has at a path.
    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        let ask = async {
            for place in &self.places {
                let found = self.api.get(&format!("{}{path}", place.url()), ANSWER_MAX).await;
                if found.is_some() {
                    return found;
                }
            }
            None
        };
        self.handle.block_on(ask)
    }

    /// The members as any of them tells it.
    pub(crate) fn members(&self) -> Vec<Value> {
        self.get(MEMBERS).and_then(|list| list["items"].as_array().cloned()).unwrap_or_default()
    }

    /// The place of a member of the list.
    fn place_of(&self, member: &Value) -> Option<usize> {
        self.places.iter().position(|place| member["apiUrl"] == *place.url())
    }

    /// Who leads, and that member's id.
    pub(crate) fn leader(&self) -> Option<(usize, String)> {
        let members = self.members();
        let leader = members.iter().find(|member| member["role"] == "leader")?;
        Some((self.place_of(leader)?, leader["id"].as_str()?.to_owned()))
    }

    /// The id of the member at a place.
    pub(crate) fn id_of(&self, index: usize) -> Option<String> {
        let members = self.members();
        let member = members.iter().find(|member| self.place_of(member) == Some(index))?;
        Some(member["id"].as_str()?.to_owned())
    }

    /// Whether every place has a member that votes and answers.
    pub(crate) fn all_vote(&self) -> bool {
        let members = self.members();
        let votes = |member: &Value| member["status"] == "Ready" && member["role"] != "learner";
        members.len() == self.places.len() && members.iter().all(votes)
    }

    /// Takes a place to which nothing else happens, that one or the next.
    pub(crate) fn claim(&self, index: usize) -> Option<Claim<'_>> {
        let count = self.places.len();
        let mut order = (0..count).map(|step| (index + step) % count);
        let index = order.find(|index| !self.places[*index].claimed.swap(true, Ordering::SeqCst))?;
        Some(Claim { index, place: &self.places[index] })
    }

    /// Fails for every server that has ended though nobody ended it.
    pub(crate) fn watch_over(&self) {
        for place in &self.places {
            let mut server = lock(&place.server);
            if let Some(process) = &mut *server
                && let Ok(Some(status)) = process.ended()
            {
                self.fail(format!("{} ended by itself: {status}\n{}", place.name, process.tail()));
                *server = None;
            }
        }
    }

    /// Shows the end of each server's log.
    pub(crate) fn tell_logs(&self) {
        for place in &self.places {
            let tail = lock(&place.server).as_ref().map(Process::tail);
            println!("--- the end of the log of {}:\n{}", place.name, tail.unwrap_or_default());
        }
    }

    /// Kills a server.
    pub(crate) fn kill(&self, claim: &Claim<'_>) -> Result<()> {
        let server = lock(&claim.place.server).take();
        server.map_or(Ok(()), |mut server| server.kill())
    }

    /// Starts a server that was killed.
    pub(crate) fn restart(&self, claim: &Claim<'_>) -> Result<()> {
        claim.place.start(&self.lichen, &self.dir, &[])
    }

    /// Looks after a server no more.
    pub(crate) fn release(&self, claim: &Claim<'_>) -> Result<Process> {
        lock(&claim.place.server).take().with_context(|| format!("{} does not run", claim.place.name))
    }

    /// Waits until a server ends by itself, as it should, and tells what it said.
    pub(crate) fn ended(&self, mut server: Process) -> Result<String> {
        let mut ended = None;
        self.until("a server ends that shall", || {
            ended = server.ended().ok().flatten();
            ended.is_some()
        })?;
        ensure!(ended.is_some_and(|status| !status.success()), "a removed server ended well: {ended:?}");
        Ok(server.tail())
    }

    /// Lets a server join with an empty disk, by way of another one.
    pub(crate) fn join(&self, claim: &Claim<'_>, by: usize) -> Result<()> {
        let token = self.lichen(&["token", "create", "--member"])?;
        let join = self.places[by].url();
        claim.place.start(&self.lichen, &self.dir, &["--join", &join, "--token", token.trim()])
    }

    /// Sends a signal to a server.
    pub(crate) fn signal(&self, claim: &Claim<'_>, signal: &str) -> Result<()> {
        let Some(id) = lock(&claim.place.server).as_ref().map(Process::id) else {
            bail!("{} does not run", claim.place.name);
        };
        let output = Command::new("kill").args([signal, &id.to_string()]).output()?;
        succeed(output, &["kill", signal]).map(drop)
    }

    /// Loses what one place sends to another, or lets it through again once nobody wants it lost any more.
    pub(crate) fn cut(&self, from: usize, to: usize, is_cut: bool) -> Result<()> {
        let mut cuts = lock(&self.cuts);
        let count = cuts.entry((from, to)).or_default();
        let (from, to) = (&self.places[from].host, &self.places[to].host);
        match (is_cut, *count) {
            (true, 0) => from.cut(to)?,
            (false, 1) => from.mend(to)?,
            _ => {}
        }
        *count = if is_cut { *count + 1 } else { count.saturating_sub(1) };
        Ok(())
    }
}
