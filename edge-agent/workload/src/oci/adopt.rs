//! Taking back what an earlier agent left.

use std::fs;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;

use super::engine::Status;
use super::record::{Decided, Dir, Ended, ProcessId};
use super::watched::wait;
use super::{Container, ENGINE_DIR, Inner, Ready, io_error};
use crate::container::{ContainerId, State};
use crate::runtime::RuntimeError;

impl Inner {
    /// Takes back what lies in the directory.
    pub(super) fn adopt(self: &Arc<Self>) -> Result<(), RuntimeError> {
        let entries = match fs::read_dir(&self.config.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(io_error("reading the containers' directory")(error)),
        };
        for entry in entries {
            let entry = entry.map_err(io_error("reading the containers' directory"))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == ENGINE_DIR {
                continue;
            }
            let Ok(id) = ContainerId::new(name) else { continue };
            let dir = Dir(entry.path());
            let known = self.adopt_one(&id, &dir);
            match known {
                Ok(true) => {}
                Ok(false) => {
                    tracing::warn!(%id, "a container that was never whole is removed");
                    let engine = dir.read::<Decided>(Dir::DECIDED).map(|decided| decided.engine);
                    if let Err(error) = self.clean(&id, &dir, engine.as_ref()) {
                        tracing::warn!(%id, %error, "what was left of a container cannot be removed");
                    }
                }
                Err(error) => tracing::warn!(%id, %error, "a container cannot be taken back"),
            }
        }
        Ok(())
    }

    /// False if there is no container that could go on, or tell how it ended.
    fn adopt_one(self: &Arc<Self>, id: &ContainerId, dir: &Dir) -> Result<bool, RuntimeError> {
        let Some(decided) = dir.read::<Decided>(Dir::DECIDED) else { return Ok(false) };
        let started: Option<SystemTime> = dir.read(Dir::STARTED);
        let shim = dir.read::<ProcessId>(Dir::SHIM);
        let lives = match &shim {
            Some(shim) => shim.open().map_err(io_error("looking for the container's shim"))?,
            None => None,
        };
        let status = match &lives {
            Some(_) => decided.engine.status(id)?,
            None => None,
        };
        if let (Some(process), Some(Status::Stopped) | None) = (&lives, status) {
            // It has just ended, or was about to be created: either way its shim is about to end.
            wait(process);
        }
        let (state, made) = match (status, dir.read::<Ended>(Dir::ENDED)) {
            (_, Some(ended)) => {
                let Some(started) = started else { return Ok(false) };
                let finished = ended.finished.max(started);
                (State::Exited { started, finished, exit: ended.exit }, dir.read(Dir::MADE))
            }
            (Some(Status::Created), None) => (State::Created, dir.read(Dir::MADE)),
            (Some(Status::Running | Status::Paused), None) => {
                let started = started.unwrap_or_else(|| (self.clock)());
                (State::Running { started }, dir.read(Dir::MADE))
            }
            (Some(Status::Creating | Status::Stopped) | None, None) => return Ok(false),
        };
        let runs = !matches!(state, State::Exited { .. });
        if runs && made.is_none() {
            return Ok(false);
        }
        let ready = Some(Ready { dir: dir.clone(), decided, made });
        self.containers().insert(id.clone(), Container { state: watch::channel(state).0, ready });
        if let (true, Some(shim)) = (runs, &shim) {
            self.watch(id, dir, shim, None)?;
        }
        Ok(true)
    }
}
