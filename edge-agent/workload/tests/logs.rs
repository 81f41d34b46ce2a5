//! Logs on a real disk: what is written is read back, within the bound, from any end.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use lichen_workload::logs::read;
use lichen_workload::{LogFile, LogLimits, LogOptions, LogStream, LogWriter, Stream};

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// A writer whose clock moves one second a line, starting at 1.
fn writer() -> LogWriter {
    let clock = Arc::new(AtomicU64::new(0));
    LogWriter::spawn(move || at(clock.fetch_add(1, Ordering::Relaxed) + 1)).unwrap()
}

async fn text(mut logs: LogStream) -> String {
    let mut all = Vec::new();
    while let Some(chunk) = logs.next().await {
        all.extend_from_slice(&chunk.unwrap());
    }
    String::from_utf8(all).unwrap()
}

async fn with_lines(path: &Path, limits: LogLimits, lines: &[&str]) -> (LogWriter, LogFile) {
    let writer = writer();
    let file = writer.open(path, limits).unwrap();
    for line in lines {
        file.append(Stream::Stdout, line.as_bytes(), false);
    }
    file.flush().await;
    (writer, file)
}

#[tokio::test]
async fn a_log_is_read_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let (_writer, file) = with_lines(&path, LogLimits::default(), &["a", "", "c", "d"]).await;
    file.append(Stream::Stderr, b"long ", true);
    file.append(Stream::Stderr, b"line", false);
    file.flush().await;
    let check = async |options: LogOptions, expect: &str| {
        assert_eq!(text(file.read(options.clone())).await, expect, "{options:?}");
        assert_eq!(text(read(path.clone(), options.clone())).await, expect, "{options:?} from the disk");
    };
    let all = LogOptions::default();
    check(all.clone(), "a\n\nc\nd\nlong line\n").await;
    check(LogOptions { tail_lines: Some(3), ..all.clone() }, "d\nlong line\n").await;
    check(LogOptions { tail_lines: Some(100), ..all.clone() }, "a\n\nc\nd\nlong line\n").await;
    check(LogOptions { since: Some(at(4)), ..all.clone() }, "d\nlong line\n").await;
    check(LogOptions { since: Some(at(100)), ..all.clone() }, "").await;
    check(LogOptions { limit_bytes: Some(4), ..all.clone() }, "a\n\nc").await;
    check(LogOptions { limit_bytes: Some(0), ..all.clone() }, "").await;
    let timed = LogOptions { timestamps: true, tail_lines: Some(3), ..all };
    check(timed, "1970-01-01T00:00:04.000000000Z d\n1970-01-01T00:00:05.000000000Z long line\n").await;
}

#[tokio::test]
async fn a_log_stays_within_its_bound_and_keeps_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let limits = LogLimits { bytes_max: 1000 };
    let lines: Vec<String> = (0..200).map(|line| format!("line {line}")).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let (_writer, file) = with_lines(&path, limits, &lines).await;
    let sizes = [&path, &dir.path().join("log.1")].map(|path| std::fs::metadata(path).unwrap().len());
    assert!(sizes.iter().all(|size| (1..=1000).contains(size)), "{sizes:?}");
    let kept = text(file.read(LogOptions::default())).await;
    let kept: Vec<&str> = kept.lines().collect();
    assert!(kept.len() > 20, "two files hold more than one");
    assert_eq!(kept, lines[lines.len() - kept.len()..], "the newest, without a gap");
    let across = text(file.read(LogOptions { tail_lines: Some(25), ..LogOptions::default() })).await;
    assert_eq!(
        across.lines().collect::<Vec<_>>(),
        lines[lines.len() - 25..],
        "a tail reaches into the older file"
    );
}

#[tokio::test]
async fn a_line_longer_than_a_file_is_kept_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let long = "x".repeat(500);
    let (_writer, file) = with_lines(&path, LogLimits { bytes_max: 100 }, &["a", &long, "b"]).await;
    assert_eq!(text(file.read(LogOptions::default())).await, format!("{long}\nb\n"));
}

#[tokio::test]
async fn a_follower_goes_on_through_new_files_until_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let (_writer, file) = with_lines(&path, LogLimits { bytes_max: 300 }, &["0"]).await;
    let mut follower = file.read(LogOptions { follow: true, ..LogOptions::default() });
    let mut seen = Vec::new();
    for line in 1..50 {
        // The follower keeps up, so no file is put aside twice before it was read.
        while seen.iter().filter(|byte| **byte == b'\n').count() < line {
            seen.extend_from_slice(&follower.next().await.unwrap().unwrap());
        }
        file.append(Stream::Stdout, line.to_string().as_bytes(), false);
        file.flush().await;
    }
    file.close();
    seen.extend_from_slice(text(follower).await.as_bytes());
    let expect: String = (0..50).map(|line| format!("{line}\n")).collect();
    assert_eq!(String::from_utf8(seen).unwrap(), expect);
}

#[tokio::test]
async fn a_torn_entry_is_skipped_and_a_missing_log_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    std::fs::write(&path, "garbage\n1970-01-01T00:00:01Z stdout F good\n1970-01-01T00:00:02Z std").unwrap();
    assert_eq!(text(read(path.clone(), LogOptions::default())).await, "good\n");
    let follow = LogOptions { follow: true, ..LogOptions::default() };
    assert_eq!(text(read(path, follow)).await, "good\n", "nobody writes it, so it ends");
    let absent = read(dir.path().join("absent"), LogOptions::default()).next().await;
    assert!(absent.unwrap().is_err());
    assert!(writer().open(&dir.path().join("no/such/dir"), LogLimits::default()).is_err());
}

#[tokio::test]
async fn a_full_log_says_so_and_has_room_again() {
    let dir = tempfile::tempdir().unwrap();
    let (_writer, file) = with_lines(&dir.path().join("log"), LogLimits::default(), &[]).await;
    let block = vec![b'x'; 1000];
    for _ in 0..1000 {
        file.wait_for_room().await;
        file.append(Stream::Stdout, &block, false);
    }
    file.flush().await;
    assert_eq!(file.room(), lichen_workload::logs::PENDING_BYTES_MAX);
    assert_eq!(text(file.read(LogOptions::default())).await.len(), 1001 * 1000);
}
