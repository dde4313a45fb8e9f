//! `capsa backends`: the backends, their versions and features, and why one cannot be used.

use std::fmt::Write as _;

use capsa::backend::{
    BackendCapabilities, BackendReport, Feature, HelperReport, MissingFeature, NoteLevel,
};
use serde_json::json;

use crate::json_output;

/// The table's cell for a feature that needs something to be installed.
const MISSING: &str = "missing";

/// The backends as text.
pub(crate) fn text(reports: &[BackendReport]) -> String {
    let mut out = String::new();
    for report in reports {
        let BackendReport { name, availability, helpers, .. } = report;
        let version = availability.version.map(|version| format!(" {version}")).unwrap_or_default();
        let usable = if availability.is_usable() { "usable" } else { "unavailable" };
        let _ = writeln!(out, "{name}{version}: {usable}");
        if let Some(program) = &availability.program {
            let _ = writeln!(out, "  program: {program}");
        }
        for reason in &availability.blockers {
            let _ = writeln!(out, "  {}\n    hint: {}", reason.what, reason.remedy);
        }
        for MissingFeature { feature, reason, .. } in missing_features(report) {
            let feature = name_of(*feature);
            let _ = writeln!(out, "  no {feature}: {}\n    hint: {}", reason.what, reason.remedy);
        }
        for note in &availability.warnings {
            let level = if note.level == NoteLevel::Warning { "warning" } else { "note" };
            let _ = writeln!(out, "  {level}: {}", note.text);
        }
        for HelperReport { name, program, version, .. } in helpers {
            let version = version.as_deref().unwrap_or("version unknown");
            let _ = match program {
                Some(program) => writeln!(out, "  {name}: {program}, {version}"),
                None => writeln!(out, "  {name}: not found"),
            };
        }
    }
    out.push('\n');
    table(&mut out, reports);
    out
}

/// The features that a backend lacks on this host; none for a backend that is not installed.
pub(crate) fn missing_features(report: &BackendReport) -> &[MissingFeature] {
    match report.availability.program {
        Some(_) => &report.availability.missing_features,
        None => &[],
    }
}

/// A feature's row in the table.
pub(crate) fn name_of(feature: Feature) -> &'static str {
    match feature {
        Feature::VirtioFs => "virtio-fs shares",
        Feature::Virtio9p => "virtio-9p shares",
        Feature::Nat => "NAT",
        Feature::Vsock => "vsock",
        Feature::VirtioConsole => "virtio console",
        _ => "more",
    }
}

/// The table of features: a row for each feature, a column for each backend.
fn table(out: &mut String, reports: &[BackendReport]) {
    let all: Vec<_> = reports.iter().map(|report| features(&report.capabilities)).collect();
    let names = features(&BackendCapabilities::default()).map(|(name, _)| name.len());
    let first = names.into_iter().max().unwrap_or_default();
    let _ = write!(out, "{:first$}", "");
    let width = |report: &BackendReport| report.name.len().max(MISSING.len());
    for report in reports {
        let _ = write!(out, "  {:width$}", report.name, width = width(report));
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    for (n, (name, _)) in features(&BackendCapabilities::default()).into_iter().enumerate() {
        let _ = write!(out, "{name:first$}");
        for (report, features) in reports.iter().zip(&all) {
            let is_missing =
                missing_features(report).iter().any(|missing| name_of(missing.feature) == name);
            let can = match features[n].1 {
                true if is_missing => MISSING,
                true => "yes",
                false => "-",
            };
            let _ = write!(out, "  {can:width$}", width = width(report));
        }
        while out.ends_with(' ') {
            out.pop();
        }
        out.push('\n');
    }
}

/// The backends as JSON.
pub(crate) fn json(reports: &[BackendReport]) -> String {
    json_output::document("backends", json!({"backends": reports}))
}

fn features(of: &BackendCapabilities) -> [(&'static str, bool); 15] {
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
        ("disk errors", of.disk_errors),
        ("vsock", of.vsock),
        ("virtio console", of.virtio_console),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_has_each_backend_with_its_remedies() {
        let reports = capsa::backend::backends();
        let (text, json) = (text(&reports), json(&reports));
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        for (n, report) in reports.iter().enumerate() {
            assert!(text.contains(report.name), "{text}");
            for reason in &report.availability.blockers {
                assert!(text.contains(&reason.remedy), "{text}");
            }
            assert_eq!(json["backends"][n]["name"], report.name);
            for helper in &report.helpers {
                assert!(text.contains(&format!("  {}: ", helper.name)), "{text}");
            }
        }
        let rows = features(&BackendCapabilities::default()).map(|(name, _)| name);
        for feature in [Feature::VirtioFs, Feature::Virtio9p, Feature::Nat, Feature::Vsock] {
            assert!(rows.contains(&name_of(feature)), "{feature:?} has no row");
        }
        let width = text.lines().find(|line| line.starts_with("raw disks")).unwrap();
        assert_eq!(width.split_whitespace().collect::<Vec<_>>()[2..], ["yes"; 3], "{text}");
    }
}
