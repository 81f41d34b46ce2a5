//! `lichen store`: what can be done with the files of a server that does not run.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lichen_store::EncryptionKey;

/// The folder of the store within a server's data directory.
const STORE: &str = "server/store";
/// The server's encryption key, beside the store.
const KEY_FILE: &str = "encryption.key";

/// Looks after the files of a server that does not run.
#[derive(clap::Subcommand)]
pub(crate) enum Store {
    /// Read everything a store holds and say whether it is whole. Changes nothing.
    Check {
        /// The data directory of the server, or the store's own.
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// The key that encrypts Secrets in it [default: encryption.key beside the store].
        #[arg(long, value_name = "FILE")]
        encryption_key_file: Option<PathBuf>,
    },
    /// Let another key open what is encrypted. Every server of a cluster needs the new one then.
    Rekey {
        /// The data directory of the server, or the store's own.
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// The key until now.
        #[arg(long, value_name = "FILE")]
        old_key_file: PathBuf,
        /// The key from now on: 64 hexadecimal digits, such as `openssl rand -hex 32` makes.
        #[arg(long, value_name = "FILE")]
        new_key_file: PathBuf,
    },
}

/// Runs the command.
pub(crate) async fn run(command: &Store) -> Result<()> {
    match command {
        Store::Check { dir, encryption_key_file } => {
            let dir = store_in(dir);
            let beside = dir.with_file_name(KEY_FILE);
            let file = encryption_key_file.clone().or_else(|| beside.exists().then_some(beside));
            let key = file.as_deref().map(key).transpose()?;
            let check = move || lichen_store::check(&dir, key.as_ref());
            let report = tokio::task::spawn_blocking(check).await??;
            println!("{report}");
            if !report.problems.is_empty() {
                bail!("the store is damaged");
            }
        }
        Store::Rekey { dir, old_key_file, new_key_file } => {
            let (dir, old, new) = (store_in(dir), key(old_key_file)?, key(new_key_file)?);
            tokio::task::spawn_blocking(move || lichen_store::rekey(&dir, &old, &new)).await??;
            println!("the server starts with {} from now on", new_key_file.display());
        }
    }
    Ok(())
}

/// The store's own directory.
fn store_in(dir: &Path) -> PathBuf {
    let within = dir.join(STORE);
    if within.is_dir() { within } else { dir.to_owned() }
}

fn key(file: &Path) -> Result<EncryptionKey> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    EncryptionKey::parse(&text).with_context(|| file.display().to_string())
}
