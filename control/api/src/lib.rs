//! Objects, the resource table, selectors, quantities, patch, validation, snapshot views. No I/O.
