//! What a row of the table of settings is, and what it can do: parse and store a value.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use super::{SETTINGS, Settings};
use crate::commands::Subcommand;
use crate::values::{self, Bounds};

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    /// `--cpus`; empty for what only a config file can set.
    pub(crate) flag: &'static str,
    /// The flag's short form, `-q`.
    pub(crate) short: Option<char>,
    /// The commands that accept the flag.
    pub(crate) commands: &'static [Subcommand],
    /// The flag may be given several times.
    pub(crate) repeats: bool,
    /// `resources.cpus`; empty for what only a flag can set.
    pub(crate) key: &'static str,
    /// A section that has this row's key must set it.
    pub(crate) required: bool,
    /// The library's name of the field; empty where it is the flag's name.
    pub(crate) field: &'static str,
    pub(crate) kind: ValueKind,
    /// The value as help shows it, for kinds that do not imply it.
    pub(crate) placeholder: &'static str,
    /// What shells complete, for kinds that do not imply it.
    pub(crate) completion: Completion,
    /// A value as a config file has it.
    pub(crate) example: &'static str,
    pub(crate) help: &'static str,
    /// The value without the setting; empty where there is none to name.
    pub(crate) default: &'static str,
}

/// A word, and what it sets.
pub(crate) type Choice = (&'static str, fn(&mut Settings));

/// The type of a value, with the function that stores it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ValueKind {
    /// A flag without a value; `true` or `false` in a config file.
    Switch(fn(&mut Settings, bool)),
    /// One of these words.
    Choice(&'static [Choice]),
    /// A path. A relative one in a config file is relative to the file's directory.
    Path(fn(&mut Settings, PathBuf)),
    /// A list of paths, relative as a path is.
    Paths(fn(&mut Settings, PathBuf)),
    /// A whole number.
    Number(Bounds, fn(&mut Settings, u32)),
    /// A port of TCP or UDP.
    Port(fn(&mut Settings, u16)),
    /// A list of ports. Each occurrence of the flag adds one.
    Ports(fn(&mut Settings, u16)),
    /// `512M`; the function receives MiB.
    Size(fn(&mut Settings, u32)),
    /// `5m`.
    Time(fn(&mut Settings, Duration)),
    /// Any text.
    String(fn(&mut Settings, String)),
    /// A text that the function parses.
    Text(fn(&mut Settings, &str) -> Result<(), String>),
    /// A list of texts. Each occurrence of the flag adds one.
    List(fn(&mut Settings, String)),
}

/// What a shell offers for a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Completion {
    Nothing,
    Files,
    Words(&'static [&'static str]),
}

/// A section of the config file.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) name: &'static str,
    pub(crate) shape: Shape,
    /// The section whose keys it has: its own, but for `[disk]`, which has those of `[[disks]]`.
    pub(super) keys: &'static str,
    pub(crate) help: &'static str,
    /// Called before the keys of each of its tables are set.
    pub(crate) begin: fn(&mut Settings, String),
}

/// How often a section may occur in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Once: `[boot]`.
    One,
    /// Any number of times: `[[disks]]`.
    Many,
    /// Once for each name: `[shares.workspace]`.
    Named,
}

impl Setting {
    /// The flag's value as help shows it: `FILE`, `stdio|disabled`; empty for a switch.
    pub(crate) fn placeholder(&self) -> String {
        match self.kind {
            ValueKind::Switch(_) => String::new(),
            ValueKind::Choice(choices) => words(choices).join("|"),
            ValueKind::Path(_) | ValueKind::Paths(_) => "FILE".into(),
            ValueKind::Number(..) => "N".into(),
            ValueKind::Port(_) | ValueKind::Ports(_) => "PORT".into(),
            ValueKind::Size(_) => "SIZE".into(),
            ValueKind::Time(_) => "TIME".into(),
            ValueKind::String(_) | ValueKind::Text(_) | ValueKind::List(_) => {
                self.placeholder.into()
            }
        }
    }

    /// Whether the value begins with the path of a file.
    pub(crate) fn takes_file(&self) -> bool {
        matches!(self.kind, ValueKind::Path(_)) || self.completion == Completion::Files
    }

