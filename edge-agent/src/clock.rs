//! The one place where this crate reads the wall clock.

use jiff::Timestamp;

/// The present moment.
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}
