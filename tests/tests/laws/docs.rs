//! The pages for contributors, compared with the tree: paths, functions, identifiers, links and tasks
//! that a page names exist, and the architecture page has a row for each directory and module.
//!
//! Only inline code and links are read. Code blocks are skipped, except for `cargo xtask` calls.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use capsa_testkit::workspace;

use super::assert_none;
use super::source::{Source, code, has_word};

const ARCHITECTURE: &str = "docs/architecture.md";

/// Inline code that looks like a path or an identifier of this repository and is none.
const FOREIGN: [&str; 2] = ["unit_condition_result", "scrollback_full_drops_oldest"];

/// Every page: those at the top, and those of `docs/`.
fn pages() -> Vec<Source> {
    let mut pages = Source::all();
    pages.retain(|page| {
        let (directory, name) = page.path.rsplit_once('/').unwrap_or(("", &page.path));
        ["", "docs"].contains(&directory) && name.ends_with(".md") && name != "CHANGELOG.md"
    });
    assert!(pages.len() >= 7, "{} pages", pages.len());
    pages
}

/// One piece of inline code, or one link, and its place.
struct Mention {
    /// `file:line`.
    place: String,
    text: String,
}

/// The inline code of a page, without fenced blocks.
fn inline_code(page: &Source) -> Vec<Mention> {
    let mut mentions = Vec::new();
    for (place, line) in prose(page) {
        assert!(line.matches('`').count().is_multiple_of(2), "{place}: code over two lines");
        let pieces = line.split('`').skip(1).step_by(2);
        mentions.extend(pieces.map(|text| Mention { place: place.clone(), text: text.into() }));
    }
    mentions
}

/// The targets of a page's links to files of this repository.
fn links(page: &Source) -> Vec<Mention> {
    let mut mentions = Vec::new();
    for (place, line) in prose(page) {
        let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let ours = targets.filter(|target| !target.contains("://"));
        mentions.extend(ours.map(|text| Mention { place: place.clone(), text: text.into() }));
    }
    mentions
}

/// The lines outside of fenced blocks, each with its place.
fn prose(page: &Source) -> Vec<(String, &str)> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for (n, line) in page.text.lines().enumerate() {
        let is_fence = line.trim_start().starts_with("```");
        fenced ^= is_fence;
        if !fenced && !is_fence {
            lines.push((format!("{}:{}", page.path, n + 1), line));
        }
    }
    lines
}

fn exists(path: &str) -> bool {
    workspace::root().join(path).exists()
}

/// Whether inline code is written as a path of this repository.
fn is_path(text: &str) -> bool {
    let is_plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "_./-".contains(c));
    let is_elsewhere = text.starts_with('/') || text.starts_with("./") || text.starts_with("../");
    let is_file = [".rs", ".md", ".toml"].iter().any(|end| text.ends_with(end));
    is_plain && !is_elsewhere && (text.contains('/') || is_file) && text.len() > 3
}

/// Whether inline code is a Rust path or name.
fn is_identifier(text: &str) -> bool {
    let text = text.strip_suffix("()").unwrap_or(text);
    let is_word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_alphabetic())
            && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    text.split("::").all(is_word)
}

/// Whether `name` is defined in this Rust file.
fn defines(path: &str, name: &str) -> bool {
    let Ok(text) = fs::read_to_string(workspace::root().join(path)) else { return false };
    let kinds = ["fn", "struct", "enum", "trait", "const", "static", "type", "mod", "macro_rules!"];
    let definitions = kinds.map(|kind| format!("{kind} {name}"));
    code(&text).lines().any(|line| definitions.iter().any(|text| has_word(line, text)))
}

#[test]
fn page_paths_exist() {
    let mut broken = Vec::new();
    for page in pages() {
        let code = inline_code(&page).into_iter();
        for Mention { place, text } in code.filter(|mention| is_path(&mention.text)) {
            let is_name = !text.contains('/') && text.ends_with(".rs");
            let is_there = match is_name {
                true => Source::rust(&[""]).iter().any(|s| s.path.ends_with(&format!("/{text}"))),
                false => exists(&text),
            };
            if !is_there && !FOREIGN.contains(&text.as_str()) {
                broken.push(format!("{place}: {text}"));
            }
        }
    }
    assert_none("every path that a page names exists", broken);
}

