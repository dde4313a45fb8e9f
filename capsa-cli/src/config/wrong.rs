//! What is wrong with a config file, each with its place in it.

use std::ops::Range;
use std::path::Path;

use crate::failure::{CONFIG, Failure, invalid_file};
use crate::spans::span_at;

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
    let failure = Failure::new(CONFIG, invalid_file(path, wrongs.len()));
    wrongs.into_iter().fold(failure, |failure, wrong| {
        let span = span_at(path, text, &wrong.at);
        failure.problem_at(span, wrong.why, wrong.hint)
    })
}
