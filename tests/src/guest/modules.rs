//! The few kernel modules a guest needs, with what they stand on, and the two tables that
//! busybox's `modprobe` reads.
//!
//! Dependencies and hardware aliases come from each module's own `.modinfo` section, so no
//! `depmod` is needed on the host. Modules lie flat in one directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Unavailable;
use crate::command;

/// A closed set of modules: what one needs is in it too, or built into the kernel.
#[derive(Debug, Default)]
pub(super) struct Modules {
    by_name: BTreeMap<String, Module>,
}

#[derive(Debug)]
struct Module {
    content: Vec<u8>,
    depends: Vec<String>,
    aliases: Vec<String>,
}

impl Modules {
    /// Collects those of the `wanted` modules that lie under `tree`, and all they depend on.
    /// What is not there is built into this kernel or not made for it. `busybox` unpacks.
    pub(super) fn collect(
        tree: &Path,
        wanted: &[&str],
        busybox: &Path,
    ) -> Result<Self, Unavailable> {
        let mut files = BTreeMap::new();
        find(tree, &mut files).map_err(Unavailable::io("list", tree))?;
        let mut modules = Self::default();
        let mut todo: Vec<String> = wanted.iter().map(|name| name.replace('-', "_")).collect();
        while let Some(name) = todo.pop() {
            let Some(path) = files.get(&name) else { continue };
            if modules.by_name.contains_key(&name) {
                continue;
            }
            let module = Module::read(path, busybox)?;
            todo.extend(module.depends.iter().cloned());
            modules.by_name.insert(name, module);
        }
        Ok(modules)
    }

    /// File name and content of each.
    pub(super) fn files(&self) -> impl Iterator<Item = (String, &[u8])> {
        self.by_name.iter().map(|(name, module)| (format!("{name}.ko"), &module.content[..]))
    }

    /// `modules.dep`: each module with all it stands on, the last to be loaded first.
    pub(super) fn dep_table(&self) -> String {
        let mut table = String::new();
        for name in self.by_name.keys() {
            let mut order = Vec::new();
            self.load_order(name, &mut order);
            order.pop(); // the module itself
            let below: String = order.iter().rev().map(|dep| format!(" {dep}.ko")).collect();
            table += &format!("{name}.ko:{below}\n");
        }
        table
    }

    /// `modules.alias`: which module drives which hardware, file system or algorithm.
    pub(super) fn alias_table(&self) -> String {
        let lines = self.by_name.iter().flat_map(|(name, module)| {
            module.aliases.iter().map(move |alias| format!("alias {alias} {name}\n"))
        });
        lines.collect()
    }

    fn load_order<'a>(&'a self, name: &'a str, order: &mut Vec<&'a str>) {
        let Some(module) = self.by_name.get(name) else { return };
        if order.contains(&name) {
            return;
        }
        for dep in &module.depends {
            self.load_order(dep, order);
        }
        order.push(name);
    }
}

impl Module {
    fn read(path: &Path, busybox: &Path) -> Result<Self, Unavailable> {
        let content = match path.extension().and_then(|e| e.to_str()) {
            Some("xz") => command::output(Command::new(busybox).args(["xz", "-dc"]).arg(path))?,
            Some("gz") => command::output(Command::new(busybox).args(["gzip", "-dc"]).arg(path))?,
            Some("zst") => command::output(Command::new("zstd").arg("-dcq").arg(path))?,
            _ => fs::read(path).map_err(Unavailable::io("read", path))?,
        };
        let info = modinfo(&content).ok_or_else(|| {
            Unavailable::new(format!("{} is not a 64-bit kernel module", path.display()))
        })?;
        let values = |key: &'static str| {
            let entries = info.split(|byte| *byte == 0).filter_map(|e| std::str::from_utf8(e).ok());
            entries.filter_map(move |entry| entry.strip_prefix(key)?.strip_prefix('='))
        };
        let depends = values("depends").flat_map(|list| list.split(','));
        let depends =
            depends.filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect();
        let aliases = values("alias").map(str::to_owned).collect();
        Ok(Self { depends, aliases, content })
    }
}

/// Every module file under `dir` by module name.
fn find(dir: &Path, into: &mut BTreeMap<String, PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some((module, "" | ".xz" | ".gz" | ".zst")) = name.split_once(".ko") {
            into.insert(module.replace('-', "_"), path);
        } else if path.is_dir() && !path.is_symlink() {
            find(&path, into)?;
        }
    }
    Ok(())
}

/// The `.modinfo` section of a little-endian 64-bit ELF file.
fn modinfo(elf: &[u8]) -> Option<&[u8]> {
    let number = |at: usize, size: usize| {
        let bytes = elf.get(at..at.checked_add(size)?)?;
        let value = bytes.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        usize::try_from(value).ok()
    };
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, size, count, names) =
        (number(0x28, 8)?, number(0x3a, 2)?, number(0x3c, 2)?, number(0x3e, 2)?);
    let section = |index: usize| {
        let header = table.checked_add(index.checked_mul(size)?)?;
        let (offset, length) = (number(header + 0x18, 8)?, number(header + 0x20, 8)?);
        Some((number(header, 4)?, elf.get(offset..offset.checked_add(length)?)?))
    };
    let (_, names) = section(names)?;
    (0..count).filter_map(section).find_map(|(name, content)| {
        names.get(name..)?.starts_with(b".modinfo\0").then_some(content)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(depends: &[&str], aliases: &[&str]) -> Module {
        let own = |list: &[&str]| list.iter().map(|&s| s.to_owned()).collect();
        Module { content: Vec::new(), depends: own(depends), aliases: own(aliases) }
    }

    #[test]
    fn dependencies_are_listed_with_the_first_to_load_last() {
        let mut modules = Modules::default();
        for (name, entry) in [
            ("blk", module(&["ring", "virtio", "built_in"], &["virtio:d2"])),
            ("ring", module(&[], &[])),
            ("virtio", module(&["ring"], &[])),
        ] {
            modules.by_name.insert(name.to_owned(), entry);
        }
        assert_eq!(
            modules.dep_table(),
            "blk.ko: virtio.ko ring.ko\nring.ko:\nvirtio.ko: ring.ko\n"
        );
        assert_eq!(modules.alias_table(), "alias virtio:d2 blk\n");
    }

    #[test]
    fn what_is_not_a_module_is_refused() {
        assert_eq!(modinfo(b""), None);
        assert_eq!(modinfo(b"\x7fELF\x02\x01"), None);
        assert_eq!(modinfo(&[&b"\x7fELF\x02\x01"[..], &[0xff; 200]].concat()), None);
    }
}
