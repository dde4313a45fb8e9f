//! Finds out whether the kernel's out-of-memory killer killed a process.
//!
//! It looks at two sources, of which a host may have none: the counter `oom_kill` of this process's memory
//! cgroup, and the kernel log. Both are Linux's. The rule: a negative answer proves nothing.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::OFlag;

/// A record of the kernel log is looked at if it is younger than this, because process ids are reused.
const RECENT_SECONDS: f64 = 60.0;

/// Records of the kernel log that are looked at.
const MAX_RECORDS: usize = 20_000;

/// How many processes of this process's cgroup the out-of-memory killer has killed.
pub(crate) fn kills_in_cgroup() -> Option<u64> {
    let cgroups = fs::read_to_string("/proc/self/cgroup").ok()?;
    cgroups.lines().find_map(|line| counted(&fs::read_to_string(counter_of(line)?).ok()?))
}

/// Whether the kernel log has the message that the process was killed for lack of memory.
pub(crate) fn is_in_kernel_log(pid: u32) -> bool {
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let uptime = uptime.split(' ').next().and_then(|seconds| seconds.parse().ok());
    let mut options = File::options();
    let log = options.read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open("/dev/kmsg");
    let (Some(uptime), Ok(mut log)) = (uptime, log) else { return false };
    // Each read returns one record.
    let mut record = [0; 8192];
    for _ in 0..MAX_RECORDS {
        match log.read(&mut record) {
            Ok(n @ 1..) if names(&String::from_utf8_lossy(&record[..n]), pid, uptime) => {
                return true;
            }
            Ok(1..) => {}
            // The oldest records were overwritten.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Ok(_) | Err(_) => return false,
        }
    }
    false
}

/// The file with the counter of the memory cgroup in a line of `/proc/self/cgroup`.
fn counter_of(line: &str) -> Option<String> {
    let (_, line) = line.split_once(':')?;
    let (controllers, path) = line.split_once(':')?;
    match controllers {
        "" => Some(format!("/sys/fs/cgroup{path}/memory.events")),
        v1 if v1.split(',').any(|controller| controller == "memory") => {
            Some(format!("/sys/fs/cgroup/memory{path}/memory.oom_control"))
        }
        _ => None,
    }
}

fn counted(events: &str) -> Option<u64> {
    events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// Whether a record, `priority,number,microseconds,flags;text`, reports a recent kill of this process.
fn names(record: &str, pid: u32, uptime: f64) -> bool {
    let Some((head, text)) = record.split_once(';') else { return false };
    let at = head.split(',').nth(2).and_then(|micros| micros.parse::<f64>().ok());
    at.is_some_and(|micros| uptime - micros / 1e6 < RECENT_SECONDS)
        && text.contains("emory")
        && text.contains(&format!("Killed process {pid} ("))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counter_of_cgroup_v1_and_v2() {
        for (line, file) in [
            ("0::/user.slice/x", Some("/sys/fs/cgroup/user.slice/x/memory.events")),
            ("4:memory:/a", Some("/sys/fs/cgroup/memory/a/memory.oom_control")),
            ("9:name=systemd:/", None),
            ("nonsense", None),
        ] {
            assert_eq!(counter_of(line).as_deref(), file);
        }
        assert_eq!(counted("low 0\noom 3\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(counted("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"), Some(7));
        assert_eq!(counted(""), None);
    }

    #[test]
    fn names_recent_kill_of_process_only() {
        let of_host = "3,7,90000000,-;Out of memory: Killed process 42 (vmm) total-vm:1kB";
        let of_cgroup = "3,7,90000000,-;Memory cgroup out of memory: Killed process 42 (a) b";
        for (record, pid, uptime, want) in [
            (of_host, 42, 100.0, true),
            (of_cgroup, 42, 100.0, true),
            (of_host, 4, 100.0, false),
            (of_host, 42, 200.0, false),
            ("6,1,2,-;usb 1-1: new device", 42, 0.0, false),
            ("", 42, 0.0, false),
        ] {
            assert_eq!(names(record, pid, uptime), want, "{record}");
        }
    }
}
