//! MQTT to sessions to registry, and the embedded broker.

pub mod broker;
mod token;

pub use token::{TOKEN_NAMESPACE, TOKEN_SECRET_TYPE, TokenError, new_token, token_of, token_secret_name};
