//! `capsa::testing`: calls on simulated guests return what they return on real ones.

use std::time::{Duration, Instant};

use capsa::backend::Exit;
use capsa::blocking::VmHandle;
use capsa::testing::{self, GuestReply, ScriptedGuest, TestResult};
use capsa::{EndedBy, Error, RebootPolicy, StopStep, VmStatus};
use capsa_testkit::test_name;
use capsa_testkit::vm::PATIENCE;
use futures_lite::future::block_on;

/// A short timeout, for output that never comes.
const SOON: Duration = Duration::from_millis(50);

fn shell() -> ScriptedGuest {
    ScriptedGuest::new().print("booting\r\n").login("root", Some("secret")).shell("# ")
}

fn started(guest: ScriptedGuest) -> VmHandle {
    let vm = testing::vm(guest).build_blocking().unwrap();
    vm.start().unwrap();
    vm
}

fn logged_in(guest: ScriptedGuest) -> (VmHandle, capsa::blocking::VmConsole) {
    let vm = started(guest);
    let mut console = vm.console().unwrap();
    console.login_timeout("root", Some("secret"), PATIENCE).unwrap();
    (vm, console)
}

#[test]
fn session_as_with_a_real_guest() -> TestResult {
    let guest = shell()
        .on("uname -r", GuestReply::output("6.1.0\n"))
        .on("false", GuestReply::status(1))
        .on(
            "seq 2000",
            GuestReply::output((1..=2000).map(|n| format!("{n}\n")).collect::<String>()),
        );
    let (vm, mut console) = logged_in(guest);
    let _shown = testing::show_on_failure(&vm);
    for _ in 0..100 {
        assert_eq!(console.run("uname -r", Some(PATIENCE))?.output, b"6.1.0\n");
    }
    assert_eq!(console.run("false", Some(PATIENCE))?.status, Some(1));
    assert_eq!(console.run("seq 2000", Some(PATIENCE))?.output.len(), 8893);
    assert_eq!(console.run("nonsense", Some(PATIENCE))?.status, Some(127));
    assert_eq!(console.run_command("uname -r", "# ")?, "6.1.0\n");
    assert_eq!((vm.hypervisor_pid(), vm.status()), (None, VmStatus::Running));
    vm.stop()?;
    let report = vm.stop_report().unwrap();
    assert_eq!(
        (report.ended_by, report.steps),
        (EndedBy::GuestPowerOff, vec![StopStep::PowerButton])
    );
    assert_eq!(vm.status(), VmStatus::Stopped { exit_code: Some(0) });
    Ok(())
}

#[test]
fn output_10_mb_arrives_whole() {
    let text: String = (0..1_000_000).map(|n| format!("{n:09}\n")).collect();
    let (_vm, mut console) = logged_in(shell().on("big", GuestReply::output(&text)));
    let reply = console.run("big", Some(PATIENCE)).unwrap();
    assert!(reply.output == text.as_bytes() && !reply.truncated, "{} bytes", reply.output.len());
}

#[test]
fn login_wrong_password_is_named() {
    let vm = started(shell());
    let error = vm.console().unwrap().login_timeout("root", Some("no"), PATIENCE).unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
}

#[test]
fn command_blocking_times_out_shell_stays_usable() {
    let guest =
        shell().on("sleep 1000", GuestReply::blocks()).on("pwd", GuestReply::output("/root\n"));
    let (_vm, mut console) = logged_in(guest);
    let error = console.run("sleep 1000", Some(SOON)).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert_eq!(console.run("pwd", Some(PATIENCE)).unwrap().output, b"/root\n");
}

#[test]
fn reply_delay_is_respected() {
    let (_vm, mut console) = logged_in(shell().on("sync", GuestReply::status(0).after(SOON)));
    let began = Instant::now();
    console.run("sync", Some(PATIENCE)).unwrap();
    assert!(began.elapsed() >= SOON);
}

