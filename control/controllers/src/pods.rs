//! What controllers ask of pods.

use std::time::Duration;

use jiff::Timestamp;
use lichen_api::k8s::api::core::v1::{Pod, PodCondition};

use crate::meta::is_deleting;

/// The pod's phase; empty if it has none.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// Whether a pod has ended for good.
pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether a pod counts as a replica: neither ended nor on its way out.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && !is_deleting(&pod.metadata)
}

/// The node a pod is bound to.
pub(crate) fn node(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

/// The pod's condition of a type.
pub(crate) fn condition<'p>(pod: &'p Pod, kind: &str) -> Option<&'p PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_deref().unwrap_or_default();
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// The pod's Ready condition, if it is true.
pub(crate) fn ready_condition(pod: &Pod) -> Option<&PodCondition> {
    condition(pod, "Ready").filter(|ready| ready.status == "True")
}

/// Whether a pod is ready.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    ready_condition(pod).is_some()
}

/// How long until a pod that is ready now has been ready for `min_ready_seconds`: zero if it is available already,
/// `None` if it is not ready.
pub(crate) fn available_in(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    let ready = ready_condition(pod)?;
    let Some(since) = ready.last_transition_time.as_ref().filter(|_| min_ready_seconds > 0) else {
        return (min_ready_seconds <= 0).then_some(Duration::ZERO);
    };
    let at = since.0.checked_add(jiff::SignedDuration::from_secs(i64::from(min_ready_seconds))).ok()?;
    Some(Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO))
}
