//! HTTPS around the registry: discovery, encodings, watch streams, subresources, authentication, authorisation.
