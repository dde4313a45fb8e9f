//! The manual's transcripts and its table of exit codes match the command.

mod common;

use std::fs;
use std::path::Path;
use std::process::Stdio;

use capsa_testkit::vm;
use common::{capsa, run_dir};

const MANUAL: &str = include_str!("../../capsa/src/manual/cli.md");

/// The content of the fenced blocks in this language.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    let after = MANUAL.split(fence.as_str()).skip(1);
    after.map(|rest| rest.split_once("```").unwrap().0).collect()
}

/// A command of a transcript, and its output.
struct TranscriptStep {
    command: &'static str,
    output: Vec<&'static str>,
}

fn transcript() -> Vec<TranscriptStep> {
    let mut all: Vec<TranscriptStep> = Vec::new();
    for line in blocks("console").into_iter().flat_map(str::lines) {
        match line.strip_prefix("$ capsa ") {
            Some(command) => all.push(TranscriptStep { command, output: Vec::new() }),
            None => all.last_mut().unwrap().output.push(line),
        }
    }
    all
}

/// Runs a command: the lines of standard output, then of standard error, then the exit code unless 0.
fn run(dir: &Path, command: &str) -> Vec<String> {
    let words = shell_words::split(command).unwrap();
    let output = capsa()
        .args(words)
        .current_dir(dir)
        .env("CAPSA_RUN_DIR", run_dir(dir))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let mut lines: Vec<String> = Vec::new();
    for stream in [output.stdout, output.stderr] {
        lines.extend(String::from_utf8(stream).unwrap().lines().map(String::from));
    }
    match output.status.code().unwrap() {
        0 => {}
        code => lines.push(format!("[exit {code}]")),
    }
    lines
}

/// Whether the lines match. `…` on a line of its own matches any lines, within a line any text.
fn lines_match(lines: &[String], shown: &[&str]) -> bool {
    match (lines, shown) {
        ([], []) => true,
        (_, ["…", rest @ ..]) => (0..=lines.len()).any(|n| lines_match(&lines[n..], rest)),
        ([line, lines @ ..], [pattern, rest @ ..]) => {
            line_matches(line, pattern) && lines_match(lines, rest)
        }
        _ => false,
    }
}

fn line_matches(line: &str, pattern: &str) -> bool {
    match pattern.split_once('…') {
        None => line == pattern,
        Some((begin, rest)) => line.strip_prefix(begin).is_some_and(|line| {
            let ends = line.char_indices().map(|(at, _)| at).chain([line.len()]);
            ends.into_iter().any(|at| line_matches(&line[at..], rest))
        }),
    }
}

#[test]
fn manual_transcripts_match_command() {
    let Some(guest) = vm::linux_guest() else { return };
    let dir = tempfile::tempdir().unwrap();
    for (name, file) in
        [("bzImage", guest.kernel), ("initrd", guest.initrd), ("rootfs.qcow2", guest.disk_qcow2)]
    {
        std::os::unix::fs::symlink(file, dir.path().join(name)).unwrap();
    }
    let config = blocks("toml");
    assert_eq!(config.len(), 1);
    // On a busy host the emulated timer is late, and this kernel would call it broken.
    let config = config[0].replace("[\"quiet\"]", "[\"no_timer_check\", \"quiet\"]");
    assert!(config.contains("no_timer_check"));
    fs::write(dir.path().join("linux-vm.toml"), config).unwrap();
    let broken = "[resources]\nmemry = \"2G\"\ntimeout = \"5\"\n";
    fs::write(dir.path().join("broken.toml"), broken).unwrap();
    let all = transcript();
    assert!(all.len() >= 9, "the manual has few transcripts");
    for TranscriptStep { command, output } in all {
        let lines = run(dir.path(), command);
        assert!(lines_match(&lines, &output), "capsa {command}\n{}", lines.join("\n"));
    }
}

#[test]
fn manual_exit_codes_match_help() {
    let (_, help, _) = common::ask(Path::new("/nonexistent"), &["help"]);
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let help = words(help.split_once("Exit codes:").unwrap().1);
    let table = MANUAL.split_once("## Exit codes").unwrap().1;
    let rows: Vec<_> = table.lines().filter_map(|line| line.strip_prefix("| ")).skip(2).collect();
    assert_eq!(rows.len(), 15);
    let shown = rows.iter().map(|row| words(&row.trim_end_matches(" |").replacen(" | ", " ", 1)));
    assert_eq!(help, shown.collect::<Vec<_>>().join(" "));
}

#[test]
fn transcript_patterns_match_exactly() {
    let lines = ["a 1 b", "x", "y", "end"].map(String::from);
    assert!(lines_match(&lines, &["a … b", "…", "end"]));
    assert!(lines_match(&lines, &["…"]));
    assert!(!lines_match(&lines, &["a … c", "…", "end"]));
    assert!(!lines_match(&lines, &["a … b", "x", "end"]));
    assert!(!lines_match(&lines, &["a 1 b", "x", "y"]));
}
