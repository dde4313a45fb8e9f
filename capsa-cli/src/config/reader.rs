//! Stores the values of a TOML document in [`Settings`], by the rows of the table.
//!
//! A mistake is recorded and reading continues. A table that lacks a required key adds nothing.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::mistake::Mistake;
use crate::settings::{SECTIONS, Section, Setting, Settings, Shape, ValueKind};
use crate::{suggest, values};

/// Reads one document.
pub(super) struct ConfigReader<'f> {
    /// Relative paths are relative to this.
    directory: &'f Path,
    settings: Settings,
    mistakes: Vec<Mistake>,
}

/// One table of a section.
struct SectionTable<'f, 'text> {
    section: &'static Section,
    /// As the file has it: `[shares.workspace]`.
    header: String,
    /// The user's name of it: `shares.workspace`, `disks[0]`.
    name: String,
    /// The span of the header.
    at: Range<usize>,
    value: &'f Spanned<DeValue<'text>>,
}

impl<'f> ConfigReader<'f> {
    pub(super) fn new(directory: &'f Path) -> Self {
        Self { directory, settings: Settings::default(), mistakes: Vec::new() }
    }

    /// What the document sets, and its mistakes.
    pub(super) fn read(mut self, document: &DeTable<'_>) -> (Settings, Vec<Mistake>) {
        for (name, value) in document {
            if SECTIONS.iter().all(|section| section.name != name.get_ref()) {
                self.unknown_section(name.get_ref(), name.span(), value.get_ref());
            }
        }
        for section in SECTIONS {
            let found = match section.name.split_once('.') {
                None => document.get_key_value(section.name),
                Some((outer, inner)) => document
                    .get(outer)
                    .and_then(|outer| outer.get_ref().as_table())
                    .and_then(|outer| outer.get_key_value(inner)),
            };
            if let Some((key, value)) = found {
                for table in self.tables(section, key.span(), value) {
                    self.table(&table);
                }
            }
        }
        (self.settings, self.mistakes)
    }

    /// The tables of a section.
    fn tables<'d, 'text>(
        &mut self,
        section: &'static Section,
        key: Range<usize>,
        value: &'d Spanned<DeValue<'text>>,
    ) -> Vec<SectionTable<'d, 'text>> {
        let name = section.name;
        let header = section.header();
        let expected = match (section.shape, value.get_ref()) {
            (Shape::One, _) => {
                return vec![SectionTable { section, header, name: name.into(), at: key, value }];
            }
            (Shape::Many, DeValue::Array(list)) => {
                let tables = list.iter().enumerate().map(|(n, value)| SectionTable {
                    section,
                    header: header.clone(),
                    name: format!("{name}[{n}]"),
                    at: value.span(),
                    value,
                });
                return tables.collect();
            }
            (Shape::Named, DeValue::Table(tables)) => {
                let table =
                    |(key, value): (&Spanned<Cow<'_, str>>, &'d Spanned<DeValue<'text>>)| {
                        let name = format!("{name}.{}", key.get_ref());
                        SectionTable {
                            section,
                            header: format!("[{name}]"),
                            name,
                            at: key.span(),
                            value,
                        }
                    };
                return tables.iter().map(table).collect();
            }
            (Shape::Many, _) => "a list of tables",
            (Shape::Named, _) => "a table of tables",
        };
        let found = type_of(value.get_ref());
        self.mistake(
            key,
            format!("{name} is {found}, expected {expected}"),
            format!("write {header}"),
        );
        Vec::new()
    }

    fn table(&mut self, table: &SectionTable<'_, '_>) {
        let SectionTable { section, header, name, at, value } = table;
        self.settings.spans.add_table(name, at.clone(), value);
        let Some(keys) = value.get_ref().as_table() else {
            let found = type_of(value.get_ref());
            let reason = format!("{header} is {found}, expected a table");
            let example = section.rows().next().map(assignment).unwrap_or_default();
            let hint = format!("write {} on a line, then {example}", section.header());
            return self.mistake(value.span(), reason, hint);
        };
        for (key, _) in keys {
            let inner = format!("{}.{}", section.name, key.get_ref());
            let is_section = SECTIONS.iter().any(|section| section.name == inner);
            if !is_section && section.row(key.get_ref()).is_none() {
                self.unknown_key(table, key.get_ref(), key.span());
            }
        }
        (section.begin)(&mut self.settings, name.clone());
        let mut is_complete = true;
        for row in section.rows() {
            let is_set = keys.get(row.key_name()).map(|value| self.value(row, value));
            is_complete &= !row.required || is_set == Some(true);
            if row.required && is_set.is_none() {
                let reason = format!("{header} has no {}", row.key_name());
                let hint = format!("add {}", assignment(row));
                let mistake = Mistake::new(at.clone(), reason, hint);
                self.mistakes.push(Mistake { is_absence: true, ..mistake });
            }
        }
        is_complete &= self.check(table, keys);
        if !is_complete {
            self.settings.remove_last(section);
        }
    }

