//! Source spans: where a config file sets each key, for problems that are found after it was read.
//!
//! The span of a key that a flag overrides is removed, because the file's value is then not used.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::DeValue;

use crate::failure::SourceSpan;

/// Maximum characters of a line that are shown.
const MAX_WIDTH: usize = 100;

/// The spans of a file's keys, by name: `boot.kernel`, `disks[1].path`, `cmdline.extra[0]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SourceSpans {
    /// The file and its text; `None` without a file.
    source: Option<(PathBuf, String)>,
    spans: BTreeMap<String, Range<usize>>,
}

impl SourceSpans {
    /// Adds the spans of a table, of its keys and of the items of their lists.
    pub(crate) fn add_table(
        &mut self,
        table: &str,
        header: Range<usize>,
        value: &Spanned<DeValue<'_>>,
    ) {
        self.spans.insert(table.to_owned(), header);
        for (key, value) in value.get_ref().as_table().into_iter().flatten() {
            let name = format!("{table}.{}", key.get_ref());
            let items = value.get_ref().as_array().into_iter().flat_map(|list| list.iter());
            for (n, item) in items.enumerate() {
                self.spans.insert(format!("{name}[{n}]"), item.span());
            }
            self.spans.insert(name, value.span());
        }
    }

    /// Sets the file that was read.
    pub(crate) fn set_source(&mut self, path: &Path, text: String) {
        self.source = Some((path.to_owned(), text));
    }

    /// Removes the span of a key that a flag overrides.
    pub(crate) fn remove(&mut self, name: &str) {
        self.spans.remove(name);
    }

    /// The file.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.source.as_ref().map(|(path, _)| path.as_path())
    }

    /// The span of a key or table; `None` if the file does not set it.
    pub(crate) fn of(&self, name: &str) -> Option<SourceSpan> {
        let (path, text) = self.source.as_ref()?;
        Some(span_at(path, text, self.spans.get(name)?))
    }
}

/// The lines and columns of a byte range, which may begin or end behind the text.
pub(crate) fn span_at(path: &Path, text: &str, at: &Range<usize>) -> SourceSpan {
    let start = floor(text, at.start);
    let begin = text[..start].rfind('\n').map_or(0, |before| before + 1);
    let line = text[begin..].lines().next().unwrap_or_default();
    let column = text[begin..start].chars().count();
    let end = floor(text, at.end.max(start)).min(begin + line.len());
    let length = text.get(start..end).map_or(1, |span| span.chars().count().max(1));
    // Of a long line the part around the span is shown.
    let skipped =
        if line.chars().count() > MAX_WIDTH { column.saturating_sub(MAX_WIDTH / 3) } else { 0 };
    let shown: String = line
        .chars()
        .skip(skipped)
        .take(MAX_WIDTH)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    SourceSpan {
        file: path.display().to_string(),
        line: 1 + text[..begin].matches('\n').count(),
        column: column + 1,
        text: shown.trim_end().to_owned(),
        marked: column - skipped..column - skipped + length.min(MAX_WIDTH),
    }
}

/// The start of the character that contains this byte.
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
    fn span_at_counts_characters_from_one() {
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
    fn span_at_long_line_shows_the_part_around_it() {
        let text = format!("{}HERE{}", "x".repeat(5000), "y".repeat(5000));
        let span = span_at(Path::new("f"), &text, &(5000..5004));
        assert_eq!(span.column, 5001);
        assert_eq!(span.text.chars().count(), MAX_WIDTH);
        assert_eq!(&span.text[span.marked], "HERE");
    }
}
