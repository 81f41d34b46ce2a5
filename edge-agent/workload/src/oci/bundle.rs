//! The bundle's configuration: what the OCI runtime-spec calls `config.json`, out of a container's specification and its
//! image's.
//!
//! A container gets what it asks for and nothing else: no capabilities, no new privileges, none of the kernel's files that
//! tell about or change the machine, and no network but its own loopback unless its specification says the node's.
//!
//! Deliberately absent: seccomp, AppArmor and SELinux profiles, devices, user namespaces.

use serde_json::{Value, json};

use super::image::ImageConfig;
use super::user::User;
use crate::container::ContainerSpec;
use crate::runtime::RuntimeError;

/// The version of the runtime-spec.
const OCI_VERSION: &str = "1.0.2";
/// How many processes and threads a container may have.
const PIDS_MAX: u32 = 4096;
/// Over how long CPU time is dealt out, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;
/// The least CPU time that the kernel deals out in a period.
const CPU_QUOTA_US_MIN: u64 = 1000;
/// Where programs are looked for if the image doesn't say.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The capabilities that a container can ask for: those that act inside it only.
const CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// What tells about the machine, or harms it when it is asked.
const MASKED_PATHS: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];
const READ_ONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What a bundle's configuration depends on beside the specification.
pub(super) struct Context<'a> {
    pub(super) image: &'a ImageConfig,
    /// Who is who in the image.
    pub(super) user: User,
    /// Files of the node that stand for files of the image: its path, the container's.
    pub(super) files: Vec<(String, &'static str)>,
    /// Whether the kernel counts swap, so that a limit of memory can include it.
    pub(super) swap_counted: bool,
}

/// The whole configuration.
pub(super) fn config(spec: &ContainerSpec, context: &Context<'_>) -> Result<Value, RuntimeError> {
    let process = &spec.process;
    let user = &context.user;
    if process.not_root && user.uid == 0 {
        return Err(invalid(
            "runAsNonRoot: the container would run as root; set runAsUser, or a user in the image",
        ));
    }
    let mut namespaces = vec!["pid", "ipc", "uts", "mount"];
    if !process.host_network {
        namespaces.push("network");
    }
    let namespaces: Vec<Value> = namespaces.into_iter().map(|kind| json!({ "type": kind })).collect();
    let capabilities = capabilities(&process.capabilities)?;
    let cwd = process.working_dir.as_deref().or(context.image.working_dir.as_deref());
    Ok(json!({
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": false,
            "user": { "uid": user.uid, "gid": user.gid, "additionalGids": user.groups },
            "args": arguments(spec, context.image)?,
            "env": environment(spec, context.image),
            "cwd": cwd.filter(|dir| dir.starts_with('/')).unwrap_or("/"),
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            "noNewPrivileges": !process.may_gain_privileges,
        },
        "root": { "path": "rootfs", "readonly": process.read_only_root },
        "hostname": if process.host_network { Value::Null } else { process.hostname.as_str().into() },
        "mounts": mounts(spec, context),
        "linux": {
            "cgroupsPath": format!("/lichen/{}", spec.id),
            "resources": resources(spec, context.swap_counted),
            "namespaces": namespaces,
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READ_ONLY_PATHS,
        },
    }))
}

fn invalid(text: impl Into<String>) -> RuntimeError {
    RuntimeError::InvalidSpec(text.into())
}

/// The program and its arguments, with Kubernetes' precedence.
fn arguments(spec: &ContainerSpec, image: &ImageConfig) -> Result<Vec<String>, RuntimeError> {
    let (program, arguments) = match (spec.command.is_empty(), spec.args.is_empty()) {
        (false, _) => (&spec.command, &spec.args),
        (true, false) => (&image.entrypoint, &spec.args),
        (true, true) => (&image.entrypoint, &image.cmd),
    };
    let all: Vec<String> = program.iter().chain(arguments).cloned().collect();
    match all.first() {
        Some(program) if !program.is_empty() => Ok(all),
        _ => Err(invalid("the image names no program to run: set the container's command")),
    }
}

