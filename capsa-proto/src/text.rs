//! Text from guests and hypervisors: escapes for control characters, and characters cut in two.
//!
//! A guest writes to its console whatever it likes, and a VMM's error text may quote it. Printed as
//! it is, such text moves the cursor, clears the screen, changes the terminal's title or forges
//! lines of a log. The escape functions replace each character of Unicode category Cc (C0, DEL and C1)
//! by its Rust escape, such as `\r` or `\u{1b}`. They do not remove or interpret escape sequences:
//! see [`Stripper`](crate::console::Stripper) for that.
//!
//! The rule: text that can contain a guest's or a file's bytes passes through one of these exactly
//! once on its way to a terminal or a log. [`escape_control_line`] is for text that has to stay on
//! its line.

use alloc::borrow::Cow;
use alloc::format;
use alloc::string::String;

/// The text with its control characters escaped, except line feeds and tabs.
///
/// ```
/// assert_eq!(capsa_proto::text::escape_control("a\u{1b}[2J\n\tb\r"), "a\\u{1b}[2J\n\tb\\r");
/// ```
pub fn escape_control(text: &str) -> String {
    escape_except(text, &['\n', '\t'])
}

/// The text as one line: its control characters escaped, line feeds too, except tabs.
///
/// ```
/// assert_eq!(capsa_proto::text::escape_control_line("a\n\tb"), "a\\n\tb");
/// ```
pub fn escape_control_line(text: &str) -> String {
    escape_except(text, &['\t'])
}

/// The text as one word for a POSIX shell.
///
/// ```
/// assert_eq!(capsa_proto::text::shell_word("/srv/it's"), r"'/srv/it'\''s'");
/// ```
pub fn shell_word(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "+,-./:@_".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.into();
    }
    format!("'{}'", text.replace('\'', r"'\''")).into()
}

/// How many bytes at the end of `bytes` begin a UTF-8 character that is not complete.
///
/// ```
/// let cut = &"naïve".as_bytes()[..3];
/// assert_eq!(capsa_proto::text::partial_character_len(cut), 1);
/// ```
pub fn partial_character_len(bytes: &[u8]) -> usize {
    (1..=3.min(bytes.len()))
        .find(|n| {
            let end = &bytes[bytes.len() - n..];
            core::str::from_utf8(end)
                .is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
        })
        .unwrap_or(0)
}

fn escape_except(text: &str, kept: &[char]) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && !kept.contains(&c) {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_control_leaves_only_newlines_and_tabs() {
        for byte in (0..=0x9f).map(char::from) {
            let text: String = ['a', byte, 'z'].iter().collect();
            let (block, line) = (escape_control(&text), escape_control_line(&text));
            let is_kept = |kept: &str| !byte.is_control() || kept.contains(byte);
            assert_eq!(block == text, is_kept("\n\t"), "{byte:?}");
            assert_eq!(line == text, is_kept("\t"), "{byte:?}");
            assert!(!line.chars().any(|c| c.is_control() && c != '\t'), "{line:?}");
        }
    }

    #[test]
    fn escape_control_names_each_character() {
        let text = "\u{1b}]0;title\u{7}\r\u{9b}2J\u{7f} gr\u{fc}n";
        assert_eq!(escape_control(text), "\\u{1b}]0;title\\u{7}\\r\\u{9b}2J\\u{7f} gr\u{fc}n");
    }

    #[test]
    fn shell_word_is_one_word() {
        for (text, want) in [
            ("/usr/bin/qemu-system-x86_64", "/usr/bin/qemu-system-x86_64"),
            ("", "''"),
            ("a=b c", "'a=b c'"),
            ("$(x)'", r"'$(x)'\'''"),
            ("a\nb", "'a\nb'"),
        ] {
            assert_eq!(shell_word(text), want);
        }
    }

    #[test]
    fn escape_control_twice_changes_nothing() {
        let once = escape_control("a\u{1b}\\\n\tb");
        assert_eq!(escape_control(&once), once);
    }
}
