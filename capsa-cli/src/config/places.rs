//! Where each key of a config file stands, for what is only found out when the whole is known.
//!
//! A key that a flag overrides is forgotten: what is wrong with its value is then not the file's.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::DeValue;

use super::wrong;
use crate::failure::Place;

/// The places of a file's keys, by name: `boot.kernel`, `disks[1].path`, `cmdline.extra[0]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Places {
    /// The file and its text; `None` where nothing was read from one.
    source: Option<(PathBuf, String)>,
    at: BTreeMap<String, Range<usize>>,
}

impl Places {
    /// Notes a table, its keys, and what stands in their lists.
    pub(super) fn note(&mut self, table: &str, head: Range<usize>, value: &Spanned<DeValue<'_>>) {
        self.at.insert(table.to_owned(), head);
        for (key, value) in value.get_ref().as_table().into_iter().flatten() {
            let name = format!("{table}.{}", key.get_ref());
            let items = value.get_ref().as_array().into_iter().flat_map(|list| list.iter());
            for (n, item) in items.enumerate() {
                self.at.insert(format!("{name}[{n}]"), item.span());
            }
            self.at.insert(name, value.span());
        }
    }

    /// Says which file it is that was read.
    pub(super) fn are_in(&mut self, path: &Path, text: String) {
        self.source = Some((path.to_owned(), text));
    }

    /// A flag says this instead.
    pub(crate) fn forget(&mut self, name: &str) {
        self.at.remove(name);
    }

    /// The file.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.source.as_ref().map(|(path, _)| path.as_path())
    }

    /// Where the file has it, if it does.
    pub(crate) fn of(&self, name: &str) -> Option<Place> {
        let (path, text) = self.source.as_ref()?;
        Some(wrong::place(path, text, self.at.get(name)?))
    }
}
