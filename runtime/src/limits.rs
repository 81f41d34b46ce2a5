//! The memory of a guest: one budget that all its instances draw from.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use wasmtime::ResourceLimiter;

/// What one element of a table costs on this host.
const TABLE_ELEMENT_BYTES: u64 = size_of::<usize>() as u64;

/// What a guest may use, and what it uses.
#[derive(Debug)]
pub(crate) struct MemoryBudget {
    limit_bytes: u64,
    used_bytes: AtomicU64,
    peak_bytes: AtomicU64,
}

impl MemoryBudget {
    pub(crate) fn new(limit_bytes: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            limit_bytes: limit_bytes.unwrap_or(u64::MAX),
            used_bytes: AtomicU64::new(0),
            peak_bytes: AtomicU64::new(0),
        })
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn peak_bytes(&self) -> u64 {
        self.peak_bytes.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64) -> Result<(), OutOfMemory> {
        let taken = self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|used| *used <= self.limit_bytes)
        });
        match taken {
            Ok(before) => {
                self.peak_bytes.fetch_max(before + bytes, Ordering::Relaxed);
                Ok(())
            }
            Err(_) => Err(OutOfMemory { limit_bytes: self.limit_bytes }),
        }
    }

    fn give_back(&self, bytes: u64) {
        self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The error inside a guest's trap when its budget is spent. A guest never sees a failed growth: most programs would only
/// abort with less to say.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the memory limit of {limit_bytes} bytes is reached")]
pub(crate) struct OutOfMemory {
    limit_bytes: u64,
}

/// One instance's part of the budget. It is given back when the instance's store is dropped.
pub(crate) struct MemoryShare {
    budget: Arc<MemoryBudget>,
    held_bytes: u64,
    last_bytes: u64,
}

impl MemoryShare {
    pub(crate) fn new(budget: &Arc<MemoryBudget>) -> Self {
        Self { budget: Arc::clone(budget), held_bytes: 0, last_bytes: 0 }
    }

    fn grow(&mut self, bytes: u64) -> wasmtime::Result<bool> {
        self.budget.take(bytes).map_err(wasmtime::Error::new)?;
        self.held_bytes += bytes;
        self.last_bytes = bytes;
        Ok(true)
    }

    fn undo(&mut self) {
        self.budget.give_back(self.last_bytes);
        self.held_bytes -= self.last_bytes;
        self.last_bytes = 0;
    }
}

impl Drop for MemoryShare {
    fn drop(&mut self) {
        self.budget.give_back(self.held_bytes);
    }
}

impl ResourceLimiter for MemoryShare {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        self.grow((desired.saturating_sub(current)) as u64)
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.undo();
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        self.grow(desired.saturating_sub(current) as u64 * TABLE_ELEMENT_BYTES)
    }

    fn table_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.undo();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_draw_from_one_budget_and_give_back() {
        let budget = MemoryBudget::new(Some(100));
        let mut first = MemoryShare::new(&budget);
        let mut second = MemoryShare::new(&budget);
        assert!(first.memory_growing(0, 60, None).unwrap());
        assert!(second.memory_growing(0, 60, None).is_err());
        assert!(second.memory_growing(0, 40, None).unwrap());
        drop(first);
        assert!(second.memory_growing(40, 100, None).unwrap());
        assert_eq!((budget.used_bytes(), budget.peak_bytes()), (100, 100));
        drop(second);
        assert_eq!(budget.used_bytes(), 0);
    }

    #[test]
    fn a_growth_that_the_machine_refuses_costs_nothing() {
        let budget = MemoryBudget::new(None);
        let mut share = MemoryShare::new(&budget);
        assert!(share.memory_growing(0, 10, None).unwrap());
        share.memory_grow_failed(wasmtime::Error::msg("no")).unwrap();
        assert_eq!(budget.used_bytes(), 0);
    }
}
