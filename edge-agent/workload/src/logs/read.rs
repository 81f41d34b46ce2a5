//! Reading logs: whole, from the end, since a time, and on as they grow.
//!
//! The writer may put a file aside and begin the next at any time, also between any two of a reader's steps, and may be
//! killed while it does. Files are therefore told apart by their inodes, and read in the order in which they were written.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::watch;

use super::line::{LogLine, time_text};
use super::write::Progress;
use super::{LogError, LogOptions, LogStream, previous};

/// How much is read at once.
const BLOCK_BYTES: usize = 64 * 1024;
/// How often the two files of a log are opened anew because one was put aside meanwhile.
const OPEN_TRIES_MAX: usize = 8;

/// Reads a log that nobody writes any more, such as that of a container from before the agent's restart. Following it ends
/// at its end.
pub fn read(path: PathBuf, options: LogOptions) -> LogStream {
    chunks(path, options, None)
}

pub(super) fn read_live(
    path: PathBuf,
    options: LogOptions,
    progress: watch::Receiver<Progress>,
) -> LogStream {
    chunks(path, options, Some(progress))
}

struct Follower {
    reader: Reader,
    /// Present while there is something to wait for.
    progress: Option<watch::Receiver<Progress>>,
}

fn chunks(path: PathBuf, options: LogOptions, progress: Option<watch::Receiver<Progress>>) -> LogStream {
    let progress = progress.filter(|_| options.follow);
    let follower = Follower { reader: Reader::new(path, options), progress };
    stream::unfold(Some(follower), |follower| async move {
        let mut follower = follower?;
        loop {
            // Marked as seen before the read: what is written during the read wakes the next wait.
            let closed =
                follower.progress.as_mut().is_none_or(|progress| progress.borrow_and_update().closed);
            let (reader, chunk) = off_thread(follower.reader).await?;
            follower.reader = reader;
            match chunk {
                Err(error) => {
                    let error = LogError::io(&follower.reader.path, error);
                    return Some((Err(error), None));
                }
                Ok(Some(chunk)) => return Some((Ok(chunk), Some(follower))),
                Ok(None) if closed || follower.reader.is_spent() => return None,
                Ok(None) => {}
            }
            match &mut follower.progress {
                // The writer being gone is the end as well; one more read picks up its last bytes.
                Some(progress) => {
                    if progress.changed().await.is_err() {
                        follower.progress = None;
                    }
                }
                None => return None,
            }
        }
    })
    .boxed()
}

/// Reads on the blocking pool. There is no answer when the pool is shut down.
async fn off_thread(mut reader: Reader) -> Option<(Reader, io::Result<Option<Bytes>>)> {
    tokio::task::spawn_blocking(move || {
        let chunk = reader.next_chunk();
        (reader, chunk)
    })
    .await
    .ok()
}

struct Reader {
    path: PathBuf,
    options: LogOptions,
    /// The files still to be read, the oldest first. Absent until the first read.
    files: Option<Vec<File>>,
    /// Bytes of the current file that are not a whole entry yet.
    unfinished: Vec<u8>,
    inside_line: bool,
    left_bytes: u64,
}

impl Reader {
    fn new(path: PathBuf, options: LogOptions) -> Self {
        let left_bytes = options.limit_bytes.unwrap_or(u64::MAX);
        Self { path, options, files: None, unfinished: Vec::new(), inside_line: false, left_bytes }
    }

    fn is_spent(&self) -> bool {
        self.left_bytes == 0
    }