#[test]
fn page_functions_are_in_their_files() {
    let mut broken = Vec::new();
    let mut checked = 0;
    for page in pages() {
        for Mention { place, text } in inline_code(&page) {
            let Some((path, names)) = text.split_once(".rs: ") else { continue };
            let path = format!("{path}.rs");
            if !exists(&path) {
                broken.push(format!("{place}: no file {path}"));
                continue;
            }
            for name in names.split(", ") {
                checked += 1;
                if !defines(&path, name) {
                    broken.push(format!("{place}: {path} does not define {name}"));
                }
            }
        }
    }
    assert_none("every `file.rs: name` of a page is defined in that file", broken);
    assert!(checked >= 40, "the pages name {checked} functions");
}

#[test]
fn attack_tests_exist() {
    let mut pages = pages();
    pages.retain(|page| page.path == "docs/network-attacks.md");
    let mut broken = Vec::new();
    let mut last = 0;
    for (place, line) in prose(&pages[0]) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, number, _, tests, _] = cells[..] else { continue };
        let Ok(number) = number.parse::<u32>() else { continue };
        if !(last + 1..=52).contains(&number) {
            broken.push(format!("{place}: attack {number} after {last}"));
        }
        last = number;
        let mut file = "";
        for text in tests.split('`').skip(1).step_by(2) {
            let name = text.split_once(": ").map_or(text, |(path, name)| {
                file = path;
                name
            });
            let source = fs::read_to_string(workspace::root().join(file)).unwrap_or_default();
            let lines: Vec<&str> = source.lines().map(str::trim).collect();
            let head = format!("fn {name}() ");
            if !lines.windows(2).any(|pair| pair[0] == "#[test]" && pair[1].starts_with(&head)) {
                broken.push(format!("{place}: {file} has no test {name}"));
            }
        }
    }
    assert_none("each attack has a row at most, in order, and each test is in its file", broken);
    assert!(last > 0, "the page has no table");
}

#[test]
fn page_identifiers_are_in_the_sources() {
    let sources = Source::all();
    let has_names = |source: &&Source| source.is_rust() || source.path.ends_with("Cargo.toml");
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let mut words: BTreeSet<&str> =
        sources.iter().filter(has_names).flat_map(|s| s.text.split(|c| !is_part(c))).collect();
    words.extend(sources.iter().flat_map(|source| source.path.split(['/', '.'])));
    let mut broken = Vec::new();
    // The glossary lists words.
    for page in pages().iter().filter(|page| page.path != "docs/glossary.md") {
        for Mention { place, text } in inline_code(page) {
            if !is_identifier(&text) || FOREIGN.contains(&text.as_str()) {
                continue;
            }
            let names: Vec<&str> = text.trim_end_matches("()").split("::").collect();
            let unknown = names.iter().find(|word| !words.contains(*word));
            let strays = names.windows(2).find(|pair| !is_member(&sources, pair[0], pair[1]));
            broken.extend(unknown.map(|word| format!("{place}: {word}")));
            broken.extend(strays.map(|pair| format!("{place}: {} in {}", pair[1], pair[0])));
        }
    }
    assert_none("every identifier that a page names is in the sources", broken);
}

/// Whether a file of this name, or one that defines this name, has the other name in it.
fn is_member(sources: &[Source], outer: &str, inner: &str) -> bool {
    let defines = |source: &Source| {
        let kinds = ["struct", "enum", "trait", "type", "mod", "fn"];
        kinds.iter().any(|kind| has_word(&source.text, &format!("{kind} {outer}")))
    };
    sources.iter().filter(|source| source.is_rust()).any(|source| {
        let is_named = source.path.split(['/', '.']).any(|part| part == outer);
        has_word(&source.text, inner) && (is_named || defines(source))
    })
}

