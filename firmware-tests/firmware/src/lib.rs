//! Runs tests on a Cortex-M4F, and tells the debugger (here QEMU, by semihosting) how they went: a line each, a closing line
//! with the most stack that was in use, and an exit code.
//!
//! Unsafe code is needed three times: to read the stack's own memory, to name a handler for faults, and to give a heap its memory.
#![no_std]

use core::panic::PanicInfo;

// Nothing here names it, yet its critical sections are linked.
use cortex_m as _;
use cortex_m_rt::{ExceptionFrame, exception};
use cortex_m_semihosting::debug::{self, EXIT_FAILURE, EXIT_SUCCESS};
use cortex_m_semihosting::hprintln;

/// What `paint-stack` fills the stack with before anything runs.
const PAINT: u32 = 0xcccc_cccc;

/// Runs every test and ends. One that fails panics, which ends with a failure.
pub fn run<F: FnOnce()>(tests: impl Iterator<Item = (&'static str, F)>) -> ! {
    let mut passed = 0;
    for (name, test) in tests {
        test();
        hprintln!("ok: {}", name);
        passed += 1;
    }
    let (used, free) = stack_bytes();
    assert!(passed > 0 && free > 0, "{passed} tests ran, and the stack had {free} bytes to spare");
    hprintln!("{} tests passed, with at most {} bytes of stack", passed, used);
    end(true)
}

fn end(well: bool) -> ! {
    debug::exit(if well { EXIT_SUCCESS } else { EXIT_FAILURE });
    unreachable!("the debugger ends the run")
}

/// How much of the stack was ever used, and how much never was.
fn stack_bytes() -> (usize, usize) {
    unsafe extern "C" {
        static _stack_start: u32;
        static _stack_end: u32;
    }
    let (top, bottom) = (&raw const _stack_start, &raw const _stack_end);
    let words = (top as usize - bottom as usize) / size_of::<u32>();
    // SAFETY: the linker script gives all memory between the two symbols to the stack. What is below the stack pointer is
    // nobody's, and a word is read as it is, whatever it holds.
    let painted = |index: &usize| unsafe { bottom.add(*index).read_volatile() } == PAINT;
    let free = (0..words).take_while(painted).count();
    ((words - free) * size_of::<u32>(), free * size_of::<u32>())
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    hprintln!("failed: {}", info);
    debug::exit(EXIT_FAILURE);
    loop {}
}

// SAFETY: the handler touches no memory but its own stack.
#[exception]
unsafe fn HardFault(frame: &ExceptionFrame) -> ! {
    panic!("a fault: {frame:?}")
}
