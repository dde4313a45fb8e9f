//! Starts a program without copying the page tables of this process (Linux).
//!
//! `fork` copies the page tables, which takes 10 ms and more for each GiB that the embedding program
//! uses. Here the child shares the memory of its parent (`CLONE_VM`), and the calling thread waits
//! until the child has replaced itself by the program or has exited (`CLONE_VFORK`). The standard
//! library and glibc do the same in `posix_spawn`, which can neither register the child with the
//! watchdog nor mark unknown descriptors close-on-exec.
//!
//! Because memory is shared, everything that allocates is done before, by the parent. The child
//! calls only async-signal-safe functions and writes only to its own stack, to [`ExecCall::errno`] and to [`NumberChanges`].
//! No signal handler runs in it: all signals are blocked until their dispositions are the default, and
//! those that are pending by then are discarded.

use std::cell::Cell;
use std::ffi::{CString, NulError};
use std::io;
use std::iter::once;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::ptr;

use nix::errno::Errno;
use nix::libc::{self, c_char, c_int, c_void};

use super::SpawnRequest;
use super::unix::{self, NumberChanges};

/// The size of the child's stack. Its frames are small, also without optimisation.
const STACK: usize = 64 * 1024;

/// Starts a program. Returns the process id of the child, which leads a process group.
///
/// # Errors
///
/// When the program cannot be executed; no child is left then.
pub(crate) fn spawn(request: &SpawnRequest<'_>) -> io::Result<u32> {
    let text = |text: &str| CString::new(text);
    let program = text(request.program)?;
    let args: Result<Vec<CString>, NulError> = request.args.iter().map(|arg| text(arg)).collect();
    let args = args?;
    let variable = |(name, value): &(&str, std::ffi::OsString)| {
        CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())
    };
    let env: Result<Vec<CString>, NulError> = request.env.iter().map(variable).collect();
    let env = env?;
    let pointers = |texts: &[CString]| -> Vec<*const c_char> {
        texts.iter().map(|text| text.as_ptr()).chain(once(ptr::null())).collect()
    };
    let (argv, envp) = (pointers(&args), pointers(&env));
    let argv: Vec<*const c_char> = once(program.as_ptr()).chain(argv).collect();
    let numbers = NumberChanges::new(request.numbered);
    let call = ExecCall {
        program: program.as_ptr(),
        argv: argv.as_ptr(),
        envp: envp.as_ptr(),
        streams: request.streams.each_ref().map(AsRawFd::as_raw_fd),
        numbers: &numbers,
        watchdog: request.watchdog.map(|socket| socket.as_raw_fd()),
        errno: Cell::new(0),
    };
    let pid = clone_and_wait(&call)?;
    match call.errno.get() {
        0 => Ok(pid),
        errno => {
            unix::reap(pid);
            Err(io::Error::from_raw_os_error(errno))
        }
    }
}

/// Starts a child that carries out `call`, and waits until it has executed the program or exited.
fn clone_and_wait(call: &ExecCall<'_>) -> io::Result<u32> {
    let mut stack = vec![MaybeUninit::<u128>::uninit(); STACK / size_of::<u128>()];
    let top = stack.as_mut_ptr_range().end.cast::<c_void>();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the sets are valid for writing, and the first one is initialised by `sigfillset`.
    unsafe {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
    }
    let argument = ptr::from_ref(call).cast_mut().cast::<c_void>();
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: `top` is the end of a block of memory that outlives the child's use of it, aligned to
    // 16 bytes; `call` outlives it too: this thread waits until the child has left the memory.
    let pid = unsafe { libc::clone(child, top, flags, argument) };
    let pid = Errno::result(pid);
    // SAFETY: `before` was initialised by `pthread_sigmask`, which cannot fail with these arguments.
    unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut());
    }
    Ok(pid?.unsigned_abs())
}

/// What the child does.
struct ExecCall<'a> {
    program: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
    streams: [RawFd; 3],
    numbers: &'a NumberChanges,
    watchdog: Option<RawFd>,
    /// The error of the child; 0 if it has executed the program. The child writes it while this
    /// thread waits.
    errno: Cell<c_int>,
}

