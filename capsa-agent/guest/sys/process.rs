//! Processes, signals, users, and the end of the guest.

use alloc::vec::Vec;
use core::ptr::null;

use super::arch::number as nr;
use super::{Errno, Fd, Outcome, call, terminated};

pub(crate) const SIGKILL: i32 = 9;
pub(crate) const SIGUSR2: i32 = 12;
const SIGPIPE: usize = 13;
const SIGCHLD: usize = 17;
const SIGNALS: usize = 64;

/// How a child ended.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ChildEnd {
    /// With this status.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
}

/// Starts a process that is a copy of this one. `None` in the copy; otherwise its id.
pub(crate) fn fork() -> Outcome<Option<i32>> {
    // SAFETY: the program has one thread, and the copy has memory of its own.
    let pid = unsafe { call(nr::CLONE, [SIGCHLD, 0, 0, 0, 0, 0]) }?;
    Ok((pid != 0).then_some(pid as i32))
}

/// Replaces this process by a program; returns only if that fails.
pub(crate) fn exec(path: &[u8], args: &[Vec<u8>], env: &[Vec<u8>]) -> Errno {
    let terminate = |all: &[Vec<u8>]| -> Outcome<Vec<Vec<u8>>> {
        all.iter().map(|text| terminated(text)).collect()
    };
    let (Ok(path), Ok(args), Ok(env)) = (terminated(path), terminate(args), terminate(env)) else {
        return Errno::EINVAL;
    };
    let pointers = |all: &[Vec<u8>]| -> Vec<*const u8> {
        all.iter().map(|text| text.as_ptr()).chain([null()]).collect()
    };
    let (arg_list, env_list) = (pointers(&args), pointers(&env));
    let lists =
        [path.as_ptr() as usize, arg_list.as_ptr() as usize, env_list.as_ptr() as usize, 0, 0, 0];
    // SAFETY: the texts end with a zero byte, and the lists with a null pointer.
    let failed = unsafe { call(nr::EXECVE, lists) };
    failed.err().unwrap_or(Errno::EIO)
}

/// Closes all descriptors but the standard streams at `exec`, also those that the program inherited. Linux before 5.11
/// closes only those that the program opened.
pub(crate) fn close_inherited_at_exec() {
    // CLOSE_RANGE_CLOEXEC.
    // SAFETY: nothing is closed now.
    let _ = unsafe { call(nr::CLOSE_RANGE, [3, u32::MAX as usize, 4, 0, 0, 0]) };
}

/// A child that has ended.
pub(crate) fn reap_child() -> Option<(i32, ChildEnd)> {
    let mut status = 0_i32;
    // Any child; WNOHANG.
    // SAFETY: the kernel writes the status.
    let pid = unsafe { call(nr::WAIT4, [usize::MAX, &raw mut status as usize, 1, 0, 0, 0]) };
    let pid = pid.ok().filter(|pid| *pid != 0)?;
    let end = match status & 0x7f {
        0 => ChildEnd::Exited((status >> 8) & 0xff),
        signal => ChildEnd::Signaled(signal),
    };
    Some((pid as i32, end))
}

/// Sends a signal to a process, or to the group -`pid`.
pub(crate) fn kill(pid: i32, signal: i32) -> Outcome<()> {
    // SAFETY: numbers only.
    unsafe { call(nr::KILL, [pid as usize, signal as usize, 0, 0, 0, 0]) }.map(drop)
}

/// `struct sigaction` of the kernel without a restorer, which only handlers need.
#[repr(C)]
struct SignalAction([usize; 4]);

fn set_signal(signal: usize, handler: usize) {
    let action = SignalAction([handler, 0, 0, 0]);
    // SAFETY: the default action or ignoring; there is no handler that could run.
    let _ = unsafe { call(nr::RT_SIGACTION, [signal, &raw const action as usize, 0, 8, 0, 0]) };
}

/// Sets the mask of blocked signals: bit N is signal N + 1.
fn set_signal_mask(mask: u64) {
    // SIG_SETMASK.
    // SAFETY: the kernel reads the mask.
    let _ = unsafe { call(nr::RT_SIGPROCMASK, [2, &raw const mask as usize, 0, 8, 0, 0]) };
}

