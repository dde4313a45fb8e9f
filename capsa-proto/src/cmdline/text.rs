//! Bytes as the kernel sees them: what is a blank, what is refused, what needs quotes.
//!
//! All the rules that make [`KernelCmdline`](super::KernelCmdline) an injection boundary are here.

use alloc::string::{String, ToString};

use super::{CmdlineError, Place};

/// The kernel's `isspace`: its table is Latin-1, where 0xA0 is the hard space (`lib/ctype.c`).
pub(super) fn is_blank(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ' | 0xa0)
}

pub(super) fn check_key(key: &str) -> Result<(), CmdlineError> {
    match key {
        "--" => return Err(CmdlineError::DoubleDash),
        _ if key.is_empty() || key.starts_with('=') => return Err(CmdlineError::EmptyKey),
        _ => {}
    }
    let refused = |b: u8| b.is_ascii_control() || is_blank(b) || b == b'"' || b == b'=';
    refuse(key, refused, || Place::Key)
}

pub(super) fn check_value(key: &str, value: &str) -> Result<(), CmdlineError> {
    refuse(value, |b| b.is_ascii_control() || b == b'"', || Place::ValueOf(key.to_string()))
}

pub(super) fn check_init_arg(arg: &str) -> Result<(), CmdlineError> {
    if arg == "--" {
        return Err(CmdlineError::DoubleDash);
    }
    refuse(arg, |b| b.is_ascii_control() || b == b'"', || Place::InitArg)
}

pub(super) fn check_override(text: &str) -> Result<(), CmdlineError> {
    refuse(text, |b| b.is_ascii_control(), || Place::Override)
}

/// Puts the blank between two words.
pub(super) fn separate(line: &mut String) {
    if !line.is_empty() {
        line.push(' ');
    }
}

/// Writes a checked value, in quotes where it would not stay one word.
pub(super) fn write_value(line: &mut String, value: &str) {
    write_quoted_if(line, value, needs_quotes(value));
}

/// Writes a checked argument for init; here an empty one is a word of its own.
pub(super) fn write_init_arg(line: &mut String, arg: &str) {
    write_quoted_if(line, arg, arg.is_empty() || needs_quotes(arg));
}

/// A single quote means nothing to the kernel, but systemd reads the same line and would swallow
/// everything up to the next one. Inside double quotes both take it as a plain character.
fn needs_quotes(text: &str) -> bool {
    text.bytes().any(|b| is_blank(b) || b == b'\'')
}

fn write_quoted_if(line: &mut String, text: &str, quoted: bool) {
    let quote = if quoted { "\"" } else { "" };
    for piece in [quote, text, quote] {
        line.push_str(piece);
    }
}

fn refuse(
    text: &str,
    refused: impl Fn(u8) -> bool,
    place: impl FnOnce() -> Place,
) -> Result<(), CmdlineError> {
    match text.bytes().position(refused) {
        Some(at) => {
            Err(CmdlineError::ForbiddenByte { place: place(), byte: text.as_bytes()[at], at })
        }
        None => Ok(()),
    }
}
