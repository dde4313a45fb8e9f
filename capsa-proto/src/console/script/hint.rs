//! Explains the error of a script by the last line that the guest shows.
//!
//! Only error texts use it. The input is the end of the output, as [`Screen`] has it.

use super::clean::{ECHO_WINDOW, without_wrappers};
use super::screen::{PIECE, PromptKind, Screen, WINDOW};
use crate::console::{NearMatch, Scrollback};
use alloc::string::String;
use alloc::vec::Vec;

/// How much of a line is shown, from its end.
const SHOWN_MAX: usize = 80;

/// Why the shell did not run the command, according to the output since `from`.
pub(super) fn for_command_not_taken(log: &Scrollback, from: u64) -> Option<NearMatch> {
    let screen = screen(log, from);
    let explanation = match screen.prompt_kind() {
        Some(PromptKind::Login) => "no user is logged in",
        Some(PromptKind::Password) => "the guest asks for a password",
        Some(PromptKind::Shell) if screen.line().ends_with(b"> ") => {
            "the shell waits for the rest of an earlier command"
        }
        Some(PromptKind::Shell) => "the input did not reach this prompt",
        None if log.since(from).is_empty() => {
            return Some(last_line(log, from, "no output, and no echo of the input"));
        }
        None if screen.has(b"capsa begin") => {
            let explanation = "the input was echoed, but no shell ran it";
            return Some(NearMatch::LastLine { line: String::new(), explanation });
        }
        None => return None,
    };
    Some(last_line(log, from, explanation))
}

/// Whether a login prompt shows that the shell of the command has exited. Other output may be the
/// command's.
pub(super) fn for_lost_shell(log: &Scrollback, from: u64) -> Option<NearMatch> {
    let screen = screen(log, from);
    let is_login = screen.prompt_kind() == Some(PromptKind::Login);
    is_login.then(|| last_line(log, from, "the user is no longer logged in"))
}

/// Whether another prompt than the expected one came after a command.
pub(super) fn for_other_prompt(log: &Scrollback, from: u64) -> Option<NearMatch> {
    let screen = screen(log, from);
    let is_prompt = screen.prompt_kind() == Some(PromptKind::Shell);
    is_prompt.then(|| last_line(log, from, "this is a different prompt"))
}

/// Why a login found no prompt.
pub(super) fn for_no_prompt(log: &Scrollback, from: u64, enters: u32) -> Option<NearMatch> {
    let screen = screen(log, from);
    let explanation = match screen.prompt_kind() {
        None if log.since(from).is_empty() && enters > 0 => "no output, although Enter was sent",
        None if !screen.line().trim_ascii().is_empty() => {
            "no prompt; expected a line that ends with \"login:\", \"assword:\", \"# \", \"$ \", \"% \" or \"> \""
        }
        _ => return None,
    };
    Some(last_line(log, from, explanation))
}

/// Whether the last line is a prompt.
pub(super) fn shows_prompt(log: &Scrollback, from: u64) -> bool {
    screen(log, from).prompt_kind().is_some()
}

/// Whether the line with the wrapper was echoed, with its end.
pub(super) fn shows_echo(log: &Scrollback, from: u64) -> bool {
    screen(log, from).has_line_with(br#"printf "%s:%s:%s"#)
}

/// The last line, if it is a prompt of a shell or of a login.
pub(super) fn prompt_line(log: &Scrollback, from: u64) -> Option<Vec<u8>> {
    let screen = screen(log, from);
    let kind = screen.prompt_kind().filter(|kind| *kind != PromptKind::Password);
    kind.map(|_| screen.line().to_vec())
}

/// The end of the output since `from`.
fn screen(log: &Scrollback, from: u64) -> Screen {
    let since = from.max(log.end().saturating_sub(WINDOW as u64));
    screen_of(log.since(since))
}

fn screen_of(output: &[u8]) -> Screen {
    let mut screen = Screen::default();
    output.chunks(PIECE).for_each(|piece| screen.push(piece));
    screen
}

/// The last line since `from`, which is empty if it is the echo of a wrapper.
fn last_line(log: &Scrollback, from: u64, explanation: &'static str) -> NearMatch {
    let since = from.max(log.end().saturating_sub(ECHO_WINDOW as u64));
    let screen = screen_of(&without_wrappers(log.since(since)));
    let line = screen.line();
    let line = String::from_utf8_lossy(&line[line.len().saturating_sub(SHOWN_MAX)..]).into();
    NearMatch::LastLine { line, explanation }
}
