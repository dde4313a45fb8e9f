//! arm64: the instruction of a system call, the entry point, and the memory functions of C.

/// Makes a system call.
///
/// # Safety
///
/// The arguments must be valid for this system call.
pub(super) unsafe fn call(number: usize, args: [usize; 6]) -> isize {
    let result;
    // SAFETY: the kernel changes no register but x0; the caller answers for the arguments.
    unsafe {
        core::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") args[0] as isize => result,
            in("x1") args[1], in("x2") args[2], in("x3") args[3],
            in("x4") args[4], in("x5") args[5],
            options(nostack),
        );
    }
    result
}

core::arch::global_asm!(
    ".globl _start",
    "_start:",
    "mov x29, xzr",
    "mov x30, xzr",
    "mov x0, sp",
    "and sp, x0, #-16",
    "bl {enter}",
    "brk #1",
    // The compiler would make a loop of Rust into a call of the function itself.
    ".globl memmove",
    "memmove:",
    "sub x3, x0, x1",
    "cmp x3, x2",
    "b.hs memcpy",
    "2: cbz x2, 3f",
    "sub x2, x2, #1",
    "ldrb w4, [x1, x2]",
    "strb w4, [x0, x2]",
    "b 2b",
    "3: ret",
    ".globl memcpy",
    "memcpy:",
    "mov x3, x0",
    "4: cmp x2, #16",
    "b.lo 5f",
    "ldp x4, x5, [x1], #16",
    "stp x4, x5, [x3], #16",
    "sub x2, x2, #16",
    "b 4b",
    "5: cbz x2, 6f",
    "ldrb w4, [x1], #1",
    "strb w4, [x3], #1",
    "sub x2, x2, #1",
    "b 5b",
    "6: ret",
    ".globl memset",
    "memset:",
    "mov x3, x0",
    "7: cbz x2, 8f",
    "strb w1, [x3], #1",
    "sub x2, x2, #1",
    "b 7b",
    "8: ret",
    ".globl memcmp",
    ".globl bcmp",
    "memcmp:",
    "bcmp:",
    "mov x3, x0",
    "mov w0, wzr",
    "9: cbz x2, 8b",
    "ldrb w4, [x3], #1",
    "ldrb w5, [x1], #1",
    "sub x2, x2, #1",
    "subs w0, w4, w5",
    "b.eq 9b",
    "ret",
    ".globl strlen",
    "strlen:",
    "mov x1, x0",
    "10: ldrb w2, [x1], #1",
    "cbnz w2, 10b",
    "sub x0, x1, x0",
    "sub x0, x0, #1",
    "ret",
    enter = sym super::enter,
);

pub(super) const O_DIRECTORY: i32 = 0o40_000;
pub(super) const O_NOFOLLOW: i32 = 0o100_000;

/// The numbers of the system calls.
pub(super) mod number {
    pub(in super::super) const DUP3: usize = 24;
    pub(in super::super) const FCNTL: usize = 25;
    pub(in super::super) const IOCTL: usize = 29;
    pub(in super::super) const MKDIRAT: usize = 34;
    pub(in super::super) const UNLINKAT: usize = 35;
    pub(in super::super) const UMOUNT2: usize = 39;
    pub(in super::super) const MOUNT: usize = 40;
    pub(in super::super) const CHDIR: usize = 49;
    pub(in super::super) const FCHDIR: usize = 50;
    pub(in super::super) const CHROOT: usize = 51;
    pub(in super::super) const FCHOWN: usize = 55;
    pub(in super::super) const OPENAT: usize = 56;
    pub(in super::super) const CLOSE: usize = 57;
    pub(in super::super) const PIPE2: usize = 59;
    pub(in super::super) const GETDENTS64: usize = 61;
    pub(in super::super) const READ: usize = 63;
    pub(in super::super) const WRITE: usize = 64;
    pub(in super::super) const PPOLL: usize = 73;
    pub(in super::super) const SIGNALFD4: usize = 74;
    pub(in super::super) const READLINKAT: usize = 78;
    pub(in super::super) const SYNC: usize = 81;
    pub(in super::super) const EXIT_GROUP: usize = 94;
    pub(in super::super) const CLOCK_SETTIME: usize = 112;
    pub(in super::super) const CLOCK_GETTIME: usize = 113;
    pub(in super::super) const KILL: usize = 129;
    pub(in super::super) const RT_SIGACTION: usize = 134;
    pub(in super::super) const RT_SIGPROCMASK: usize = 135;
    pub(in super::super) const REBOOT: usize = 142;
    pub(in super::super) const SETGID: usize = 144;
    pub(in super::super) const SETUID: usize = 146;
    pub(in super::super) const SETSID: usize = 157;
    pub(in super::super) const SETGROUPS: usize = 159;
    pub(in super::super) const UMASK: usize = 166;
    pub(in super::super) const PRCTL: usize = 167;
    pub(in super::super) const GETEUID: usize = 175;
    pub(in super::super) const GETPID: usize = 172;
    pub(in super::super) const SOCKET: usize = 198;
    pub(in super::super) const BIND: usize = 200;
    pub(in super::super) const LISTEN: usize = 201;
    pub(in super::super) const MUNMAP: usize = 215;
    pub(in super::super) const MREMAP: usize = 216;
    pub(in super::super) const CLONE: usize = 220;
    pub(in super::super) const EXECVE: usize = 221;
    pub(in super::super) const MMAP: usize = 222;
    pub(in super::super) const ACCEPT4: usize = 242;
    pub(in super::super) const WAIT4: usize = 260;
    pub(in super::super) const STATX: usize = 291;
    pub(in super::super) const CLOSE_RANGE: usize = 436;
}
