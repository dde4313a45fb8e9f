//! The keys of one section, read by name into values of their types.
//!
//! Every mistake is noted and reading goes on, so that a file's mistakes come out in one go. The one
//! rule: a key that is asked for must be a row of the section's table.

use std::ops::Range;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::table::{Key, Kind, SECTIONS, Section};
use super::wrong::Wrong;
use crate::suggest;

/// A section of a file, on its way to values.
pub(super) struct Fields<'f, 'text> {
    section: &'static Section,
    /// As the file has it: `[shares.workspace]`.
    head: String,
    /// Where its head is.
    at: Range<usize>,
    table: Option<&'f DeTable<'text>>,
    wrongs: &'f mut Vec<Wrong>,
}

impl<'f, 'text> Fields<'f, 'text> {
    /// The keys of a table; those that nobody knows are noted.
    pub(super) fn new(
        section: &'static Section,
        head: String,
        value: Option<&'f Spanned<DeValue<'text>>>,
        at: Range<usize>,
        wrongs: &'f mut Vec<Wrong>,
    ) -> Self {
        let table = value.and_then(|value| value.get_ref().as_table());
        if let (Some(value), None) = (value, table) {
            let is = kind_of(value.get_ref());
            let key = &section.keys[0];
            let hint =
                format!("write {} on a line, then {} = {}", section.head(), key.name, key.example);
            wrongs.push(Wrong::new(value.span(), format!("{head} is {is}, not a table"), hint));
        }
        for (name, _) in table.into_iter().flatten() {
            if section.key(name.get_ref()).is_none() {
                wrongs.push(unknown(section, &head, name.get_ref(), name.span()));
            }
        }
        Self { section, head, at, table, wrongs }
    }

    /// A text that `read` makes something of.
    pub(super) fn text<T>(
        &mut self,
        name: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let (key, value) = self.find(name)?;
        let Some(text) = value.get_ref().as_str() else { return self.mistyped(key, value) };
        match read(text) {
            Ok(value) => Some(value),
            Err(why) => self.refused(key, value, &format!("{text:?}: {why}")),
        }
    }

    /// A path, which names something.
    pub(super) fn path(&mut self, name: &str) -> Option<PathBuf> {
        self.text(name, |text| match text {
            "" => Err("it names no file".into()),
            text if text.contains('\0') => Err("no path has a NUL in it".into()),
            text => Ok(PathBuf::from(text)),
        })
    }

    /// A whole number.
    pub(super) fn count(&mut self, name: &str) -> Option<u32> {
        let (key, value) = self.find(name)?;
        let Some(number) = value.get_ref().as_integer() else { return self.mistyped(key, value) };
        let digits = number.as_str().replace('_', "");
        match u32::from_str_radix(&digits, number.radix()) {
            Ok(number) => Some(number),
            Err(_) => self.refused(key, value, &format!("{digits}: it is negative, or too large")),
        }
    }

    /// `true` or `false`; false where nothing is said.
    pub(super) fn switch(&mut self, name: &str) -> bool {
        let Some((key, value)) = self.find(name) else { return false };
        value.get_ref().as_bool().or_else(|| self.mistyped(key, value)).unwrap_or_default()
    }

    /// A list of texts.
    pub(super) fn texts(&mut self, name: &str) -> Vec<String> {
        let Some((key, value)) = self.find(name) else { return Vec::new() };
        let Some(list) = value.get_ref().as_array() else {
            return self.mistyped(key, value).unwrap_or_default();
        };
        let mut texts = Vec::with_capacity(list.len());
        for item in list.iter() {
            match item.get_ref().as_str() {
                Some(text) => texts.push(text.to_owned()),
                None => {
                    let is = kind_of(item.get_ref());
                    let why = format!("{} has {is} in it, and takes texts", key.name);
                    let hint = format!("put it into quotes: {} = {}", key.name, key.example);
                    self.wrongs.push(Wrong::new(item.span(), why, hint));
                }
            }
        }
        texts
    }

    /// Notes that something else is wrong with the section, at `name` or at its head.
    pub(super) fn object(&mut self, name: &str, why: &str, hint: &str) {
        let at = self.find(name).map_or(self.at.clone(), |(_, value)| value.span());
        self.wrongs.push(Wrong::new(at, format!("{}: {why}", self.head), hint));
    }

    /// Whether the key is there, whatever its value.
    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Notes each required key that is not there.
    pub(super) fn require(&mut self) {
        if self.table.is_none() {
            return;
        }
        for key in self.section.keys.iter().filter(|key| key.is_required) {
            if !self.has(key.name) {
                self.wrongs.push(Wrong {
                    is_absence: true,
                    ..Wrong::new(
                        self.at.clone(),
                        format!("{} has no {}", self.head, key.name),
                        format!("add {} = {}: {}", key.name, key.example, key.about),
                    )
                });
            }
        }
    }

    fn find(&self, name: &str) -> Option<(&'static Key, &'f Spanned<DeValue<'text>>)> {
        let key = self.section.key(name).expect("only keys of the table are asked for");
        Some((key, self.table?.get(name)?))
    }

    fn mistyped<T>(&mut self, key: &Key, value: &Spanned<DeValue<'_>>) -> Option<T> {
        let is = kind_of(value.get_ref());
        self.wrongs.push(Wrong::new(
            value.span(),
            format!("{} is {is}, not {}", key.name, key.kind.wants()),
            format!("write {} = {}", key.name, key.example),
        ));
        None
    }

    /// `why` may end in `; write …`, for flags: here the key's example says it.
    fn refused<T>(&mut self, key: &Key, value: &Spanned<DeValue<'_>>, why: &str) -> Option<T> {
        let why = why.split_once("; write ").map_or(why, |(why, _)| why);
        let hint = match key.kind {
            Kind::Word(_) => format!("write {} = {}", key.name, key.kind.wants()),
            _ => format!("write {} = {}: {}", key.name, key.example, key.about),
        };
        self.wrongs.push(Wrong::new(value.span(), format!("{} = {why}", key.name), hint));
        None
    }
}

/// A key that this section has not.
fn unknown(section: &Section, head: &str, name: &str, at: Range<usize>) -> Wrong {
    let why = format!("{head} has no key {name:?}");
    let names = || section.keys.iter().map(|key| key.name);
    let elsewhere = SECTIONS.iter().find(|other| other.key(name).is_some());
    let hint = match (suggest::closest(name, names()), elsewhere) {
        (Some(meant), _) => format!("did you mean {meant}?"),
        (None, Some(other)) => format!("{name} is a key of {}", other.head()),
        (None, None) => format!("it has {}", names().collect::<Vec<_>>().join(", ")),
    };
    Wrong::new(at, why, hint)
}

/// A section that no file has, or a key outside of any.
pub(super) fn unknown_section(name: &str, at: Range<usize>, value: &DeValue<'_>) -> Wrong {
    let names = || SECTIONS.iter().map(|section| section.name);
    let holder = SECTIONS.iter().find(|section| section.key(name).is_some());
    let is_section = matches!(value, DeValue::Table(_) | DeValue::Array(_));
    let why = match is_section {
        true => format!("there is no section {name:?}"),
        false => format!("{name} stands outside of any section"),
    };
    let hint = match (suggest::closest(name, names()), holder) {
        (_, Some(section)) => format!("{name} is a key of {}", section.head()),
        (Some(meant), None) => format!("did you mean {meant}?"),
        (None, None) => format!("there are {}", names().collect::<Vec<_>>().join(", ")),
    };
    Wrong::new(at, why, hint)
}

/// What a value is, in words.
pub(super) fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
