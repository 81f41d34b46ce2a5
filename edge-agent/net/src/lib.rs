//! Service proxy: pure tables and socket shells.

mod address;

pub use address::AddressMode;