    /// The next piece of output, or nothing if there is none now.
    fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        let mut files = match self.files.take() {
            Some(files) => files,
            None => self.open()?,
        };
        let mut out = Vec::new();
        let mut block = vec![0; BLOCK_BYTES];
        while out.is_empty() && self.left_bytes > 0 {
            // Asked before the read: once a new file stands under the name, nothing more is written to this one.
            let next = if files.len() == 1 { self.begun_since(&files[0])? } else { Vec::new() };
            files.extend(next);
            let Some(file) = files.first_mut() else { break };
            let count = file.read(&mut block)?;
            if count > 0 {
                self.unfinished.extend_from_slice(&block[..count]);
                self.take_entries(&mut out);
            } else if files.len() > 1 {
                files.remove(0);
                self.unfinished.clear();
            } else {
                break;
            }
        }
        self.files = Some(files);
        Ok(if out.is_empty() { None } else { Some(out.into()) })
    }

    /// Opens the log's files, placed at the first line that is wanted.
    fn open(&mut self) -> io::Result<Vec<File>> {
        let mut files = standing(&self.path, open)?;
        if files.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        if let Some(tail) = self.options.tail_lines {
            let mut missing = tail;
            let mut first = files.len();
            while let Some(file) = first.checked_sub(1).and_then(|before| files.get_mut(before)) {
                missing = seek_to_tail(file, missing)?;
                first -= 1;
                if missing == 0 {
                    break;
                }
            }
            files.drain(..first);
        }
        Ok(files)
    }

    /// The files that were begun after one that is being read. None while the log's directory is being removed: what is
    /// open can still be read.
    fn begun_since(&self, file: &File) -> io::Result<Vec<File>> {
        let inode = inode(file)?;
        if inode_at(&self.path)? == Some(inode) {
            return Ok(Vec::new());
        }
        let mut files = standing(&self.path, open)?;
        for index in 0..files.len() {
            if self::inode(&files[index])? == inode {
                files.drain(..=index);
                break;
            }
        }
        Ok(files)
    }

    fn take_entries(&mut self, out: &mut Vec<u8>) {
        let bytes = std::mem::take(&mut self.unfinished);
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        for entry in bytes[..whole].split_inclusive(|byte| *byte == b'\n') {
            if let Some(line) = LogLine::parse(&entry[..entry.len() - 1]) {
                self.take_line(&line, out);
            }
        }
        self.unfinished = bytes[whole..].to_vec();
        let left = usize::try_from(self.left_bytes).unwrap_or(usize::MAX);
        out.truncate(left);
        self.left_bytes -= out.len() as u64;
    }

    fn take_line(&mut self, line: &LogLine<'_>, out: &mut Vec<u8>) {
        if !self.is_wanted(line.time) {
            return;
        }
        if self.options.timestamps && !self.inside_line {
            out.extend_from_slice(time_text(line.time).as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(line.text);
        if !line.partial {
            out.push(b'\n');
        }
        self.inside_line = line.partial;
    }

    fn is_wanted(&self, time: SystemTime) -> bool {
        self.options.since.is_none_or(|since| time >= since)
    }
}

/// The files that a log has now, the oldest first, each opened by `open`: the one that was put aside and the one that is
/// written. The second is missing while it is being begun, or when the writer was killed just then.
fn standing(path: &Path, mut open: impl FnMut(&Path) -> io::Result<Option<File>>) -> io::Result<Vec<File>> {
    let mut newest = None;
    for _ in 0..OPEN_TRIES_MAX {
        let current = open(path)?;
        let older = open(&previous(path))?;
        // What stood under the name before and after was not put aside in between: the two are neighbours.
        if inode_at(path)? == current.as_ref().map(inode).transpose()? {
            return Ok(older.into_iter().chain(current).collect());
        }
        newest = current.or(older);
    }
    // The writer is faster. One file is in order with whatever is begun after it.
    Ok(newest.into_iter().collect())
}

fn open(path: &Path) -> io::Result<Option<File>> {
    if_there(File::open(path))
}

fn inode(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.ino())
}

fn inode_at(path: &Path) -> io::Result<Option<u64>> {
    if_there(std::fs::metadata(path).map(|found| found.ino()))
}

