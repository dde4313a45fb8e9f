//! What is wrong with a config file, each with its place in it.

use std::ops::Range;
use std::path::Path;

use crate::failure::{CONFIG, Failure, Place};

/// Characters of a line that are shown at most.
const WIDTH: usize = 100;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// Where in the text, in bytes.
    pub(crate) at: Range<usize>,
    pub(crate) why: String,
    pub(crate) hint: String,
    /// Something is not there, which may have been meant to stand where the text is no TOML.
    pub(crate) is_absence: bool,
}

impl Wrong {
    pub(crate) fn new(at: Range<usize>, why: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { at, why: why.into(), hint: hint.into(), is_absence: false }
    }
}

/// Everything that is wrong with one file, as the failure that says so.
pub(crate) fn failure(path: &Path, text: &str, mut wrongs: Vec<Wrong>) -> Failure {
    wrongs.sort_by_key(|wrong| wrong.at.start);
    let count = match wrongs.len() {
        1 => "one mistake".to_owned(),
        n => format!("{n} mistakes"),
    };
    let failure = Failure::new(CONFIG, format!("cannot use {}: {count}", path.display()));
    wrongs.into_iter().fold(failure, |failure, wrong| {
        let place = place(path, text, &wrong.at);
        failure.problem_at(place, wrong.why, wrong.hint)
    })
}

/// The place of a span, which may lie at the end or behind it.
pub(super) fn place(path: &Path, text: &str, at: &Range<usize>) -> Place {
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
    Place {
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
            let place = place(Path::new("f"), text, &at);
            assert_eq!((place.line, place.column, place.text.as_str()), (line, column, shown));
        }
    }

    #[test]
    fn a_long_line_is_shown_around_the_place() {
        let text = format!("{}HERE{}", "x".repeat(5000), "y".repeat(5000));
        let place = place(Path::new("f"), &text, &(5000..5004));
        assert_eq!(place.column, 5001);
        assert_eq!(place.text.chars().count(), WIDTH);
        assert_eq!(&place.text[place.marked], "HERE");
    }
}
