//! A mistake in a config file, and how a list of them is reported.

use std::ops::Range;
use std::path::Path;

use crate::failure::{CONFIG, CliError, invalid_file};
use crate::spans::span_at;

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mistake {
    /// Where in the text, in bytes.
    pub(crate) at: Range<usize>,
    pub(crate) reason: String,
    pub(crate) hint: String,
    /// Something is missing. It may be on a line that is not TOML.
    pub(crate) is_absence: bool,
}

impl Mistake {
    pub(crate) fn new(
        at: Range<usize>,
        reason: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { at, reason: reason.into(), hint: hint.into(), is_absence: false }
    }
}

/// The failure that reports all mistakes of a file, in the order of its lines.
pub(crate) fn failure(path: &Path, text: &str, mut mistakes: Vec<Mistake>) -> CliError {
    mistakes.sort_by_key(|mistake| mistake.at.start);
    let failure = CliError::new(CONFIG, invalid_file(path, mistakes.len()));
    mistakes.into_iter().fold(failure, |failure, mistake| {
        let span = span_at(path, text, &mistake.at);
        failure.problem_at(span, mistake.reason, mistake.hint)
    })
}
