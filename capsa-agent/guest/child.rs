//! What the process of an operation does after the fork: runs a command, or works on files.
//!
//! It changes to the root of process 1 and never returns. It reports on the status pipe: nothing when the
//! command was started, otherwise an `errno`, or 0 for work that is done.

use alloc::rc::Rc;
use alloc::vec::Vec;

use crate::file_work;
use crate::guest::BootedGuest;
use crate::protocol::{CommandSpec, Operation};
use crate::sys::{self, Errno, Fd, Outcome};
use crate::user::Account;

const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The standard streams of the child.
pub(crate) enum ChildStreams {
    /// Standard input, output and error. `None`: `/dev/null`.
    Pipes([Option<Fd>; 3]),
    /// The end of the agent of a terminal.
    Terminal(Rc<Fd>),
}

/// Carries the operation out and ends the process.
pub(crate) fn run(
    operation: &Operation,
    guest: &BootedGuest,
    streams: ChildStreams,
    status: &Fd,
) -> ! {
    let done = work(operation, guest, streams);
    let errno = done.err().map_or(0, |Errno(errno)| errno);
    let _ = status.write(&errno.to_le_bytes());
    sys::exit(127)
}

fn work(operation: &Operation, guest: &BootedGuest, streams: ChildStreams) -> Outcome<()> {
    sys::begin_session();
    guest.set_out_of_memory_score(b"0");
    guest.enter_root()?;
    match &streams {
        ChildStreams::Pipes(pipes) => {
            let null = sys::open_at(None, b"/dev/null", sys::O_READ_WRITE, 0);
            let null = null.as_ref().unwrap_or_else(|_| guest.null());
            for (number, pipe) in (0..).zip(pipes) {
                pipe.as_ref().unwrap_or(null).duplicate_to(number)?;
            }
        }
        ChildStreams::Terminal(terminal) => {
            let terminal = terminal.terminal_peer()?;
            terminal.control_session()?;
            for number in 0..3 {
                terminal.duplicate_to(number)?;
            }
        }
    }
    match operation {
        Operation::Run(command) => Err(run_command(command)),
        _ => {
            sys::end_with_parent();
            sys::reset_signals();
            sys::set_umask(0);
            file_work::work(operation, guest)
        }
    }
}

/// Runs a command; returns only if that fails.
fn run_command(command: &CommandSpec) -> Errno {
    let prepared = || -> Outcome<Vec<Vec<u8>>> {
        let account = Account::find(command.user.as_deref())?;
        if command.terminal.is_some() {
            // Without the right to do so, the terminal keeps its owner.
            let _ = sys::set_owner_of(0, account.uid);
        }
        account.enter()?;
        match &command.cwd {
            Some(cwd) => sys::change_directory(cwd)?,
            None => {
                sys::change_directory(&account.home).or_else(|_| sys::change_directory(b"/"))?
            }
        }
        Ok(environment(command, &account))
    };
    let env = match prepared() {
        Ok(env) => env,
        Err(errno) => return errno,
    };
    sys::close_inherited_at_exec();
    sys::set_umask(0o022);
    sys::reset_signals();
    let Some(program) = command.args.first() else { return Errno::EINVAL };
    if program.contains(&b'/') {
        return sys::exec(program, &command.args, &env);
    }
    let path = env.iter().find_map(|variable| variable.strip_prefix(b"PATH="));
    // As execvp(3) does: a directory without the program does not hide one that cannot be executed.
    let mut failed = Errno::ENOENT;
    for directory in path.unwrap_or_default().split(|&byte| byte == b':') {
        let directory = if directory.is_empty() { b"." } else { directory };
        let errno = sys::exec(&[directory, b"/", program].concat(), &command.args, &env);
        match errno {
            Errno::ENOENT | Errno::ENOTDIR => {}
            Errno::EACCES => failed = errno,
            _ => return errno,
        }
    }
    failed
}

/// The variables of a user's session, with those of the command added or in their place.
fn environment(command: &CommandSpec, account: &Account) -> Vec<Vec<u8>> {
    let defaults = [
        (&b"PATH"[..], DEFAULT_PATH),
        (b"HOME", &account.home),
        (b"USER", &account.name),
        (b"LOGNAME", &account.name),
        (b"SHELL", &account.shell),
        (b"TERM", if command.terminal.is_some() { b"xterm" } else { b"" }),
    ];
    let is_set = |name: &[u8]| command.env.iter().any(|(other, _)| other == name);
    let defaults = defaults.into_iter().filter(|(name, value)| !value.is_empty() && !is_set(name));
    let set = command.env.iter().map(|(name, value)| (&name[..], &value[..]));
    defaults.chain(set).map(|(name, value)| [name, b"=", value].concat()).collect()
}
