//! Policies of the network: the flags, config files, and `capsa network check`, `explain`, `suggest` and `set`.

mod common;

use std::fs;
use std::path::Path;

use capsa_testkit::nano::{self, Nano};
use common::{CapsaProcess, ask};
use serde_json::Value;

const MANUAL: &str = include_str!("../../capsa/src/manual/policy.md");

/// The content of the fenced blocks in this language.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    MANUAL.split(fence.as_str()).skip(1).map(|rest| rest.split_once("```").unwrap().0).collect()
}

fn write(dir: &Path, name: &str, text: &str) {
    fs::write(dir.join(name), text).unwrap();
}

/// The output of a command in this directory, and its exit code if that is not 0.
fn transcript(dir: &Path, command: &str) -> String {
    let words = shell_words::split(command).unwrap();
    let words: Vec<String> = words
        .into_iter()
        .map(|word| match word.ends_with(".toml") {
            true => dir.join(word).to_str().unwrap().to_owned(),
            false => word,
        })
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (code, stdout, stderr) = ask(dir, &words);
    let exit = if code == 0 { String::new() } else { format!("[exit {code}]\n") };
    (stdout + &stderr + &exit).replace(&format!("{}/", dir.display()), "")
}

#[test]
fn policy_manual_examples_are_valid() {
    let dir = tempfile::tempdir().unwrap();
    let examples = blocks("toml");
    assert_eq!(examples.len(), 3);
    for example in examples {
        let name = example.lines().next().unwrap().trim_start_matches("# ");
        write(dir.path(), name, example);
        let checked = transcript(dir.path(), &format!("network check {name}"));
        assert!(checked.starts_with(&format!("{name}: no errors\n")), "{checked}");
        assert!(!checked.contains("warning"), "{checked}");
    }
    let transcripts = blocks("console");
    assert_eq!(transcripts.len(), 3);
    for shown in transcripts {
        let (command, output) = shown.split_once('\n').unwrap();
        let command = command.strip_prefix("$ capsa ").unwrap();
        assert_eq!(transcript(dir.path(), command), output, "{command}");
    }
}

const MISTAKES: &str = r#"
[network]
mode = "policy"
allow-private = true
deny = ["evil.org:443", "*.com:443"]

[[network.allow]]
to = "pypi.org"
because = "packages"

[[network.allow]]
to = "evil.org:443"

[network.limits]
flows = 0
total-bytes = "2 lots"
"#;

#[test]
fn policy_mistakes_name_their_lines() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "vm.toml", MISTAKES);
    let text = transcript(dir.path(), "network check vm.toml");
    for words in [
        "vm.toml:4:17: network.allow-private: the network has a policy",
        "vm.toml:5:25: network.deny[1]: ",
        "vm.toml:8:6: network.allow[0]: ",
        "vm.toml:12:6: network.allow[1]: ",
        "vm.toml:15:9: network.limits.flows: ",
        "vm.toml:16:15: total-bytes: invalid size \"2 lots\": expected e.g. 20MB or 2GiB",
        "[exit 111]",
    ] {
        assert!(text.contains(words), "{words}\n{text}");
    }
}

#[test]
fn policy_flags_report_all_mistakes() {
    if !common::has_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    nano::write_to(dir.path()).unwrap();
    let kernel = dir.path().join("nano.elf");
    let run = |more: &[&str]| {
        let all = ["run", "linux", "--backend", "qemu", "--dry-run", "--kernel"];
        let words = [&all[..], &[kernel.to_str().unwrap()], more].concat();
        ask(dir.path(), &words)
    };
    let (code, _, text) = run(&[
        "--allow",
        "a.org:443",
        "--allow",
        "b.org",
        "--deny",
        "*",
        "--allow-private",
        "--allow-host-port",
        "80",
    ]);
    assert_eq!(code, 111);
    for words in [
        "--allow 2: \"b.org\"",
        "--deny 1: \"*\"",
        "--allow-private: the network has a policy",
        "private:*",
        "--allow-host-port: the network has a policy",
        "host:PORT",
    ] {
        assert!(text.contains(words), "{words}\n{text}");
    }
    for mode in ["nat", "none"] {
        let (code, _, text) = run(&["--network", mode, "--allow", "a.org:443"]);
        assert!(code == 111 && text.contains("--allow 1: the network has no policy"), "{text}");
    }
    let (code, plan, text) =
        run(&["--allow", "a.org:443", "--deny", "b.org:*", "--network-log", "/dev/null"]);
    assert_eq!(code, 0, "{text}");
    for words in [
        "# network policy: allow a.org:443, TLS server name checked\n",
        "# network policy: deny b.org:*\n",
        "# network log: /dev/null\n",
    ] {
        assert!(plan.contains(words), "{words}\n{plan}");
    }
}

