//! One entry of a log file: `<RFC 3339 time with nanoseconds> <stdout|stderr> <F|P> <text>`.

use std::time::SystemTime;

use jiff::Timestamp;

/// Which of a container's outputs a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLine<'a> {
    /// When it was printed.
    pub time: SystemTime,
    /// Where to.
    pub stream: Stream,
    /// Whether the line goes on in the next entry of the same stream.
    pub partial: bool,
    /// The text without its line end.
    pub text: &'a [u8],
}

impl<'a> LogLine<'a> {
    /// Appends the entry with its line end.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(time_text(self.time).as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.stream.name().as_bytes());
        out.extend_from_slice(if self.partial { b" P " } else { b" F " });
        out.extend_from_slice(self.text);
        out.push(b'\n');
    }

    /// Reads an entry without its line end. What is none, as after a crash in the middle of a write, has no answer.
    pub fn parse(entry: &'a [u8]) -> Option<Self> {
        let mut fields = entry.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(fields.next()?).ok()?.parse::<Timestamp>().ok()?;
        let stream = match fields.next()? {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        let partial = match fields.next()? {
            b"F" => false,
            b"P" => true,
            _ => return None,
        };
        Some(Self { time: time.into(), stream, partial, text: fields.next()? })
    }
}

/// A time as it stands in logs.
pub(crate) fn time_text(time: SystemTime) -> String {
    // Times beyond the year 9999 do not occur; a broken clock must not stop a log.
    let time = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
    format!("{time:.9}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(ns: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(ns)
    }

    #[test]
    fn entries_are_written_and_read_back() {
        let check = |line: LogLine<'_>, expect: &str| {
            let mut out = Vec::new();
            line.encode(&mut out);
            assert_eq!(std::str::from_utf8(&out).unwrap(), format!("{expect}\n"));
            assert_eq!(LogLine::parse(&out[..out.len() - 1]), Some(line));
        };
        let line = LogLine {
            time: at(1_500_000_000_000_000_042),
            stream: Stream::Stdout,
            partial: false,
            text: b"a b",
        };
        check(line, "2017-07-14T02:40:00.000000042Z stdout F a b");
        let line = LogLine { time: at(0), stream: Stream::Stderr, partial: true, text: b"" };
        check(line, "1970-01-01T00:00:00.000000000Z stderr P ");
    }

    #[test]
    fn what_is_no_entry_is_not_read() {
        for text in [
            "",
            "x",
            "2017-07-14T02:40:00Z",
            "2017-07-14T02:40:00Z stdout",
            "2017-07-14T02:40:00Z stdlog F x",
        ] {
            assert_eq!(LogLine::parse(text.as_bytes()), None, "{text}");
        }
    }
}
