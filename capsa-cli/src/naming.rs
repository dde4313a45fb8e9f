//! What a user calls a field of the library's, and where the config file has it.
//!
//! `shares[0].host` is `shares.workspace.host` where a config file has it so, and `--share 1` where
//! it is the first of the flags.

use crate::failure::SourceSpan;
use crate::settings::{Origin, Settings};

/// Fields that stand once, and the config file's key for each.
const ONCE: &[(&str, &str)] = &[
    ("kernel", "boot.kernel"),
    ("initrd", "boot.initrd"),
    ("cpus", "resources.cpus"),
    ("memory", "resources.memory"),
    ("timeout", "resources.timeout"),
    ("grace", "resources.grace"),
    ("network", "network.mode"),
    ("console", "console.mode"),
    ("log", "console.log"),
    ("record", "console.record"),
    ("cmdline_override", "cmdline.override"),
    ("on_reboot", "guest.on-reboot"),
    ("name", "guest.name"),
    ("backend", "backend.name"),
    ("accelerator", "backend.accel"),
    ("user", "login.user"),
    ("password_file", "login.password-file"),
];

impl Settings {
    /// The user's name of a field.
    pub(crate) fn name_of(&self, field: &str) -> String {
        for (list, flag, origins) in self.lists() {
            for (n, origin) in origins.iter().enumerate() {
                let Some(rest) = field.strip_prefix(&format!("{list}[{n}]")) else { continue };
                return match origin {
                    Some(origin) => format!("{origin}{rest}"),
                    None => {
                        let before = origins[..n].iter().filter(|origin| origin.is_none()).count();
                        format!("{flag} {}", before + 1)
                    }
                };
            }
        }
        // Of these the file's come first, and what is said of one says which.
        match field.split_once('[') {
            Some((list @ ("cmdline" | "vsock_ports"), _)) => list.replace("_ports", ""),
            _ => field.replace('_', "-"),
        }
    }

    /// Where the config file says it; `None` where a flag or nobody does.
    pub(crate) fn span_of(&self, field: &str) -> Option<SourceSpan> {
        let spans = &self.spans;
        for (list, _, origins) in self.lists() {
            for (n, origin) in origins.iter().enumerate() {
                let Some(rest) = field.strip_prefix(&format!("{list}[{n}]")) else { continue };
                let table = origin.as_ref()?;
                let key = format!("{table}{}", rest.replace('_', "-"));
                return spans.of(&key).or_else(|| spans.of(table));
            }
        }
        if let Some(at) = field.strip_prefix("cmdline[") {
            return spans.of(&format!("cmdline.extra[{at}"));
        }
        if let Some(at) = field.strip_prefix("vsock_ports[") {
            return spans.of(&format!("vsock[{at}"));
        }
        if field == "cmdline" {
            return spans.of("cmdline.override").or_else(|| spans.of("cmdline.extra"));
        }
        let (_, key) = ONCE.iter().find(|(name, _)| *name == field)?;
        spans.of(key)
    }

    /// What flags say is not the file's any more.
    pub(crate) fn forget_spans_of(&mut self, over: &Self) {
        let said = |field: &str| match field {
            "kernel" => over.kernel.is_some(),
            "initrd" => over.initrd.is_some(),
            "cpus" => over.cpus.is_some(),
            "memory" => over.memory_mb.is_some(),
            "timeout" => over.timeout.is_some(),
            "grace" => over.grace.is_some(),
            "network" => over.network.is_some(),
            "console" => over.console.is_some(),
            "log" => over.log.is_some(),
            "record" => over.record.is_some(),
            "cmdline_override" => over.cmdline_override.is_some(),
            "on_reboot" => over.on_reboot.is_some(),
            "name" => over.name.is_some(),
            "backend" => over.backend.is_some(),
            "accelerator" => over.accelerator.is_some(),
            "user" => over.user.is_some(),
            "password_file" => over.password_file.is_some(),
            other => unreachable!("{other} is no field"),
        };
        ONCE.iter().filter(|(field, _)| said(field)).for_each(|(_, key)| self.spans.forget(key));
        if over.cmdline_override.is_some() {
            self.spans.forget("cmdline.extra");
        }
    }

    fn lists(&self) -> [(&'static str, &'static str, Vec<&Origin>); 2] {
        let disks = self.disks.iter().map(|(origin, _)| origin).collect();
        let shares = self.shares.iter().map(|(origin, _)| origin).collect();
        [("disks", "--disk", disks), ("shares", "--share", shares)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SECTIONS;

    #[test]
    fn every_field_is_a_key_of_the_file() {
        let settings = Settings::default();
        for (field, key) in ONCE {
            let (section, key) = key.split_once('.').unwrap();
            let section = SECTIONS.iter().find(|row| row.name == section).unwrap();
            assert!(section.key(key).is_some(), "{field}");
            assert!(settings.span_of(field).is_none(), "no file was read");
        }
        // Every field has its arm.
        Settings::default().forget_spans_of(&settings);
    }
}
