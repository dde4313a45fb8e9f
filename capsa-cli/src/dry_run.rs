//! `--dry-run`: a launch plan as text or JSON.
//!
//! In the text everything but the programs is a comment, so that it can be pasted into a shell.

use std::fmt::Write as _;

use capsa::backend::{LaunchPlan, NoteLevel, Rejection};
use capsa::console::escape_control_line;
use capsa::plan::{
    Body, ConsolePlan, CrashReporting, Message, OverlayPlan, ProcessPlan, StopAction,
};

use crate::json_output;

/// The plan as text, with the backends that were rejected.
pub(crate) fn text(plan: &LaunchPlan, rejected: &[Rejection]) -> String {
    let mut out = String::new();
    let mut line = |line: &str| comment(&mut out, line);
    line(&format!("backend: {}", plan.backend));
    for rejection in rejected {
        line(&format!("rejected backend: {rejection}"));
    }
    line(&format!("run directory: {}", plan.run_dir));
    line(&format!("kernel command line: {}", plan.cmdline));
    if let Some(limit) = plan.time_limit {
        line(&format!("time limit: {}", humantime::format_duration(limit)));
    }
    for note in &plan.notes {
        let level = match note.level {
            NoteLevel::Warning => "warning",
            NoteLevel::Info => "note",
        };
        line(&format!("{level}: {}", note.text));
    }
    match &plan.console {
        ConsolePlan::None => line("console: none"),
        ConsolePlan::Socket { socket, .. } => line(&format!("console: {socket}")),
        ConsolePlan::Pty { .. } => {
            line("console: a pty as the hypervisor's standard input and output");
        }
    }
    if let Some(pipe) = &plan.event_pipe {
        line(&format!("event pipe: {pipe}, created before the hypervisor starts"));
    }
    for overlay in &plan.overlays {
        let (at, of) = (overlay.at(), overlay.of());
        line(&match overlay {
            OverlayPlan::Qcow2 { .. } => format!("ephemeral disk: {at}, an empty overlay of {of}"),
            OverlayPlan::Clone { .. } => format!("ephemeral disk: {at}, a clone of {of}"),
        });
    }
    for process in &plan.processes {
        out.push('\n');
        comment(&mut out, &process.name);
        program(&mut out, process);
    }
    out.push('\n');
    comment(&mut out, &format!("control messages on {}", plan.control.socket));
    for message in &plan.boot {
        comment(&mut out, &format!("  boot: {}", message_text(message)));
    }
    if let Some(message) = &plan.power_button {
        comment(&mut out, &format!("  power button: {}", message_text(message)));
    }
    let quit = match &plan.quit {
        StopAction::Control(message) => message_text(message),
        StopAction::Signal(signal) => format!("SIG{signal:?}").to_uppercase(),
    };
    comment(&mut out, &format!("  quit: {quit}"));
    if let CrashReporting::ConsoleOnly { power_off } = &plan.crash_reporting {
        let message = message_text(power_off);
        comment(&mut out, &format!("  quit after a guest crash: {message}"));
    }
    out
}

/// The plan as JSON.
pub(crate) fn json(plan: &LaunchPlan) -> String {
    json_output::document("plan", plan)
}

/// The command line of a program: one argument per line, an option with its value.
fn program(out: &mut String, process: &ProcessPlan) {
    out.push_str(&shell_words::quote(&process.program));
    let mut args = process.args.iter().peekable();
    while let Some(arg) = args.next() {
        let _ = write!(out, " \\\n  {}", shell_words::quote(arg));
        if arg.starts_with('-')
            && let Some(value) = args.next_if(|next| !next.starts_with('-'))
        {
            let _ = write!(out, " {}", shell_words::quote(value));
        }
    }
    out.push('\n');
}

/// A text as a comment of one line.
fn comment(out: &mut String, text: &str) {
    out.push_str("# ");
    out.push_str(&escape_control_line(text));
    out.push('\n');
}

fn message_text(message: &Message) -> String {
    let sent = match &message.body {
        Body::Qmp { execute, arguments: None } => (*execute).to_owned(),
        Body::Qmp { execute, arguments: Some(arguments) } => format!("{execute} {arguments}"),
        Body::Http { method, path, body: None } => format!("{method} {path}"),
        Body::Http { method, path, body: Some(body) } => format!("{method} {path} {body}"),
    };
    format!("{sent} ({})", message.purpose)
}

#[cfg(test)]
mod tests {
    use super::*;
    use capsa::{Capsa, ConsoleMode, DiskImage, LinuxBootConfig};

    /// A plan for each backend, on any host, with files whose names need quoting.
    fn plans() -> Vec<LaunchPlan> {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("a b\n$(touch x)'");
        std::fs::create_dir(&odd).unwrap();
        let kernel = capsa_testkit::nano::write_to(&odd).unwrap();
        std::fs::write(odd.join("initrd"), "x").unwrap();
        let plan = |backend| {
            let config = LinuxBootConfig::new(&kernel).initrd(odd.join("initrd"));
            let builder = Capsa::vm(config).backend(backend).console(ConsoleMode::Stdio);
            let disk = odd.join("disk.raw");
            std::fs::write(&disk, [0; 512]).unwrap();
            let builder = builder.no_network().cmdline_arg("x=a b");
            let builder = builder.disk(DiskImage::new(disk).ephemeral());
            builder.plan()
        };
        ["qemu", "cloud-hypervisor", "vfkit"].into_iter().map(|b| plan(b).unwrap()).collect()
    }

    #[test]
    fn dry_run_text_is_valid_shell_input() {
        for plan in plans() {
            let text = text(&plan, &[]);
            assert!(text.starts_with(&format!("# backend: {}\n", plan.backend)), "{text}");
            let shell: String =
                text.split_inclusive('\n').filter(|line| !line.starts_with("# ")).collect();
            let words = shell_words::split(&shell).unwrap();
            let want: Vec<_> = plan
                .processes
                .iter()
                .flat_map(|process| [&process.program].into_iter().chain(&process.args).cloned())
                .collect();
            assert_eq!(words, want);
            assert!(text.contains("# console: "), "{text}");
            assert_eq!(text.matches("# ephemeral disk: ").count(), plan.overlays.len(), "{text}");
            assert_eq!(text.contains("# event pipe: "), plan.event_pipe.is_some(), "{text}");
            for message in plan.boot.iter().chain(&plan.power_button) {
                assert!(text.contains(message.purpose), "{text}");
            }
        }
    }

    #[test]
    fn dry_run_text_lists_rejected_backends() {
        let reasons = vec![capsa::backend::Reason::new("no passt", "install it")];
        let rejected = [Rejection { backend: "cloud-hypervisor", reasons }];
        let text = text(&plans()[0], &rejected);
        assert!(
            text.contains("# rejected backend: cloud-hypervisor: no passt (install it)\n"),
            "{text}"
        );
    }

    #[test]
    fn dry_run_json_has_the_whole_plan() {
        for plan in plans() {
            let value: serde_json::Value = serde_json::from_str(&json(&plan)).unwrap();
            assert_eq!(value["backend"], plan.backend);
            assert_eq!(value["processes"].as_array().unwrap().len(), plan.processes.len());
            assert_eq!(value["cmdline"], plan.cmdline);
        }
    }

    #[test]
    fn comment_escapes_control_characters() {
        let mut out = String::new();
        comment(&mut out, "a\nrm -rf /\r\u{1b}[2J ü");
        assert_eq!(out, "# a\\nrm -rf /\\r\\u{1b}[2J ü\n");
    }
}
