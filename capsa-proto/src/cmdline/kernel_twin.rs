//! A reference implementation of the kernel's command line parser, for tests.
//!
//! Follows the behaviour of `next_arg` (`lib/cmdline.c`), `parse_args` (`kernel/params.c`) and
//! `repair_env_string` (`init/main.c`) of Linux 6.x, on bytes.

use alloc::vec::Vec;

type Bytes = Vec<u8>;

/// The kernel's parameters, and the arguments that init gets from after `--`.
#[derive(Debug, PartialEq, Eq, Default)]
pub(super) struct KernelView {
    pub(super) params: Vec<(Bytes, Option<Bytes>)>,
    pub(super) init: Vec<Bytes>,
}

pub(super) fn read(line: &str) -> KernelView {
    let mut view = KernelView::default();
    // The kernel reads a C string.
    let mut rest = line.as_bytes().split(|&b| b == 0).next().unwrap_or_default();
    rest = skip_spaces(rest);
    while !rest.is_empty() {
        let (param, value, tail) = next_arg(rest);
        rest = tail;
        if value.is_none() && param == b"--" {
            break;
        }
        view.params.push((param, value));
    }
    // The second pass is `parse_args` again, so it stops at a second `--`.
    while !rest.is_empty() {
        let (mut param, value, tail) = next_arg(rest);
        rest = tail;
        if value.is_none() && param == b"--" {
            break;
        }
        if let Some(value) = value {
            param.push(b'=');
            param.extend(value);
        }
        view.init.push(param);
    }
    view
}

fn next_arg(text: &[u8]) -> (Bytes, Option<Bytes>, &[u8]) {
    let quoted = text.first() == Some(&b'"');
    let text = if quoted { &text[1..] } else { text };
    let mut in_quote = quoted;
    let mut equals = 0;
    let mut end = 0;
    while end < text.len() && (in_quote || !isspace(text[end])) {
        match text[end] {
            b'=' if equals == 0 => equals = end,
            b'"' => in_quote = !in_quote,
            _ => {}
        }
        end += 1;
    }
    // C cuts by writing a NUL over the closing quote; here the end of the word moves instead.
    let mut stop = end;
    let last_is_quote = end > 0 && text[end - 1] == b'"';
    let mut value_start = equals + 1;
    if equals != 0 && text.get(value_start) == Some(&b'"') && value_start < end {
        value_start += 1;
        if last_is_quote {
            stop = end - 1;
        }
    }
    if quoted && last_is_quote {
        stop = end - 1;
    }
    let tail = skip_spaces(&text[end..]);
    if equals == 0 {
        (text[..stop].to_vec(), None, tail)
    } else {
        let value = text.get(value_start..stop).unwrap_or_default();
        (text[..equals].to_vec(), Some(value.to_vec()), tail)
    }
}

fn skip_spaces(text: &[u8]) -> &[u8] {
    let blanks = text.iter().take_while(|&&b| isspace(b)).count();
    &text[blanks..]
}

/// `_S` in the table of `lib/ctype.c`, written out.
fn isspace(byte: u8) -> bool {
    [9, 10, 11, 12, 13, 32, 160].contains(&byte)
}

/// `cmdline_find_option_bool` of `arch/x86/lib/cmdline.c`: blanks cut, quotes mean nothing.
pub(super) fn early_x86_sees(line: &str, option: &str) -> bool {
    line.as_bytes().split(|&b| b <= b' ').any(|word| word == option.as_bytes())
}
