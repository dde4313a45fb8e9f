//! The guest program as a process of this host: commands and files, without a VM.

#![cfg(target_os = "linux")]

mod client;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use capsa_proto::agent::protocol::{
    CommandSpec, FieldReader, FileEntry, FileKind, HostMessage, INITIAL_WINDOW, Operation,
    OperationEnd, TerminalSize, WriteMode,
};

use client::{ServedAgent, command};

fn shell(script: &str) -> CommandSpec {
    command(&["sh", "-c", script])
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn path(path: &Path) -> Vec<u8> {
    path.as_os_str().as_encoded_bytes().to_vec()
}

/// Whether a process exists that has not ended.
fn is_running(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

fn wait_for_end(pid: &str) {
    let begin = Instant::now();
    while is_running(pid) {
        assert!(begin.elapsed() < Duration::from_secs(20), "process {pid} has not ended");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn command_streams_and_status_are_apart() {
    let mut agent = ServedAgent::start();
    let script = shell("echo a; echo b >&2; cat; exit 7");
    let id = agent.begin(Operation::Run(CommandSpec { has_input: true, ..script }));
    agent.put_input(id, b"input\n\0\xff");
    let end = agent.finish(id);
    assert_eq!(end.end, Some(OperationEnd::Exited(7)));
    assert_eq!((&end.stdout[..], &end.stderr[..]), (&b"a\ninput\n\0\xff"[..], &b"b\n"[..]));
    assert!(end.pid.is_some());
}

#[test]
fn command_without_input_has_dev_null() {
    let mut agent = ServedAgent::start();
    assert_eq!(agent.run(&["cat"]).end, Some(OperationEnd::Exited(0)));
}

#[test]
fn command_that_cannot_start_fails() {
    let mut agent = ServedAgent::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    let file = file.path().to_str().unwrap();
    let cases = [
        (command(&["capsa-no-such-program"]), 2),
        (command(&["/capsa/no/such/program"]), 2),
        (command(&[file]), 13),
        (command(&[]), 22),
        (CommandSpec { user: Some(b"capsa-no-such-user".to_vec()), ..command(&["true"]) }, 22),
        (CommandSpec { cwd: Some(b"/capsa/missing".to_vec()), ..command(&["true"]) }, 2),
        (command(&["tr\0ue"]), 22),
    ];
    for (command, errno) in cases {
        let end = agent.carry_out(Operation::Run(command.clone()));
        let expected = (Some(OperationEnd::Failed(errno)), None);
        assert_eq!((end.end, end.pid), expected, "{command:?}");
    }
}

#[test]
fn environment_adds_to_that_of_the_user() {
    let mut agent = ServedAgent::start();
    let env = vec![(b"HOME".to_vec(), b"/elsewhere".to_vec()), (b"X".to_vec(), b"y z".to_vec())];
    let cwd = Some(b"/usr/bin".to_vec());
    let script = shell("echo $HOME; echo $X; echo $PATH; pwd; umask");
    let end = agent.carry_out(Operation::Run(CommandSpec { env, cwd, ..script }));
    let expected = "/elsewhere\ny z\n\
                    /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n/usr/bin\n0022\n";
    assert_eq!(text(&end.stdout), expected);
}

#[test]
fn command_inherits_no_descriptor_or_signal() {
    let mut agent = ServedAgent::start();
    let listed = agent.run(&["ls", "/proc/self/fd"]);
    // `ls` itself opens the directory as 3.
    assert_eq!(text(&listed.stdout), "0\n1\n2\n3\n");
    let signals = agent.run(&["grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"]);
    let zeros = "0000000000000000";
    assert_eq!(text(&signals.stdout), format!("SigBlk:\t{zeros}\nSigIgn:\t{zeros}\n"));
}

#[test]
fn signal_ends_command_and_its_group() {
    let mut agent = ServedAgent::start();
    let id = agent.begin(Operation::Run(shell("sleep 100 & echo $!; wait")));
    agent.wait_until(|agent| agent.collected(id).stdout.ends_with(b"\n"));
    agent.send(&HostMessage::Signal(id, 15));
    let end = agent.finish(id);
    assert_eq!(end.end, Some(OperationEnd::Signaled(15)));
    wait_for_end(text(&end.stdout));
}

#[test]
fn cancel_kills_process_group() {
    let mut agent = ServedAgent::start();
    let id = agent.begin(Operation::Run(shell("trap '' TERM; sleep 100 & echo $!; wait")));
    agent.wait_until(|agent| agent.collected(id).stdout.ends_with(b"\n"));
    agent.send(&HostMessage::Cancel(id));
    let end = agent.finish(id);
    assert_eq!(end.end, Some(OperationEnd::Cancelled));
    wait_for_end(text(&end.stdout));
}

#[test]
fn background_process_does_not_hold_operation() {
    let mut agent = ServedAgent::start();
    let id = agent.begin(Operation::Run(shell("sleep 100 & echo $!; seq 5000")));
    let end = agent.finish(id);
    assert_eq!(end.end, Some(OperationEnd::Exited(0)));
    let lines: Vec<&str> = text(&end.stdout).lines().collect();
    assert_eq!((lines.len(), lines[5000]), (5001, "5000"));
    assert!(is_running(lines[0]));
    std::process::Command::new("kill").arg(lines[0]).status().unwrap();
}

#[test]
fn background_writer_does_not_hold_operation() {
    let mut agent = ServedAgent::start();
    let id = agent.begin(Operation::Run(shell("yes & echo $! >&2")));
    let end = agent.finish(id);
    assert_eq!(end.end, Some(OperationEnd::Exited(0)));
    // Its pipe is closed.
    wait_for_end(text(&end.stderr));
}

#[test]
fn large_streams_pass_without_loss() {
    let mut agent = ServedAgent::start();
    let bytes: Vec<u8> =
        (0..16_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let id =
        agent.begin(Operation::Run(CommandSpec { has_input: true, ..shell("tee /dev/stderr") }));
    agent.put_input(id, &bytes);
    let end = agent.finish(id);
    assert_eq!(end.end, Some(OperationEnd::Exited(0)));
    assert!(end.stdout == bytes, "{} bytes of output", end.stdout.len());
    assert!(end.stderr == bytes, "{} bytes of errors", end.stderr.len());
}

#[test]
fn input_of_command_that_ends_is_discarded() {
    let mut agent = ServedAgent::start();
    let head = CommandSpec { has_input: true, ..shell("exec <&-; sleep 0.2; exit 3") };
    let id = agent.begin(Operation::Run(head));
    agent.put_input(id, &vec![b'x'; 3 * INITIAL_WINDOW as usize / 4]);
    assert_eq!(agent.finish(id).end, Some(OperationEnd::Exited(3)));
}

#[test]
fn held_output_stops_one_command_alone() {
    let mut agent = ServedAgent::start();
    let held = agent.begin(Operation::Run(command(&["yes"])));
    agent.hold(held);
    for _ in 0..3 {
        assert_eq!(agent.run(&["seq", "100000"]).stdout.len(), 588_895);
    }
    let window = INITIAL_WINDOW as usize;
    agent.wait_until(|agent| agent.collected(held).stdout.len() == window);
    assert_eq!(agent.run(&["true"]).end, Some(OperationEnd::Exited(0)));
    assert_eq!(agent.collected(held).stdout.len(), window);
    agent.send(&HostMessage::Cancel(held));
    assert_eq!(agent.finish(held).end, Some(OperationEnd::Cancelled));
}

#[test]
fn floods_share_the_transport() {
    const SHARE: usize = 1_000_000;
    // Slower than the commands, so that each of them always has output.
    const PAUSE: Duration = Duration::from_millis(2);
    let mut agent = ServedAgent::start();
    let ids: Vec<u32> = (0..12).map(|_| agent.begin(Operation::Run(command(&["yes"])))).collect();
    let lengths = |agent: &ServedAgent| -> Vec<usize> {
        ids.iter().map(|&id| agent.collected(id).stdout.len()).collect()
    };
    agent.wait_until(|agent| {
        let lengths = lengths(agent);
        let most = *lengths.iter().max().unwrap();
        assert!(most < 3 * SHARE, "{lengths:?}");
        std::thread::sleep(PAUSE);
        lengths.iter().all(|length| *length >= SHARE)
    });
}

#[test]
fn fifty_commands_run_at_once() {
    let mut agent = ServedAgent::start();
    let wait = CommandSpec { has_input: true, ..shell("echo up; read line; echo $line") };
    let ids: Vec<u32> = (0..50).map(|_| agent.begin(Operation::Run(wait.clone()))).collect();
    for &id in &ids {
        agent.wait_until(|agent| agent.collected(id).stdout == b"up\n");
    }
    for &id in ids.iter().rev() {
        agent.put_input(id, format!("{id}\n").as_bytes());
        let end = agent.finish(id);
        assert_eq!(text(&end.stdout), format!("up\n{id}\n"));
        assert_eq!(end.end, Some(OperationEnd::Exited(0)));
    }
}

#[test]
fn terminal_has_size_and_end_of_input() {
    let mut agent = ServedAgent::start();
    let size = Some(TerminalSize { rows: 30, columns: 90 });
    let script = shell("stty -echo; test -t 2 && stty size; read line; stty size; cat; echo end");
    let id = agent.begin(Operation::Run(CommandSpec { terminal: size, ..script }));
    agent.wait_until(|agent| agent.collected(id).stdout == b"30 90\r\n");
    agent.send(&HostMessage::Resize(id, TerminalSize { rows: 10, columns: 20 }));
    agent.put_input(id, b"line\nhello\n");
    let end = agent.finish(id);
    assert_eq!(text(&end.stdout), "30 90\r\n10 20\r\nhello\r\nend\r\n");
    assert_eq!(end.end, Some(OperationEnd::Exited(0)));
}

#[test]
fn new_session_kills_operations_of_old_one() {
    let mut agent = ServedAgent::start();
    let id = agent.begin(Operation::Run(shell("sleep 100 & echo $!; yes")));
    agent.wait_until(|agent| agent.collected(id).stdout.contains(&b'\n'));
    let pid = text(&agent.collected(id).stdout).lines().next().unwrap().to_owned();
    agent.begin_session(2);
    wait_for_end(&pid);
    assert_eq!(agent.run(&["true"]).end, Some(OperationEnd::Exited(0)));
}

#[test]
fn violation_ends_session_until_next_mark() {
    let mut agent = ServedAgent::start();
    let id = agent.begin(Operation::Run(shell("echo $$; exec sleep 100")));
    agent.wait_until(|agent| agent.collected(id).stdout.ends_with(b"\n"));
    let pid = text(&agent.collected(id).stdout).to_owned();
    agent.send_bytes(&[0xff; 64]);
    wait_for_end(&pid);
    agent.begin_session(2);
    assert_eq!(agent.run(&["true"]).end, Some(OperationEnd::Exited(0)));
}

#[test]
fn closed_transport_kills_operations() {
    let mut agent = ServedAgent::start();
    let id = agent.begin(Operation::Run(shell("echo $$; exec sleep 100")));
    agent.wait_until(|agent| agent.collected(id).stdout.ends_with(b"\n"));
    let pid = text(&agent.collected(id).stdout).to_owned();
    agent.close();
    assert!(agent.process.wait().unwrap().success());
    wait_for_end(&pid);
}

#[test]
fn many_commands_leave_nothing() {
    let mut agent = ServedAgent::start();
    let directory = format!("/proc/{}/fd", agent.process.id());
    let count = || fs::read_dir(&directory).unwrap().count();
    agent.run(&["true"]);
    let before = count();
    for _ in 0..300 {
        assert_eq!(agent.run(&["true"]).end, Some(OperationEnd::Exited(0)));
    }
    assert_eq!(count(), before);
    let pid = agent.process.id();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    assert_eq!(children.unwrap_or_default(), "");
}

#[test]
fn files_are_written_and_read() {
    let mut agent = ServedAgent::start();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    let mut write = |content: &[u8], write: WriteMode| {
        let id = agent.begin(Operation::WriteFile { path: path(&file), mode: 0o4751, write });
        agent.put_input(id, content);
        agent.finish(id).end.unwrap()
    };
    let large = vec![b'x'; 1_000_000];
    assert_eq!(write(&large, WriteMode::CreateNew), OperationEnd::Done);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode(), 0o10_4751);
    assert_eq!(write(b"", WriteMode::CreateNew), OperationEnd::Failed(17));
    assert_eq!(write(b"abc", WriteMode::Truncate), OperationEnd::Done);
    assert_eq!(write(b"def", WriteMode::Append), OperationEnd::Done);
    let read = agent.carry_out(Operation::ReadFile(path(&file)));
    assert_eq!((read.end, &read.stdout[..]), (Some(OperationEnd::Done), &b"abcdef"[..]));
    let read = agent.carry_out(Operation::ReadFile(b"/capsa/missing".to_vec()));
    assert_eq!(read.end, Some(OperationEnd::Failed(2)));
}

#[test]
fn directories_are_listed_and_removed() {
    let mut agent = ServedAgent::start();
    let directory = tempfile::tempdir().unwrap();
    let deep = directory.path().join("a/b/c");
    let make = Operation::MakeDir { path: path(&deep), mode: 0o700 };
    assert_eq!(agent.carry_out(make.clone()).end, Some(OperationEnd::Done));
    assert_eq!(agent.carry_out(make).end, Some(OperationEnd::Done));
    assert_eq!(fs::metadata(&deep).unwrap().permissions().mode(), 0o4_0700);
    fs::write(deep.join("file\n"), "content").unwrap();
    symlink("/etc", deep.join("link")).unwrap();

    let listed = agent.carry_out(Operation::ReadDir(path(&deep)));
    let mut fields = FieldReader(&listed.stdout);
    let mut entries: Vec<FileEntry> = Vec::new();
    while !fields.0.is_empty() {
        entries.push(fields.take().unwrap());
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let [file, link] = &entries[..] else { panic!("{entries:?}") };
    assert_eq!((&file.name[..], file.kind, file.size), (&b"file\n"[..], FileKind::File, 7));
    assert_eq!((link.kind, link.target.as_deref()), (FileKind::Symlink, Some(&b"/etc"[..])));
    let described = agent.carry_out(Operation::Stat(path(&deep.join("file\n"))));
    let described: FileEntry = FieldReader(&described.stdout).take().unwrap();
    assert_eq!(described, FileEntry { name: path(&deep.join("file\n")), ..file.clone() });

    let top = path(&directory.path().join("a"));
    let remove = |recursive| Operation::Remove { path: top.clone(), recursive };
    assert_eq!(agent.carry_out(remove(false)).end, Some(OperationEnd::Failed(39)));
    assert_eq!(agent.carry_out(remove(true)).end, Some(OperationEnd::Done));
    assert_eq!(agent.carry_out(remove(true)).end, Some(OperationEnd::Failed(2)));
    assert!(fs::read_dir(directory.path()).unwrap().next().is_none());
    assert!(Path::new("/etc/passwd").exists());
}