#[test]
fn page_links_lead_somewhere() {
    let mut broken = Vec::new();
    for page in pages() {
        let directory = Path::new(&page.path).parent().unwrap();
        for Mention { place, text } in links(&page) {
            let (file, anchor) = text.split_once('#').unwrap_or((&text, ""));
            let file = match file {
                "" => workspace::root().join(&page.path),
                file => workspace::root().join(directory).join(file),
            };
            let target = match anchor {
                "" => file.exists(),
                anchor => fs::read_to_string(file).is_ok_and(|text| {
                    text.lines().filter(|line| line.starts_with('#')).any(|l| slug(l) == anchor)
                }),
            };
            if !target {
                broken.push(format!("{place}: {text}"));
            }
        }
    }
    assert_none("every link of a page leads to a file and a heading", broken);
}

/// The anchor of a heading.
fn slug(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    heading.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
}

#[test]
fn page_tasks_exist() {
    let mut tasks = Source::all();
    tasks.retain(|source| source.is_rust() && source.path.contains("xtask"));
    let mut broken = Vec::new();
    for page in pages() {
        for (n, line) in page.text.lines().enumerate() {
            for rest in line.split("cargo xtask ").skip(1) {
                let is_part = |c: char| c.is_ascii_lowercase() || c == '-';
                let name: String = rest.chars().take_while(|c| is_part(*c)).collect();
                let quoted = format!("\"{name}\"");
                // `help` lists the tasks and is none of them.
                if name != "help" && !tasks.iter().any(|source| source.text.contains(&quoted)) {
                    broken.push(format!("{}:{}: cargo xtask {name}", page.path, n + 1));
                }
            }
        }
    }
    assert_none("every task that a page names exists", broken);
}

/// The names in the first cells of the tables between this heading and the next one.
fn rows(page: &str, heading: &str) -> BTreeSet<String> {
    let Some((_, rest)) = page.split_once(&format!("\n{heading}\n")) else {
        panic!("{ARCHITECTURE} has no heading {heading:?}");
    };
    let section = rest.split("\n#").next().unwrap_or_default();
    let cells = section.lines().filter_map(|line| line.strip_prefix('|')?.split('|').next());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// Compares the rows below a heading with what is in the tree.
fn compare_rows(heading: &str, rows: BTreeSet<String>, tree: BTreeSet<String>) -> Vec<String> {
    let missing = tree.difference(&rows).map(|name| format!("{heading}: no row for {name}"));
    let stale = rows.difference(&tree).map(|name| format!("{heading}: {name} does not exist"));
    missing.chain(stale).collect()
}

#[test]
fn architecture_has_a_row_per_directory() {
    let page = fs::read_to_string(workspace::root().join(ARCHITECTURE)).unwrap();
    let all = Source::all();
    let directories = all.iter().filter_map(|source| source.path.split_once('/'));
    let tree = directories.map(|(name, _)| format!("{name}/")).collect();
    let heading = "## Directories";
    assert_none("a row per directory", compare_rows(heading, rows(&page, heading), tree));
}

#[test]
fn architecture_has_a_row_per_module() {
    let page = fs::read_to_string(workspace::root().join(ARCHITECTURE)).unwrap();
    let mut broken = Vec::new();
    for manifest in Source::all().iter().filter(|source| source.path.ends_with("/Cargo.toml")) {
        let package = manifest.path.trim_end_matches("/Cargo.toml");
        // These two are workspaces of their own, with a few files each.
        if ["bench", "fuzz"].contains(&package) {
            continue;
        }
        let heading = format!("### `{package}`");
        broken.extend(compare_rows(&heading, rows(&page, &heading), modules(package)));
    }
    assert_none("a row per module", broken);
}

/// The modules and directories in a package's `src`, and the programs in the `tests` of one without.
fn modules(package: &str) -> BTreeSet<String> {
    let package = workspace::root().join(package);
    let sources = ["src", "tests"].map(|name| package.join(name));
    let sources = sources.iter().find(|path| path.exists()).expect("a package has sources");
    let entries = fs::read_dir(sources).unwrap().map(|entry| entry.unwrap().path());
    let stems = entries.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()));
    stems.filter(|name| !["lib", "main", "tests"].contains(&name.as_str())).collect()
}