/// A descriptor that becomes readable when a child ends. Also gives all signals their default actions, but ignores
/// writes to closed pipes, which return an error then.
pub(crate) fn watch_children() -> Outcome<Fd> {
    (1..=SIGNALS).for_each(|signal| set_signal(signal, 0));
    set_signal(SIGPIPE, 1);
    let mask = 1_u64 << (SIGCHLD - 1);
    set_signal_mask(mask);
    let flags = 0o2_004_000;
    // SAFETY: the kernel reads the mask.
    let fd =
        unsafe { call(nr::SIGNALFD4, [usize::MAX, &raw const mask as usize, 8, flags, 0, 0]) }?;
    Ok(Fd(fd as i32))
}

/// Undoes [`watch_children`] in a child.
pub(crate) fn reset_signals() {
    set_signal(SIGPIPE, 0);
    set_signal_mask(0);
}

/// Begins a session and a process group of this process.
pub(crate) fn begin_session() {
    // SAFETY: no arguments.
    let _ = unsafe { call(nr::SETSID, [0; 6]) };
}

/// Kills this process when its parent ends.
pub(crate) fn end_with_parent() {
    // PR_SET_PDEATHSIG.
    // SAFETY: numbers only.
    let _ = unsafe { call(nr::PRCTL, [1, SIGKILL as usize, 0, 0, 0, 0]) };
}

/// Sets the name of this process: at most 15 bytes.
pub(crate) fn set_name(name: &[u8]) {
    let mut text = [0_u8; 16];
    text[..name.len()].copy_from_slice(name);
    // PR_SET_NAME.
    // SAFETY: the kernel reads at most 16 bytes.
    let _ = unsafe { call(nr::PRCTL, [15, &raw const text as usize, 0, 0, 0, 0]) };
}

pub(crate) fn set_umask(mask: u32) {
    // SAFETY: a number.
    let _ = unsafe { call(nr::UMASK, [mask as usize, 0, 0, 0, 0, 0]) };
}

/// The id of this process.
pub(crate) fn process_id() -> u32 {
    // SAFETY: no arguments.
    unsafe { call(nr::GETPID, [0; 6]) }.map_or(0, |pid| pid as u32)
}

pub(crate) fn effective_uid() -> u32 {
    // SAFETY: no arguments.
    unsafe { call(nr::GETEUID, [0; 6]) }.map_or(0, |uid| uid as u32)
}

/// Becomes a user for ever.
pub(crate) fn set_user(uid: u32, gid: u32, groups: &[u32]) -> Outcome<()> {
    // SAFETY: the kernel reads the groups.
    unsafe {
        call(nr::SETGROUPS, [groups.len(), groups.as_ptr() as usize, 0, 0, 0, 0])?;
        call(nr::SETGID, [gid as usize, 0, 0, 0, 0, 0])?;
        call(nr::SETUID, [uid as usize, 0, 0, 0, 0, 0])?;
    }
    Ok(())
}

pub(crate) fn change_directory(path: &[u8]) -> Outcome<()> {
    let path = terminated(path)?;
    // SAFETY: the path ends with a zero byte.
    unsafe { call(nr::CHDIR, [path.as_ptr() as usize, 0, 0, 0, 0, 0]) }.map(drop)
}

/// Makes an open directory the root of this process.
pub(crate) fn change_root(root: &Fd) -> Outcome<()> {
    let here = terminated(b".")?;
    // SAFETY: a descriptor, and a path that ends with a zero byte.
    unsafe {
        call(nr::FCHDIR, [root.0 as usize, 0, 0, 0, 0, 0])?;
        call(nr::CHROOT, [here.as_ptr() as usize, 0, 0, 0, 0, 0])?;
    }
    Ok(())
}

/// Switches the power off.
pub(crate) fn power_off() -> Errno {
    // LINUX_REBOOT_CMD_POWER_OFF.
    let args = [0xfee1_dead, 672_274_793, 0x4321_fedc, 0, 0, 0];
    // SAFETY: numbers only.
    unsafe { call(nr::REBOOT, args) }.err().unwrap_or(Errno::EIO)
}
