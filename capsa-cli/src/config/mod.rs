//! The config file: TOML that is checked against the table of settings.
//!
//! An unknown key, a value of the wrong type and a word that is not accepted are mistakes, each with
//! its line, its column and what to write instead. All mistakes of a file are reported at once.
//! Relative paths are relative to the file's directory. What the file does not set is left to the
//! flags and the library's defaults.

mod mistake;
mod reader;
mod schema;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use toml::de::DeTable;

use crate::failure::{CONFIG, CliError};
use crate::settings::Settings;

use mistake::Mistake;
use reader::ConfigReader;

pub(crate) use mistake::failure;
pub(crate) use schema::schema;

/// Size limit of a file, in bytes. A usual file has a few hundred.
const MAX_SIZE: u64 = 1 << 20;

/// A file that was read.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    /// What it sets, without the values that are mistakes.
    pub(crate) settings: Settings,
    /// Its mistakes; `None` when it has none.
    pub(crate) mistakes: Option<CliError>,
    /// Some lines are not TOML, so that it is unknown what they were to set.
    pub(crate) is_broken: bool,
}

/// Reads a file, once: it may be a pipe.
///
/// # Errors
///
/// When it cannot be read as text.
pub(crate) fn read(path: &Path) -> Result<ConfigFile, CliError> {
    let unreadable = |reason: String, hint: &str| {
        CliError::new(CONFIG, format!("cannot read {}: {reason}", path.display())).hint(hint)
    };
    let bytes = crate::files::read_at_most(path, MAX_SIZE).map_err(|error| {
        unreadable(error.to_string(), "name an existing TOML file; see `capsa help config`")
    })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count();
        unreadable(format!("line {line} is not UTF-8"), "save the file as UTF-8")
    })?;
    let directory = path.parent().unwrap_or(Path::new(""));
    let (mut settings, mistakes, is_broken) = parse_all(&text, directory);
    let mistakes = (!mistakes.is_empty()).then(|| failure(path, &text, mistakes));
    settings.spans.set_source(path, text);
    Ok(ConfigFile { settings, mistakes, is_broken })
}

/// Parses a file's text. No text makes it panic.
pub(crate) fn parse(text: &str, directory: &Path) -> Result<Settings, Vec<Mistake>> {
    let (settings, mistakes, _) = parse_all(text, directory);
    if mistakes.is_empty() { Ok(settings) } else { Err(mistakes) }
}

/// What a text sets, its mistakes, and whether parts of it are not TOML.
fn parse_all(text: &str, directory: &Path) -> (Settings, Vec<Mistake>, bool) {
    let (document, errors) = DeTable::parse_recoverable(text);
    let (settings, mut mistakes) = ConfigReader::new(directory).read(document.get_ref());
    // Of the mistakes of a line that is not TOML only the first syntax error is reported: the others
    // follow from it.
    let mut broken_lines = BTreeSet::new();
    for error in &errors {
        let at = error.span().unwrap_or(text.len()..text.len());
        if broken_lines.insert(line_of(text, at.start)) {
            mistakes.retain(|mistake| line_of(text, mistake.at.start) != line_of(text, at.start));
            mistakes.push(syntax_mistake(text, at, error.message()));
        }
    }
    mistakes.retain(|mistake| broken_lines.is_empty() || !mistake.is_absence);
    (settings, mistakes, !broken_lines.is_empty())
}

/// A part of the text that is not TOML.
fn syntax_mistake(text: &str, at: Range<usize>, reason: &str) -> Mistake {
    let line = text.lines().nth(line_of(text, at.start)).unwrap_or_default();
    let hint = match line.split_once('=') {
        _ if reason.contains("duplicate key") => "remove one of them".to_owned(),
        _ if reason.contains("recurs") => {
            "no setting is nested deeper than a list of strings".to_owned()
        }
        Some((_, value)) if value.trim().is_empty() => "write a value after the =".into(),
        Some((key, value)) if !value.contains(['"', '=']) => {
            let (key, value) = (shorten(key.trim()), shorten(value.trim()));
            format!("write strings in quotes: {key} = \"{value}\"")
        }
        Some(_) => "a string begins and ends with \", on one line".into(),
        None => "write [section], key = value, or # comment".into(),
    };
    Mistake::new(at, reason.lines().collect::<Vec<_>>().join("; "), hint)
}

/// At most 40 characters of a text, for a hint.
fn shorten(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count()
}
