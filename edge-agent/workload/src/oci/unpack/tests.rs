use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, Header};

use super::*;

/// An entry of a layer: kind, path, what is in it or where it leads.
type Entry<'a> = (EntryType, &'a str, &'a str);

const FILE: EntryType = EntryType::Regular;
const DIR: EntryType = EntryType::Directory;
const SYMLINK: EntryType = EntryType::Symlink;
const LINK: EntryType = EntryType::Link;

fn layer(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, path, content) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(if *kind == DIR { 0o750 } else { 0o640 });
        header.set_mtime(1_000_000);
        header.set_uid(u64::from(rustix::process::geteuid().as_raw()));
        header.set_gid(u64::from(rustix::process::getegid().as_raw()));
        // Written as it is: the builder's own way refuses paths that a hostile layer has.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        let data = if *kind == FILE { content.as_bytes() } else { b"" };
        if matches!(*kind, SYMLINK | LINK) {
            header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
        }
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A folder with an image's root in it, and beside that what a layer must not touch.
struct Bench {
    folder: tempfile::TempDir,
    budget: Budget,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("root")).unwrap();
        fs::create_dir(folder.path().join("outside")).unwrap();
        fs::write(folder.path().join("outside/kept"), "kept").unwrap();
        Self { folder, budget: Budget::default() }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join("root").join(path)
    }

    fn unpack(&mut self, entries: &[Entry<'_>]) -> Result<(), UnpackError> {
        self.unpack_bytes(&layer(entries))
    }

    fn unpack_bytes(&mut self, bytes: &[u8]) -> Result<(), UnpackError> {
        let root = self.folder.path().join("root");
        let done = unpack(bytes, &root, &mut self.budget);
        self.check_outside();
        done
    }

    fn check_outside(&self) {
        let names = |path: &Path| {
            let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(self.folder.path()), ["outside", "root"]);
        assert_eq!(names(&self.folder.path().join("outside")), ["kept"]);
        let kept = self.folder.path().join("outside/kept");
        assert_eq!(fs::read_to_string(&kept).unwrap(), "kept");
        assert_eq!(fs::metadata(kept).unwrap().nlink(), 1);
    }

    /// All paths below the root, with what is in files and where links lead.
    fn show(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut dirs = vec![self.path("")];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(self.path("")).unwrap().display().to_string();
                let kind = fs::symlink_metadata(&path).unwrap().file_type();
                if kind.is_dir() {
                    found.push(format!("{name}/"));
                    dirs.push(path);
                } else if kind.is_symlink() {
                    found.push(format!("{name}->{}", fs::read_link(path).unwrap().display()));
                } else {
                    found.push(format!("{name}={}", fs::read_to_string(path).unwrap()));
                }
            }
        }
        found.sort();
        found
    }
}

#[test]
fn layers_lie_over_each_other() {
    let mut b = Bench::new();
    b.unpack(&[
        (DIR, "./", ""),
        (DIR, "usr/", ""),
        (DIR, "usr/lib/", ""),
        (SYMLINK, "lib", "usr/lib"),
        (FILE, "./usr/lib/a", "1"),
        (FILE, "usr/lib/b", "1"),
        (LINK, "usr/c", "usr/lib/b"),
        (FILE, "deep/er/file", "x"),
        (FILE, "gone", "x"),
        (DIR, "goes", ""),
        (FILE, "goes/with", "x"),
    ])
    .unwrap();
    assert_eq!(
        fs::metadata(b.path("usr/c")).unwrap().ino(),
        fs::metadata(b.path("usr/lib/b")).unwrap().ino()
    );
    assert_eq!(fs::metadata(b.path("usr/lib/a")).unwrap().permissions().mode() & 0o7777, 0o640);
    assert_eq!(fs::metadata(b.path("usr/lib/a")).unwrap().mtime(), 1_000_000);
    // The next writes through the directory's link, removes, and puts a file in a directory's place.
    b.unpack(&[
        (FILE, "lib/b", "2"),
        (FILE, ".wh.gone", ""),
        (FILE, "goes", "file"),
        (FILE, ".wh.never", ""),
    ])
    .unwrap();
    assert_eq!(
        b.show(),
        [
            "deep/",
            "deep/er/",
            "deep/er/file=x",
            "goes=file",
            "lib->usr/lib",
            "usr/",
            "usr/c=1",
            "usr/lib/",
            "usr/lib/a=1",
            "usr/lib/b=2"
        ]
    );
    // An opaque directory keeps what its own layer puts there.
    b.unpack(&[(DIR, "usr/lib", ""), (FILE, "usr/lib/own", "3"), (FILE, "usr/lib/.wh..wh..opq", "")])
        .unwrap();
    assert_eq!(b.show().iter().filter(|path| path.starts_with("usr/lib/")).count(), 2, "{:?}", b.show());
}

