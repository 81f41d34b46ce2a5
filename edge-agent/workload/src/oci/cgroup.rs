//! A container's control groups: where they are, what they count. Version 1, version 2, and both beside each other.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::container::Stats;

/// How a machine's control groups are mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// A hierarchy for each controller.
    V1,
    /// One hierarchy.
    V2,
    /// Controllers as in version 1, and a version 2 that has none.
    Hybrid,
}

/// The layout that a process's `mountinfo` shows; none without control groups.
pub(super) fn layout(mountinfo: &str) -> Option<Layout> {
    let kinds: Vec<&str> = mounts(mountinfo).map(|mount| mount.kind).collect();
    match (kinds.contains(&"cgroup"), kinds.contains(&"cgroup2")) {
        (true, true) => Some(Layout::Hybrid),
        (true, false) => Some(Layout::V1),
        (false, true) => Some(Layout::V2),
        (false, false) => None,
    }
}

/// Where a container is counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cgroup {
    v2: bool,
    memory: Option<PathBuf>,
    cpu: Option<PathBuf>,
}

impl Cgroup {
    /// The control groups of a process.
    pub(super) fn of(pid: i32) -> io::Result<Self> {
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        Ok(locate(&cgroup, &fs::read_to_string("/proc/self/mountinfo")?))
    }

    /// What is used, as far as the kernel counts it.
    pub(super) fn stats(&self) -> Stats {
        let number = |dir: &Option<PathBuf>, file: &str| {
            let text = dir.as_ref().and_then(|dir| fs::read_to_string(dir.join(file)).ok());
            text.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        let (current, peak) = if self.v2 {
            ("memory.current", "memory.peak")
        } else {
            ("memory.usage_in_bytes", "memory.max_usage_in_bytes")
        };
        let cpu_ns = if self.v2 {
            field(self.cpu.as_deref(), "cpu.stat", "usage_usec").saturating_mul(1000)
        } else {
            number(&self.cpu, "cpuacct.usage")
        };
        Stats {
            memory_bytes: number(&self.memory, current),
            memory_peak_bytes: number(&self.memory, peak),
            cpu_ns,
            requests: 0,
        }
    }

    /// How many of its processes were ended because the memory was used up.
    pub(super) fn oom_kills(&self) -> u64 {
        let file = if self.v2 { "memory.events" } else { "memory.oom_control" };
        field(self.memory.as_deref(), file, "oom_kill")
    }
}

/// A number out of a file of lines `name number`.
fn field(dir: Option<&Path>, file: &str, name: &str) -> u64 {
    let Some(text) = dir.and_then(|dir| fs::read_to_string(dir.join(file)).ok()) else { return 0 };
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or(0)
}

struct Mount<'a> {
    kind: &'a str,
    /// Which part of the hierarchy is mounted.
    root: &'a str,
    target: &'a str,
    options: &'a str,
}

fn mounts(mountinfo: &str) -> impl Iterator<Item = Mount<'_>> {
    mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, target) = (before.next()?, before.next()?);
        let mut after = after.split(' ');
        let (kind, options) = (after.next()?, after.nth(1)?);
        Some(Mount { kind, root, target, options })
    })
}

/// Finds the groups that `/proc/PID/cgroup` names among the mounts.
fn locate(cgroup: &str, mountinfo: &str) -> Cgroup {
    let dir = |mount: &Mount<'_>, path: &str| {
        let below = path.strip_prefix(mount.root.trim_end_matches('/')).unwrap_or(path);
        PathBuf::from(mount.target).join(below.trim_start_matches('/'))
    };
    let v1 = |controller: &str| {
        let path = cgroup.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let controllers = fields.next()?;
            controllers.split(',').any(|name| name == controller).then(|| fields.next())?
        })?;
        let mount = mounts(mountinfo).find(|mount| {
            mount.kind == "cgroup" && mount.options.split(',').any(|name| name == controller)
        })?;
        Some(dir(&mount, path))
    };
    let memory = v1("memory");
    if memory.is_some() {
        return Cgroup { v2: false, memory, cpu: v1("cpuacct") };
    }
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::"));
    let mount = mounts(mountinfo).find(|mount| mount.kind == "cgroup2");
    let found = path.zip(mount).map(|(path, mount)| dir(&mount, path));
    Cgroup { v2: true, memory: found.clone(), cpu: found }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n";
    const V1: &str = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:4 - cgroup cgroup rw,cpu,cpuacct\n\
                      35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

    #[test]
    fn the_layout_is_what_is_mounted() {
        let check = |mountinfo: &str, expect: Option<Layout>| assert_eq!(layout(mountinfo), expect);
        check("", None);
        check("1 2 0:1 / / rw - ext4 /dev/vda rw\nnonsense", None);
        check(V2, Some(Layout::V2));
        check(V1, Some(Layout::V1));
        check(&format!("{V1}{V2}"), Some(Layout::Hybrid));
    }

    #[test]
    fn groups_are_found_where_they_are_mounted() {
        let at =
            |memory: &str, cpu: &str, v2| Cgroup { v2, memory: Some(memory.into()), cpu: Some(cpu.into()) };
        let unified = at("/sys/fs/cgroup/lichen/a", "/sys/fs/cgroup/lichen/a", true);
        assert_eq!(locate("0::/lichen/a\n", V2), unified);
        let v1 = at("/sys/fs/cgroup/memory/lichen/a", "/sys/fs/cgroup/cpu/lichen/a", false);
        let cgroup = "4:memory:/docker/abc/lichen/a\n2:cpu,cpuacct:/lichen/a\n0::/lichen/a\n";
        assert_eq!(locate(cgroup, V1), v1);
        assert_eq!(locate(cgroup, &format!("{V1}{V2}")), v1, "controllers of version 1 come first");
        assert_eq!(locate("", V1), Cgroup { v2: true, ..Cgroup::default() });
    }

    #[test]
    fn what_is_counted_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let check = |v2: bool, files: &[(&str, &str)], expect: (u64, u64, u64, u64)| {
            for (name, text) in files {
                fs::write(dir.path().join(name), text).unwrap();
            }
            let cgroup = Cgroup { v2, memory: Some(dir.path().into()), cpu: Some(dir.path().into()) };
            let stats = cgroup.stats();
            let found = (stats.memory_bytes, stats.memory_peak_bytes, stats.cpu_ns, cgroup.oom_kills());
            assert_eq!(found, expect);
        };
        check(
            true,
            &[
                ("memory.current", "4096\n"),
                ("memory.peak", "8192\n"),
                ("cpu.stat", "usage_usec 7\nuser_usec 3\n"),
                ("memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 0\n"),
            ],
            (4096, 8192, 7000, 2),
        );
        check(
            false,
            &[
                ("memory.usage_in_bytes", "1\n"),
                ("memory.max_usage_in_bytes", "2\n"),
                ("cpuacct.usage", "3\n"),
                ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
            ],
            (1, 2, 3, 1),
        );
        assert_eq!(Cgroup::default().stats(), Stats::default());
    }
}