/// The image's variables and the container's, each name once.
fn environment(spec: &ContainerSpec, image: &ImageConfig) -> Vec<String> {
    let hostname = format!("HOSTNAME={}", spec.process.hostname);
    let own = spec.env.iter().map(|(name, value)| format!("{name}={value}"));
    let mut env: Vec<String> = Vec::new();
    for variable in [PATH.to_owned(), hostname].into_iter().chain(image.env.iter().cloned()).chain(own) {
        let name = variable.split_once('=').map_or(variable.as_str(), |(name, _)| name);
        match env.iter_mut().find(|known| known.split_once('=').is_some_and(|(known, _)| known == name)) {
            Some(known) => *known = variable,
            None => env.push(variable),
        }
    }
    env
}

fn capabilities(wanted: &[String]) -> Result<Vec<String>, RuntimeError> {
    let name = |wanted: &String| {
        let name = wanted.strip_prefix("CAP_").unwrap_or(wanted);
        if CAPABILITIES.contains(&name) {
            return Ok(format!("CAP_{name}"));
        }
        Err(invalid(format!(
            "the capability {wanted} is not given to containers; {} are",
            CAPABILITIES.join(", ")
        )))
    };
    wanted.iter().map(name).collect()
}

fn mounts(spec: &ContainerSpec, context: &Context<'_>) -> Vec<Value> {
    let system = |target: &str, kind: &str, options: &[&str]| json!({ "destination": target, "type": kind, "source": kind, "options": options });
    let bind = |source: &str, target: &str, read_only: bool| {
        let options = ["rbind", "rprivate", "nosuid", "nodev", if read_only { "ro" } else { "rw" }];
        json!({ "destination": target, "type": "bind", "source": source, "options": options })
    };
    let mut mounts = vec![
        system("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        system("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        system("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
        system("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        system("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        system("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ];
    // A sysfs of its own shows a network of its own; of the node's network only the node's sysfs can.
    let sys = if spec.process.host_network {
        let options = ["rbind", "rprivate", "nosuid", "noexec", "nodev", "ro"];
        json!({ "destination": "/sys", "type": "bind", "source": "/sys", "options": options })
    } else {
        system("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"])
    };
    mounts.insert(2, sys);
    if spec.process.host_network {
        mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
    }
    mounts.extend(context.files.iter().map(|(source, target)| bind(source, target, true)));
    mounts.extend(spec.mounts.iter().map(|m| bind(&m.host.to_string_lossy(), &m.guest, m.read_only)));
    mounts
}

fn resources(spec: &ContainerSpec, swap_counted: bool) -> Value {
    let mut resources = json!({
        "devices": [{ "allow": false, "access": "rwm" }],
        "pids": { "limit": PIDS_MAX },
    });
    if let Some(bytes) = spec.limits.memory_bytes {
        resources["memory"] = json!({ "limit": bytes });
        if swap_counted {
            // Memory and swap together: what is beyond the limit is not swapped, it is refused.
            resources["memory"]["swap"] = bytes.into();
        }
    }
    if let Some(millis) = spec.limits.cpu_millis {
        let quota_us = (u64::from(millis) * CPU_PERIOD_US / 1000).max(CPU_QUOTA_US_MIN);
        resources["cpu"] = json!({ "quota": quota_us, "period": CPU_PERIOD_US });
    }
    resources
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{Artifact, ContainerId, Limits, Mount};

    fn spec() -> ContainerSpec {
        let id = ContainerId::new("c").unwrap();
        ContainerSpec::new(id, Artifact::Image { path: "/image".into() }, "/log")
    }

    fn image() -> ImageConfig {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        ImageConfig {
            env: words(&["PATH=/bin", "A=image", "B=image"]),
            entrypoint: words(&["/entry"]),
            cmd: words(&["cmd"]),
            working_dir: Some("/work".into()),
            ..ImageConfig::default()
        }
    }

    fn made(spec: &ContainerSpec, image: &ImageConfig) -> Result<Value, RuntimeError> {
        let user = User { uid: 0, gid: 0, groups: vec![] };
        config(spec, &Context { image, user, files: vec![], swap_counted: true })
    }

    #[test]
    fn the_program_is_the_images_or_the_containers() {
        let check = |command: &[&str], args: &[&str], expect: &[&str]| {
            let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
            let spec = ContainerSpec { command: words(command), args: words(args), ..spec() };
            assert_eq!(made(&spec, &image()).unwrap()["process"]["args"], json!(expect));
        };
        check(&[], &[], &["/entry", "cmd"]);
        check(&[], &["x"], &["/entry", "x"]);
        check(&["/own"], &[], &["/own"]);
        check(&["/own"], &["x"], &["/own", "x"]);
        let error = made(&spec(), &ImageConfig::default()).unwrap_err();
        assert!(error.to_string().contains("set the container's command"), "{error}");
    }

    #[test]
    fn variables_are_there_once_and_the_containers_win() {
        let mut spec = spec();
        spec.process.hostname = "h".into();
        spec.env = [("B", "own"), ("C", "own"), ("HOSTNAME", "x")].map(|(n, v)| (n.into(), v.into())).into();
        let config = made(&spec, &image()).unwrap();
        assert_eq!(config["process"]["env"], json!(["PATH=/bin", "HOSTNAME=x", "A=image", "B=own", "C=own"]));
        assert_eq!(config["process"]["cwd"], "/work");
        spec.process.working_dir = Some("/own".into());
        assert_eq!(made(&spec, &image()).unwrap()["process"]["cwd"], "/own");
    }

    #[test]
    fn nothing_is_given_that_was_not_asked_for() {
        let config = made(&spec(), &image()).unwrap();
        assert_eq!(config["process"]["capabilities"]["bounding"], json!([]));
        assert_eq!(config["process"]["noNewPrivileges"], true);
        assert!(config["linux"]["namespaces"].as_array().unwrap().contains(&json!({ "type": "network" })));
        let mut asks = spec();
        asks.process.capabilities = vec!["CHOWN".into(), "CAP_KILL".into()];
        let config = made(&asks, &image()).unwrap();
        assert_eq!(config["process"]["capabilities"]["effective"], json!(["CAP_CHOWN", "CAP_KILL"]));
        asks.process.capabilities = vec!["SYS_ADMIN".into()];
        let error = made(&asks, &image()).unwrap_err();
        assert!(error.to_string().starts_with("the capability SYS_ADMIN is not given"), "{error}");
        let mut root = spec();
        root.process.not_root = true;
        assert!(made(&root, &image()).unwrap_err().to_string().starts_with("runAsNonRoot"));
    }

    #[test]
    fn limits_mounts_and_the_nodes_network() {
        let mut spec = spec();
        spec.limits = Limits { memory_bytes: Some(1 << 20), cpu_millis: Some(250) };
        spec.mounts = vec![Mount { host: "/v".into(), guest: "/etc/v".into(), read_only: true }];
        spec.process.host_network = true;
        let config = made(&spec, &image()).unwrap();
        let resources = &config["linux"]["resources"];
        assert_eq!(resources["memory"], json!({ "limit": 1 << 20, "swap": 1 << 20 }));
        assert_eq!(resources["cpu"], json!({ "quota": 25_000, "period": 100_000 }));
        assert_eq!(resources["pids"]["limit"], PIDS_MAX);
        let mounts = config["mounts"].as_array().unwrap();
        let own = mounts.iter().find(|mount| mount["destination"] == "/etc/v").unwrap();
        assert_eq!(own["source"], "/v");
        assert!(own["options"].as_array().unwrap().contains(&"ro".into()));
        assert!(!config["linux"]["namespaces"].as_array().unwrap().contains(&json!({ "type": "network" })));
    }
}