#[test]
fn guest_ending_in_command_ends_wait() {
    for (answer, ended_by, exit_code) in [
        (GuestReply::power_off(), EndedBy::GuestPowerOff, Some(0)),
        (GuestReply::reboot(), EndedBy::GuestReboot, Some(0)),
        (GuestReply::panic("sysrq"), EndedBy::GuestPanic, Some(0)),
    ] {
        let (vm, mut console) = logged_in(shell().on("end", answer));
        let error = console.run("end", Some(PATIENCE)).unwrap_err();
        assert!(!matches!(error, Error::Timeout { .. }), "{error}");
        let status = vm.wait_timeout(PATIENCE).unwrap();
        assert_eq!(status, Some(VmStatus::Stopped { exit_code }));
        assert_eq!(vm.stop_report().unwrap().ended_by, ended_by);
    }
}

const QUOTED_PANIC: &str = "[    1.500000] Kernel panic - not syncing: quoted\n\
                            ---[ end Kernel panic - not syncing: quoted ]---\n";

/// A panic is one only if the guest resets right after its text.
#[test]
fn quoted_panic_is_hint_of_guests_end() {
    let rest = "[    2.000000] reboot: Restarting system\n";
    let quoted = || QUOTED_PANIC.to_owned();
    for (answer, ended_by) in [
        (GuestReply::power_off().with_output(quoted()), EndedBy::GuestPowerOff),
        (GuestReply::reboot().with_output(quoted() + rest), EndedBy::GuestReboot),
        (GuestReply::reboot().with_output(quoted()), EndedBy::GuestPanic),
        (GuestReply::panic("sysrq").with_output(rest), EndedBy::GuestPanic),
    ] {
        let (vm, mut console) = logged_in(shell().on("end", answer.clone()));
        let error = console.run("end", Some(PATIENCE)).unwrap_err();
        vm.wait_timeout(PATIENCE).unwrap();
        assert_eq!(vm.stop_report().unwrap().ended_by, ended_by, "{answer:?}");
        let later = console.wait_for("never").unwrap_err();
        for error in [error, later] {
            match &error {
                Error::KernelPanic { .. } => assert_eq!(ended_by, EndedBy::GuestPanic, "{error}"),
                Error::GuestEnded { how, hint, .. } => {
                    assert_eq!((&how.ended_by, &ended_by), (&ended_by, &how.ended_by));
                    assert_ne!(ended_by, EndedBy::GuestPanic, "{error}");
                    let is_refuted = ended_by == EndedBy::GuestReboot;
                    assert_eq!(hint.is_none(), is_refuted, "{error}");
                }
                other => panic!("{other}"),
            }
        }
    }
}

#[test]
fn quoted_panic_does_not_explain_lost_vmm() {
    let answer = GuestReply::exit(3).with_output(QUOTED_PANIC);
    let (vm, mut console) = logged_in(shell().on("end", answer));
    let error = console.run("end", Some(PATIENCE)).unwrap_err();
    assert!(matches!(error, Error::GuestEnded { hint: Some(_), .. }), "{error}");
    vm.wait_timeout(PATIENCE).unwrap();
    let report = vm.stop_report().unwrap();
    assert!(matches!(report.ended_by, EndedBy::HypervisorLost { .. }), "{report}");
}

/// The reboot policy restarts the VM, so it has no end that tells.
#[test]
fn quoted_panic_before_reboot_is_a_reboot() {
    for (rest, is_panic) in [("[    2.000000] reboot: Restarting system\n", false), ("", true)] {
        let answer = GuestReply::reboot().with_output(QUOTED_PANIC.to_owned() + rest);
        let vm = testing::vm(shell().on("end", answer)).on_reboot(RebootPolicy::Restart);
        let vm = vm.build_blocking().unwrap();
        vm.start().unwrap();
        let mut console = vm.console().unwrap();
        console.login_timeout("root", Some("secret"), PATIENCE).unwrap();
        let error = console.run("end", Some(PATIENCE)).unwrap_err();
        assert_eq!(matches!(error, Error::KernelPanic { .. }), is_panic, "{error}");
    }
}

