//! Kernel modules of a directory tree: those that a guest needs, with their dependencies, in the order of
//! loading.
//!
//! The tree is `lib/modules/VERSION` as a kernel package unpacks it. Dependencies come from the `.modinfo`
//! section of each module, so neither `depmod` nor its tables are needed. Modules may be compressed with
//! gzip, xz or zstd; a [`KernelModule`] is not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use elf::ElfBytes;
use elf::endian::AnyEndian;

use crate::context::failed;

/// The largest module, not compressed.
const MAX_MODULE: u64 = 64 << 20;

/// The largest set of modules. The guest keeps the archive that contains them in its memory.
const MAX_SET: usize = 256 << 20;

/// How many directories and files a tree may have. That of a distribution has 5,000.
const MAX_ENTRIES: usize = 100_000;

/// How deep a tree may be.
const MAX_DEPTH: usize = 16;

/// A kernel module, not compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelModule {
    /// The name, with `_` for each `-`.
    pub name: String,
    /// The ELF file.
    pub content: Vec<u8>,
}

/// Modules in the order of loading: each after those that it needs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ModuleSet {
    /// The modules.
    pub modules: Vec<KernelModule>,
    /// The wanted modules that have no file and are not in the tree's list of what is built into the
    /// kernel. They may be built in, or be absent from this kernel.
    pub missing: Vec<String>,
}

/// The files of a tree of modules.
#[derive(Debug)]
pub struct ModuleTree {
    dir: PathBuf,
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

impl ModuleTree {
    /// Lists the tree. Reads no module.
    ///
    /// # Errors
    ///
    /// When a directory cannot be read, when the tree contains no module, or when it is larger or deeper than
    /// any tree of modules.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let mut tree =
            Self { dir: dir.to_owned(), files: BTreeMap::new(), built_in: BTreeSet::new() };
        let mut left = MAX_ENTRIES;
        tree.list(dir, MAX_DEPTH, &mut left)?;
        match fs::read_to_string(dir.join("modules.builtin")) {
            Ok(list) => tree.built_in = list.lines().filter_map(module_name).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("cannot read modules.builtin", error)),
        }
        if tree.files.is_empty() && tree.built_in.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "no kernel modules in {}: expected lib/modules/VERSION of a kernel package",
                    dir.display()
                ),
            ));
        }
        Ok(tree)
    }

    /// Reads the `wanted` modules and all that they need.
    ///
    /// # Errors
    ///
    /// When a module cannot be read, is no kernel module, needs one that the tree does not have, or when the
    /// modules are larger than 256 MiB together.
    pub fn collect(&self, wanted: &[&str]) -> io::Result<ModuleSet> {
        let mut set = ModuleSet::default();
        let mut total = 0;
        for name in wanted {
            let name = name.replace('-', "_");
            if self.files.contains_key(&name) {
                self.add(&name, &mut set, &mut BTreeSet::new(), &mut total)?;
            } else if !self.built_in.contains(&name) {
                set.missing.push(name);
            }
        }
        Ok(set)
    }

    /// Adds a module after those that it needs. `above` are the modules that need it: a circle ends there.
    fn add(
        &self,
        name: &str,
        set: &mut ModuleSet,
        above: &mut BTreeSet<String>,
        total: &mut usize,
    ) -> io::Result<()> {
        if set.modules.iter().any(|module| module.name == name) || above.contains(name) {
            return Ok(());
        }
        let Some(path) = self.files.get(name) else { return Ok(()) };
        let what = || format!("cannot read the kernel module {}", path.display());
        let content = read_module(path).map_err(|error| failed(what(), error))?;
        *total += content.len();
        if *total > MAX_SET {
            let too_large = format!("the modules have more than {} MiB", MAX_SET >> 20);
            return Err(failed(what(), io::Error::new(io::ErrorKind::FileTooLarge, too_large)));
        }
        let needed = needed_modules(&content).map_err(|error| failed(what(), error))?;
        above.insert(name.to_owned());
        for (needed, is_required) in needed {
            if is_required
                && !self.files.contains_key(&needed)
                && !self.built_in.is_empty()
                && !self.built_in.contains(&needed)
            {
                let absent = format!("it needs {needed}, which {} lacks", self.dir.display());
                return Err(failed(what(), io::Error::new(io::ErrorKind::NotFound, absent)));
            }
            self.add(&needed, set, above, total)?;
        }
        above.remove(name);
        set.modules.push(KernelModule { name: name.to_owned(), content });
        Ok(())
    }

    /// Symlinks are not followed: `build` and `source` lead to the kernel's sources.
    fn list(&mut self, dir: &Path, depth: usize, left: &mut usize) -> io::Result<()> {
        let what = || format!("cannot list {}", dir.display());
        for entry in fs::read_dir(dir).map_err(|error| failed(what(), error))? {
            let entry = entry.map_err(|error| failed(what(), error))?;
            let is_tree = depth > 0 && *left > 0;
            if !is_tree {
                let limit = "too many files, or directories too deep, for a tree of modules";
                return Err(failed(what(), io::Error::new(io::ErrorKind::InvalidInput, limit)));
            }
            *left -= 1;
            let kind = entry.file_type().map_err(|error| failed(what(), error))?;
            if kind.is_dir() {
                self.list(&entry.path(), depth - 1, left)?;
            } else if kind.is_file()
                && let Some(name) = entry.file_name().to_str().and_then(module_name)
            {
                self.files.insert(name, entry.path());
            }
        }
        Ok(())
    }
}

