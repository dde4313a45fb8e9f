//! Detects use of a resource in a forked child of the process that created it.
//!
//! After a fork, both processes have the same descriptors, pollers and sockets, and the same paths
//! and process ids. Whatever the child did with them would affect the VMs of its parent, so in the
//! child every operation on them does nothing or returns an error.

use std::io;

/// The process that created a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForkGuard(u32);

impl ForkGuard {
    /// A guard for the current process.
    #[expect(clippy::new_without_default, reason = "the value depends on the process")]
    pub fn new() -> Self {
        Self(std::process::id())
    }

    /// Whether the current process created the resource, so that it is not a forked child.
    pub(crate) fn is_same_process(self) -> bool {
        self == Self::new()
    }

    /// Checks that the current process created the resource.
    ///
    /// # Errors
    ///
    /// In a forked child.
    pub fn check_process(self) -> io::Result<()> {
        let why = "used in a forked child of the process that created it: fork before the first \
                   VM, or exec";
        if self.is_same_process() { Ok(()) } else { Err(io::Error::other(why)) }
    }
}

/// Runs `act` in a forked child; returns whether it succeeds.
#[cfg(test)]
pub(crate) fn run_in_fork(act: impl FnOnce()) -> bool {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::ForkResult;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    // SAFETY: the only other thread is the test harness's, which waits.
    match unsafe { nix::unistd::fork() }.unwrap() {
        ForkResult::Parent { child } => {
            matches!(waitpid(child, None).unwrap(), WaitStatus::Exited(_, 0))
        }
        ForkResult::Child => {
            let failed = catch_unwind(AssertUnwindSafe(act)).is_err();
            // SAFETY: nothing of this copy is used after it.
            unsafe { nix::libc::_exit(failed.into()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::run_in_fork;
    use std::io::Read;
    use std::process::Command;
    use std::time::Duration;

    use capsa_proto::console::{ConsoleMux, Overflow};
    use capsa_proto::path::HostPath;
    use capsa_proto::plan::{ProcessPlan, Readiness, Signal};
    use capsa_proto::time::Instant;

    use crate::process::{ChildProcess, Inherited};
    use crate::run_dir::RunDir;
    use crate::sys::{ExitState, Poll, ReadyEvents, exit_state};
    use crate::vm_io::process_io::tests::ConsoleTest;

    fn sleeper(poll: &Poll) -> ChildProcess {
        let plan = ProcessPlan {
            name: "test".into(),
            program: "/bin/sh".into(),
            args: vec!["-c".into(), "sleep 1000".into()],
            descriptors: vec![],
            ready: Readiness::SocketExists(HostPath::new("/none").unwrap()),
            ends_with_hypervisor: true,
        };
        ChildProcess::spawn(&plan, poll, 1, Inherited::default()).unwrap().0
    }

    #[test]
    fn forked_copy_leaves_parent_resources() {
        const ALONE: &str = "CAPSA_TEST_ALONE";
        let name = "sys::fork_guard::tests::forked_copy_leaves_parent_resources";
        if std::env::var_os(ALONE).is_none() {
            let this = std::env::current_exe().unwrap();
            let status = Command::new(this).args([name, "--exact"]).env(ALONE, "1").status();
            assert!(status.unwrap().success());
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run").join("x");
        let (poll, mut ready) = (Poll::new().unwrap(), ReadyEvents::new());
        let mut run_dir = Some(RunDir::create(&path).unwrap());
        let mut process = Some(sleeper(&poll));
        let pid = process.as_ref().unwrap().pid();

        let mut console = ConsoleTest::new(ConsoleMux::new(64, Overflow::DropOldest), 100);
        console.core.with_console(|console, _| {
            console.write(Instant::ZERO, b"queued by the parent\r").unwrap();
        });

        let went_well = run_in_fork(|| {
            console.sync();
            assert!(poll.wait(Some(Duration::ZERO), &mut ReadyEvents::new()).is_err());
            drop((process.take(), run_dir.take()));
            // The child's own process, which dies with the child: its watchdog knows no other.
            std::mem::forget(sleeper(&Poll::new().unwrap()));
        });
        assert!(went_well, "see above");
        assert!(console.guest.read(&mut [0]).is_err(), "the child wrote the parent's input");

        // Longer than a watchdog needs.
        poll.wait(Some(Duration::from_millis(300)), &mut ready).unwrap();
        assert!(path.exists());
        assert_eq!(exit_state(pid), ExitState::Runs);
        process.as_ref().unwrap().signal(Signal::Kill).unwrap();
        // The end of its standard error is reported too, and may be reported first.
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while !ready.has(1) {
            assert!(std::time::Instant::now() < deadline, "the exit is not reported");
            poll.wait(Some(Duration::from_millis(100)), &mut ready).unwrap();
        }
        assert!(process.as_mut().unwrap().try_reap().is_some());
        drop(run_dir);
        assert!(!path.exists());
    }
}