#[test]
fn vmm_exit_or_kill_is_a_failure() {
    for (answer, exit) in [
        (GuestReply::exit(3), "exited with status 3"),
        (GuestReply::killed(11), "was killed by signal 11"),
    ] {
        let (vm, mut console) = logged_in(shell().on("end", answer));
        assert!(console.run("end", Some(PATIENCE)).is_err());
        let Some(VmStatus::Failed { message }) = vm.wait_timeout(PATIENCE).unwrap() else {
            panic!("{:?}", vm.status());
        };
        assert_eq!(message, format!("simulated guest {exit}"));
    }
}

#[test]
fn hung_guest_needs_quit_to_stop() {
    let (vm, mut console) = logged_in(shell().on("hang", GuestReply::hang()));
    assert!(matches!(console.run("hang", Some(SOON)), Err(Error::Timeout { .. })));
    vm.stop_with_timeout(SOON).unwrap();
    let report = vm.stop_report().unwrap();
    assert_eq!(report.steps, [StopStep::PowerButton, StopStep::Quit]);
    assert_eq!(report.ended_by, EndedBy::Owner);
}

#[test]
fn kill_reports_sigkill() {
    let vm = started(shell().ignore_power_button());
    vm.kill().unwrap();
    let report = vm.stop_report().unwrap();
    let exit = Exit::new(None, Some(9));
    assert_eq!((report.ended_by, report.exit), (EndedBy::Owner, Some(exit)));
    assert_eq!(vm.status(), VmStatus::Stopped { exit_code: None });
}

#[test]
fn start_failing_names_reason() {
    let vm = testing::vm(ScriptedGuest::new().fail_to_start("out of memory"));
    let error = vm.build_blocking().unwrap().start().unwrap_err();
    assert!(
        matches!(&error, Error::StartFailed(why) if why.to_string().contains("out of memory")),
        "{error}"
    );
}

#[test]
fn time_limit_stops_vm() {
    let vm = testing::vm(shell()).timeout(SOON).build_blocking().unwrap();
    vm.start().unwrap();
    vm.wait().unwrap();
    let report = vm.stop_report().unwrap();
    assert!(report.time_limit && report.ended_by == EndedBy::GuestPowerOff, "{report}");
}

#[test]
fn reboot_with_restart_policy_boots_again() {
    let guest = ScriptedGuest::new().print("one boot\n").expect_line("reboot").reboot();
    let vm = testing::vm(guest).on_reboot(RebootPolicy::Restart).build_blocking().unwrap();
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    for _ in 0..3 {
        console.wait_for_timeout("one boot", PATIENCE).unwrap();
        console.write_line("reboot").unwrap();
    }
    assert_eq!(vm.status(), VmStatus::Running);
}

#[test]
fn reboot_ends_command_but_not_login() -> TestResult {
    let guest =
        shell().on("reboot", GuestReply::reboot()).on("uname", GuestReply::output("Linux\n"));
    let vm = testing::vm(guest).on_reboot(RebootPolicy::Restart).build_blocking()?;
    vm.start()?;
    let mut console = vm.console()?;
    for _ in 0..3 {
        console.login("root", Some("secret"))?;
        assert_eq!(console.run("uname", None)?.output, b"Linux\n");
        // No time limit: only the reboot ends the call.
        let error = console.run("reboot", None).unwrap_err();
        assert_eq!(error.to_string(), "guest rebooted while waiting for the command to end");
    }
    Ok(())
}

#[test]
fn handle_dropped_closes_console() {
    let vm = started(shell());
    let mut console = vm.console().unwrap();
    console.wait_for_timeout("login: ", PATIENCE).unwrap();
    drop(vm);
    assert!(matches!(console.wait_for("more"), Err(Error::GuestEnded { .. })));
}

#[test]
fn async_driven_handle_works() {
    block_on(async {
        let guest = shell().on("uname", GuestReply::output("Linux\n"));
        let (vm, driver) = testing::vm(guest).build_driven().await.unwrap();
        let test = async {
            vm.start().await.unwrap();
            let mut console = vm.console().await.unwrap();
            console.login("root", Some("secret")).await.unwrap();
            assert_eq!(console.run("uname", None).await.unwrap().output, b"Linux\n");
            vm.stop().await.unwrap();
        };
        let ((), status) = futures_lite::future::zip(test, driver).await;
        assert_eq!(status.unwrap(), VmStatus::Stopped { exit_code: Some(0) });
    });
}

