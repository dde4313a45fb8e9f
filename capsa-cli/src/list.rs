//! `capsa backends`.

use std::fmt::Write as _;

use capsa::{BackendCapabilities, BackendReport, NoteLevel};

/// The backends for people.
pub(crate) fn text(reports: &[BackendReport]) -> String {
    let mut out = String::new();
    for BackendReport { name, availability, capabilities } in reports {
        let version = availability.version.map(|version| format!(" {version}")).unwrap_or_default();
        let usable = if availability.is_usable() { "usable" } else { "cannot be used here" };
        let _ = writeln!(out, "{name}{version}: {usable}");
        if let Some(program) = &availability.program {
            let _ = writeln!(out, "  program: {program}");
        }
        for reason in &availability.against {
            let _ = writeln!(out, "  {}\n    hint: {}", reason.what, reason.remedy);
        }
        for note in &availability.notes {
            let level = if note.level == NoteLevel::Warning { "warning" } else { "note" };
            let _ = writeln!(out, "  {level}: {}", note.text);
        }
        let (can, cannot): (Vec<_>, Vec<_>) =
            features(capabilities).into_iter().partition(|(_, can)| *can);
        let names = |of: Vec<(&'static str, bool)>| {
            of.into_iter().map(|(name, _)| name).collect::<Vec<_>>().join(", ")
        };
        for (what, names) in [("can", names(can)), ("cannot", names(cannot))] {
            if !names.is_empty() {
                let _ = writeln!(out, "  {what}: {names}");
            }
        }
    }
    out
}

/// The backends for programs.
pub(crate) fn json(reports: &[BackendReport]) -> String {
    let text = serde_json::to_string_pretty(reports).expect("a report has only texts for keys");
    format!("{text}\n")
}

fn features(of: &BackendCapabilities) -> [(&'static str, bool); 13] {
    [
        ("raw disks", of.image_formats.raw),
        ("qcow2 disks", of.image_formats.qcow2),
        ("read-only disks", of.disk_read_only),
        ("ephemeral disks", of.disk_ephemeral),
        ("boot without an initrd", of.boot_methods.linux_direct_without_initrd),
        ("virtio-fs shares", of.virtio_fs),
        ("virtio-9p shares", of.virtio_9p),
        ("read-only shares", of.share_read_only),
        ("no network", of.network_modes.none),
        ("NAT", of.network_modes.nat),
        ("end on reboot", of.reboot_end),
        ("restart on reboot", of.reboot_restart),
        ("vsock", of.vsock),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_backend_is_there_with_what_it_can_and_what_is_against_it() {
        let reports = capsa::backends();
        let (text, json) = (text(&reports), json(&reports));
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        for (n, report) in reports.iter().enumerate() {
            assert!(text.contains(report.name), "{text}");
            for reason in &report.availability.against {
                assert!(text.contains(&reason.remedy), "{text}");
            }
            assert_eq!(json[n]["name"], report.name);
        }
        assert!(text.contains("  can: raw disks"), "{text}");
    }
}
