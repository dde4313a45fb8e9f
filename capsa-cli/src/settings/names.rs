//! Where a field was set: its name in messages, and its source span in the config file.
//!
//! The library names the fields of a VM in its own way. `shares[0].host` is `shares.workspace.host`
//! where the first share is from a config file, and `--share 1` where it is from a flag.

use super::setting::Setting;
use super::{Origin, SETTINGS, Settings};
use crate::failure::SourceSpan;

impl Settings {
    /// The user's name of a field of the library.
    pub(crate) fn name_of(&self, field: &str) -> String {
        if let Some((flag, origins, n, rest)) = self.item(field) {
            return match origins[n] {
                Some(origin) => format!("{origin}{rest}"),
                None => {
                    let before = origins[..n].iter().filter(|origin| origin.is_none()).count();
                    format!("{flag} {}", before + 1)
                }
            };
        }
        if let Some(name) = self.network_name(field) {
            return name;
        }
        if let Some(n) = field.strip_prefix("network.deny[").and_then(|n| n.strip_suffix(']')) {
            // The items of the file precede those of flags.
            let in_file = |n: &usize| self.spans.of(&format!("network.deny[{n}]")).is_some();
            let n = n.parse::<usize>().unwrap_or_default();
            return match in_file(&n) {
                true => field.into(),
                false => format!("--deny {}", n - (0..n).filter(in_file).count() + 1),
            };
        }
        // The message about an item of these lists contains the item.
        match field.split_once('[') {
            Some((list @ ("cmdline" | "vsock_ports"), _)) => list.replace("_ports", ""),
            _ => field.replace('_', "-"),
        }
    }

    /// The name of an option of the network: its key where the config file sets it, otherwise its flag.
    fn network_name(&self, field: &str) -> Option<String> {
        let is_option = |row: &&Setting| !row.flag.is_empty() && row.field() == field;
        let row = super::network::ROWS.iter().find(is_option).filter(|_| field != "network")?;
        let table = match field {
            "forwards" => self.network.forwards.iter().any(|(origin, _)| origin.is_some()),
            "services" => self.network.services.iter().any(|(origin, _)| origin.is_some()),
            _ => false,
        };
        Some(match (table, self.spans.of(row.key)) {
            (true, _) => format!("network.{}", field.trim_end_matches('s')),
            (false, Some(_)) => row.key.into(),
            (false, None) => row.flag.into(),
        })
    }

    /// Where the config file sets a field of the library; `None` if it does not.
    pub(crate) fn span_of(&self, field: &str) -> Option<SourceSpan> {
        let spans = &self.spans;
        if let Some((_, origins, n, rest)) = self.item(field) {
            let table = origins[n].as_ref()?;
            // The target of a rule is what can have a mistake.
            let rest = if field.starts_with("network.allow[") { ".to" } else { rest };
            let key = format!("{table}{}", rest.replace('_', "-"));
            return spans.of(&key).or_else(|| spans.of(table));
        }
        // The items of the file precede those of flags, so they have the same index there.
        if let Some(index) = field.strip_prefix("cmdline[") {
            return spans.of(&format!("cmdline.extra[{index}"));
        }
        if let Some(index) = field.strip_prefix("vsock_ports[") {
            return spans.of(&format!("vsock[{index}"));
        }
        if field == "cmdline" {
            return spans.of("cmdline.override").or_else(|| spans.of("cmdline.extra"));
        }
        if field.starts_with("network.") {
            return spans.of(&field.replace('_', "-"));
        }
        let row = SETTINGS.iter().find(|row| row.field() == field)?;
        spans.of(row.key)
    }

    /// Splits `disks[1].path` into its flag, the origins of all disks, 1 and `.path`.
    fn item<'a>(&self, field: &'a str) -> Option<(&'static str, Vec<&Origin>, usize, &'a str)> {
        let (list, rest) = field.split_once('[')?;
        let (flag, origins): (_, Vec<&Origin>) = match list {
            "disks" => ("--disk", self.disks.iter().map(|(origin, _)| origin).collect()),
            "shares" => ("--share", self.shares.iter().map(|(origin, _)| origin).collect()),
            "forwards" => {
                let forwards = self.network.forwards.iter();
                ("--forward", forwards.map(|(origin, _)| origin).collect())
            }
            "network.allow" => {
                let rules = self.network.allow.iter();
                ("--allow", rules.map(|(origin, _)| origin).collect())
            }
            "services" => {
                let services = self.network.services.iter();
                ("--service", services.map(|(origin, _)| origin).collect())
            }
            _ => return None,
        };
        let (n, rest) = rest.split_once(']')?;
        let n = n.parse().ok().filter(|n| *n < origins.len())?;
        Some((flag, origins, n, rest))
    }
}