#[test]
fn embedded_vm_in_own_loop_works() {
    let mut vm =
        testing::vm(ScriptedGuest::new().print("hello").power_off()).build_embedded().unwrap();
    let reader = vm.add_reader();
    vm.start().unwrap();
    while !vm.status().is_terminal() {
        capsa_testkit::vm::poll_fd(&vm, vm.next_timeout());
        vm.on_ready().unwrap();
        while vm.poll_event().is_some() {}
    }
    assert_eq!(vm.take(reader), b"hello");
    assert_eq!(vm.stop_report().unwrap().ended_by, EndedBy::GuestPowerOff);
}

#[test]
fn idle_vm_has_no_deadline() {
    let mut vm = testing::vm(shell()).build_embedded().unwrap();
    vm.start().unwrap();
    for _ in 0..1000 {
        vm.on_ready().unwrap();
        while vm.poll_event().is_some() {}
        if vm.next_timeout().is_none() {
            return;
        }
    }
    panic!("it never comes to rest: {:?}", vm.next_timeout());
}

#[test]
fn unsupported_options_are_rejected() {
    let error = testing::vm(shell()).vsock().build_blocking().unwrap_err();
    assert_eq!(error.violations()[0].field, "vsock");
    let error = testing::vm(shell()).record("x.cast").build_embedded().unwrap_err();
    assert_eq!(error.violations()[0].field, "record");
    let silent = testing::vm(shell()).console(capsa::ConsoleMode::Disabled);
    let error = silent.record("x.cast").build_blocking().unwrap_err();
    assert_eq!(error.violations()[0].field, "record");
    let error = testing::vm(shell()).record("/nowhere/x.cast").build_blocking().unwrap_err();
    assert!(matches!(&error, Error::Io(e) if e.to_string().contains("/nowhere/x.cast")), "{error}");
}

/// Names the result of the test below, in its own process.
const HOW: &str = "CAPSA_TEST_ENDS_BY";

#[test]
fn show_on_failure_prints_only_on_failure() -> TestResult {
    let Ok(how) = std::env::var(HOW) else {
        for (how, fails) in [("panic", true), ("error", true), ("success", false)] {
            let mut program = std::process::Command::new(std::env::current_exe()?);
            let output = program.args([&test_name(), "--exact"]).env(HOW, how).output()?;
            let printed = [output.stdout, output.stderr].concat();
            let printed = String::from_utf8_lossy(&printed);
            assert_eq!(output.status.success(), !fails, "{how}: {printed}");
            let shown = printed.contains("(running):\n  | one\n  | two in red\n");
            assert_eq!(shown, fails, "{how}: {printed}");
        }
        return Ok(());
    };
    let vm = started(ScriptedGuest::new().print("one\r\n\x1b[31mtwo in red\x1b[0m\r\n"));
    let _shown = testing::show_on_failure(&vm);
    vm.console()?.wait_for_timeout("red\u{1b}[0m\r\n", PATIENCE)?;
    match how.as_str() {
        "panic" => panic!("as ordered"),
        "error" => Err("as ordered")?,
        _ => Ok(()),
    }
}

#[test]
fn paused_simulated_guest_answers_after_resume() {
    let guest = ScriptedGuest::new().print("# ").shell("# ").on("id", GuestReply::output("0\n"));
    let vm = testing::vm(guest).build_blocking().unwrap();
    assert!(matches!(vm.pause(), Err(Error::NotRunning)));
    vm.start().unwrap();
    let mut console = vm.console().unwrap();
    console.wait_for("# ").unwrap();
    vm.pause().unwrap();
    assert_eq!(vm.status(), VmStatus::Paused);
    console.write_line("id").unwrap();
    assert!(console.wait_for_timeout("0", SOON).is_err());
    vm.resume().unwrap();
    console.wait_for("0").unwrap();
    vm.pause().unwrap();
    vm.stop().unwrap();
    assert_eq!(vm.stop_report().unwrap().ended_by, EndedBy::GuestPowerOff);
}
