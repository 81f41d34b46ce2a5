//! Writes a node's reports and tells its task which are done.

use std::sync::Arc;

use lichen_wire::session::ReportId;
use tokio::sync::mpsc;

use crate::Shared;
use crate::node::Input;
use crate::reports::Report;

/// Reports of a node that are written at the same time, each about another object.
const REPORTS_PARALLEL_MAX: usize = 16;

/// A report that waits to be written. The queue keeps room for many, also while there is none: they are boxed there.
pub(crate) struct Queued {
    pub(crate) session: u64,
    pub(crate) id: ReportId,
    pub(crate) report: Report,
}

/// Writes a node's reports: in the order in which they came where they are about the same object, several at a time
/// where not.
pub(crate) async fn write_reports(
    shared: Arc<Shared>,
    node: String,
    mut reports: mpsc::Receiver<Box<Queued>>,
    inputs: mpsc::Sender<Input>,
) {
    let mut next = None;
    loop {
        let Some(first) = (match next.take() {
            Some(queued) => Some(queued),
            None => reports.recv().await,
        }) else {
            return;
        };
        let mut batch = vec![first];
        while batch.len() < REPORTS_PARALLEL_MAX
            && let Ok(queued) = reports.try_recv()
        {
            let about = |a: &Report, b: &Report| a.key == b.key;
            #[cfg(feature = "plant")]
            let about = |a: &Report, b: &Report| {
                about(a, b) && !crate::plant::REPORTS_OVERTAKE.load(std::sync::atomic::Ordering::Relaxed)
            };
            let waits = |known: &Queued| about(&known.report, &queued.report);
            if queued.session != batch[0].session || batch.iter().any(|known| waits(known)) {
                next = Some(queued);
                break;
            }
            batch.push(queued);
        }
        let (reporter, node) = (&shared.reporter, &node);
        futures_util::future::join_all(batch.iter().map(|queued| reporter.write(node, &queued.report))).await;
        let Some(last) = batch.pop() else { continue };
        if inputs.send(Input::Settled { session: last.session, id: last.id }).await.is_err() {
            return;
        }
    }
}
