//! The sessions' test suite: a node in fixed and in growable memory, over links that lose, repeat, reorder and damage.
#![no_std]
#![no_main]

use embedded_alloc::LlffHeap;
use lichen_wire::testing::sessions;

#[global_allocator]
static HEAP: LlffHeap = LlffHeap::empty();

/// The board's PSRAM. These tests play the gateway too, whose bounds are a server's.
const HEAP_START: usize = 0x2100_0000;
const HEAP_BYTES: usize = 16 << 20;

#[cortex_m_rt::entry]
fn main() -> ! {
    // SAFETY: the linker script leaves this memory alone, and nothing was allocated before.
    unsafe { HEAP.init(HEAP_START, HEAP_BYTES) };
    lichen_firmware::run(sessions::TESTS.iter().copied())
}