    /// Checks what involves several keys of a table. Returns whether it is usable.
    fn check(&mut self, table: &SectionTable<'_, '_>, keys: &DeTable<'_>) -> bool {
        let span = |key: &str| keys.get(key).map(Spanned::span);
        let header = &table.header;
        match table.section.name {
            "vsock" => match (span("listen"), span("connect")) {
                (Some(_), Some(connect)) => {
                    let reason = format!("{header} has both listen and connect");
                    self.mistake(connect, reason, "remove one of them");
                    false
                }
                (None, None) => {
                    let at = span("port").unwrap_or(table.at.clone());
                    let reason = format!("{header} has neither listen nor connect");
                    let hint = "add listen = \"./agent.sock\" or connect = \"./api.sock\"";
                    self.mistake(at, reason, hint);
                    false
                }
                _ => self.settings.vsock.last().is_some_and(|relay| relay.socket != Path::new("")),
            },
            "network.forward" => match (span("host"), span("unix")) {
                (Some(_), Some(unix)) => {
                    let reason = format!("{header} has both host and unix");
                    self.mistake(unix, reason, "remove one of them");
                    false
                }
                (None, None) => {
                    let at = span("guest").unwrap_or(table.at.clone());
                    let reason = format!("{header} has neither host nor unix");
                    let hint = "add host = \"127.0.0.1:8080\" or unix = \"./web.sock\"";
                    self.mistake(at, reason, hint);
                    false
                }
                _ => true,
            },
            "cmdline" => {
                let settings = &self.settings;
                if settings.cmdline_override.is_some() && !settings.cmdline.is_empty() {
                    let reason = format!("{header} has both extra and override");
                    let at = span("extra").unwrap_or(table.at.clone());
                    self.mistake(
                        at,
                        reason,
                        "move the arguments into override, or remove override",
                    );
                }
                true
            }
            _ => true,
        }
    }

    /// Stores the value of a key. Returns whether it could.
    fn value(&mut self, row: &Setting, value: &Spanned<DeValue<'_>>) -> bool {
        let settings = &mut self.settings;
        let stored = match (row.kind, value.get_ref()) {
            (ValueKind::Switch(set), DeValue::Boolean(on)) => {
                set(settings, *on);
                Ok(())
            }
            (ValueKind::Number(bounds, set), DeValue::Integer(number)) => {
                let digits = number.as_str().replace('_', "");
                let parsed = u32::from_str_radix(&digits, number.radix());
                let parsed = parsed.map_err(|_| values::invalid_number(&digits, bounds));
                parsed.map(|n| set(settings, n))
            }
            (ValueKind::List(set), DeValue::Array(list)) => {
                for item in list.iter() {
                    match item.get_ref().as_str() {
                        Some(text) => set(&mut self.settings, text.into()),
                        None => {
                            let found = type_of(item.get_ref());
                            let reason = format!("{} has {found} as an item", row.key_name());
                            let hint = format!("write strings in quotes: {}", assignment(row));
                            self.mistakes.push(Mistake::new(item.span(), reason, hint));
                        }
                    }
                }
                return true;
            }
            (ValueKind::Paths(set), DeValue::Array(list)) => {
                for item in list.iter() {
                    let path = match item.get_ref().as_str() {
                        Some(text) => values::path(text.as_ref()),
                        None => Err(format!("has {} as an item", type_of(item.get_ref()))),
                    };
                    match path {
                        Ok(path) => set(&mut self.settings, self.directory.join(path)),
                        Err(reason) => {
                            let reason = format!("{}: {reason}", row.key_name());
                            let hint = format!("write paths in quotes: {}", assignment(row));
                            self.mistakes.push(Mistake::new(item.span(), reason, hint));
                        }
                    }
                }
                return true;
            }
            (ValueKind::Port(set), DeValue::Integer(number)) => {
                port(number).map(|port| set(settings, port))
            }
            (ValueKind::Ports(set), DeValue::Array(list)) => {
                for item in list.iter() {
                    let parsed = match item.get_ref() {
                        DeValue::Integer(number) => port(number),
                        other => Err(format!("has {} as an item", type_of(other))),
                    };
                    match parsed {
                        Ok(port) => set(&mut self.settings, port),
                        Err(reason) => {
                            let reason = format!("{}: {reason}", row.key_name());
                            let hint = format!("for example, {}", assignment(row));
                            self.mistakes.push(Mistake::new(item.span(), reason, hint));
                        }
                    }
                }
                return true;
            }
            (ValueKind::Path(set), DeValue::String(text)) => values::path(text.as_ref().as_ref())
                .map(|path| set(settings, self.directory.join(path))),
            (
                ValueKind::Switch(_)
                | ValueKind::Number(..)
                | ValueKind::Port(_)
                | ValueKind::Ports(_)
                | ValueKind::List(_)
                | ValueKind::Paths(_),
                _,
            ) => {
                return self.mistyped(row, value);
            }
            (_, DeValue::String(text)) => row.set_from_text(settings, text),
            _ => return self.mistyped(row, value),
        };
        let Err(reason) = stored else { return true };
        let hint = match row.kind {
            ValueKind::Choice(_) => format!("write {} = {}", row.key_name(), row.kind.expected()),
            _ => format!("for example, {}", assignment(row)),
        };
        self.mistake(value.span(), format!("{}: {reason}", row.key_name()), hint);
        false
    }

