//! `lichen secrets`: how the cluster keeps what is secret.

use anyhow::Result;
use lichen_control::ROTATE_PATH;

use crate::client::Client;

/// Looks after the encryption of Secrets in the servers' files.
#[derive(clap::Subcommand)]
pub(crate) enum Secrets {
    /// Have every server encrypt its files with a new data key and forget the old one.
    ///
    /// The key that data keys are encrypted with stays; `lichen store rekey` changes that one.
    RotateKey,
}

/// Runs the command.
pub(crate) async fn run(client: &Client, command: &Secrets) -> Result<()> {
    let Secrets::RotateKey = command;
    let ordered = client.create(ROTATE_PATH, &serde_json::json!({})).await?;
    println!("rotation {} ordered: each server carries it out by itself", ordered["rotations"]);
    Ok(())
}