/// The name of the module in a file: `virtio_blk` for `…/virtio-blk.ko.xz`.
fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let (name, "" | ".gz" | ".xz" | ".zst") = file.split_once(".ko")? else { return None };
    Some(name.replace('-', "_"))
}

/// The content of a module's file, decompressed.
fn read_module(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let read: Box<dyn Read> = match path.extension().and_then(|extension| extension.to_str()) {
        Some("gz") => Box::new(flate2::read::MultiGzDecoder::new(file)),
        Some("xz") => Box::new(lzma_rust2::XzReader::new(file, true)),
        Some("zst") => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(file);
            Box::new(decoder.map_err(io::Error::other)?)
        }
        _ => Box::new(file),
    };
    let mut content = Vec::new();
    read.take(MAX_MODULE + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_MODULE {
        let limit = format!("more than {} MiB", MAX_MODULE >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, limit));
    }
    Ok(content)
}

/// What a module needs, by its `.modinfo` section: the modules in `depends`, which are required, and those that
/// `softdep` loads before it, which may be absent.
fn needed_modules(content: &[u8]) -> io::Result<Vec<(String, bool)>> {
    let invalid = |error: String| {
        io::Error::new(io::ErrorKind::InvalidData, format!("not a kernel module: {error}"))
    };
    let elf = ElfBytes::<AnyEndian>::minimal_parse(content);
    let elf = elf.map_err(|error| invalid(error.to_string()))?;
    let section = elf.section_header_by_name(".modinfo");
    let section = section.map_err(|error| invalid(error.to_string()))?;
    let section = section.ok_or_else(|| invalid("it has no section .modinfo".to_owned()))?;
    let (info, _) = elf.section_data(&section).map_err(|error| invalid(error.to_string()))?;
    let mut needed = Vec::new();
    for entry in info.split(|byte| *byte == 0).filter_map(|entry| std::str::from_utf8(entry).ok()) {
        let (names, is_required) = match entry.split_once('=') {
            Some(("depends", names)) => (names, true),
            Some(("softdep", text)) => match text.split_once("pre:") {
                // `pre: a b post: c`
                Some((_, names)) => (names.split("post:").next().unwrap_or_default(), false),
                None => continue,
            },
            _ => continue,
        };
        let names = names.split([',', ' ']).filter(|name| !name.is_empty());
        needed.extend(names.map(|name| (name.replace('-', "_"), is_required)));
    }
    Ok(needed)
}

#[cfg(test)]
mod tests;
