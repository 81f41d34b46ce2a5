//! Writes a node's reports and tells its task which are done.

use std::sync::Arc;

use lichen_wire::session::ReportId;
use tokio::sync::mpsc;

use crate::Shared;
use crate::node::Input;
use crate::reports::Report;

/// Reports of a node that are written at the same time, each about another object.
const REPORTS_PARALLEL_MAX: usize = 16;

/// Writes a node's reports: in the order in which they came where they are about the same object, several at a time
/// where not.
pub(crate) async fn write_reports(
    shared: Arc<Shared>,
    node: String,
    mut reports: mpsc::Receiver<(u64, ReportId, Report)>,
    inputs: mpsc::Sender<Input>,
) {
    let mut next = None;
    loop {
        let Some(first) = (match next.take() {
            Some(report) => Some(report),
            None => reports.recv().await,
        }) else {
            return;
        };
        let mut batch = vec![first];
        while batch.len() < REPORTS_PARALLEL_MAX
            && let Ok(report) = reports.try_recv()
        {
            let about = |a: &Report, b: &Report| a.key == b.key;
            #[cfg(feature = "plant")]
            let about = |a: &Report, b: &Report| {
                about(a, b) && !crate::plant::REPORTS_OVERTAKE.load(std::sync::atomic::Ordering::Relaxed)
            };
            if report.0 != batch[0].0 || batch.iter().any(|(_, _, known)| about(known, &report.2)) {
                next = Some(report);
                break;
            }
            batch.push(report);
        }
        let (reporter, node) = (&shared.reporter, &node);
        futures_util::future::join_all(batch.iter().map(|(_, _, report)| reporter.write(node, report))).await;
        let Some((session, id, _)) = batch.pop() else { continue };
        if inputs.send(Input::Settled { session, id }).await.is_err() {
            return;
        }
    }
}
