//! Where each key of a config file stands, for what is only found out when the whole is known.
//!
//! A key that a flag overrides is forgotten: what is wrong with its value is then not the file's.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::DeValue;

use crate::failure::SourceSpan;

/// Characters of a line that are shown at most.
const WIDTH: usize = 100;

/// The spans of a file's keys, by name: `boot.kernel`, `disks[1].path`, `cmdline.extra[0]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SourceSpans {
    /// The file and its text; `None` where nothing was read from one.
    source: Option<(PathBuf, String)>,
    at: BTreeMap<String, Range<usize>>,
}

impl SourceSpans {
    /// Notes a table, its keys, and what stands in their lists.
    pub(crate) fn note(&mut self, table: &str, head: Range<usize>, value: &Spanned<DeValue<'_>>) {
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
    pub(crate) fn are_in(&mut self, path: &Path, text: String) {
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
    pub(crate) fn of(&self, name: &str) -> Option<SourceSpan> {
        let (path, text) = self.source.as_ref()?;
        Some(span_at(path, text, self.at.get(name)?))
    }
}

/// The place of a span, which may lie at the end or behind it.
pub(crate) fn span_at(path: &Path, text: &str, at: &Range<usize>) -> SourceSpan {
    let start = floor(text, at.start);
    let begin = text[..start].rfind('\n').map_or(0, |before| before + 1);
    let line = text[begin..].lines().next().unwrap_or_default();
    let column = text[begin..start].chars().count();
    let end = floor(text, at.end.max(start)).min(begin + line.len());
    let length = text.get(start..end).map_or(1, |span| span.chars().count().max(1));
    // A long line is shown around the place.
    let skipped = if line.chars().count() > WIDTH { column.saturating_sub(WIDTH / 3) } else { 0 };
    let shown: String = line
        .chars()
        .skip(skipped)
        .take(WIDTH)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    SourceSpan {
        file: path.display().to_string(),
        line: 1 + text[..begin].matches('\n').count(),
        column: column + 1,
        text: shown.trim_end().to_owned(),
        marked: column - skipped..column - skipped + length.min(WIDTH),
    }
}

/// The beginning of the character that this byte is in.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_in_characters_from_one() {
        let text = "a = 1\nü = \"é\" # b\r\n\nlast";
        for (at, line, column, shown) in [
            (0..1, 1, 1, "a = 1"),
            (11..15, 2, 5, "ü = \"é\" # b"),
            (12..13, 2, 6, "ü = \"é\" # b"),
            (5..6, 1, 6, "a = 1"),
            (21..22, 3, 1, ""),
            (26..26, 4, 5, "last"),
            (900..999, 4, 5, "last"),
        ] {
            let span = span_at(Path::new("f"), text, &at);
            assert_eq!((span.line, span.column, span.text.as_str()), (line, column, shown));
        }
    }

    #[test]
    fn a_long_line_is_shown_around_the_place() {
        let text = format!("{}HERE{}", "x".repeat(5000), "y".repeat(5000));
        let span = span_at(Path::new("f"), &text, &(5000..5004));
        assert_eq!(span.column, 5001);
        assert_eq!(span.text.chars().count(), WIDTH);
        assert_eq!(&span.text[span.marked], "HERE");
    }
}
