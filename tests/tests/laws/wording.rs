//! The words of texts that users read, and the names of types.
//!
//! Only patterns that cannot be meant well are forbidden. What is allowed is listed with its reason.

use std::collections::BTreeMap;

use super::assert_none;
use super::source::{Source, code, has_word};

/// Words that texts for users do not have, and what they have instead.
const FORBIDDEN: &[(&str, &str)] = &[
    ("unless said", "`default: X`"),
    ("unless told", "`default: X`"),
    ("nobody", "the process, client or reader that does not"),
    ("somebody", "the process, client or reader that does"),
    ("whoever", "the process, client or reader that does"),
    ("is told", "`is notified`, `is woken`, `returns an error`"),
    ("are told", "`is notified`, `is woken`, `returns an error`"),
    ("it is no", "`invalid X`, and what is accepted"),
    ("honoured", "`supported`"),
    ("looks on", "`observes`"),
    ("mended", "`fixed`"),
];

/// Where texts for users are: pages, and what the command prints.
const USER_TEXTS: &[&str] = &[
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/",
    "capsa/src/manual/",
    "capsa-cli/tests/snapshots/",
];

/// Lines that may have a forbidden word: a page, a part of the line, and the reason.
const ALLOWED: &[(&str, &str, &str)] = &[
    ("docs/glossary.md", "", "it lists the words that are not used"),
    ("CONTRIBUTING.md", "\"", "it quotes the words that are not used"),
];

/// Types that share a name for a reason: the number of definitions, and the reason.
const SHARED_NAMES: &[(&str, usize, &str)] = &[
    ("VmHandle", 2, BLOCKING),
    ("VmConsole", 2, BLOCKING),
    ("VsockListener", 2, BLOCKING),
    ("ServiceListener", 2, BLOCKING),
    ("RunningCommand", 2, BLOCKING),
    ("Lines", 2, BLOCKING),
    ("ConsoleReader", 2, BLOCKING),
    ("ConsoleWriter", 2, BLOCKING),
    ("Command", 2, BLOCKING),
    ("Child", 2, BLOCKING),
    ("ChildOutput", 2, BLOCKING),
    ("ChildStdin", 2, BLOCKING),
    ("LaunchPlan", 2, "the plan of the core, and the view of it in the public API"),
    ("ExitWatch", 2, "one for each operating system"),
];

const BLOCKING: &str = "the async and the blocking API";

fn forbidden(line: &str) -> Option<&'static str> {
    let line = line.to_lowercase();
    FORBIDDEN.iter().find(|(word, _)| has_word(&line, word)).map(|(_, instead)| *instead)
}

#[test]
fn user_texts_use_plain_words() {
    let is_text = |path: &str| USER_TEXTS.iter().any(|place| path.starts_with(place));
    let mut broken = Vec::new();
    for source in Source::all().iter().filter(|source| is_text(&source.path)) {
        broken.extend(source.lines(|line| {
            let is_allowed =
                ALLOWED.iter().any(|(page, part, _)| source.path == *page && line.contains(part));
            !is_allowed && forbidden(line).is_some()
        }));
    }
    assert_none(&format!("texts for users have none of these words: {FORBIDDEN:#?}"), broken);
}

#[test]
fn error_texts_use_plain_words() {
    let mut broken = Vec::new();
    for source in Source::rust(&["capsa"]) {
        broken.extend(source.lines(|line| line.contains("#[error(") && forbidden(line).is_some()));
    }
    assert_none(&format!("error texts have none of these words: {FORBIDDEN:#?}"), broken);
}

#[test]
fn type_names_are_unique() {
    let mut defined = BTreeMap::<String, Vec<String>>::new();
    for source in Source::rust(&[""]).iter().filter(|source| !source.path.starts_with("bench/")) {
        for (n, line) in code(&source.text).lines().enumerate() {
            if let Some(name) = defined_type(line) {
                let place = format!("{}:{}", source.path, n + 1);
                defined.entry(name.to_owned()).or_default().push(place);
            }
        }
    }
    let mut broken = Vec::new();
    for (name, places) in defined {
        let allowed = SHARED_NAMES.iter().find(|(shared, ..)| *shared == name);
        let number = allowed.map_or(1, |(_, number, _)| *number);
        if places.len() > number {
            broken.push(format!("{name}: {}", places.join(" ")));
        }
    }
    assert_none("types with different meaning have different names", broken);
}

/// The name of the type that a line of code defines. An alias is not a type of its own.
fn defined_type(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let line = line.strip_prefix("pub").map_or(line, |rest| match rest.strip_prefix('(') {
        Some(scope) => scope.split_once(") ").map_or(scope, |(_, rest)| rest),
        None => rest.trim_start(),
    });
    let kinds = ["struct ", "enum ", "trait ", "union "];
    let rest = kinds.iter().find_map(|kind| line.strip_prefix(kind))?;
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    Some(&rest[..end]).filter(|name| name.starts_with(char::is_uppercase))
}

#[test]
fn defined_type_reads_every_visibility() {
    for (line, name) in [
        ("struct A;", Some("A")),
        ("    pub(crate) enum Long<T> {", Some("Long")),
        ("pub trait B: C {", Some("B")),
        ("type D = E;", None),
        ("fn structure() {}", None),
    ] {
        assert_eq!(defined_type(line), name, "{line}");
    }
}
