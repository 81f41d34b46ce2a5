//! The root of a container: its image with a layer of its own over it, or a copy where the file system can't have that.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::record::Dir;
use crate::container::Process;
use crate::runtime::RuntimeError;

const ROOT: &str = "rootfs";
const UPPER: &str = "upper";
const WORK: &str = "work";

/// Makes the container's root. Nothing that the container writes reaches the image.
pub(super) fn prepare(dir: &Dir, image: &Path) -> Result<(), RuntimeError> {
    let failed = |source| RuntimeError::Io { context: "making the container's root".to_owned(), source };
    for name in [ROOT, UPPER, WORK] {
        fs::create_dir(dir.path(name)).map_err(failed)?;
    }
    let root = dir.path(ROOT);
    let mut options = Vec::new();
    for (name, path) in
        [("lowerdir=", image), (",upperdir=", &dir.path(UPPER)), (",workdir=", &dir.path(WORK))]
    {
        options.extend_from_slice(name.as_bytes());
        for byte in path.as_os_str().as_bytes() {
            if matches!(byte, b':' | b',' | b'\\') {
                options.push(b'\\');
            }
            options.push(*byte);
        }
    }
    let options = std::ffi::CString::new(options).map_err(|error| failed(io::Error::other(error)))?;
    match mount("overlay", &root, "overlay", MountFlags::empty(), options.as_c_str()) {
        Ok(()) => Ok(()),
        // There is no overlayfs, or it can't lie over this file system.
        Err(error @ (Errno::NODEV | Errno::INVAL | Errno::PERM | Errno::OPNOTSUPP)) => {
            tracing::debug!(%error, root = %root.display(), "no overlay; the image is copied");
            copy(image, &root).map_err(failed)
        }
        Err(error) => Err(failed(error.into())),
    }
}

fn copy(image: &Path, root: &Path) -> io::Result<()> {
    let mut command = Command::new("cp");
    command.arg("-a").arg("--").arg(image.join(".")).arg(root).stdin(Stdio::null());
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Removes a container's directory with all that is in it.
pub(super) fn remove(dir: &Dir) -> io::Result<()> {
    let root = dir.path(ROOT);
    match unmount(&root, UnmountFlags::DETACH) {
        // It was copied, or never made.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::remove_dir_all(&dir.0) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The files that a container has of its node: who it is, and with the node's network how names are found.
pub(super) fn files(dir: &Dir, process: &Process) -> io::Result<Vec<(String, &'static str)>> {
    let path = |name: &str| dir.path(name).to_string_lossy().into_owned();
    if process.host_network {
        let shared = ["/etc/resolv.conf", "/etc/hosts"].into_iter().filter(|file| Path::new(file).exists());
        return Ok(shared.map(|file| (file.to_owned(), file)).collect());
    }
    fs::write(dir.path("hostname"), format!("{}\n", process.hostname))?;
    fs::write(dir.path("hosts"), format!("127.0.0.1 localhost {0}\n::1 localhost {0}\n", process.hostname))?;
    Ok(vec![(path("hostname"), "/etc/hostname"), (path("hosts"), "/etc/hosts")])
}

/// Whether a limit of memory can include swap. Version 2 of control groups always knows; version 1 if the kernel was told to.
pub(super) fn swap_is_counted() -> bool {
    let v1 = Path::new("/sys/fs/cgroup/memory");
    !v1.exists() || v1.join("memory.memsw.limit_in_bytes").exists()
}
