//! The bytes of the wire, and a join and a session in fixed memory, with no heap in the image.
#![no_std]
#![no_main]

use lichen_wire::golden;

#[cortex_m_rt::entry]
fn main() -> ! {
    lichen_firmware::run(golden::TESTS.iter().map(|(name, test)| (*name, || test(&mut golden::check))))
}