extern "C" fn child(argument: *mut c_void) -> c_int {
    // SAFETY: the argument is the `ExecCall` of `clone_and_wait`, whose thread waits.
    let call = unsafe { &*argument.cast::<ExecCall<'_>>() };
    call.errno.set(call.execute() as c_int);
    // The C library passes it to `_exit`.
    127
}

impl ExecCall<'_> {
    /// Executes the program. Returns only on an error.
    fn execute(&self) -> Errno {
        match self.prepare() {
            Err(errno) => errno,
            Ok(()) => {
                // SAFETY: the pointers are valid, and both lists end with a null pointer.
                unsafe { libc::execve(self.program, self.argv, self.envp) };
                Errno::last()
            }
        }
    }

    fn prepare(&self) -> Result<(), Errno> {
        // SAFETY: the call takes integers; it is async-signal-safe.
        Errno::result(unsafe { libc::setpgid(0, 0) })?;
        // After `setpgid`: a signal for the group of the parent, such as Ctrl-Z, may be pending. It
        // would stop the child before exec, and the parent would wait for it without a limit.
        super::os::reset_signals();
        // SAFETY: the calls take integers and a static string; all are async-signal-safe.
        unsafe {
            for (number, stream) in (0..).zip(self.streams) {
                Errno::result(libc::dup2(stream, number))?;
            }
            Errno::result(libc::chdir(c"/".as_ptr()))?;
        }
        super::os::close_other_descriptors_on_exec();
        // Before the change of numbers, which may close the watchdog's socket.
        if let Some(watchdog) = self.watchdog {
            unix::announce(watchdog)?;
        }
        self.numbers.apply()?;
        unix::raise_open_files();
        // SAFETY: the set is valid for writing and initialised by `sigemptyset`; both calls are
        // async-signal-safe.
        unsafe {
            let mut none = MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(none.as_mut_ptr());
            let failed = libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
            Errno::result(failed).map(drop)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read, pipe};

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::Command;
    use std::sync::atomic::{AtomicBool, Ordering};

    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

    use super::*;
    use crate::sys::{InheritedDescriptor, null, reap};

    fn run(
        program: &str,
        args: &[&str],
        numbered: &[InheritedDescriptor],
    ) -> io::Result<(u32, PipeReader)> {
        let (output, theirs) = pipe()?;
        let streams = &[null()?, theirs.into(), null()?];
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let env = &[("CAPSA_A", "1 2".into())];
        let request = SpawnRequest { program, args: &args, env, streams, numbered, watchdog: None };
        Ok((spawn(&request)?, output))
    }

    #[test]
    fn spawn_child_has_a_clean_state() {
        let mut blocked = SigSet::empty();
        blocked.add(Signal::SIGUSR1);
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&blocked), None).unwrap();
        let passed = InheritedDescriptor { number: 250, descriptor: null().unwrap() };
        let forgotten = null().unwrap();
        fcntl(&forgotten, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        let script = "grep -E 'Sig(Blk|Ign)' /proc/self/status; pwd; echo \"$0 $CAPSA_A $$\"
                      cut -d' ' -f5 /proc/$$/stat; ls /proc/$$/fd";
        let numbers = [passed.descriptor.as_raw_fd(), forgotten.as_raw_fd()];
        let numbers = numbers.map(|number| number.to_string());
        let (pid, mut output) = run("/bin/sh", &["-c", script, "name"], &[passed]).unwrap();
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        assert!(reap(pid).unwrap().success());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..3], ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000", "/"]);
        assert_eq!(lines[3..5], [&format!("name 1 2 {pid}"), &pid.to_string()]);
        assert!(lines[5..].contains(&"250"), "it was passed: {text}");
        assert!(numbers.iter().all(|number| !lines[5..].contains(&&**number)), "not this: {text}");
        let mask = SigSet::thread_get_mask().unwrap();
        assert!(mask.contains(Signal::SIGUSR1) && !mask.contains(Signal::SIGUSR2));
    }

    #[test]
    fn spawn_raises_limit_of_open_files() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(1000), hard).unwrap();
        let (pid, mut output) = run("/bin/sh", &["-c", "ulimit -Sn"], &[]).unwrap();
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        assert!(reap(pid).unwrap().success());
        assert!(text.trim() == hard.to_string() || text.trim() == "unlimited", "{text}");
        assert_ne!(text.trim(), "1000");
    }

    #[test]
    fn spawn_discards_signals_for_the_parent_group() {
        const ALONE: &str = "CAPSA_TEST_ALONE";
        let name = "sys::vfork::tests::spawn_discards_signals_for_the_parent_group";
        if std::env::var_os(ALONE).is_none() {
            let mut this = Command::new(std::env::current_exe().unwrap());
            let status = this.args([name, "--exact"]).env(ALONE, "1").process_group(0).status();
            assert!(status.unwrap().success());
            return;
        }
        // SAFETY: an ignored signal runs no code.
        unsafe {
            libc::signal(libc::SIGINT, libc::SIG_IGN);
        }
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    // SAFETY: the call takes integers.
                    unsafe { libc::kill(0, libc::SIGINT) };
                }
            });
            let signals = (0..100).map(|_| {
                let (pid, _) = run("/bin/sh", &["-c", "exit 0"], &[]).unwrap();
                reap(pid).unwrap().signal()
            });
            let killed: Vec<_> = signals.flatten().collect();
            is_done.store(true, Ordering::Relaxed);
            assert!(killed.is_empty(), "{} of 100 processes: {killed:?}", killed.len());
        });
    }

    #[test]
    fn inherited_descriptors_may_swap_numbers() {
        let pipes: Vec<_> = (0..2).map(|_| pipe().unwrap()).collect();
        let raw: Vec<_> = pipes.iter().map(|(_, writer)| writer.as_raw_fd()).collect();
        let (mut readers, writers): (Vec<_>, Vec<_>) = pipes.into_iter().unzip();
        let numbered = writers.into_iter().zip([raw[1], raw[0]]).map(|(writer, number)| {
            let number = number.try_into().unwrap();
            InheritedDescriptor { number, descriptor: writer.into() }
        });
        let numbered: Vec<_> = numbered.collect();
        let script = format!("echo one >/dev/fd/{}; echo two >/dev/fd/{}", raw[1], raw[0]);
        let (pid, _) = run("/bin/sh", &["-c", &script], &numbered).unwrap();
        drop(numbered);
        // The ends come when the child exits: no other process has the writers.
        for (reader, want) in readers.iter_mut().zip(["one\n", "two\n"]) {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            assert_eq!(text, want);
        }
        assert!(reap(pid).unwrap().success());
    }

    #[test]
    fn spawn_failure_is_the_errno_of_the_child() {
        for (program, errno) in [("/nowhere", Errno::ENOENT), ("/etc/passwd", Errno::EACCES)] {
            let error = run(program, &[], &[]).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(errno as c_int), "{program}");
        }
        assert_eq!(run("a\0b", &[], &[]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