fn if_there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Places the file before its last lines. The answer is how many lines are missing because the file has fewer.
fn seek_to_tail(file: &mut File, lines: u64) -> io::Result<u64> {
    let mut end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(0);
    }
    let mut found = 0;
    let mut last = true;
    while end > 0 {
        let start = end.saturating_sub(BLOCK_BYTES as u64);
        let mut block = vec![0; usize::try_from(end - start).unwrap_or(BLOCK_BYTES)];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block)?;
        for (index, byte) in block.iter().enumerate().rev() {
            if *byte != b'\n' {
                last = false;
                continue;
            }
            // The line end at the very end belongs to the last line; each other one ends the line before.
            if !std::mem::take(&mut last) {
                found += 1;
                if found == lines {
                    file.seek(SeekFrom::Start(start + index as u64 + 1))?;
                    return Ok(0);
                }
            }
        }
        end = start;
    }
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(0))?;
    if length > 0 {
        found += 1;
    }
    Ok(lines.saturating_sub(found))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    /// A log whose lines count on, with a file for each of the numbers of lines.
    struct Log {
        dir: tempfile::TempDir,
        lines: usize,
    }

    impl Log {
        fn new(files: &[usize]) -> Self {
            let mut log = Self { dir: tempfile::tempdir().unwrap(), lines: 0 };
            for (index, lines) in files.iter().enumerate() {
                if index > 0 {
                    log.put_aside();
                }
                log.begin(*lines);
            }
            log
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("log")
        }

        /// The first half of a rotation.
        fn put_aside(&self) {
            std::fs::rename(self.path(), previous(&self.path())).unwrap();
        }

        /// The second half of a rotation, and a number of lines.
        fn begin(&mut self, lines: usize) {
            let mut text = String::new();
            for _ in 0..lines {
                self.lines += 1;
                writeln!(text, "1970-01-01T00:00:01Z stdout F {}", self.lines).unwrap();
            }
            std::fs::write(self.path(), text).unwrap();
        }

        fn reader(&self, tail_lines: Option<u64>) -> Reader {
            Reader::new(self.path(), LogOptions { tail_lines, ..LogOptions::default() })
        }
    }

    /// Everything up to the present end.
    fn rest(reader: &mut Reader) -> Vec<u64> {
        let mut all = Vec::new();
        while let Some(chunk) = reader.next_chunk().unwrap() {
            all.extend_from_slice(&chunk);
        }
        std::str::from_utf8(&all).unwrap().lines().map(|line| line.parse().unwrap()).collect()
    }

    #[test]
    fn a_log_in_the_middle_of_its_rotation_is_read_on() {
        let check = |files: &[usize], tail: Option<u64>, before: &[u64], after: &[u64]| {
            let mut log = Log::new(files);
            log.put_aside();
            let mut reader = log.reader(tail);
            assert_eq!(rest(&mut reader), before, "{files:?}, the last {tail:?}");
            log.begin(2);
            assert_eq!(rest(&mut reader), after, "{files:?}, the last {tail:?}, then");
        };
        check(&[3], None, &[1, 2, 3], &[4, 5]);
        check(&[2, 3], None, &[3, 4, 5], &[6, 7]);
        check(&[3], Some(1), &[3], &[4, 5]);
        check(&[3], Some(0), &[], &[4, 5]);
        check(&[3], Some(9), &[1, 2, 3], &[4, 5]);
    }

    #[test]
    fn a_follower_that_is_two_files_behind_misses_no_file_that_is_left() {
        let mut log = Log::new(&[2]);
        let mut reader = log.reader(None);
        assert_eq!(rest(&mut reader), [1, 2]);
        log.put_aside();
        log.begin(1);
        log.put_aside();
        assert_eq!(rest(&mut reader), [3], "while the next file is being begun");
        log.begin(1);
        assert_eq!(rest(&mut reader), [4]);
        log.put_aside();
        log.begin(1);
        log.put_aside();
        log.begin(1);
        assert_eq!(rest(&mut reader), [5, 6]);
        log.put_aside();
        assert!(rest(&mut reader).is_empty(), "what was read is not read again under its other name");
    }

    /// Whatever happens between the opens, the lines come in order and without a gap.
    #[test]
    fn a_rotation_between_any_two_opens_leaves_the_order() {
        // What the writer does before each of the opens, `a` for putting aside and `b` for beginning; the rest is quiet.
        for steps in ["a", "ab", "_a", "_ab", "_aba", "_abab", "a_b", "a_bab", "_a_b", "ab_ab_ab", "abababab"]
        {
            let mut log = Log::new(&[2, 2]);
            let mut script = steps.chars().peekable();
            let path = log.path();
            let files = standing(&path, |path| {
                while let Some(step) = script.next_if(|step| *step != '_') {
                    match step {
                        'a' => log.put_aside(),
                        _ => log.begin(2),
                    }
                }
                script.next();
                open(path)
            });
            let mut reader = log.reader(None);
            reader.files = Some(files.unwrap());
            let lines = rest(&mut reader);
            assert!(!lines.is_empty(), "{steps}");
            assert!(lines.windows(2).all(|pair| pair[1] == pair[0] + 1), "{steps}: {lines:?}");
            assert_eq!(lines.last(), Some(&(log.lines as u64)), "{steps}: {lines:?}");
        }
    }

    #[test]
    fn a_writer_that_is_always_faster_is_read_from_one_of_its_files_on() {
        let mut log = Log::new(&[1]);
        let path = log.path();
        let mut opens = 0;
        let files = standing(&path, |path| {
            opens += 1;
            let file = open(path);
            log.put_aside();
            log.begin(1);
            file
        });
        assert_eq!((opens, files.unwrap().len()), (2 * OPEN_TRIES_MAX, 1));
    }
}
