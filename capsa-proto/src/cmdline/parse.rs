//! From text to a [`KernelCmdline`], word by word as the kernel cuts it.
//!
//! Accepts what the kernel reads in only one way and refuses the rest; the grammar is in the
//! module's header.

use alloc::string::String;

use super::arg::split_word;
use super::{CmdlineArg, CmdlineError, KernelCmdline, Place, text};

pub(super) fn parse(line: &str) -> Result<KernelCmdline, CmdlineError> {
    let mut cmdline = KernelCmdline::new();
    let mut behind_dashes = false;
    let mut rest = WordCursor { line, at: 0 };
    while let Some(word) = rest.next_word()? {
        let (key, value) = split_word(word);
        if behind_dashes {
            let arg = match value {
                Some(value) => joined(key, &value),
                None => key,
            };
            cmdline.init_arg(arg);
        } else if key == "--" && value.is_none() {
            behind_dashes = true;
        } else {
            cmdline.append(match value {
                Some(value) => CmdlineArg::kv(key, value),
                None => CmdlineArg::flag(key),
            });
        }
        // At once, so that a long hostile text is not read to its end for nothing.
        cmdline.check()?;
    }
    Ok(cmdline)
}

/// What the kernel's `repair_env_string` does to an argument for init that holds a `=`.
fn joined(mut key: String, value: &str) -> String {
    key.push('=');
    key.push_str(value);
    key
}

struct WordCursor<'a> {
    line: &'a str,
    at: usize,
}

impl<'a> WordCursor<'a> {
    fn next_word(&mut self) -> Result<Option<&'a str>, CmdlineError> {
        let bytes = self.line.as_bytes();
        // Outside of words every ASCII blank separates, a newline included: a file ends in one.
        while bytes.get(self.at).is_some_and(|&b| b.is_ascii() && text::is_blank(b)) {
            self.at += 1;
        }
        let start = self.at;
        let mut open_quote = None;
        while let Some(&byte) = bytes.get(self.at) {
            match byte {
                b'"' if open_quote.is_some() => open_quote = None,
                b'"' => open_quote = Some(self.at),
                _ if open_quote.is_none() && text::is_blank(byte) => {
                    // The kernel would cut a character in two here.
                    if !byte.is_ascii() {
                        let place = Place::Line;
                        return Err(CmdlineError::ForbiddenByte { place, byte, at: self.at });
                    }
                    break;
                }
                _ => {}
            }
            self.at += 1;
        }
        if let Some(at) = open_quote {
            return Err(CmdlineError::UnbalancedQuote { at });
        }
        Ok((start < self.at).then(|| &self.line[start..self.at]))
    }
}
