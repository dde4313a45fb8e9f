//! Rules as tables, laws as properties, and the kernel's parser as the judge.

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::kernel_twin::{self, KernelView};
use super::{CmdlineArg, CmdlineError, KernelCmdline, MAX_LEN, Place, is_repeatable};

fn line(text: &str) -> KernelCmdline {
    KernelCmdline::parse(text).unwrap()
}

fn kernel_view_of(c: &KernelCmdline) -> KernelView {
    let bytes = |s: &str| s.as_bytes().to_vec();
    KernelView {
        params: c.iter().map(|a| (bytes(a.key()), a.value().map(bytes))).collect(),
        init: c.init_args().iter().map(|a| bytes(a)).collect(),
    }
}

#[test]
fn cmdline_build_gives_canonical_text() {
    for (text, built) in [
        ("", ""),
        (" \t\n", ""),
        ("quiet", "quiet"),
        ("  ro \t quiet\n", "ro quiet"),
        ("a= b", "a= b"),
        ("a=\"\"", "a="),
        ("a=b=c", "a=b=c"),
        ("a=\"b\"", "a=b"),
        ("a=\"b c\"", "a=\"b c\""),
        ("\"a=b c\"", "a=\"b c\""),
        ("\"quiet\"", "quiet"),
        ("a=it's", "a=\"it's\""),
        ("root=a root=b", "root=a root=b"),
        ("console=ttyS0 console=hvc0", "console=ttyS0 console=hvc0"),
        ("a --", "a"),
        ("-- sh -c \"echo hi\"", "-- sh -c \"echo hi\""),
        ("a -- b=\"c d\" \"\"", "a -- \"b=c d\" \"\""),
        ("a -- =b", "a -- =b"),
        ("a=\"\u{e0}\"", "a=\"\u{e0}\""),
    ] {
        assert_eq!(line(text).build(), built, "{text:?}");
    }
}

#[test]
fn text_with_two_readings_is_refused() {
    let byte = |place, byte, at| CmdlineError::ForbiddenByte { place, byte, at };
    let value = || Place::ValueOf("a".into());
    for (text, error) in [
        ("\"", CmdlineError::UnbalancedQuote { at: 0 }),
        ("x a=\"b c", CmdlineError::UnbalancedQuote { at: 4 }),
        ("\"\"", CmdlineError::EmptyKey),
        ("=", CmdlineError::EmptyKey),
        ("=b", CmdlineError::EmptyKey),
        ("a=b\"c d\"", byte(value(), b'"', 1)),
        ("a=\"b\"c", byte(value(), b'"', 0)),
        ("\"a=\"b\"\"", byte(value(), b'"', 0)),
        ("a\"b c\"", byte(Place::Key, b'"', 1)),
        ("\"a b\"", byte(Place::Key, b' ', 1)),
        ("a=\"b\nc\"", byte(value(), b'\n', 1)),
        ("a=b\0c", byte(value(), 0, 1)),
        ("a=\u{e0}", byte(Place::Line, 0xa0, 3)),
        ("-- a -- b", CmdlineError::DoubleDash),
        ("--=b", CmdlineError::DoubleDash),
    ] {
        assert_eq!(KernelCmdline::parse(text), Err(error), "{text:?}");
    }
}

#[test]
fn arg_replaces_and_moves_to_the_end() {
    let mut c = line("rw quiet root=/dev/vda console=a console=b");
    c.arg("root=/dev/vdb").console("hvc0").arg("ro").arg("rw");
    assert_eq!(c.build(), "quiet root=/dev/vdb console=hvc0 ro rw");
    c.arg("quiet=1");
    assert_eq!(c.build(), "root=/dev/vdb console=hvc0 ro rw quiet=1");
}

#[test]
fn cmdline_dash_and_underscore_are_one_key() {
    let mut c = line("log-buf-len=1M virtio_mmio.device=x");
    assert_eq!(c.get("log_buf_len"), Some("1M"));
    assert!(c.contains("virtio-mmio.device"));
    c.arg("log_buf_len=4M");
    assert_eq!(c.build(), "virtio_mmio.device=x log_buf_len=4M");
    assert_eq!(c.get("log_buf_le"), None);
}

