//! System calls without a C library, the allocator, and the entry point: everything `unsafe` in the program.
//!
//! The program has one thread, and each descriptor is closed at `exec`.

#[cfg_attr(target_arch = "x86_64", path = "x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "aarch64.rs")]
mod arch;
mod files;
mod heap;
mod process;

use alloc::vec::Vec;

use arch::number as nr;
pub(crate) use files::*;
pub(crate) use process::*;

/// An error number of Linux.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

impl Errno {
    pub(crate) const ENOENT: Self = Self(2);
    pub(crate) const EINTR: Self = Self(4);
    pub(crate) const EIO: Self = Self(5);
    pub(crate) const EAGAIN: Self = Self(11);
    pub(crate) const EACCES: Self = Self(13);
    pub(crate) const EBUSY: Self = Self(16);
    pub(crate) const EEXIST: Self = Self(17);
    pub(crate) const ENOTDIR: Self = Self(20);
    pub(crate) const EINVAL: Self = Self(22);
}

pub(crate) type Outcome<T> = Result<T, Errno>;

/// An open descriptor; closed when it is dropped.
#[derive(Debug)]
pub(crate) struct Fd(i32);

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: no reference to the number is left.
        let _ = unsafe { call(nr::CLOSE, [self.0 as usize, 0, 0, 0, 0, 0]) };
    }
}

/// Makes a system call, again after a signal.
///
/// # Safety
///
/// The arguments must be valid for this system call.
unsafe fn call(number: usize, args: [usize; 6]) -> Outcome<usize> {
    loop {
        // SAFETY: the caller answers for the arguments.
        let result = unsafe { arch::call(number, args) };
        if result >= 0 {
            return Ok(result as usize);
        }
        let errno = Errno(-result as i32);
        if errno != Errno::EINTR {
            return Err(errno);
        }
    }
}

/// A path or another text for the kernel, with the zero byte at its end.
///
/// # Errors
///
/// When the text has a zero byte.
pub(crate) fn terminated(text: &[u8]) -> Outcome<Vec<u8>> {
    if text.contains(&0) {
        return Err(Errno::EINVAL);
    }
    let mut all = Vec::with_capacity(text.len() + 1);
    all.extend_from_slice(text);
    all.push(0);
    Ok(all)
}

/// The arguments and the environment of the program.
pub(crate) struct Start {
    args: &'static [*mut u8],
    env: &'static [*mut u8],
}

impl Start {
    fn texts(all: &'static [*mut u8]) -> impl Iterator<Item = &'static [u8]> {
        // SAFETY: the kernel passes pointers to strings that end with a zero byte and stay.
        all.iter().map(|text| unsafe { core::ffi::CStr::from_ptr(text.cast()) }.to_bytes())
    }

    pub(crate) fn args(&self) -> impl Iterator<Item = &'static [u8]> + use<> {
        Self::texts(self.args)
    }

    pub(crate) fn env(&self) -> impl Iterator<Item = &'static [u8]> + use<> {
        Self::texts(self.env)
    }

    /// Replaces what other processes see as the first argument, as far as there is room.
    pub(crate) fn rename(&self, name: &[u8]) {
        let Some((first, old)) = self.args.first().zip(self.args().next()) else { return };
        for n in 0..old.len() {
            // SAFETY: within the string that the kernel wrote; no reference to it is alive.
            unsafe { first.add(n).write_volatile(name.get(n).copied().unwrap_or(0)) };
        }
    }
}

/// Called by the entry point with the stack that the kernel prepared.
extern "C" fn enter(stack: *const usize) -> ! {
    // SAFETY: the kernel puts there: the number of arguments, the arguments, a null pointer, the environment, a
    // null pointer.
    let start = unsafe {
        let count = *stack;
        let args = stack.add(1).cast::<*mut u8>();
        let env = args.add(count + 1);
        let variables = (0..).take_while(|&n| !(*env.add(n)).is_null()).count();
        Start {
            args: core::slice::from_raw_parts(args, count),
            env: core::slice::from_raw_parts(env, variables),
        }
    };
    exit(crate::main(&start))
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(101)
}

/// `alloc` is compiled with unwinding and refers to this. Nothing unwinds here.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    exit(101)
}

/// As [`_Unwind_Resume`].
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() -> ! {
    exit(101)
}

/// Ends the process.
pub(crate) fn exit(status: i32) -> ! {
    loop {
        // SAFETY: it does not return.
        let _ = unsafe { call(nr::EXIT_GROUP, [status as usize, 0, 0, 0, 0, 0]) };
    }
}

/// New memory; null if there is none.
fn map_memory(size: usize) -> *mut u8 {
    // Read and write; private, anonymous.
    // SAFETY: the kernel chooses an address where nothing is.
    let mapped = unsafe { call(nr::MMAP, [0, size, 3, 0x22, usize::MAX, 0]) };
    mapped.map_or(core::ptr::null_mut(), |address| address as *mut u8)
}

/// Changes the size of memory, which may move it; null if there is none.
fn remap_memory(block: *mut u8, size: usize, new: usize) -> *mut u8 {
    // SAFETY: the allocator passes a whole mapping of its own, to which no reference is left.
    let mapped = unsafe { call(nr::MREMAP, [block as usize, size, new, 1, 0, 0]) };
    mapped.map_or(core::ptr::null_mut(), |address| address as *mut u8)
}

fn unmap_memory(block: *mut u8, size: usize) {
    // SAFETY: the allocator passes a whole mapping of its own, to which no reference is left.
    let _ = unsafe { call(nr::MUNMAP, [block as usize, size, 0, 0, 0, 0]) };
}