#[test]
fn rust_version_is_the_same_everywhere() {
    let read = |path: &str| fs::read_to_string(workspace::root().join(path)).unwrap();
    let value = |path: &str, key: &str| {
        let text = read(path);
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{key} = \"")));
        line.unwrap_or_else(|| panic!("{path} has no {key}")).trim_end_matches('"').to_owned()
    };
    let pinned = value("rust-toolchain.toml", "channel");
    let minimum = value("Cargo.toml", "rust-version");
    assert_eq!(pinned, format!("{minimum}.0"));
    assert!(read("README.md").contains(&format!("Rust {minimum},")), "README: Rust {minimum}");
}

#[test]
fn readme_fits_on_a_page() {
    let readme = fs::read_to_string(workspace::root().join("README.md")).unwrap();
    assert!(readme.lines().count() <= 90, "{} lines", readme.lines().count());
}

/// The paths of the architecture page: this many files and hops.
const PATHS: [(&str, usize, usize); 3] = [
    ("## The path of `start`", 10, 34),
    ("## The path of one console byte", 11, 20),
    ("## The path of `stop`", 9, 28),
];

/// A function on a path: its file and its name.
type PathStep = (String, String);

#[test]
fn paths_stay_short() {
    let page = fs::read_to_string(workspace::root().join(ARCHITECTURE)).unwrap();
    let mut broken = Vec::new();
    for (heading, max_files, max_hops) in PATHS {
        let (_, section) = page.split_once(heading).expect(heading);
        let section = section.split("\n## ").next().unwrap_or_default();
        let section = section.split("\nLeaves: ").next().unwrap_or_default();
        let (functions, hops) = path_hops(section);
        let files: BTreeSet<_> = functions.iter().map(|(file, _)| file).collect();
        let gaps = hops.iter().filter(|(from, to)| !calls(from, &to.1));
        broken.extend(gaps.map(|(from, to)| format!("{heading}: {from:?} does not call {to:?}")));
        let counted = (files.len(), hops.len());
        if counted.0 > max_files || counted.1 > max_hops {
            broken.push(format!("{heading}: {counted:?} files and hops: {files:#?}"));
        }
        println!("{heading}: {counted:?} files and hops, {} functions", functions.len());
    }
    assert_none("each path is as short as the page says, and has no gap", broken);
}

/// The functions that a section names, and the calls from one to the next: a comma in inline code, or an
/// arrow between two pieces of it.
fn path_hops(section: &str) -> (BTreeSet<PathStep>, BTreeSet<(PathStep, PathStep)>) {
    let (mut functions, mut hops) = (BTreeSet::new(), BTreeSet::new());
    let mut last: Option<PathStep> = None;
    for (n, piece) in section.split('`').enumerate() {
        if n % 2 == 0 {
            last = last.filter(|_| piece.trim() == "→");
            continue;
        }
        let named = piece.split_once(".rs: ").filter(|(file, _)| file.contains("/src/"));
        let Some((file, names)) = named else { continue };
        for name in names.split(", ") {
            let step = (format!("{file}.rs"), name.to_owned());
            hops.extend(last.replace(step.clone()).map(|last| (last, step.clone())));
            functions.insert(step);
        }
    }
    (functions, hops)
}

/// Whether a function of this name calls one that is called `callee`.
fn calls((file, name): &PathStep, callee: &str) -> bool {
    let text = fs::read_to_string(workspace::root().join(file)).unwrap_or_default();
    let (text, call) = (code(&text), format!("{callee}("));
    let mut end = None;
    text.lines().any(|line| {
        let indent = line.len() - line.trim_start().len();
        if has_word(line, &format!("fn {name}")) {
            end = Some(format!("{}}}", " ".repeat(indent)));
            return false;
        }
        end = end.take().filter(|end| end != line);
        end.is_some()
            && line
                .match_indices(&call)
                .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
    })
}
