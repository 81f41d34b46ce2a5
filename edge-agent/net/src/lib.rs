//! Service proxy: pure tables and socket shells.
//!
//! [`Table`] turns Services and EndpointSlices into routes, [`Rotation`] spreads connections over a route's
//! backends, [`Pool`] hands out pod addresses: all pure. [`Proxy`] is the shell: it holds one listener a route
//! and copies bytes.
//!
//! Invariants: every agent of a machine binds each shared address with `SO_REUSEPORT`, so none of them owns
//! it; a connection is only ever sent to a backend that was in the table when it was accepted; a route without
//! backends accepts and resets, as a refusing host would; taking a route away never cuts a connection.
//!
//! Deliberately absent: UDP, node ports, session affinity, and the privileged modes.

mod address;
mod pool;
mod proxy;
mod rotation;
mod table;

pub use address::AddressMode;
pub use pool::{Pool, PoolError};
pub use proxy::{BindError, Proxy, ProxyConfig};
pub use rotation::Rotation;
pub use table::{Backend, Frontend, Route, Routes, Table};
