//! `lichen logs`: what a container has written.
//!
//! Who follows a log goes on when the server dies that it came through, where kubectl ends: it is asked for again from the
//! time of the last line that was shown, and lines of that time that were shown are left out. What was written before a
//! container was started anew, and not shown by then, is of its previous run and does not come any more.

use std::io::Write;
use std::time::Duration;

use anyhow::{Error, Result};
use jiff::Timestamp;

use super::get::{escaped, resource};
use crate::client::{Client, Lines, Refused, path};

/// How often a log that broke off is asked for again, with nothing coming of it, until that is told.
const RETRIES_MAX: usize = 120;
/// The pause before that.
const RETRY: Duration = Duration::from_millis(500);

/// Shows what a container has written.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The pod.
    pod: String,
    /// The container, where the pod has several.
    #[arg(short, long)]
    container: Option<String>,
    /// The pod's namespace.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Stay and show what comes, until the container ends.
    #[arg(short, long)]
    follow: bool,
    /// Begin this many lines before the end.
    #[arg(long, value_name = "LINES")]
    tail: Option<u64>,
    /// The container's previous run.
    #[arg(short, long)]
    previous: bool,
    /// Begin each line with the time it was written.
    #[arg(long)]
    timestamps: bool,
}

impl Arguments {
    /// The request for what was not shown yet.
    fn request(&self, namespace: &str, shown: &Shown) -> Result<String> {
        let mut query = vec![];
        if let Some(container) = &self.container {
            query.push(format!("container={}", escaped(container)));
        }
        match (&shown.last, self.tail) {
            (Some(last), _) => query.push(format!("sinceTime={}", escaped(&last.to_string()))),
            (None, Some(tail)) => query.push(format!("tailLines={tail}")),
            (None, None) => {}
        }
        // By the times of its lines a log is followed.
        let timestamps = self.timestamps || self.follow;
        for (flag, name) in [(self.follow, "follow"), (self.previous, "previous"), (timestamps, "timestamps")]
        {
            if flag {
                query.push(format!("{name}=true"));
            }
        }
        let pod = path(resource("pods")?, Some(namespace), Some(&self.pod));
        Ok(format!("{pod}/log?{}", query.join("&")))
    }
}

/// Runs the command.
pub(crate) async fn run(client: &Client, arguments: &Arguments) -> Result<()> {
    let namespace = arguments.namespace.as_deref().unwrap_or(&client.namespace);
    let mut shown = Shown::default();
    let mut lines = client.stream(&arguments.request(namespace, &shown)?).await?;
    let mut out = std::io::stdout().lock();
    let mut retries = 0;
    loop {
        let line = match lines.next().await {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(()),
            Err(error) if !arguments.follow || retries >= RETRIES_MAX => return Err(error),
            Err(_) => {
                lines = again(client, &arguments.request(namespace, &shown)?, &mut retries).await?;
                shown.resume();
                continue;
            }
        };
        retries = 0;
        let Some(rest) = (if arguments.follow { shown.admit(&line) } else { Some(&*line) }) else { continue };
        out.write_all(if arguments.timestamps { &line } else { rest })?;
        out.write_all(b"\n")?;
        out.flush()?;
    }
}

/// Asks until a server answers that has the log.
async fn again(client: &Client, request: &str, retries: &mut usize) -> Result<Lines> {
    loop {
        *retries += 1;
        tokio::time::sleep(RETRY).await;
        match client.stream(request).await {
            Err(error) if *retries < RETRIES_MAX && may_pass(&error) => {}
            outcome => return outcome,
        }
    }
}

/// Whether the same request may succeed later.
fn may_pass(error: &Error) -> bool {
    error.downcast_ref::<Refused>().is_none_or(|refused| refused.code >= 500)
}

/// What was shown of a log whose lines have their times before them.
#[derive(Debug, Default)]
struct Shown {
    /// The time of the last line.
    last: Option<Timestamp>,
    /// How many lines of that time were shown.
    of_last: usize,
    /// How many of those will come again; while none that is newer has.
    again: Option<usize>,
}

impl Shown {
    /// The log comes again from the last time on.
    fn resume(&mut self) {
        self.again = Some(self.of_last);
    }

    /// What follows a line's time, unless it was shown before.
    fn admit<'a>(&mut self, line: &'a [u8]) -> Option<&'a [u8]> {
        let end = line.iter().position(|byte| *byte == b' ').unwrap_or(line.len());
        let time = std::str::from_utf8(&line[..end]).ok().and_then(|time| time.parse::<Timestamp>().ok());
        // Whatever has no time is no line of the log: it is shown as it is.
        let Some(time) = time else { return Some(line) };
        if let (Some(again), Some(last)) = (&mut self.again, self.last) {
            if time < last {
                return None;
            }
            if time == last && *again > 0 {
                *again -= 1;
                return None;
            }
            self.again = None;
        }
        if self.last == Some(time) {
            self.of_last += 1;
        } else {
            (self.last, self.of_last) = (Some(time), 1);
        }
        Some(line.get(end + 1..).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_comes_again_is_shown_once() {
        let check = |before: &[&str], after: &[&str], expect: &[&str]| {
            let mut shown = Shown::default();
            let mut seen: Vec<String> = Vec::new();
            for part in [before, after] {
                let lines = part.iter().map(|line| format!("2026-01-01T00:00:{line}"));
                let admitted = lines.filter_map(|line| shown.admit(line.as_bytes()).map(<[u8]>::to_vec));
                seen.extend(admitted.map(|rest| String::from_utf8(rest).unwrap()));
                shown.resume();
            }
            assert_eq!(seen, expect, "{before:?} then {after:?}");
        };
        check(&["01Z a", "02Z b"], &["02Z b", "03Z c"], &["a", "b", "c"]);
        // Three of one time, of which two were shown.
        check(&["01Z a", "01Z b"], &["01Z a", "01Z b", "01Z c", "02Z d"], &["a", "b", "c", "d"]);
        // The request names the last time as a server may understand it, which may be earlier.
        check(&["01.9Z a", "01.95Z b"], &["01.9Z a", "01.95Z b", "02Z c"], &["a", "b", "c"]);
        check(&[], &["01Z a"], &["a"]);
        check(&["01Z a"], &[], &["a"]);
        // What a clock that was set back wrote is shown, unless it came again.
        check(&["05Z a", "03Z b"], &["03Z b", "02Z c", "04Z d"], &["a", "b", "d"]);
        check(&["01Z ", "02Z"], &["02Z", "03Z x"], &["", "", "x"]);
    }

    #[test]
    fn what_has_no_time_is_shown_as_it_is() {
        let mut shown = Shown::default();
        assert_eq!(shown.admit(b"failed to read"), Some(&b"failed to read"[..]));
        assert_eq!(shown.last, None);
    }

    #[test]
    fn a_request_goes_on_from_the_last_line() {
        let arguments = Arguments {
            pod: "p".into(),
            container: None,
            namespace: None,
            follow: true,
            tail: Some(3),
            previous: false,
            timestamps: false,
        };
        let mut shown = Shown::default();
        let first = arguments.request("n", &shown).unwrap();
        assert_eq!(first, "/api/v1/namespaces/n/pods/p/log?tailLines=3&follow=true&timestamps=true");
        shown.admit(b"2026-01-01T00:00:01.5Z a");
        let again = arguments.request("n", &shown).unwrap();
        assert!(again.contains("sinceTime=2026-01-01T00"), "{again}");
        assert!(!again.contains("tailLines"), "{again}");
    }
}
