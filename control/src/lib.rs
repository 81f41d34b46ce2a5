//! Composition of a server: a [`Config`], parsed once, becomes a running [`Server`] whose bound addresses are known.
//!
//! This crate joins store, registry, API server, gateway, artifacts and the certificate authority, and drives what
//! decides: reconcilers and scheduler, which run on the member that leads.

mod backup;
pub mod cache;
mod config;
mod copies;
mod encryption;
mod essentials;
mod executor;
mod forward;
mod kubeconfig;
mod leading;
pub mod manager;
mod member;
mod recorder;
mod scheduling;
mod server;
pub mod workqueue;

pub use backup::{BACKUP_PATH, RestoreError, Restored, look, restore};
pub use config::{Broker, Config, Join};
pub use encryption::{KeyError, ROTATE_PATH};
pub use member::{MEMBERS_PATH, MemberError};
pub use server::{Server, StartError, TokenError};

pub use lichen_api::pod::defaults::Patience;
pub use lichen_mqtt::Access;
pub use lichen_store::Pace;

pub use lichen_gateway::{
    ORDER_ANNOTATION, Order, Purpose, RESULT_ANNOTATION, TOKEN_NAMESPACE, TOKEN_SECRET_TYPE, new_token,
    token_secret_name,
};