#[test]
fn network_explain_status_and_json() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "p.toml", "[[network.allow]]\nto = \"a.org:443\"\n");
    write(dir.path(), "nat.toml", "[network]\nmode = \"nat\"\n");
    assert!(!transcript(dir.path(), "network explain p.toml a.org:443").contains("exit"));
    let json = transcript(dir.path(), "network explain p.toml --json a.org:443 a.org:80");
    let json: Value = serde_json::from_str(json.strip_suffix("[exit 1]\n").unwrap()).unwrap();
    let (first, second) = (&json["verdicts"][0], &json["verdicts"][1]);
    assert_eq!((&first["verdict"], &first["rule"]), (&"allowed".into(), &"a.org:443".into()));
    assert_eq!((&second["verdict"], &second["reason"]), (&"refused".into(), &"port".into()));
    for (command, words) in [
        ("network explain p.toml", "expected a destination"),
        ("network explain p.toml a.org b.org", "\"b.org\""),
        ("network explain nat.toml a.org:443", "has no policy"),
        ("network fly", "expected one of: up NAME"),
    ] {
        let text = transcript(dir.path(), command);
        assert!(text.contains(words) && text.contains("[exit "), "{command}: {text}");
    }
}

#[test]
fn network_suggest_allows_what_was_seen() {
    let dir = tempfile::tempdir().unwrap();
    let line = |event: &str, reason: &str, destination: &str| {
        format!(
            "{{\"event\":\"{event}\",\"reason\":\"{reason}\",\"destination\":\"{destination}\"}}\n"
        )
    };
    let log = [
        line("flow-opened", "no-rule", "pypi.org=151.101.0.223:443"),
        line("flow-opened", "no-rule", "pypi.org=151.101.64.223:443"),
        line("flow-opened", "private-address", "10.1.2.3:22"),
        line("dns-answered", "no-rule", "dns:other.org"),
        line("flow-opened", "no-rule", "self.org=93.184.216.1:80"),
        line("flow-refused", "host-address", "self.org=93.184.216.1:80"),
        line("flow-refused", "special-address", "169.254.169.254:80"),
        line("flow-opened", "own-network", "10.0.2.3:53"),
        "{\"event\":\"flow-op".to_owned(),
    ];
    write(dir.path(), "seen.jsonl", &log.concat());
    let log = dir.path().join("seen.jsonl");
    let (code, policy, stderr) = ask(dir.path(), &["network", "suggest", log.to_str().unwrap()]);
    assert_eq!((code, stderr.contains("warning: 1 lines of ")), (0, true), "{stderr}");
    assert_eq!(policy.matches("[[network.allow]]").count(), 2, "{policy}");
    write(dir.path(), "p.toml", &policy);
    let again = "network explain p.toml pypi.org=151.101.0.223:443 pypi.org:443 10.1.2.3:22";
    let text = transcript(dir.path(), again);
    assert!(!text.contains("refused"), "{text}");
}

#[test]
fn network_set_replaces_the_policy() {
    if !common::has_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("net.jsonl");
    let mut arguments = common::nano_arguments(dir.path(), Nano::default());
    let network = arguments.iter().position(|word| word == "none").unwrap();
    arguments[network] = "nat".into();
    arguments.extend(["--name", "kept", "--network-log"].map(Into::into));
    arguments.push(log.clone().into());
    let run_dir = common::run_dir(dir.path());
    let mut capsa = CapsaProcess::with(dir, &arguments, &run_dir);
    capsa.wait_for(nano::READY);
    capsa.wait_until_listed("kept");
    let mode = |capsa: &CapsaProcess| {
        let (_, json, _) = capsa.ask(&["ps", "--json"]);
        let json: Value = serde_json::from_str(&json).unwrap();
        json["vms"][0]["network_mode"].as_str().unwrap().to_owned()
    };
    assert_eq!(mode(&capsa), "nat");
    write(
        capsa.dir(),
        "p.toml",
        "[network]\nmode = \"record\"\n[[network.allow]]\nto = \"a.org:443\"\n",
    );
    write(capsa.dir(), "bad.toml", "[[network.allow]]\nto = \"a.org\"\n");
    let file = |name: &str| capsa.dir().join(name).to_str().unwrap().to_owned();
    let (bad, good) = (file("bad.toml"), file("p.toml"));
    assert_eq!(capsa.ask(&["network", "set", "kept", &bad]).0, 111);
    assert_eq!(mode(&capsa), "nat");
    let (code, stdout, stderr) = capsa.ask(&["network", "set", "kept", &good]);
    assert_eq!((code, stdout.as_str()), (0, "kept: network policy set\n"), "{stderr}");
    assert_eq!(mode(&capsa), "record");
    let text = fs::read_to_string(&log).unwrap();
    capsa.write(&[nano::POWER_OFF]);
    assert_eq!(capsa.wait_for_end().0, 0);
    let line = text.lines().find(|line| line.contains("policy-changed")).unwrap();
    assert!(line.contains("\"vm\":\"kept\""), "{line}");
}
