//! Leaving the cluster: the control plane has said that this machine is no longer a node.
//!
//! Pods end with the grace that they have, then what made the machine a node is wiped, and only then is the control plane
//! told. A machine that is stopped in between finds itself still a node, and is told again when it connects; one that is
//! stopped after it was wiped is none any more, whatever the control plane has heard.

use std::path::Path;
use std::time::Duration;

use lichen_link::LinkEvent;
use lichen_pods::Input;
use lichen_wire::report;
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::core::Core;

/// How long the control plane may take to hear that the node has left.
const GOODBYE_MAX: Duration = Duration::from_secs(10);

impl Core {
    /// Begins to leave: all pods are to end.
    pub(crate) fn leave(&mut self) {
        if std::mem::replace(&mut self.leaving, true) {
            return;
        }
        warn!(node = self.config.node_name, "this node was removed from the cluster; its pods end");
        for uid in self.entries.keys().cloned().collect::<Vec<_>>() {
            self.step(&uid, Input::Removed);
        }
    }

    /// Whether nothing of the node runs any more, and it may go.
    pub(crate) fn may_depart(&self) -> bool {
        self.leaving && self.entries.is_empty() && self.tasks.is_empty()
    }

    /// Wipes what made the machine a node and says so.
    pub(crate) async fn depart(self, mut link: mpsc::Receiver<LinkEvent>, left: watch::Sender<bool>) {
        let dir = self.config.data_dir.clone();
        match self.host.blocking(move || wipe(&dir)).await {
            Ok(Ok(())) => {}
            failed => {
                let dir = self.config.data_dir.display();
                error!(?failed, %dir, "the node's data could not be wiped; remove it by hand");
            }
        }
        self.report(report::LEFT, &self.config.node_name, "", &());
        let heard = async {
            while let Some(event) = link.recv().await {
                if matches!(event, LinkEvent::Lost(_)) {
                    return;
                }
            }
        };
        // A control plane that is out of reach finds out by the silence.
        let _ = tokio::time::timeout(GOODBYE_MAX, heard).await;
        if let Some(proxy) = self.proxy {
            proxy.shutdown(self.config.shutdown_grace).await;
        }
        info!(node = self.config.node_name, "the node has left the cluster");
        left.send_replace(true);
    }
}

fn wipe(dir: &Path) -> std::io::Result<()> {
    lichen_state::wipe(dir)?;
    for folder in ["pods", "artifacts"] {
        match std::fs::remove_dir_all(dir.join(folder)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
