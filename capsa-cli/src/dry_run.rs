//! `--dry-run`: a launch plan as text or JSON.
//!
//! In the text everything but the programs is a comment, so that it can be pasted into a shell.

use std::fmt::Write as _;

use capsa::backend::{LaunchPlan, Rejection};
use capsa::console::escape_control_line;

use crate::json_output;

/// The plan as text, after the backends that were rejected.
pub(crate) fn text(plan: &LaunchPlan, rejected: &[Rejection]) -> String {
    let mut out = String::new();
    for rejection in rejected {
        let _ =
            writeln!(out, "# rejected backend: {}", escape_control_line(&rejection.to_string()));
    }
    let _ = write!(out, "{plan}");
    out
}

/// The plan as JSON.
pub(crate) fn json(plan: &LaunchPlan) -> String {
    json_output::document("plan", plan)
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
            assert!(text.starts_with(&format!("# backend: {}\n", plan.backend())), "{text}");
            let shell: String =
                text.split_inclusive('\n').filter(|line| !line.starts_with("# ")).collect();
            let words = shell_words::split(&shell).unwrap();
            let want: Vec<_> = plan
                .processes()
                .flat_map(|p| [p.program()].into_iter().chain(p.args().iter().map(String::as_str)))
                .collect();
            assert_eq!(words, want);
            assert!(text.contains("# console: "), "{text}");
            let plan = capsa::internal::parts(&plan);
            assert_eq!(text.matches("# ephemeral disk: ").count(), plan.overlays.len(), "{text}");
            let descriptors: usize = plan.processes.iter().map(|p| p.descriptors.len()).sum();
            assert_eq!(text.matches("#   inherits descriptor ").count(), descriptors, "{text}");
            for message in plan.boot.iter().chain(&plan.power_button) {
                assert!(text.contains(message.purpose), "{text}");
            }
        }
    }

    #[test]
    fn dry_run_text_lists_rejected_backends() {
        let reasons = vec![capsa::backend::Reason::new("no program", "install it")];
        let rejected = [capsa::internal::rejection("cloud-hypervisor", reasons)];
        let text = text(&plans()[0], &rejected);
        assert!(
            text.contains("# rejected backend: cloud-hypervisor: no program (install it)\n"),
            "{text}"
        );
    }

    #[test]
    fn dry_run_json_has_the_whole_plan() {
        for plan in plans() {
            let value: serde_json::Value = serde_json::from_str(&json(&plan)).unwrap();
            assert_eq!(value["backend"], plan.backend());
            assert_eq!(value["processes"].as_array().unwrap().len(), plan.processes().len());
            assert_eq!(value["cmdline"], plan.cmdline());
        }
    }
}
