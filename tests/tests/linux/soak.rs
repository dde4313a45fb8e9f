//! A short soak of the console: `cargo xtask soak` runs a long one.

use std::time::{Duration, Instant};

use capsa::{Error, VmConsole};
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

fn assert_clean(what: &str, report: &SoakReport) {
    eprintln!("{what}: {}", report.summary());
    assert!(report.failures.is_empty(), "{what}: {}", report.failures.join("\n"));
}

#[test]
fn command_given_up_early_leaves_any_login_shell() {
    let first = LOGIN_SHELLS[0];
    let Some(mut session) = boot(SoakGuest::Shell(first)) else { return };
    let began = Instant::now();
    for shell in LOGIN_SHELLS {
        if shell != first {
            let login = block_on(log_in_again(&mut session.console, shell));
            login.unwrap_or_else(|e| panic!("{shell}: login after {:.1?}: {e:#}", began.elapsed()));
        }
        let report = soak::give_up(&mut session.console, SEED, GIVE_UPS, PATIENCE);
        assert_clean(&format!("{shell}, {:.1?} after the boot", began.elapsed()), &report);
    }
}

/// Leaves the shell and logs in as another user. A login accepts the prompt of the shell that is about to
/// exit, so this waits for the login prompt first, and for another one that the login reads.
async fn log_in_again(console: &mut VmConsole, user: &str) -> Result<(), Error> {
    console.write_line("exit").await?;
    console.wait_for_timeout("login: ", PATIENCE).await?;
    console.write_line("").await?;
    console.login_timeout(user, None, PATIENCE).await?;
    Ok(())
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
    assert_clean(&format!("{guest:?}"), &report.unwrap());
}
