//! What comes from the control plane, and what it is told: desired state in, levels out.

use std::sync::Arc;

use bytes::Bytes;
use lichen_api::k8s::api::core::v1::{Node, Pod};
use lichen_link::LinkEvent;
use lichen_net::Pool;
use lichen_pods::{Command, Input, PodMachine};
use lichen_state::{Change, Object, Space};
use lichen_wire::report;
use tracing::{error, info};

use crate::core::Core;
use crate::node;
use crate::objects::Effect;

impl Core {
    pub(crate) fn on_link(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Connected { epoch, .. } => {
                info!(epoch, "connected with the control plane");
                self.incarnation(&event);
                self.follow(epoch);
                self.connected.send_replace(true);
                self.report_all();
            }
            LinkEvent::Lost(reason) => {
                info!(?reason, "the control plane is out of reach; pods go on");
                self.connected.send_replace(false);
                self.snapshot = None;
            }
            LinkEvent::SnapshotBegin { .. } => self.snapshot = Some(self.objects.known()),
            LinkEvent::Item { kind, key, version, body } => self.on_item(kind, key, version, &body),
            LinkEvent::Remove { kind, key, .. } => self.on_remove(&kind, &key),
            LinkEvent::SnapshotEnd { version } => {
                for (kind, key) in self.snapshot.take().unwrap_or_default() {
                    self.on_remove(&kind, &key);
                }
                self.synced(version);
            }
            LinkEvent::Synced { version } => self.synced(version),
            LinkEvent::Leave => self.leave(),
            LinkEvent::Stream { request, stream } => self.on_stream(&request, Box::new(stream)),
        }
    }

    /// Notes whom the node follows before it tells it anything: a gateway of an earlier epoch is refused from here on, also
    /// after a crash.
    fn follow(&mut self, epoch: u64) {
        if epoch > self.sync.epoch {
            self.sync.epoch = epoch;
            self.changes.push(Change::Sync(self.sync));
            self.urgent = true;
        }
    }

    /// Versions of another incarnation say nothing about this one.
    fn incarnation(&mut self, event: &LinkEvent) {
        if let LinkEvent::Connected { incarnation, .. } = event {
            match self.sync.synced {
                Some((known, _)) if known == *incarnation => {}
                _ => self.sync.synced = Some((*incarnation, 0)),
            }
        }
    }

    /// Notes how far the desired state has arrived. It rides with the next commit: to know it late costs a
    /// snapshot, to write it each time would cost a write for every change in the cluster.
    fn synced(&mut self, version: u64) {
        if let Some((incarnation, _)) = self.sync.synced {
            self.sync.synced = Some((incarnation, version));
        }
    }

    fn on_item(&mut self, kind: String, key: String, version: u64, body: &Bytes) {
        let effect = match self.objects.put(&kind, &key, body) {
            Ok(effect) => effect,
            Err(error) => return error!(%error, "an object of the control plane is left out"),
        };
        if let Some(unseen) = &mut self.snapshot {
            unseen.remove(&(kind.clone(), key.clone()));
        }
        if effect != Effect::Nothing {
            let object = Object { kind, key: key.clone(), version, body: body.to_vec() };
            self.changes.push(Change::PutObject(object));
        }
        match effect {
            Effect::Pod(pod) => self.on_pod(key, pod),
            Effect::Config => self.config_stale = true,
            Effect::Services => self.routes_stale = true,
            Effect::Node => {
                self.set_pool();
                self.config_stale = true;
                self.report_node();
            }
            Effect::PodRemoved | Effect::Nothing => {}
        }
    }

    fn on_pod(&mut self, key: String, pod: Arc<Pod>) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if let Some(before) = self.keys.insert(key.clone(), uid.clone())
            && before != uid
        {
            self.forget(&before);
        }
        if self.gone.contains_key(&uid) {
            self.report_gone(&uid);
            return;
        }
        if !self.entries.contains_key(&uid) {
            self.insert(&uid, key, PodMachine::new(pod.clone(), self.host.now()), Vec::new());
        }
        self.step(&uid, Input::Desired(pod));
    }

    /// The control plane no longer wants the pod of this UID, nor to hear of it.
    fn forget(&mut self, uid: &str) {
        if self.gone.remove(uid).is_some() {
            self.changes.push(Change::Remove(Space::Gone, uid.to_owned()));
        }
        self.step(uid, Input::Removed);
    }

    fn on_remove(&mut self, kind: &str, key: &str) {
        if kind == "Node" && !self.leaving {
            // Whoever deleted it did not tell the node to leave: it registers again, as it would after a restart.
            self.report_node();
        }
        match self.objects.remove(kind, key) {
            Effect::Nothing => return,
            Effect::PodRemoved => {
                if let Some(uid) = self.keys.remove(key) {
                    self.forget(&uid);
                }
            }
            Effect::Config => self.config_stale = true,
            Effect::Services => self.routes_stale = true,
            Effect::Pod(_) | Effect::Node => {}
        }
        self.changes.push(Change::RemoveObject { kind: kind.to_owned(), key: key.to_owned() });
    }

    /// Reports every level anew, since the other side may have forgotten.
    fn report_all(&mut self) {
        self.machine = self.host.look(&self.config.data_dir);
        self.report_node();
        for uid in self.gone.keys().cloned().collect::<Vec<_>>() {
            self.report_gone(&uid);
        }
        for (uid, entry) in &self.entries {
            if let Some(status) = entry.machine.reported() {
                self.commands.push((uid.clone(), Command::Report(Box::new(status.clone()))));
            }
        }
    }

    fn report_node(&self) {
        let ip = self.pool.as_ref().map(Pool::node);
        let node: Node = node::node(&self.config, &self.machine, ip, self.host.now());
        self.report(report::NODE, &self.config.node_name, "", &node);
    }

    pub(crate) fn report_gone(&self, uid: &str) {
        if let Some(key) = self.gone.get(uid) {
            self.report(report::POD_GONE, key, uid, &());
        }
    }
}
