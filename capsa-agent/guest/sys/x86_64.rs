//! x86-64: the instruction of a system call, the entry point, and the memory functions of C.

/// Makes a system call.
///
/// # Safety
///
/// The arguments must be valid for this system call.
pub(super) unsafe fn call(number: usize, args: [usize; 6]) -> isize {
    let result;
    // SAFETY: the kernel changes no register but these; the caller answers for the arguments.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

core::arch::global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {enter}",
    "ud2",
    // The compiler would make a loop of Rust into a call of the function itself.
    ".globl memcpy",
    "memcpy:",
    // Words, because an emulated processor copies bytes one by one.
    "mov rax, rdi",
    "mov rcx, rdx",
    "shr rcx, 3",
    "rep movsq",
    "mov ecx, edx",
    "and ecx, 7",
    "rep movsb",
    "ret",
    ".globl memmove",
    "memmove:",
    "mov rcx, rdi",
    "sub rcx, rsi",
    "cmp rcx, rdx",
    "jae memcpy",
    "mov rax, rdi",
    "lea rdi, [rdi + rdx - 1]",
    "lea rsi, [rsi + rdx - 1]",
    "mov rcx, rdx",
    "std",
    "rep movsb",
    "cld",
    "ret",
    ".globl memset",
    "memset:",
    "mov r8, rdi",
    "movzx eax, sil",
    "mov rcx, 0x0101010101010101",
    "imul rax, rcx",
    "mov rcx, rdx",
    "shr rcx, 3",
    "rep stosq",
    "mov ecx, edx",
    "and ecx, 7",
    "rep stosb",
    "mov rax, r8",
    "ret",
    ".globl memcmp",
    ".globl bcmp",
    "memcmp:",
    "bcmp:",
    "xor eax, eax",
    "mov rcx, rdx",
    "test rcx, rcx",
    "jz 3f",
    "repe cmpsb",
    "movzx eax, byte ptr [rdi - 1]",
    "movzx ecx, byte ptr [rsi - 1]",
    "sub eax, ecx",
    "3:",
    "ret",
    ".globl strlen",
    "strlen:",
    "xor eax, eax",
    "4:",
    "cmp byte ptr [rdi + rax], 0",
    "je 5f",
    "inc rax",
    "jmp 4b",
    "5:",
    "ret",
    enter = sym super::enter,
);

pub(super) const O_DIRECTORY: i32 = 0o200_000;
pub(super) const O_NOFOLLOW: i32 = 0o400_000;

/// The numbers of the system calls.
pub(super) mod number {
    pub(in super::super) const READ: usize = 0;
    pub(in super::super) const WRITE: usize = 1;
    pub(in super::super) const CLOSE: usize = 3;
    pub(in super::super) const MMAP: usize = 9;
    pub(in super::super) const MUNMAP: usize = 11;
    pub(in super::super) const RT_SIGACTION: usize = 13;
    pub(in super::super) const RT_SIGPROCMASK: usize = 14;
    pub(in super::super) const IOCTL: usize = 16;
    pub(in super::super) const MREMAP: usize = 25;
    pub(in super::super) const GETPID: usize = 39;
    pub(in super::super) const SOCKET: usize = 41;
    pub(in super::super) const BIND: usize = 49;
    pub(in super::super) const LISTEN: usize = 50;
    pub(in super::super) const CLONE: usize = 56;
    pub(in super::super) const EXECVE: usize = 59;
    pub(in super::super) const WAIT4: usize = 61;
    pub(in super::super) const KILL: usize = 62;
    pub(in super::super) const FCNTL: usize = 72;
    pub(in super::super) const CHDIR: usize = 80;
    pub(in super::super) const FCHDIR: usize = 81;
    pub(in super::super) const FCHOWN: usize = 93;
    pub(in super::super) const UMASK: usize = 95;
    pub(in super::super) const SETUID: usize = 105;
    pub(in super::super) const SETGID: usize = 106;
    pub(in super::super) const GETEUID: usize = 107;
    pub(in super::super) const SETSID: usize = 112;
    pub(in super::super) const SETGROUPS: usize = 116;
    pub(in super::super) const PRCTL: usize = 157;
    pub(in super::super) const CHROOT: usize = 161;
    pub(in super::super) const SYNC: usize = 162;
    pub(in super::super) const MOUNT: usize = 165;
    pub(in super::super) const UMOUNT2: usize = 166;
    pub(in super::super) const REBOOT: usize = 169;
    pub(in super::super) const GETDENTS64: usize = 217;
    pub(in super::super) const CLOCK_SETTIME: usize = 227;
    pub(in super::super) const CLOCK_GETTIME: usize = 228;
    pub(in super::super) const EXIT_GROUP: usize = 231;
    pub(in super::super) const OPENAT: usize = 257;
    pub(in super::super) const MKDIRAT: usize = 258;
    pub(in super::super) const UNLINKAT: usize = 263;
    pub(in super::super) const READLINKAT: usize = 267;
    pub(in super::super) const PPOLL: usize = 271;
    pub(in super::super) const ACCEPT4: usize = 288;
    pub(in super::super) const SIGNALFD4: usize = 289;
    pub(in super::super) const DUP3: usize = 292;
    pub(in super::super) const PIPE2: usize = 293;
    pub(in super::super) const STATX: usize = 332;
    pub(in super::super) const CLOSE_RANGE: usize = 436;
}
