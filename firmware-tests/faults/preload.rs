//! What a server's process is made to believe of its disk and its clock. The loader puts it before the system's library
//! (`LD_PRELOAD`), since there is no device that is slow or broken on demand on every machine.
//!
//! It stands between the program and the system's own `fsync`, `fdatasync`, `pwrite64` and `clock_gettime`, and does what
//! four numbers say in a file that the test writes and this maps: see `disk.rs`. `build.rs` builds it. Nothing but the
//! standard library is to be had here, so what it needs of the system's library is declared by hand.

use std::ffi::{c_char, c_int, c_long, c_void};
use std::fs::OpenOptions;
use std::os::fd::AsRawFd as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

const PROT_READ: c_int = 1;
const PROT_WRITE: c_int = 2;
const MAP_SHARED: c_int = 1;
const F_GETFL: c_int = 3;
const O_DSYNC: c_int = 0o10000;
const EIO: c_int = 5;
const CLOCK_REALTIME: c_int = 0;
/// The next library's function of a name.
const RTLD_NEXT: *mut c_void = -1_isize as *mut c_void;

unsafe extern "C" {
    fn mmap(at: *mut c_void, len: usize, prot: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    fn __errno_location() -> *mut c_int;
}

/// What the file says.
#[repr(C)]
struct Levels {
    /// For how many milliseconds what makes something durable takes longer.
    sync_ms: AtomicU64,
    /// How many operations succeed until some fail.
    fail_after: AtomicU64,
    /// How many fail.
    fail_count: AtomicU64,
    /// By how many seconds the clock is wrong.
    clock_seconds: AtomicI64,
}

fn levels() -> Option<&'static Levels> {
    static LEVELS: OnceLock<Option<&'static Levels>> = OnceLock::new();
    *LEVELS.get_or_init(|| {
        let path = std::env::var_os("LICHEN_FAULTS_LEVELS")?;
        let file = OpenOptions::new().read(true).write(true).open(path).ok()?;
        let (len, prot) = (size_of::<Levels>(), PROT_READ | PROT_WRITE);
        // SAFETY: the system chooses where; the mapping is never undone and outlives the descriptor.
        let at = unsafe { mmap(std::ptr::null_mut(), len, prot, MAP_SHARED, file.as_raw_fd(), 0) };
        // SAFETY: the file is as long as the levels, a mapping begins at a page, and any bytes are numbers.
        (at as isize != -1).then(|| unsafe { &*at.cast::<Levels>() })
    })
}

/// The function that this library hides.
///
/// # Safety
/// `F` is the type of the function of that name.
unsafe fn hidden<F: Copy>(cache: &OnceLock<usize>, name: &'static [u8]) -> F {
    // SAFETY: the name ends with a zero.
    let at = cache.get_or_init(|| unsafe { dlsym(RTLD_NEXT, name.as_ptr().cast()) as usize });
    // SAFETY: as the caller promises; every system's library has these functions.
    unsafe { std::mem::transmute_copy(at) }
}

/// Takes the time that the disk takes, and says whether it fails.
fn fails(durable: bool) -> bool {
    let Some(levels) = levels() else { return false };
    if durable {
        let sync_ms = levels.sync_ms.load(Ordering::Relaxed);
        if sync_ms > 0 {
            std::thread::sleep(Duration::from_millis(sync_ms));
        }
    }
    let less = |number: u64| number.checked_sub(1);
    if levels.fail_count.load(Ordering::Relaxed) == 0
        || levels.fail_after.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
        || levels.fail_count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_err()
    {
        return false;
    }
    // SAFETY: it is the calling thread's own.
    unsafe { *__errno_location() = EIO };
    true
}

/// As the system's.
///
/// # Safety
/// As the system's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    static HIDDEN: OnceLock<usize> = OnceLock::new();
    // SAFETY: this is its type.
    let hidden = unsafe { hidden::<extern "C" fn(c_int) -> c_int>(&HIDDEN, b"fsync\0") };
    if fails(true) { -1 } else { hidden(fd) }
}

/// As the system's.
///
/// # Safety
/// As the system's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    static HIDDEN: OnceLock<usize> = OnceLock::new();
    // SAFETY: this is its type.
    let hidden = unsafe { hidden::<extern "C" fn(c_int) -> c_int>(&HIDDEN, b"fdatasync\0") };
    if fails(true) { -1 } else { hidden(fd) }
}

/// As the system's.
///
/// # Safety
/// As the system's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(fd: c_int, data: *const c_void, len: usize, at: i64) -> isize {
    static HIDDEN: OnceLock<usize> = OnceLock::new();
    type Pwrite = extern "C" fn(c_int, *const c_void, usize, i64) -> isize;
    // SAFETY: this is its type.
    let hidden = unsafe { hidden::<Pwrite>(&HIDDEN, b"pwrite64\0") };
    // SAFETY: it only reads the descriptor's flags.
    let durable = unsafe { fcntl(fd, F_GETFL) } & O_DSYNC != 0;
    if fails(durable) { -1 } else { hidden(fd, data, len, at) }
}

/// A point in time, as the system's library has it on 64-bit machines.
#[repr(C)]
pub struct Timespec {
    seconds: i64,
    nanos: c_long,
}

/// As the system's.
///
/// # Safety
/// As the system's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int {
    static HIDDEN: OnceLock<usize> = OnceLock::new();
    // SAFETY: this is its type.
    let hidden =
        unsafe { hidden::<extern "C" fn(c_int, *mut Timespec) -> c_int>(&HIDDEN, b"clock_gettime\0") };
    let done = hidden(clock, time);
    if done == 0
        && clock == CLOCK_REALTIME
        && let Some(levels) = levels()
    {
        // SAFETY: the system has just written there.
        unsafe { (*time).seconds += levels.clock_seconds.load(Ordering::Relaxed) };
    }
    done
}
