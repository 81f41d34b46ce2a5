//! The cluster's certificate authority, the identities in its certificates, and TLS settings made from them.
