//! The shell command that shuts a guest down from inside.
//!
//! It asks the guest's init first, and switches the power off itself if that had no effect. It needs
//! root. The rule: a caller does not count on the command's end, because the shell usually dies first.

/// A POSIX shell command that shuts the guest down, for guests that ignore the power button.
///
/// It calls `sync`, then `poweroff`, `systemctl poweroff` or `shutdown -h now`. If the guest still runs
/// 10 seconds later (1 second if process 1 is a shell, which seldom handles the request), it switches the
/// power off without the init: `poweroff -f`, or magic SysRq where there is no such program. It exits
/// with 1 when the guest could not be shut down, e.g. because the user is not root.
pub const SHUTDOWN_COMMAND: &str = r"exec >/dev/null 2>&1; PATH=$PATH:/sbin:/usr/sbin:/bin:/usr/bin
sync; wait=10; init=$(tr '\000' ' ' </proc/1/cmdline)
case ${init%% *} in '' | *sh) wait=1 ;; esac
poweroff || systemctl poweroff || shutdown -h now; [ $? = 0 ] || wait=0
[ $(id -u) = 0 ] || [ $wait != 0 ] || exit 1
sleep $wait; sync
poweroff -f || systemctl -ff poweroff || { echo 1 >/proc/sys/kernel/sysrq; echo o >/proc/sysrq-trigger; }
sleep 5; exit 1";
