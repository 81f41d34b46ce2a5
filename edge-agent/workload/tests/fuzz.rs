//! Log files as a crash may leave them, and layers of images, over the corpus in `tests/corpus`.

use lichen_fuzz::Fuzz;
use lichen_workload::LogLine;
use lichen_workload::oci::unpack::{Budget, unpack};
use tar::{Builder, EntryType, Header};

#[test]
fn entries_are_stable() {
    let examples = [
        ("full", &b"2017-07-14T02:40:00.000000042Z stdout F a b"[..]),
        ("partial", b"1970-01-01T00:00:00.000000000Z stderr P "),
        ("offset", b"2026-11-22T03:00:00+01:00 stdout F \xff\x00"),
    ];
    Fuzz::new(env!("CARGO_MANIFEST_DIR"), "log-line").examples(examples).iterations(10_000).run(|bytes| {
        let Some(line) = LogLine::parse(bytes) else { return false };
        let mut out = Vec::new();
        line.encode(&mut out);
        assert_eq!(out.pop(), Some(b'\n'));
        assert_eq!(LogLine::parse(&out), Some(line));
        true
    });
}

/// A layer of entries: kind, path, where it leads.
fn layer(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, path, link) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        let data: &[u8] = if *kind == EntryType::Regular { b"x" } else { b"" };
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn layers_stay_inside_their_root() {
    use EntryType::{Directory, Fifo, Link, Regular, Symlink};
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, &layer(&[(Regular, "a", "")])).unwrap();
    let mut long = Builder::new(Vec::new());
    long.append_pax_extensions([("path", &b"long"[..]), ("uid", b"0")]).unwrap();
    let examples = [
        (
            "tree",
            layer(&[(Directory, "d/", ""), (Regular, "d/f", ""), (Link, "l", "d/f"), (Symlink, "s", "/d")]),
        ),
        (
            "whiteouts",
            layer(&[(Regular, "d/f", ""), (Regular, "d/.wh.f", ""), (Regular, "d/.wh..wh..opq", "")]),
        ),
        (
            "links-out",
            layer(&[(Symlink, "o", "../../outside"), (Symlink, "p", "/proc/self/root"), (Fifo, "q", "")]),
        ),
        ("packed", packed.finish().unwrap()),
        ("pax", long.into_inner().unwrap()),
    ];
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "layer").examples(examples).iterations(600);
    fuzz.run(|bytes| {
        let folder = tempfile::tempdir().unwrap();
        let (root, outside) = (folder.path().join("root"), folder.path().join("outside"));
        for dir in [&root, &outside] {
            std::fs::create_dir(dir).unwrap();
        }
        std::fs::write(outside.join("kept"), "kept").unwrap();
        let done = unpack(bytes, &root, &mut Budget { bytes: 1 << 20, entries: 1000 });
        let names =
            |dir| std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
        assert_eq!(names(folder.path()).len(), 2);
        assert_eq!(names(&outside), ["kept"]);
        assert_eq!(std::fs::read(outside.join("kept")).unwrap(), b"kept");
        assert_eq!(std::os::unix::fs::MetadataExt::nlink(&outside.join("kept").metadata().unwrap()), 1);
        done.is_ok()
    });
}
