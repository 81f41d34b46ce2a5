//! `lichen backup`, and `lichen restore`, which makes a new cluster of what it saved.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use http_body_util::BodyExt;
use jiff::Timestamp;
use lichen_control::{BACKUP_PATH, Restored};

use crate::client::Client;
use crate::embedded::{SERVER_DIR, state_dir};

/// Saves a running cluster's state in a file.
///
/// The file holds every object, Secrets among them, and the cluster's authority with its key: whoever has it has the
/// cluster. Artifacts are not in it.
#[derive(clap::Args)]
pub(crate) struct Backup {
    /// The file. Replaced if it exists, once the new one is whole.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Makes the state of a new cluster out of a backup; `lichen server` then starts it.
///
/// It is the cluster that was: its nodes come back by themselves and keep their pods, kubeconfigs hold. A node that joined
/// or renewed its key since the backup needs a new token, and further members join anew.
#[derive(clap::Args)]
pub(crate) struct Restore {
    /// What `lichen backup` has written.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Where the cluster's state will lie; nothing of a server may be there [default: a folder under the user's state
    /// directory].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// Runs `lichen backup`.
pub(crate) async fn backup(client: &Client, arguments: &Backup) -> Result<()> {
    let path = arguments.file.clone();
    let mut temporary = path.clone().into_os_string();
    temporary.push(".part");
    let temporary = PathBuf::from(temporary);
    let mut body = client.body(BACKUP_PATH).await?;
    let mut received = async || -> Result<Restored> {
        let mut options = std::fs::OpenOptions::new();
        let open = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary);
        let mut file = open.with_context(|| format!("cannot write {}", temporary.display()))?;
        while let Some(frame) = body.frame().await.transpose().context("the backup broke off")? {
            if let Some(data) = frame.data_ref() {
                file.write_all(data).with_context(|| format!("cannot write {}", temporary.display()))?;
            }
        }
        file.sync_all().with_context(|| format!("cannot write {}", temporary.display()))?;
        let look = temporary.clone();
        let held = tokio::task::spawn_blocking(move || lichen_control::look(&look)).await??;
        std::fs::rename(&temporary, &path).with_context(|| format!("cannot write {}", path.display()))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::File::open(folder)?.sync_all()?;
        Ok(held)
    };
    match received().await {
        Ok(held) => {
            println!("{} holds {} objects at revision {}", path.display(), held.records, held.revision);
            println!("It holds Secrets and the cluster's authority with its key: keep it as you keep those.");
            Ok(())
        }
        Err(error) => {
            // It is of no use; that it may stay does no harm.
            let _ = std::fs::remove_file(&temporary);
            Err(error)
        }
    }
}

/// Runs `lichen restore`.
pub(crate) async fn restore(arguments: &Restore) -> Result<()> {
    let data_dir = match &arguments.data_dir {
        Some(folder) => folder.clone(),
        None => state_dir()?.join(SERVER_DIR),
    };
    let (file, to) = (arguments.file.clone(), data_dir.join(SERVER_DIR));
    std::fs::create_dir_all(&data_dir).with_context(|| format!("cannot make {}", data_dir.display()))?;
    let restored = tokio::task::spawn_blocking(move || lichen_control::restore(&file, &to)).await??;
    let taken =
        i64::try_from(restored.taken_unix_s).ok().and_then(|taken| Timestamp::from_second(taken).ok());
    let taken = taken.map_or_else(String::new, |taken| format!(", taken at {taken}"));
    println!("{} objects of revision {}{taken}", restored.records, restored.revision);
    println!("Start the cluster: lichen server --data-dir {}", data_dir.display());
    println!("Artifacts are not in a backup: push again what pods are to be made of.");
    Ok(())
}
