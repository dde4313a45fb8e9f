//! The fuzz body of the kernel command line. The fuzz target calls [`run`].

use alloc::string::String;

use super::{CmdlineArg, KernelCmdline};

/// Reads `data` as a line and as a list of operations, and asserts the module's laws.
///
/// # Panics
///
/// When a law does not hold.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(parsed) = KernelCmdline::parse(&text) {
        assert_round_trip(&parsed);
    }

    let (mut a, mut b) = (KernelCmdline::new(), KernelCmdline::new());
    for (i, piece) in text.split('\u{1}').enumerate() {
        let line = if i % 2 == 0 { &mut a } else { &mut b };
        match piece.as_bytes().first() {
            Some(b'+') => line.append(&piece[1..]),
            Some(b'!') => line.init_arg(&piece[1..]),
            Some(b'~') => line.arg(CmdlineArg::flag(&piece[1..])),
            Some(b':') => line.arg(CmdlineArg::kv("key", &piece[1..])),
            _ => line.arg(piece),
        };
    }
    let mut merged = a.clone();
    merged.merge(&b);
    for line in [&a, &b, &merged] {
        assert!(
            !line.build().bytes().any(|b| b.is_ascii_control()),
            "a control byte in the output"
        );
        if line.check().is_ok() {
            assert_round_trip(line);
        }
    }
    let mut again = merged.clone();
    assert_eq!(again.merge(&b), &merged, "merging the same layer twice changed the line");
    assert_eq!(again.merge(&KernelCmdline::new()), &merged, "an empty layer changed the line");
}

fn assert_round_trip(line: &KernelCmdline) {
    let text = line.build();
    let back = KernelCmdline::parse(&text);
    assert_eq!(back.as_ref(), Ok(line), "parse(build(c)) != c, by way of {text:?}");
    assert_eq!(line.build_checked(text.len()).as_ref(), Ok(&text));
    if let Some(short) = text.len().checked_sub(1) {
        assert!(line.build_checked(short).is_err());
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn small_corpus_holds_the_laws() {
        for data in [
            &b""[..],
            b" \t quiet ro  console=ttyS0 console=hvc0\n",
            b"a=\"b c\" \"d=e f\" -- \"\" x=\"y z\" -v",
            b"+console=a\x01+console=b\x01!-- \x01!--\x01~x y\x01:v\" w",
            b"a-b=1\x01a_b=2\x01:\xc3\xa0 init=/evil\x01+=x\x01+==",
            b"\"\x01\"\"\x01\"=\"\x01a=\"\x01a=\"\"\x01--\x01--=x",
            b"\xff\xfe\x00\r\n\x7f",
        ] {
            super::run(data);
        }
    }
}
