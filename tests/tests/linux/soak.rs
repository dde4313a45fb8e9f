//! A short soak of the console: `cargo xtask soak` runs a long one.

use std::time::Duration;

use capsa_testkit::guest::LOGIN_SHELLS;
use capsa_testkit::soak::{self, Session, SoakGuest, SoakReport};
use capsa_testkit::{host, skip};
use futures_lite::future::block_on;

/// For emulation on a loaded host.
const PATIENCE: Duration = Duration::from_secs(120);

const SEED: u64 = 1;
const GIVE_UPS: u32 = 16;
const COMMANDS: u64 = 50;

fn boot(guest: SoakGuest) -> Option<Session> {
    if host::find_program("qemu-system-x86_64").is_none() {
        skip("qemu-system-x86_64 is not installed");
        return None;
    }
    guest.boot().map_err(skip).ok()
}

fn assert_clean(report: &SoakReport, what: &str) {
    let summary = report.summary();
    eprintln!("{summary}");
    assert!(report.failures.is_empty(), "{what}: {}\n{summary}", report.failures.join("\n"));
}

#[test]
fn command_given_up_early_leaves_any_login_shell() {
    let first = LOGIN_SHELLS[0];
    let Some(mut session) = boot(SoakGuest::Shell(first)) else { return };
    for shell in LOGIN_SHELLS {
        if shell != first {
            block_on(session.console.write_line("exit")).unwrap();
            // The prompt of the shell that ends would be taken for the end of the next login.
            block_on(session.console.wait_for_timeout("login: ", PATIENCE)).unwrap();
            block_on(session.console.login_timeout(shell, None, PATIENCE)).unwrap();
        }
        let report = soak::give_up(&mut session.console, SEED, GIVE_UPS, PATIENCE / 4);
        eprint!("{shell}: ");
        assert_clean(&report, shell);
    }
}

#[test]
fn random_commands_keep_console_of_busybox() {
    random_commands(SoakGuest::Busybox);
}

#[test]
fn random_commands_keep_console_of_debian() {
    random_commands(SoakGuest::Debian);
}

fn random_commands(guest: SoakGuest) {
    let Some(session) = boot(guest) else { return };
    let report = soak::soak(guest, session, SEED, COMMANDS, |failure| eprintln!("{failure}"));
    assert_clean(&report.unwrap(), &format!("{guest:?}"));
}