    /// The values that a shell offers; empty where it offers none.
    pub(crate) fn words(&self) -> Vec<&'static str> {
        match (self.kind, self.completion) {
            (ValueKind::Choice(choices), _) => words(choices),
            (_, Completion::Words(words)) => words.to_vec(),
            _ => Vec::new(),
        }
    }

    /// Whether the flag takes no value.
    pub(crate) fn is_switch(&self) -> bool {
        matches!(self.kind, ValueKind::Switch(_))
    }

    /// The help text, with the default.
    pub(crate) fn help(&self) -> String {
        match self.default {
            "" => self.help.into(),
            default => format!("{} [default: {default}]", self.help),
        }
    }

    /// The key's name in its section.
    pub(crate) fn key_name(&self) -> &'static str {
        self.key.rsplit_once('.').map_or("", |(_, name)| name)
    }

    /// The library's name of the field: `memory`, `cmdline_override`.
    pub(crate) fn field(&self) -> String {
        match self.field {
            "" => self.flag.trim_start_matches('-').replace('-', "_"),
            field => field.into(),
        }
    }

    /// Stores the value of the flag.
    pub(crate) fn set_from_flag(
        &self,
        settings: &mut Settings,
        value: &OsStr,
    ) -> Result<(), String> {
        match self.kind {
            ValueKind::Switch(set) => set(settings, true),
            ValueKind::Path(set) | ValueKind::Paths(set) => set(settings, values::path(value)?),
            _ => {
                let text = value.to_str().ok_or_else(|| format!("{value:?} is not UTF-8"))?;
                self.set_from_text(settings, text)?;
            }
        }
        Ok(())
    }

    /// Stores a value that is written as text.
    pub(crate) fn set_from_text(&self, settings: &mut Settings, text: &str) -> Result<(), String> {
        match self.kind {
            ValueKind::Switch(_) => unreachable!("{} is not written as text", self.flag),
            ValueKind::Choice(choices) => match choices.iter().find(|(word, _)| *word == text) {
                Some((_, set)) => set(settings),
                None => {
                    let expected = values::alternatives(&words(choices));
                    return Err(format!("invalid value {text:?}: expected {expected}"));
                }
            },
            ValueKind::Path(set) | ValueKind::Paths(set) => {
                set(settings, values::path(text.as_ref())?);
            }
            ValueKind::Number(bounds, set) => set(settings, values::number(text, bounds)?),
            ValueKind::Port(set) | ValueKind::Ports(set) => set(settings, values::port(text)?),
            ValueKind::Size(set) => set(settings, values::memory_mb(text)?),
            ValueKind::Time(set) => set(settings, values::duration(text)?),
            ValueKind::String(set) => set(settings, text.into()),
            ValueKind::Text(set) => return set(settings, text),
            ValueKind::List(set) => set(settings, text.into()),
        }
        Ok(())
    }
}

impl ValueKind {
    /// What a config file has to have, for an error message.
    pub(crate) fn expected(self) -> String {
        match self {
            Self::Path(_) => "a path in quotes".into(),
            Self::String(_) | Self::Text(_) => "a string in quotes".into(),
            Self::List(_) => "a list of strings".into(),
            Self::Paths(_) => "a list of paths in quotes".into(),
            Self::Size(_) => "a size in quotes".into(),
            Self::Time(_) => "a time in quotes".into(),
            Self::Number(..) | Self::Port(_) => "a whole number".into(),
            Self::Ports(_) => "a list of whole numbers".into(),
            Self::Switch(_) => "true or false".into(),
            Self::Choice(choices) => {
                let quoted: Vec<_> = words(choices).iter().map(|w| format!("{w:?}")).collect();
                values::alternatives(&quoted)
            }
        }
    }
}

/// The words of a choice.
fn words(choices: &'static [Choice]) -> Vec<&'static str> {
    choices.iter().map(|(word, _)| *word).collect()
}

impl Section {
    /// The section's header in a file: `[boot]`, `[[disks]]`, `[shares.NAME]`.
    pub(crate) fn header(&self) -> String {
        match self.shape {
            Shape::One => format!("[{}]", self.name),
            Shape::Many => format!("[[{}]]", self.name),
            Shape::Named => format!("[{}.NAME]", self.name),
        }
    }

    /// The rows of its keys.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &'static Setting> {
        let section = self.keys;
        SETTINGS
            .iter()
            .filter(move |row| row.key.rsplit_once('.').is_some_and(|(s, _)| s == section))
    }

    /// The row of the key with this name.
    pub(crate) fn row(&self, name: &str) -> Option<&'static Setting> {
        self.rows().find(|row| row.key_name() == name)
    }
}
