//! `capsa backends`: what there is, its version, what it can do, what keeps it from it.

use std::fmt::Write as _;

use capsa::{BackendCapabilities, BackendReport, Feature, HelperReport, MissingFeature, NoteLevel};
use serde_json::json;

use crate::envelope;

/// What a backend could do, if something were installed.
const MISSING: &str = "missing";

/// The backends for people.
pub(crate) fn text(reports: &[BackendReport]) -> String {
    let mut out = String::new();
    for report in reports {
        let BackendReport { name, availability, helpers, .. } = report;
        let version = availability.version.map(|version| format!(" {version}")).unwrap_or_default();
        let usable = if availability.is_usable() { "usable" } else { "cannot be used here" };
        let _ = writeln!(out, "{name}{version}: {usable}");
        if let Some(program) = &availability.program {
            let _ = writeln!(out, "  program: {program}");
        }
        for reason in &availability.blockers {
            let _ = writeln!(out, "  {}\n    hint: {}", reason.what, reason.remedy);
        }
        for MissingFeature { feature, reason } in missing_features(report) {
            let feature = name_of(*feature);
            let _ = writeln!(out, "  no {feature}: {}\n    hint: {}", reason.what, reason.remedy);
        }
        for note in &availability.warnings {
            let level = if note.level == NoteLevel::Warning { "warning" } else { "note" };
            let _ = writeln!(out, "  {level}: {}", note.text);
        }
        for HelperReport { name, program, version } in helpers {
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

/// What a backend cannot do here that it otherwise could. Where it is not installed itself, that is
/// noise.
pub(crate) fn missing_features(report: &BackendReport) -> &[MissingFeature] {
    match report.availability.program {
        Some(_) => &report.availability.missing_features,
        None => &[],
    }
}

/// The row of the table that a feature has.
pub(crate) fn name_of(feature: Feature) -> &'static str {
    match feature {
        Feature::VirtioFs => "virtio-fs shares",
        Feature::Virtio9p => "virtio-9p shares",
        Feature::Nat => "NAT",
        Feature::Vsock => "vsock",
        _ => "more",
    }
}

/// A row for each thing that machines can have, a column for each backend.
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
            let is_lacking =
                missing_features(report).iter().any(|lack| name_of(lack.feature) == name);
            let can = match features[n].1 {
                true if is_lacking => MISSING,
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

/// The backends for programs.
pub(crate) fn json(reports: &[BackendReport]) -> String {
    envelope::document("backends", json!({"backends": reports}))
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
