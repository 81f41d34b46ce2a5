//! Reading logs: whole, from the end, since a time, and on as they grow.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::watch;

use super::line::{LogLine, time_text};
use super::write::Progress;
use super::{LogError, LogOptions, LogStream, previous};

/// How much is read at once.
const BLOCK_BYTES: usize = 64 * 1024;

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
            let next = if files.len() == 1 { self.begun_since(&files[0])? } else { None };
            let Some(file) = files.first_mut() else { break };
            let count = file.read(&mut block)?;
            if count > 0 {
                files.extend(next);
                self.unfinished.extend_from_slice(&block[..count]);
                self.take_entries(&mut out);
            } else if files.len() > 1 {
                files.remove(0);
                self.unfinished.clear();
            } else if let Some(next) = next {
                files[0] = next;
                self.unfinished.clear();
            } else {
                break;
            }
        }
        self.files = Some(files);
        Ok(if out.is_empty() { None } else { Some(out.into()) })
    }

    /// Opens both files, placed at the first line that is wanted.
    fn open(&mut self) -> io::Result<Vec<File>> {
        let mut current = File::open(&self.path)?;
        let mut older = match File::open(previous(&self.path)) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        // Between the two opens the file may have been put aside: then both are the same one.
        if let Some(file) = &older
            && file.metadata()?.ino() == current.metadata()?.ino()
        {
            older = None;
        }
        if let Some(tail) = self.options.tail_lines {
            let missing = seek_to_tail(&mut current, tail)?;
            older = match older {
                Some(mut file) if missing > 0 => {
                    seek_to_tail(&mut file, missing)?;
                    Some(file)
                }
                _ => None,
            };
        }
        Ok(older.into_iter().chain([current]).collect())
    }

    fn begun_since(&self, file: &File) -> io::Result<Option<File>> {
        match File::open(&self.path) {
            Ok(now) if now.metadata()?.ino() != file.metadata()?.ino() => Ok(Some(now)),
            Ok(_) => Ok(None),
            // The pod's directory is being removed: what is open can still be read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
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