#[test]
fn last_value_is_the_one_the_kernel_sees() {
    let c = line("a=1 a=2 b=1 b");
    assert_eq!(c.get("a"), Some("2"));
    assert_eq!(c.get("b"), None, "the last `b` is a flag");
    assert_eq!(c.get_all("a").collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(c.get_all("b").collect::<Vec<_>>(), ["1"]);
    assert!(c.contains("b") && !c.contains("c"));
}

#[test]
fn remove_takes_all_and_returns_the_last() {
    let mut c = line("a=1 x a=2");
    assert_eq!(c.remove("a"), Some(CmdlineArg::kv("a", "2")));
    assert_eq!(c.remove("a"), None);
    assert_eq!(c.build(), "x");
}

#[test]
fn append_repeats_any_key() {
    let mut c = KernelCmdline::new();
    c.append("foo.list=a").append("foo.list=b").append("quiet");
    assert_eq!(c.build(), "foo.list=a foo.list=b quiet");
}

#[test]
fn args_keep_lists_and_deduplicate_the_rest() {
    let mut c = line("console=tty0 hugepages=1 panic=1");
    c.args(["hugepagesz=2M", "hugepages=4", "hugepagesz=1G", "hugepages=1", "panic=2", "panic=3"]);
    assert_eq!(
        c.build(),
        "console=tty0 hugepagesz=2M hugepages=4 hugepagesz=1G hugepages=1 panic=3"
    );
}

#[test]
fn merge_replaces_whole_groups() {
    let mut c = line("console=ttyS0 panic=-1 console=tty0 -- a b");
    c.merge(&line("console=hvc0 quiet console=hvc1"));
    assert_eq!(c.build(), "panic=-1 console=hvc0 quiet console=hvc1 -- a b");
    c.merge(&line("-- c"));
    assert_eq!(c.init_args(), ["c"]);
}

#[test]
fn override_is_word_for_word_and_wins_in_merge() {
    let mut c = line("quiet");
    c.merge(KernelCmdline::new().override_with("x  \"y"));
    assert_eq!(c.override_text(), Some("x  \"y"));
    assert_eq!(c.build(), "x  \"y");
    assert_eq!(c.build_checked(5).as_deref(), Ok("x  \"y"));
    assert_eq!(c.build_checked(4), Err(CmdlineError::TooLong { len: 5, max: 4 }));
    c.override_with("a\nb");
    let refused = CmdlineError::ForbiddenByte { place: Place::Override, byte: b'\n', at: 1 };
    assert_eq!(c.build_checked(MAX_LEN), Err(refused));
    assert_eq!(c.build(), "x  \"y", "what was refused is left out");
}

#[test]
fn refusals_are_left_out_and_remembered() {
    let mut c = line("root=/dev/vda");
    c.root("/dev/vdb\0 init=/evil").arg("a=\"b").arg("").arg("--").init_arg("--").arg("quiet");
    assert_eq!(c.build(), "root=/dev/vda quiet");
    let first =
        CmdlineError::ForbiddenByte { place: Place::ValueOf("root".into()), byte: 0, at: 8 };
    assert_eq!(c.check(), Err(first.clone()));
    assert_eq!(c.build_checked(MAX_LEN), Err(first.clone()));
    c.remove("root");
    assert_eq!(c.check(), Err(first.clone()), "sticky");
    assert_eq!(KernelCmdline::new().merge(&c).check(), Err(first), "and survives a merge");
}

#[test]
fn no_control_byte_or_quote_gets_into_a_value() {
    for byte in (0..0x20).chain([0x7f, b'"']) {
        let value = String::from_utf8(vec![b'x', byte]).unwrap();
        let mut c = KernelCmdline::new();
        c.arg(CmdlineArg::kv("a", value.as_str())).init_arg(value);
        assert!(c.check().is_err() && c.build().is_empty(), "{byte:#x}");
    }
}

#[test]
fn line_of_exactly_the_maximum_is_taken() {
    let mut c = KernelCmdline::new();
    c.arg(CmdlineArg::kv("a", "x".repeat(MAX_LEN - 2)));
    assert_eq!(c.build_checked(MAX_LEN).unwrap().len(), MAX_LEN);
    c.arg(CmdlineArg::kv("a", "x".repeat(MAX_LEN - 1)));
    let error = CmdlineError::TooLong { len: MAX_LEN + 1, max: MAX_LEN };
    assert_eq!(c.build_checked(MAX_LEN), Err(error));
}

#[test]
fn a_character_with_byte_a0_stays_one_argument() {
    let mut c = KernelCmdline::new();
    c.arg("note=\u{e0}init=/evil");
    assert_eq!(c.build(), "note=\"\u{e0}init=/evil\"");
    assert_eq!(kernel_twin::read(&c.build()), kernel_view_of(&c));
    assert_eq!(kernel_twin::read("note=\u{e0}init=/evil").params.len(), 2, "unquoted it is two");
}

/// Not a law but a limit, stated in the module's header; this keeps the statement true.
#[test]
fn early_x86_code_looks_into_quotes() {
    let mut c = KernelCmdline::new();
    c.arg("note=a nokaslr b");
    assert!(kernel_twin::early_x86_sees(&c.build(), "nokaslr"));
    assert!(!kernel_twin::read(&c.build()).params.iter().any(|(key, _)| key == b"nokaslr"));
}

#[test]
fn repeatable_keys_are_known_by_either_spelling() {
    for key in ["console", "systemd.mount-extra", "rd.systemd.mount_extra", "virtio-mmio.device"] {
        assert!(is_repeatable(key), "{key}");
    }
    for key in ["root", "rd.console", "module_blacklist", "systemd.unit", "", "consol"] {
        assert!(!is_repeatable(key), "{key}");
    }
}

#[test]
fn messages_name_the_key_and_not_the_value() {
    let error = KernelCmdline::new().arg("token=secret\n").check().unwrap_err();
    assert_eq!(
        error.to_string(),
        "byte 0x0a at offset 6 of the value of `token` is not allowed on a kernel command line"
    );
}

/// Few letters, so that keys and quotes meet often.
fn hostile_text() -> impl Strategy<Value = String> {
    proptest::string::string_regex("[ab=\"'\\-_ \t\n\u{0}\u{e0}\u{a0}é]{0,12}").unwrap()
}

fn operations() -> impl Strategy<Value = KernelCmdline> {
    let operation = (0..6u8, "[ab_-]{1,2}", hostile_text());
    proptest::collection::vec(operation, 0..6).prop_map(|operations| {
        let mut c = KernelCmdline::new();
        for (kind, key, text) in operations {
            match kind {
                0 => c.append(CmdlineArg::kv(key, text)),
                1 => c.arg(CmdlineArg::kv(key, text)),
                2 => c.arg(CmdlineArg::flag(text)),
                3 => c.init_arg(text),
                4 => c.append(CmdlineArg::flag(key)),
                _ => c.args([text]),
            };
        }
        c
    })
}

/// Lines without a refusal: the same operations, put in again one by one.
fn clean_line() -> impl Strategy<Value = KernelCmdline> {
    operations().prop_map(|c| {
        let mut clean = KernelCmdline::new();
        for arg in c.iter() {
            clean.append(arg.clone());
        }
        for arg in c.init_args() {
            clean.init_arg(arg.as_str());
        }
        clean
    })
}

fn merged(a: &KernelCmdline, b: &KernelCmdline) -> KernelCmdline {
    let mut a = a.clone();
    a.merge(b);
    a
}

proptest! {
    #[test]
    fn parse_of_build_is_the_same(c in clean_line()) {
        prop_assert_eq!(c.check(), Ok(()));
        prop_assert_eq!(KernelCmdline::parse(&c.build()), Ok(c));
    }

    #[test]
    fn kernel_finds_exactly_our_arguments(c in operations()) {
        prop_assert_eq!(kernel_twin::read(&c.build()), kernel_view_of(&c));
    }

    #[test]
    fn kernel_reads_what_we_parse(text in hostile_text()) {
        if let Ok(c) = KernelCmdline::parse(&text) {
            prop_assert_eq!(kernel_twin::read(&text), kernel_view_of(&c));
        }
    }

    #[test]
    fn no_value_introduces_a_second_argument(value in any::<String>()) {
        let mut c = KernelCmdline::new();
        c.arg(CmdlineArg::kv("a", value.as_str())).arg("z");
        let seen = kernel_twin::read(&c.build()).params;
        let taken = usize::from(c.check().is_ok());
        prop_assert_eq!(seen.len(), taken + 1);
        if taken == 1 {
            prop_assert_eq!(seen[0].1.as_deref(), Some(value.as_bytes()));
        }
    }

    #[test]
    fn merge_is_associative_and_idempotent(a in operations(), b in operations(), c in operations()) {
        prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
        prop_assert_eq!(merged(&a, &a), a.clone());
        prop_assert_eq!(merged(&merged(&a, &b), &b), merged(&a, &b));
        prop_assert_eq!(merged(&a, &KernelCmdline::new()), a.clone());
        prop_assert_eq!(merged(&KernelCmdline::new(), &a), a);
    }

    #[test]
    fn fuzz_body_holds(data in proptest::collection::vec(any::<u8>(), 0..64)) {
        super::fuzz::run(&data);
    }
}
