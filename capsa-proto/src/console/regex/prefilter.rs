//! [`Prefilter`]: a literal that every match contains. Text without it is skipped at the speed of a
//! literal search.
//!
//! It is the first literal of the expression, and neither it nor the expression before it matches a
//! `\n`, so a match **starts in the line that contains the literal**. The automaton runs only once the
//! literal was found, from the start of that line.

use alloc::vec::Vec;
use memchr::memmem::Finder;
use regex_syntax::hir::{Class, Hir, HirKind};

/// Shorter literals are too frequent.
const LITERAL_MIN: usize = 2;

/// The literal that every match contains.
pub(crate) struct Prefilter(Finder<'static>);

impl Prefilter {
    pub(super) fn of(hir: &Hir) -> Option<Self> {
        let mut parts = Vec::new();
        flatten(hir, &mut parts);
        for part in parts {
            if takes_newline(part) {
                return None;
            }
            if let HirKind::Literal(literal) = part.kind()
                && literal.0.len() >= LITERAL_MIN
            {
                return Some(Self(Finder::new(&literal.0).into_owned()));
            }
        }
        None
    }

    /// The length of the literal.
    pub(crate) fn len(&self) -> usize {
        self.0.needle().len()
    }

    /// The index of the first occurrence of the literal.
    pub(crate) fn find(&self, bytes: &[u8]) -> Option<usize> {
        self.0.find(bytes)
    }
}

/// The concatenated parts of an expression, with groups opened. The parser limits the depth.
fn flatten<'a>(hir: &'a Hir, parts: &mut Vec<&'a Hir>) {
    match hir.kind() {
        HirKind::Concat(all) => all.iter().for_each(|hir| flatten(hir, parts)),
        HirKind::Capture(group) => flatten(&group.sub, parts),
        _ => parts.push(hir),
    }
}

fn takes_newline(hir: &Hir) -> bool {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => false,
        HirKind::Literal(literal) => literal.0.contains(&b'\n'),
        HirKind::Class(Class::Bytes(class)) => {
            class.iter().any(|range| (range.start()..=range.end()).contains(&b'\n'))
        }
        HirKind::Class(Class::Unicode(class)) => {
            class.iter().any(|range| (range.start()..=range.end()).contains(&'\n'))
        }
        HirKind::Repetition(repetition) => takes_newline(&repetition.sub),
        HirKind::Capture(group) => takes_newline(&group.sub),
        HirKind::Concat(all) | HirKind::Alternation(all) => all.iter().any(takes_newline),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Regex;
    use alloc::string::String;

    fn prefilter(pattern: &str) -> Option<String> {
        let regex = Regex::new(pattern).unwrap();
        regex
            .prefilter()
            .map(|prefilter| String::from_utf8_lossy(prefilter.0.needle()).into_owned())
    }

    #[test]
    fn prefilter_is_first_literal_in_line_of_match_start() {
        for (pattern, expected) in [
            ("[a-z]+ login: ", Some(" login: ")),
            (r"inet (\d+\.\d+)/", Some("inet ")),
            ("(root)@.*# ", Some("root")),
            (".*done", Some("done")),
            (r"a\nb", None),
            (r"[^x]*done", None),
            (r"(?s).*done", None),
            (r"x\s+done", None),
            ("yes|no", None),
            ("(?:yes|no) sir", Some(" sir")),
            ("(ab)?c", None),
            ("(ab)+c", None),
            ("(?i)login", None),
            ("a", None),
        ] {
            assert_eq!(prefilter(pattern).as_deref(), expected, "{pattern}");
        }
    }
}
