//! The one write path: strategy, admission, transaction, always under an identity.
