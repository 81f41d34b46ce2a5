//! What happens in a session, owned: events borrow from the frame that brought them.

use bytes::Bytes;
use lichen_wire::session::{Event, LostReason, ReportId, StreamId};

use crate::reports::Report;

/// What happened in the session, apart from the frame that brought it.
pub(crate) enum Happened {
    Connected { has: Option<u64>, profile: String, agent_version: String },
    Lost(LostReason),
    Report(ReportId, Report),
    Room,
    Opened(StreamId, Vec<u8>),
    Data(StreamId, Bytes),
    Writable(StreamId),
    Ended(StreamId, Option<String>),
}

impl Happened {
    /// What an event means here; none if it is one that only agents hear.
    pub(crate) fn of(event: Event<'_>, incarnation: u64) -> Option<Happened> {
        Some(match event {
            Event::NodeConnected(hello) => Happened::Connected {
                // Versions of another incarnation of the store mean nothing here.
                has: hello.synced.filter(|at| at.incarnation == incarnation).map(|at| at.version),
                profile: hello.profile.to_owned(),
                agent_version: hello.agent_version.to_owned(),
            },
            Event::Lost(reason) => Happened::Lost(reason),
            Event::Report { id, kind, key, uid, body } => Happened::Report(
                id,
                Report {
                    kind: kind.to_owned(),
                    key: key.to_owned(),
                    uid: uid.to_owned(),
                    body: body.to_vec(),
                },
            ),
            Event::Room => Happened::Room,
            Event::StreamOpened { id, request } => Happened::Opened(id, request.to_vec()),
            Event::StreamData { id, data } => Happened::Data(id, Bytes::copy_from_slice(data)),
            Event::StreamWritable { id } => Happened::Writable(id),
            Event::StreamEnded { id, error } => Happened::Ended(id, error.map(str::to_owned)),
            // The rest is what agents hear.
            _ => return None,
        })
    }
}