    fn mistyped(&mut self, row: &Setting, value: &Spanned<DeValue<'_>>) -> bool {
        let (found, expected) = (type_of(value.get_ref()), row.kind.expected());
        let reason = format!("{} is {found}, expected {expected}", row.key_name());
        self.mistake(value.span(), reason, format!("for example, {}", assignment(row)));
        false
    }

    fn unknown_key(&mut self, table: &SectionTable<'_, '_>, name: &str, at: Range<usize>) {
        let nested = || {
            let before = |section: &Section| {
                section.name.strip_prefix(table.section.name)?.strip_prefix('.')
            };
            SECTIONS.iter().filter_map(before)
        };
        let names = || table.section.rows().map(Setting::key_name).chain(nested());
        let elsewhere = SECTIONS.iter().find(|other| other.row(name).is_some());
        let hint = match (suggest::closest(name, names()), elsewhere) {
            (Some(meant), _) => format!("did you mean {meant}?"),
            // A key in a table of a section, such as [[network.allow]], is rarely meant for another section.
            (None, Some(other)) if !table.section.name.contains('.') => {
                format!("{name} is a key of {}", other.header())
            }
            (None, _) => format!("known keys: {}", names().collect::<Vec<_>>().join(", ")),
        };
        self.mistake(at, format!("{} has no key {name:?}", table.header), hint);
    }

    /// A section that does not exist, or a key outside of any section.
    fn unknown_section(&mut self, name: &str, at: Range<usize>, value: &DeValue<'_>) {
        let names =
            || SECTIONS.iter().map(|section| section.name).filter(|name| !name.contains('.'));
        let owner = SECTIONS.iter().find(|section| section.row(name).is_some());
        let reason = match value {
            DeValue::Table(_) | DeValue::Array(_) => format!("unknown section {name:?}"),
            _ => format!("the key {name} is outside of any section"),
        };
        let hint = match (suggest::closest(name, names()), owner) {
            (_, Some(section)) => format!("{name} is a key of {}", section.header()),
            (Some(meant), None) => format!("did you mean {meant}?"),
            (None, None) => format!("known sections: {}", names().collect::<Vec<_>>().join(", ")),
        };
        self.mistake(at, reason, hint);
    }

    fn mistake(&mut self, at: Range<usize>, reason: impl Into<String>, hint: impl Into<String>) {
        self.mistakes.push(Mistake::new(at, reason, hint));
    }
}

/// A port, in any notation of TOML.
fn port(number: &DeInteger<'_>) -> Result<u16, String> {
    let digits = number.as_str().replace('_', "");
    match u32::from_str_radix(&digits, number.radix()) {
        Ok(number) => values::port(&number.to_string()),
        Err(_) => values::port(&digits),
    }
}

/// `cpus = 2`.
fn assignment(row: &Setting) -> String {
    format!("{} = {}", row.key_name(), row.example)
}

/// The type of a value, in words.
fn type_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
