//! A control plane of three processes: they join, one is killed, one is removed, one loses its disk.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lichen_firmware_tests::cluster::succeed;
use lichen_firmware_tests::process::{Process, free_address};
use serde_json::Value;

const LICHEN: &str = env!("CARGO_BIN_EXE_lichen");
const PATIENCE: Duration = Duration::from_secs(90);

/// A server's place: its directory and addresses stay the same however often it starts.
struct Place {
    name: &'static str,
    dir: PathBuf,
    api: String,
    mqtt: String,
    peer: String,
}

impl Place {
    fn new(name: &'static str, dir: &Path) -> Place {
        let [api, mqtt, peer] = std::array::from_fn(|_| free_address());
        Place { name, dir: dir.into(), api, mqtt, peer }
    }

    fn data(&self) -> PathBuf {
        self.dir.join(self.name)
    }

    fn command(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(LICHEN);
        command.args(["server", "--api-addr", &self.api, "--mqtt-addr", &self.mqtt, "--data-dir"]);
        command.arg(self.data()).args(flags).stdin(Stdio::null());
        command
    }

    fn start(&self, flags: &[&str]) -> Process {
        Process::start(self.name, self.command(flags), &self.dir, &["A node joins"]).unwrap()
    }

    fn join(&self, by: &Place, token: &str) -> Process {
        let url = format!("https://{}", by.api);
        self.start(&["--join", &url, "--token", token, "--peer-addr", &self.peer])
    }

    /// What a start that fails says.
    fn fails(&self, flags: &[&str]) -> String {
        let output = self.command(flags).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    }

    /// Runs a command against this member.
    fn lichen(&self, arguments: &[&str]) -> String {
        let output = self.ask(arguments).output().unwrap();
        succeed(output, arguments).unwrap().trim().to_owned()
    }

    fn ask(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(LICHEN);
        command.args(arguments).env("KUBECONFIG", self.data().join("admin.kubeconfig")).stdin(Stdio::null());
        command
    }

    /// The members as this one tells; none while it can't.
    fn members(&self) -> Vec<Value> {
        let output = self.ask(&["member", "list", "-o", "json"]).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// Waits until so many members vote and answer.
    fn voters(&self, count: usize) {
        until(&format!("{count} members vote"), || {
            let members = self.members();
            let voting = |member: &&Value| member["role"] != "learner" && member["status"] == "Ready";
            members.len() == count && members.iter().filter(voting).count() == count
        });
    }

    /// The id of the member at another place.
    fn id_of(&self, other: &Place) -> String {
        let members = self.members();
        let member = members.iter().find(|member| member["peerAddress"] == *other.peer).unwrap();
        member["id"].as_str().unwrap().to_owned()
    }

    fn write(&self, name: &str) -> bool {
        let file = self.dir.join(format!("{name}.yaml"));
        std::fs::write(&file, format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n"))
            .unwrap();
        self.ask(&["apply", "-f", &file.to_string_lossy()]).output().unwrap().status.success()
    }

    fn reads(&self, name: &str) -> bool {
        self.ask(&["get", "configmap", name]).output().unwrap().status.success()
    }
}

fn until(what: &str, is: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Waits until a server has ended by itself, and tells what it said.
fn ended(process: &mut Process) -> String {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = process.ended().unwrap() {
            assert!(!status.success());
            return process.tail();
        }
        assert!(Instant::now() < end, "it goes on");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn three_processes_are_one_control_plane_through_death_removal_and_loss() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| Place::new(name, dir.path()));
    let mut first = a.start(&["--cluster-init", "--peer-addr", &a.peer]);
    let token = a.lichen(&["token", "create", "--member"]);
    let mut second = b.join(&a, &token);
    let mut third = c.join(&a, &token);
    a.voters(3);
    assert!(c.write("one") && b.reads("one"));
    assert_eq!(a.lichen(&["member", "list"]).lines().count(), 4);
    // Joining again is no more than starting again.
    b.lichen(&["token", "revoke", &token]);
    second.kill().unwrap();
    second = b.join(&a, &token);
    b.voters(3);

    // The leader dies, the others go on, and it comes back with no word about the cluster.
    b.lichen(&["member", "transfer-leader", &b.id_of(&a)]);
    first.kill().unwrap();
    until("somebody else leads", || b.write("two"));
    assert!(c.reads("two"));
    first = a.start(&[]);
    until("it caught up", || a.reads("two"));
    c.voters(3);

    // A member that is removed ends, says why, and does so whenever it is started.
    let id = a.id_of(&c);
    assert_eq!(c.lichen(&["member", "remove", &id]), format!("member {id} removed"));
    let why = format!("member {id} was removed from the cluster");
    assert!(ended(&mut third).contains(&why));
    assert!(ended(&mut c.start(&[])).contains(&why));
    // Its machine joins anew with an empty disk, and is another member.
    std::fs::remove_dir_all(c.data()).unwrap();
    let fresh = a.lichen(&["member", "add"]);
    let fresh = fresh.rsplit(' ').next().unwrap();
    let third = c.join(&b, fresh);
    a.voters(3);
    assert_ne!(a.id_of(&c), id);
    assert!(c.reads("one") && c.reads("two"));

    // One that lost its disk without being removed is told what to do.
    second.kill().unwrap();
    let lost = a.id_of(&b);
    std::fs::remove_dir_all(b.data()).unwrap();
    let url = format!("https://{}", a.api);
    let said = b.fails(&["--join", &url, "--token", fresh, "--peer-addr", &b.peer]);
    assert!(said.contains(&format!("lichen member remove {lost}")), "{said}");
    a.lichen(&["member", "remove", &lost]);
    // It has the authority already: its next start goes on where the last one ended.
    let second = b.start(&[]);
    a.voters(3);
    assert_ne!(a.id_of(&b), lost);
    for process in [first, second, third] {
        process.stop().unwrap();
    }
}
