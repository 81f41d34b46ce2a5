//! kubectl as a user runs it: unmodified, of the version that Lichen speaks, against a test's own cluster.

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::tools;

/// Longest that one command may take, in seconds: a hang is a failure, not a wait.
const COMMAND_SECONDS_MAX: &str = "60";
/// What `timeout` ends with when the time is up.
const TIMED_OUT: i32 = 124;

/// kubectl with the kubeconfig of one cluster.
#[derive(Debug)]
pub struct Kubectl {
    program: PathBuf,
    config: PathBuf,
    home: PathBuf,
}

/// What a command printed, and whether it succeeded.
pub struct Output {
    line: String,
    ok: bool,
    /// What it printed to its standard output.
    pub text: String,
    /// What it printed to its standard error.
    pub errors: String,
}

impl Kubectl {
    /// kubectl with a kubeconfig, and a home of its own in `home`. `None` where there is no kubectl, as [`tools::kubectl`]
    /// says.
    pub fn new(config: &Path, home: &Path) -> Option<Self> {
        Some(Self { program: tools::kubectl()?, config: config.into(), home: home.into() })
    }

    /// A command to run as the caller likes, its standard output in a pipe. Words are split at spaces, but for those in
    /// single quotes.
    pub fn command(&self, line: &str) -> Command {
        self.prepare(Command::new(&self.program), line)
    }

    /// Starts a command that has no end of its own, such as a watch.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(&self, line: &str) -> Child {
        self.command(line).spawn().unwrap_or_else(|error| panic!("kubectl {line}: {error}"))
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// When it cannot be started, or takes too long.
    pub fn run(&self, line: &str) -> Output {
        self.feed(line, "")
    }

    /// Runs a command with `input` as its standard input.
    ///
    /// # Panics
    /// As [`Kubectl::run`].
    pub fn feed(&self, line: &str, input: &str) -> Output {
        self.run_in(line, input, &[])
    }

    /// Runs a command with further variables in its environment.
    ///
    /// # Panics
    /// As [`Kubectl::run`].
    pub fn run_in(&self, line: &str, input: &str, variables: &[(&str, &str)]) -> Output {
        let mut command = Command::new("timeout");
        command.arg(COMMAND_SECONDS_MAX).arg(&self.program);
        let mut command = self.prepare(command, line);
        command.envs(variables.iter().copied());
        let failed = |error: std::io::Error| -> ! { panic!("kubectl {line}: {error}") };
        let mut child = command.spawn().unwrap_or_else(|error| failed(error));
        if let Some(mut pipe) = child.stdin.take() {
            // A command that does not read its input may have ended before.
            let _ = pipe.write_all(input.as_bytes());
        }
        let output = child.wait_with_output().unwrap_or_else(|error| failed(error));
        assert!(output.status.code() != Some(TIMED_OUT), "kubectl {line} hangs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Output {
            line: line.to_owned(),
            ok: output.status.success(),
            text: text(&output.stdout),
            errors: text(&output.stderr),
        }
    }

    fn prepare(&self, mut command: Command, line: &str) -> Command {
        command.args(words(line)).env("KUBECONFIG", &self.config).env("HOME", &self.home);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

impl Output {
    /// Demands that each of these is in what was printed.
    ///
    /// # Panics
    /// When one is not.
    #[track_caller]
    pub fn has(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.text.contains(part) || self.errors.contains(part), "no {part:?} in {self:?}");
        }
        self
    }

    /// Demands that none of these is in what was printed.
    ///
    /// # Panics
    /// When one is.
    #[track_caller]
    pub fn lacks(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(!self.text.contains(part) && !self.errors.contains(part), "{part:?} in {self:?}");
        }
        self
    }

    /// Demands success.
    ///
    /// # Panics
    /// When it failed.
    #[track_caller]
    pub fn good(self) -> Self {
        assert!(self.ok, "{self:?}");
        self
    }

    /// Demands failure.
    ///
    /// # Panics
    /// When it succeeded.
    #[track_caller]
    pub fn bad(self) -> Self {
        assert!(!self.ok, "{self:?}");
        self
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = if self.ok { "succeeded" } else { "failed" };
        write!(f, "kubectl {} {outcome}:\n{}{}", self.line, self.text, self.errors)
    }
}

fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), None::<String>, false);
    for letter in line.chars() {
        match letter {
            '\'' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            letter if letter.is_whitespace() && !quoted => words.extend(word.take()),
            letter => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_split_as_a_shell_splits_it() {
        let cases = [
            ("get  pods -A", vec!["get", "pods", "-A"]),
            ("-o jsonpath='{.a} {.b}'c", vec!["-o", "jsonpath={.a} {.b}c"]),
            ("a '' b", vec!["a", "", "b"]),
            ("", vec![]),
        ];
        for (line, expect) in cases {
            assert_eq!(words(line), expect, "{line}");
        }
    }
}
