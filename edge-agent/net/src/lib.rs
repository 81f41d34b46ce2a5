//! Service proxy: pure tables and socket shells.
