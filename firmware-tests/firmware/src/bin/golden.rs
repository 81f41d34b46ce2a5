//! The bytes of the wire, and a join and a session in fixed memory, with no heap in the image.
//!
//! Keys and seeds are fixed here, so that the bytes are. A device draws them from a random generator of its own: the wire
//! takes them as parameters.
#![no_std]
#![no_main]

use cortex_m_semihosting::hprintln;
use lichen_wire::golden;
use lichen_wire::session::{Fixed, Session};

#[cortex_m_rt::entry]
fn main() -> ! {
    hprintln!("a session takes {} bytes", size_of::<Session<Fixed<8, 640>>>());
    lichen_firmware::run(golden::TESTS.iter().map(|(name, test)| (*name, || test(&mut golden::check))))
}
