//! What a guest shows instead of what a script waited for, and what that means.
//!
//! For the error alone: nothing is decided by it. Looked at is the end of the output, as
//! [`Screen`] has it.

use super::screen::{PIECE, PromptKind, Screen, WINDOW};
use crate::console::{NearMatch, Scrollback};
use alloc::string::String;

/// How much of a line is shown, from its end.
const SHOWN: usize = 80;

/// Why a shell did not take a command that was typed, as far as what it shows since `from` tells.
pub(super) fn of_no_shell(log: &Scrollback, from: u64) -> Option<NearMatch> {
    let screen = screen(log, from);
    let meaning = match screen.prompt_kind() {
        Some(PromptKind::Login) => "nobody is logged in",
        Some(PromptKind::Password) => "it asks for a password",
        Some(PromptKind::Shell) if screen.line().ends_with(b"> ") => {
            "a shell waits for the rest of what was typed before"
        }
        Some(PromptKind::Shell) => "what was typed did not get to this prompt",
        None if log.since(from).is_empty() => {
            return Some(shows(&screen, "nothing came back, not even an echo of what was typed"));
        }
        None if screen.has(b"capsa begin") => "what was typed was echoed, and no shell took it",
        None => return None,
    };
    Some(shows(&screen, meaning))
}

/// Why a command may never end: its shell is gone. Anything else that it shows is its own business.
pub(super) fn of_lost_shell(log: &Scrollback, from: u64) -> Option<NearMatch> {
    let screen = screen(log, from);
    let is_login = screen.prompt_kind() == Some(PromptKind::Login);
    is_login.then(|| shows(&screen, "nobody is logged in any more"))
}

/// What came after a command instead of the prompt, if it looks like one.
pub(super) fn of_another_prompt(log: &Scrollback, from: u64) -> Option<NearMatch> {
    let screen = screen(log, from);
    let is_prompt = screen.prompt_kind() == Some(PromptKind::Shell);
    is_prompt.then(|| shows(&screen, "a prompt, and not that one"))
}

/// Why there was no prompt for a login.
pub(super) fn of_no_prompt(log: &Scrollback, from: u64, enters: u32) -> Option<NearMatch> {
    let screen = screen(log, from);
    let meaning = match screen.prompt_kind() {
        None if log.since(from).is_empty() && enters > 0 => {
            "nothing came, though Enter was pressed"
        }
        None if !screen.line().trim_ascii().is_empty() => {
            "a prompt ends with \"login:\", \"assword:\", \"# \", \"$ \" or \"> \""
        }
        _ => return None,
    };
    Some(shows(&screen, meaning))
}

/// The end of the output since `from`.
fn screen(log: &Scrollback, from: u64) -> Screen {
    let mut screen = Screen::default();
    let since = from.max(log.end().saturating_sub(WINDOW as u64));
    log.since(since).chunks(PIECE).for_each(|piece| screen.push(piece));
    screen
}

fn shows(screen: &Screen, meaning: &'static str) -> NearMatch {
    let line = screen.line();
    let said = String::from_utf8_lossy(&line[line.len().saturating_sub(SHOWN)..]).into();
    NearMatch::Instead { said, meaning }
}
