//! The replicated, revisioned store: records, transactions, apply, watch; redb below, openraft around.
