//! Log files as a crash may leave them, over the corpus in `tests/corpus`.

use lichen_fuzz::Fuzz;
use lichen_workload::LogLine;

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