#[test]
fn nothing_leaves_the_root() {
    let outside = |b: &Bench| b.folder.path().join("outside").display().to_string();
    let refused = |entries: &[Entry<'_>]| {
        let mut b = Bench::new();
        b.unpack(entries).expect_err("is refused");
    };
    refused(&[(FILE, "../outside/new", "x")]);
    refused(&[(FILE, "a/../../outside/new", "x")]);
    refused(&[(LINK, "link", "../outside/kept")]);
    refused(&[(FILE, ".wh...", "")]);
    refused(&[(FILE, "a/.wh.", "")]);
    // Absolute paths, and links that lead out, are taken as a process inside the image would take them.
    let mut b = Bench::new();
    let out = outside(&b);
    b.unpack(&[
        (FILE, "/absolute", "x"),
        (SYMLINK, "out", &out),
        (SYMLINK, "up", "../outside"),
        (SYMLINK, "file", &format!("{out}/kept")),
        (FILE, "file", "mine"),
    ])
    .unwrap();
    assert_eq!(fs::read_to_string(b.path("file")).unwrap(), "mine");
    for through in ["out/new", "up/new", "out/kept", "up/kept"] {
        // Where a link leads to nothing inside, there is nowhere to put it.
        let _ = b.unpack(&[(FILE, through, "x")]);
        let _ = b.unpack(&[(LINK, "stolen", through)]);
        let _ = b.unpack(&[(FILE, &through.replace('/', "/.wh."), "")]);
    }
    let _ = b.unpack(&[(FILE, "up/.wh..wh..opq", "")]);
    // A link that another process could have put there by hand is no different.
    symlink("/proc/self/root", b.path("magic")).unwrap();
    let _ = b.unpack(&[(FILE, "magic/tmp/x", "x")]);
}

#[test]
fn a_layer_is_bounded() {
    let mut b = Bench::new();
    b.budget.bytes = 1000;
    b.unpack(&[(FILE, "a", &"x".repeat(600))]).unwrap();
    let error = b.unpack(&[(FILE, "b", &"x".repeat(600))]).unwrap_err();
    assert!(matches!(error, UnpackError::TooLarge("too many bytes")), "{error}");
    b.budget = Budget { entries: 2, ..Budget::default() };
    let error = b.unpack(&[(FILE, "a", ""), (FILE, "b", ""), (FILE, "c", "")]).unwrap_err();
    assert!(matches!(error, UnpackError::TooLarge("too many files")), "{error}");
    // What comes out of a small file may not be large, whether it is kept or skipped.
    let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::XGlobalHeader);
    header.set_size(64 << 20);
    header.set_cksum();
    bomb.write_all(header.as_bytes()).unwrap();
    bomb.write_all(&vec![0; 64 << 20]).unwrap();
    let bomb = bomb.finish().unwrap();
    b.budget = Budget { bytes: 1 << 20, entries: 100 };
    b.unpack_bytes(&bomb).unwrap_err();
    // Nor is a description of any length read into memory.
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::XHeader);
    header.set_size(1 << 30);
    header.set_cksum();
    b.budget = Budget::default();
    let error = b.unpack_bytes(header.as_bytes()).unwrap_err();
    assert!(error.to_string().contains("too great a length"), "{error}");
}

#[test]
fn layers_come_as_builders_make_them() {
    let mut b = Bench::new();
    let plain = layer(&[(FILE, "a", "1")]);
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed.write_all(&layer(&[(FILE, "b", "2")])).unwrap();
    b.unpack_bytes(&plain).unwrap();
    b.unpack_bytes(&packed.finish().unwrap()).unwrap();
    assert_eq!(b.show(), ["a=1", "b=2"]);
    let error = b.unpack_bytes(&[0x28, 0xb5, 0x2f, 0xfd, 0]).unwrap_err();
    assert!(error.to_string().contains("build the image with gzip"), "{error}");
    assert!(matches!(b.unpack_bytes(&[1; 600]), Err(UnpackError::Damaged(_))));
    assert!(matches!(b.unpack_bytes(&plain[..520]), Err(UnpackError::Damaged(_))));
    // A name too long for a header stands before it, in either dialect.
    let long = "d/".repeat(80) + "name";
    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o600);
    builder.append_data(&mut header, &long, &b"3"[..]).unwrap();
    builder.append_pax_extensions([("path", &b"pax"[..]), ("mtime", b"1.5")]).unwrap();
    let mut header = Header::new_ustar();
    header.set_path("short").unwrap();
    header.set_size(1);
    header.set_mode(0o600);
    header.set_cksum();
    builder.append(&header, &b"4"[..]).unwrap();
    b.unpack_bytes(&builder.into_inner().unwrap()).unwrap();
    assert_eq!(fs::read_to_string(b.path(&long)).unwrap(), "3");
    assert_eq!(fs::read_to_string(b.path("pax")).unwrap(), "4");
}

#[test]
fn a_file_is_read_as_the_container_would() {
    let b = Bench::new();
    fs::create_dir(b.path("etc")).unwrap();
    symlink(b.folder.path().join("outside/kept"), b.path("etc/passwd")).unwrap();
    let root = b.path("");
    assert!(open_in_root(&root, Path::new("etc/passwd")).is_err(), "it is not there inside");
    fs::remove_file(b.path("etc/passwd")).unwrap();
    fs::write(b.path("etc/passwd"), "x").unwrap();
    open_in_root(&root, Path::new("etc/passwd")).unwrap();
}
