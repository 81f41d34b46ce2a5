//! The pool that instances of request handlers come out of: memory that is mapped once and reused.

use std::sync::Arc;

use lichen_engine::wasmtime::{Engine, InstanceAllocationStrategy, PoolingAllocationConfig};
use lichen_engine::{MEMORY_RESERVATION_BYTES, engine, running_config};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::component::Linker;

use crate::component::linker;
use crate::context::GuestContext;

/// More instances at the same time than this have no use on one machine.
const SLOTS_MAX: u64 = 512;

/// Instances of one guest at the same time, where no pool sets the bound.
const INSTANCES_MAX: usize = 256;

/// A pool smaller than this is not worth having.
const SLOTS_MIN: u64 = 16;

/// For each slot the machine should have this much memory.
const MEMORY_BYTES_PER_SLOT: u64 = 16 << 20;

/// Core instances, memories and tables that a component may consist of, to fit a slot. Rust makes three core instances
/// with one memory and two tables; a component composed of several has that for each.
const CORE_INSTANCES_PER_SLOT: u32 = 8;
const MEMORIES_PER_SLOT: u32 = 2;
const TABLES_PER_SLOT: u32 = 4;

/// Memory of a slot that is set to zero by hand for its next user, instead of being given back to the system: the next
/// user then takes no page fault for it.
const KEPT_MEMORY_BYTES: usize = 128 << 10;
const KEPT_STACK_BYTES: usize = 32 << 10;

/// What is assumed where the system does not say how much memory it has.
const MEMORY_BYTES_UNKNOWN: u64 = 512 << 20;

/// An engine whose instances come from a pool.
pub(crate) struct Pool {
    pub(crate) engine: Engine,
    pub(crate) linker: Linker<GuestContext>,
    /// One permit a slot.
    slots: Arc<Semaphore>,
    guest_slots: usize,
}

impl Pool {
    /// The largest memory that an instance from the pool can have.
    pub(crate) const MEMORY_BYTES_MAX: u64 = MEMORY_RESERVATION_BYTES;

    /// Makes the largest pool that this machine can have, or none: where address space is short, instances are made on
    /// demand.
    pub(crate) fn create() -> Option<Self> {
        if cfg!(target_pointer_width = "32") {
            return None;
        }
        let mut slots = slots_for(memory_total_bytes().unwrap_or(MEMORY_BYTES_UNKNOWN));
        while slots >= SLOTS_MIN {
            match Self::with_slots(u32::try_from(slots).unwrap_or(u32::MAX)) {
                Ok(pool) => return Some(pool),
                Err(error) => tracing::debug!(slots, %error, "no pool of this size"),
            }
            slots /= 2;
        }
        tracing::info!("no room for a pool of instances; they are made on demand");
        None
    }

    fn with_slots(slots: u32) -> Result<Self, String> {
        let mut pool = PoolingAllocationConfig::new();
        pool.total_component_instances(slots)
            .total_core_instances(slots * CORE_INSTANCES_PER_SLOT)
            .total_memories(slots * MEMORIES_PER_SLOT)
            .total_tables(slots * TABLES_PER_SLOT)
            .total_stacks(slots)
            .max_core_instances_per_component(CORE_INSTANCES_PER_SLOT)
            .max_memories_per_component(MEMORIES_PER_SLOT)
            .max_tables_per_component(TABLES_PER_SLOT)
            .max_memory_size(usize::try_from(Self::MEMORY_BYTES_MAX).unwrap_or(usize::MAX))
            .linear_memory_keep_resident(KEPT_MEMORY_BYTES)
            .table_keep_resident(KEPT_STACK_BYTES)
            .async_stack_keep_resident(KEPT_STACK_BYTES);
        let mut config = running_config().map_err(|error| error.to_string())?;
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        let engine = engine(&config).map_err(|error| error.to_string())?;
        let linker = linker(&engine).map_err(|error| format!("{error:#}"))?;
        let slots = slots as usize;
        Ok(Self { engine, linker, slots: Arc::new(Semaphore::new(slots)), guest_slots: slots / 2 })
    }

    /// A guest's part of the pool: half of it at most, so that no guest alone can use it up.
    pub(crate) fn slots(&self) -> Slots {
        Slots { mine: Arc::new(Semaphore::new(self.guest_slots)), pool: Some(Arc::clone(&self.slots)) }
    }
}

/// How many instances a guest may have at the same time.
#[derive(Clone)]
pub(crate) struct Slots {
    mine: Arc<Semaphore>,
    pool: Option<Arc<Semaphore>>,
}

/// Room for one instance, until it is dropped.
pub(crate) struct Slot {
    _mine: Option<OwnedSemaphorePermit>,
    _pool: Option<OwnedSemaphorePermit>,
}

impl Slots {
    pub(crate) fn without_pool() -> Self {
        Self { mine: Arc::new(Semaphore::new(INSTANCES_MAX)), pool: None }
    }

    /// Waits for room.
    pub(crate) async fn take(&self) -> Slot {
        // Nobody closes the semaphores, so there always is a permit in the end.
        let mine = Arc::clone(&self.mine).acquire_owned().await.ok();
        let pool = match &self.pool {
            Some(pool) => Arc::clone(pool).acquire_owned().await.ok(),
            None => None,
        };
        Slot { _mine: mine, _pool: pool }
    }
}

fn slots_for(memory_bytes: u64) -> u64 {
    (memory_bytes / MEMORY_BYTES_PER_SLOT).clamp(SLOTS_MIN, SLOTS_MAX)
}

fn memory_total_bytes() -> Option<u64> {
    parse_memory_total(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse_memory_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_follows_the_machine() {
        assert_eq!(slots_for(64 << 20), SLOTS_MIN);
        assert_eq!(slots_for(1 << 30), 64);
        assert_eq!(slots_for(64 << 30), SLOTS_MAX);
    }

    #[test]
    fn meminfo_is_read() {
        assert_eq!(parse_memory_total("MemTotal:       2048 kB\nMemFree: 1 kB\n"), Some(2 << 20));
        assert_eq!(parse_memory_total("MemFree: 1 kB\n"), None);
        assert_eq!(parse_memory_total("MemTotal: many\n"), None);
    }

    #[test]
    fn this_machine_has_a_pool() {
        assert!(Pool::create().is_some());
    }
}
