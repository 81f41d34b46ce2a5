//! Running another program in a container.

use std::io;
use std::process::Stdio;

use tokio::sync::oneshot;

use super::Ready;
use crate::container::{ContainerId, Exit};
use crate::runtime::{ExecRequest, ExecSession};

/// Starts it; the session's outputs are its own.
pub(super) fn exec(ready: &Ready, id: &ContainerId, request: &ExecRequest) -> io::Result<ExecSession> {
    let mut command = ready.decided.engine.exec(id, &ready.dir, &request.command);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    if request.stdin {
        command.stdin(Stdio::piped());
    }
    let mut child = tokio::process::Command::from(command).spawn()?;
    let closed = || io::Error::other("an output is closed");
    let stdin = child.stdin.take();
    let stdout = child.stdout.take().ok_or_else(closed)?;
    let stderr = child.stderr.take().ok_or_else(closed)?;
    let (tell, exit) = oneshot::channel();
    // It ends with the program, and the program at the latest with its container.
    tokio::spawn(async move {
        use std::os::unix::process::ExitStatusExt;
        let exit = match child.wait().await {
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, Some(signal)) => Exit::Signal(signal),
                (None, None) => Exit::Lost,
            },
            Err(_) => Exit::Lost,
        };
        // Whoever is gone doesn't want to know.
        let _ = tell.send(exit);
    });
    Ok(ExecSession {
        stdin: stdin.map(|stdin| Box::new(stdin) as _),
        stdout: Box::new(stdout),
        stderr: Some(Box::new(stderr)),
        exit,
    })
}
