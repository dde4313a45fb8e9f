//! [`Prefilter`]: a literal that every match must have, so that text without it is passed over as fast as a
//! literal is looked for.
//!
//! The literal is the first of the expression, and neither it nor what comes before it can take a `\n`:
//! a match that has it **begins in its line**. So the automaton need not run before it is seen, and then
//! from the beginning of that line on.

use alloc::vec::Vec;
use memchr::memmem::Finder;
use regex_syntax::hir::{Class, Hir, HirKind};

/// Shorter ones are everywhere.
const SHORTEST: usize = 2;

/// The literal of an expression that has one.
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
                && literal.0.len() >= SHORTEST
            {
                return Some(Self(Finder::new(&literal.0).into_owned()));
            }
        }
        None
    }

    /// How long the literal is.
    pub(crate) fn len(&self) -> usize {
        self.0.needle().len()
    }

    /// Where it is first.
    pub(crate) fn find(&self, bytes: &[u8]) -> Option<usize> {
        self.0.find(bytes)
    }
}

/// What has to match one after the other, groups opened. It is as deep as the parser lets it be.
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
    fn the_first_literal_counts_if_it_is_in_the_line_where_the_match_begins() {
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
