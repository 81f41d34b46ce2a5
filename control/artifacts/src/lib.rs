//! Content-addressed artifacts: the OCI distribution API, the blob store, and compilation ahead of time.
