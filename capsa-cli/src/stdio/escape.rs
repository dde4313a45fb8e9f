//! The escape keys of a terminal: Ctrl-] and the key after it.
//!
//! `q` and `k` are commands, and a second Ctrl-] sends one to the guest. Any other key is sent to
//! the guest together with the Ctrl-].

/// Ctrl-].
const PREFIX: u8 = 0x1d;

/// A command that the user typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EscapeCommand {
    /// Ask the guest to power off, or detach.
    Stop,
    /// End the VM at once.
    Kill,
}

/// Separates escape keys from input. It keeps its state between reads.
#[derive(Debug, Default)]
pub(crate) struct EscapeParser {
    after_prefix: bool,
}

impl EscapeParser {
    /// Splits input into bytes for the guest and commands.
    pub(crate) fn split(&mut self, input: &[u8]) -> (Vec<u8>, Vec<EscapeCommand>) {
        let (mut guest, mut commands) = (Vec::with_capacity(input.len()), Vec::new());
        for &byte in input {
            match (std::mem::take(&mut self.after_prefix), byte) {
                (false, PREFIX) => self.after_prefix = true,
                (false, byte) => guest.push(byte),
                (true, b'q') => commands.push(EscapeCommand::Stop),
                (true, b'k') => commands.push(EscapeCommand::Kill),
                (true, PREFIX) => guest.push(PREFIX),
                (true, byte) => guest.extend([PREFIX, byte]),
            }
        }
        (guest, commands)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_split_is_independent_of_chunks() {
        for (input, guest, commands) in [
            (&b"ls\r\x03"[..], &b"ls\r\x03"[..], &[][..]),
            (b"a\x1dqb", b"ab", &[EscapeCommand::Stop]),
            (b"\x1dk\x1dq", b"", &[EscapeCommand::Kill, EscapeCommand::Stop]),
            (b"\x1d\x1dq", b"\x1dq", &[]),
            (b"\x1dx\x1d", b"\x1dx", &[]),
        ] {
            for cut in 0..=input.len() {
                let mut escape = EscapeParser::default();
                let (mut bytes, mut found) = escape.split(&input[..cut]);
                let (more, others) = escape.split(&input[cut..]);
                bytes.extend(more);
                found.extend(others);
                assert_eq!((bytes.as_slice(), found.as_slice()), (guest, commands), "{input:?}");
            }
        }
    }
}
