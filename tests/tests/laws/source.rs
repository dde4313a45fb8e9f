//! The repository's text as the laws look at it: files, lines, and code without its comments and
//! strings.

use std::fs;
use std::path::Path;

use capsa_testkit::workspace;

/// A text file of the repository.
pub(crate) struct Source {
    /// Relative to the workspace.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Source {
    /// Everything people wrote: sources, documents, manifests, scripts.
    pub(crate) fn all() -> Vec<Self> {
        let mut found = Vec::new();
        collect(workspace::root(), &mut found);
        assert!(found.len() > 50, "the repository was not found");
        found.sort_by(|a, b| a.path.cmp(&b.path));
        found
    }

    /// The Rust files under any of `places`, each a path prefix.
    pub(crate) fn rust(places: &[&str]) -> Vec<Self> {
        let mut all = Self::all();
        all.retain(|source| source.is_rust() && places.iter().any(|p| source.path.starts_with(p)));
        assert!(!all.is_empty(), "no Rust files under {places:?}");
        all
    }

    pub(crate) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// `file:line: what is there` for each line of the text that `is_bad`.
    pub(crate) fn lines(&self, is_bad: impl Fn(&str) -> bool) -> Vec<String> {
        self.places(&self.text, is_bad)
    }

    /// [`lines`](Self::lines), of the [`code`] alone.
    pub(crate) fn code_lines(&self, is_bad: impl Fn(&str) -> bool) -> Vec<String> {
        self.places(&code(&self.text), is_bad)
    }

    /// [`code_lines`](Self::code_lines) before the tests, which are at the bottom of a file or
    /// in one of their own.
    pub(crate) fn shipped_lines(&self, is_bad: impl Fn(&str) -> bool) -> Vec<String> {
        if self.path.ends_with("tests.rs") {
            return Vec::new();
        }
        let code = code(&self.text);
        let shipped = code.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        self.places(shipped, is_bad)
    }

    fn places(&self, seen: &str, is_bad: impl Fn(&str) -> bool) -> Vec<String> {
        let lines = seen.lines().zip(self.text.lines()).enumerate();
        let bad = lines.filter(|(_, (seen, _))| is_bad(seen));
        bad.map(|(n, (_, line))| format!("{}:{}: {}", self.path, n + 1, line.trim())).collect()
    }
}

/// What Cargo and the fuzzer make, and what is not text.
fn is_ours(path: &str) -> bool {
    let made = ["target", "fuzz/target", "fuzz/corpus", "fuzz/artifacts", "fuzz/coverage", ".git"];
    !made.contains(&path) && !path.ends_with("Cargo.lock")
}

fn collect(dir: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let full = entry.path();
        let path = full.strip_prefix(workspace::root()).unwrap().to_str().unwrap().to_owned();
        if !is_ours(&path) {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            collect(&full, found);
        } else if let Ok(text) = fs::read_to_string(&full) {
            found.push(Source { path, text });
        }
    }
}

/// Whether `word` is in `line`, and not as a part of a longer word.
pub(crate) fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].ends_with(is_part) && !line[at + word.len()..].starts_with(is_part)
    })
}

/// `text` with comments, strings and characters blanked out, line by line in place.
pub(crate) fn code(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let after_word = code.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let blank = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => quoted(rest, '"'),
            'r' if !after_word => raw_string(rest),
            '\'' => character(rest),
            _ => 0,
        };
        if blank == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            let (blanked, later) = rest.split_at(blank);
            code.extend(blanked.chars().map(|c| if c == '\n' { c } else { ' ' }));
            rest = later;
        }
    }
    code
}

/// The length of a block comment; they nest.
fn block_comment(text: &str) -> usize {
    let (mut at, mut depth) = (2, 1);
    while depth > 0 && at < text.len() {
        let (step, change) = match &text.as_bytes()[at..] {
            [b'/', b'*', ..] => (2, 1),
            [b'*', b'/', ..] => (2, -1),
            _ => (1, 0),
        };
        at += step;
        depth += change;
    }
    at
}

/// The length of a literal that ends at the next `quote` without a backslash before it.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    let end = text.char_indices().skip(1).find(|&(_, c)| {
        let is_end = c == quote && !escaped;
        escaped = c == '\\' && !escaped;
        is_end
    });
    end.map_or(text.len(), |(at, _)| at + 1)
}

/// The length of a raw string, or 0 where this is none.
fn raw_string(text: &str) -> usize {
    let hashes = text[1..].bytes().take_while(|&b| b == b'#').count();
    let start = 1 + hashes;
    if !text[start..].starts_with('"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    text[start + 1..].find(&end).map_or(text.len(), |at| start + 1 + at + end.len())
}

/// The length of a character literal, or 0 where this is a lifetime.
fn character(text: &str) -> usize {
    let mut after = text.chars().skip(1);
    match (after.next(), after.next()) {
        (Some('\\'), _) => quoted(text, '\''),
        (Some(c), Some('\'')) => 2 + c.len_utf8(),
        _ => 0,
    }
}

#[test]
fn code_blanks_comments_and_literals() {
    for (text, expected) in [
        ("a // b\nc", "a     \nc"),
        ("a /* b /* c */ d */ e", "a                   e"),
        (r#"f("un\"safe", b"x")"#, r#"f(          , b   )"#),
        ("r#\"a\"b\"# c", "         c"),
        ("for_r\"x\"", "for_r   "),
        ("'\"' '\\'' 'a '\u{e4}' b", "         'a     b"),
        ("&'static str", "&'static str"),
    ] {
        assert_eq!(code(text), expected, "{text}");
    }
}
