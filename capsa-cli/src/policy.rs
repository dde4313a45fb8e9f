//! `capsa network check`, `explain` and `suggest`: policies without a VM.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use capsa::console::escape_control_line;
use capsa::network::{
    NetworkPolicy, PolicyDestination, PolicyMistake, PolicyRules, PolicyVerdict, VerdictReason,
    suggest,
};
use serde_json::{Value, json};

use crate::check;
use crate::config::{self, ConfigFile};
use crate::failure::{CONFIG, CliError, OK, REFUSED};
use crate::flags::{Arguments, usage};
use crate::json_output;
use crate::print::{print, print_message};
use crate::settings::Settings;

/// `capsa network check FILE`.
pub(crate) fn check(arguments: &Arguments, file: &str) -> Result<u8, CliError> {
    let (settings, _) = read(file)?;
    let policy = settings.network.policy();
    let warnings = policy.as_ref().map(NetworkPolicy::warnings).unwrap_or_default();
    if arguments.settings.options.json {
        let content = json!({"file": file, "problems": [], "warnings": warnings, "policy": policy});
        return print(&json_output::document("network-check", content));
    }
    let mut out = escape_control_line(&format!("{file}: no errors")) + "\n";
    for warning in &warnings {
        let field = format!("network.{}", warning.place);
        let name = settings.name_of(&field);
        let place = match settings.span_of(&field) {
            Some(span) => format!("{}:{}: {name}", span.file, span.line),
            None => name,
        };
        let _ = writeln!(out, "warning: {}: {}", escape_control_line(&place), warning.reason);
    }
    match policy {
        Some(policy) => policy
            .to_string()
            .lines()
            .for_each(|line| out.push_str(&(escape_control_line(line) + "\n"))),
        None => out.push_str("the network has no policy\n"),
    }
    print(&out)
}

/// `capsa network explain FILE DEST…`.
pub(crate) fn explain(
    arguments: &Arguments,
    file: &str,
    wanted: &[String],
) -> Result<u8, CliError> {
    let command = Some(arguments.command);
    if wanted.is_empty() {
        return Err(usage("expected a destination, such as pypi.org:443 or dns:pypi.org", command));
    }
    let mut failure = None;
    let mut destinations = Vec::new();
    for text in wanted {
        match text.parse::<PolicyDestination>() {
            Ok(destination) => destinations.push(destination),
            Err(error) => {
                let what = || CliError::usage("invalid destinations");
                let hint = "write pypi.org:443, udp://9.9.9.9:53, icmp://1.1.1.1, host:8080 or dns:pypi.org";
                failure = Some(failure.unwrap_or_else(what).problem(error.to_string(), hint));
            }
        }
    }
    if let Some(failure) = failure {
        return Err(failure);
    }
    let (_, rules) = rules(file)?;
    let verdicts: Vec<PolicyVerdict> =
        destinations.iter().map(|destination| rules.explain(destination)).collect();
    let word = |verdict: &PolicyVerdict| if verdict.is_allowed { "allowed" } else { "refused" };
    let all = destinations.iter().zip(&verdicts);
    let text = match arguments.settings.options.json {
        true => {
            let all: Vec<Value> = all
                .map(|(destination, verdict)| {
                    let PolicyVerdict { rule, reason, .. } = verdict;
                    json!({
                        "destination": destination.to_string(),
                        "verdict": word(verdict),
                        "rule": rule,
                        "reason": reason,
                    })
                })
                .collect();
            json_output::document("network-explain", json!({"file": file, "verdicts": all}))
        }
        false => all
            .map(|(destination, verdict)| {
                let rule = verdict.rule.iter().map(|rule| format!(" ({rule})")).collect::<String>();
                let (word, reason) = (word(verdict), verdict.reason);
                escape_control_line(&format!("{destination}: {word}: {reason}{rule}")) + "\n"
            })
            .collect(),
    };
    print(&text)?;
    Ok(if verdicts.iter().all(|verdict| verdict.is_allowed) { OK } else { REFUSED })
}

/// `capsa network suggest LOG`: the smallest policy for the flows in a log, as TOML.
pub(crate) fn suggestion(file: &str) -> Result<u8, CliError> {
    let failed = |error: std::io::Error| {
        CliError::new(CONFIG, format!("cannot read {file}: {error}"))
            .hint("name a file that --network-log wrote")
    };
    let lines = BufReader::new(File::open(file).map_err(failed)?).split(b'\n');
    let (mut opened, mut to_host, mut skipped) = (BTreeMap::new(), BTreeSet::new(), 0);
    for line in lines {
        match flow_of(&line.map_err(failed)?) {
            Ok(Some(SeenFlow::Opened(flow))) => _ = opened.insert(flow.to_string(), flow),
            Ok(Some(SeenFlow::ToHost(flow))) => _ = to_host.insert(flow.to_string()),
            Ok(None) => {}
            Err(NoEvent) => skipped += 1,
        }
    }
    // No rule opens these.
    opened.retain(|text, _| !to_host.contains(text));
    let policy = suggest(opened.into_values());
    if skipped > 0 {
        let text = format!("capsa: warning: {skipped} lines of {file} are not network events");
        print_message(&(escape_control_line(&text) + "\n"));
    }
    let (policy, left_out) = without_mistakes(policy);
    for PolicyMistake { reason, remedy, .. } in left_out {
        let text = format!("capsa: warning: left out {reason}; {remedy}");
        print_message(&(escape_control_line(&text) + "\n"));
    }
    let mut out = String::from("[network]\nmode = \"policy\"\n");
    for rule in &policy.allow {
        let _ = write!(out, "\n[[network.allow]]\nto = \"{}\"\n", rule.to);
    }
    print(&out)
}

/// A line that is not an event.
struct NoEvent;

/// A flow in a log.
#[derive(Debug, PartialEq)]
enum SeenFlow {
    Opened(PolicyDestination),
    /// It was refused because its address belongs to the host, maybe after it was opened.
    ToHost(PolicyDestination),
}

/// The flow of a line; `None` for other events, and for the guest's own network.
fn flow_of(line: &[u8]) -> Result<Option<SeenFlow>, NoEvent> {
    if line.is_empty() {
        return Ok(None);
    }
    let event: Value = serde_json::from_slice(line).map_err(|_| NoEvent)?;
    let kind = event["event"].as_str().ok_or(NoEvent)?;
    let is_for = |reason: VerdictReason| {
        serde_json::to_value(reason).is_ok_and(|reason| event["reason"] == reason)
    };
    let make = match kind {
        "flow-opened" if !is_for(VerdictReason::OwnNetwork) => SeenFlow::Opened,
        "flow-refused" if is_for(VerdictReason::HostAddress) => SeenFlow::ToHost,
        _ => return Ok(None),
    };
    let destination = event["destination"].as_str().ok_or(NoEvent)?;
    destination.parse().map(|flow| Some(make(flow))).map_err(|_| NoEvent)
}

/// The rules that a policy can have, and the mistakes of the others.
fn without_mistakes(policy: NetworkPolicy) -> (NetworkPolicy, Vec<PolicyMistake>) {
    let mut mistakes = Vec::new();
    let mut kept = NetworkPolicy::new();
    for rule in policy.allow {
        match PolicyRules::new(&NetworkPolicy::new().allow_rule(rule.clone())) {
            Ok(_) => kept = kept.allow_rule(rule),
            Err(found) => mistakes.extend(found),
        }
    }
    (kept, mistakes)
}

/// The policy of a config file, and its rules.
///
/// # Errors
///
/// When the file has mistakes, or its network has no policy.
pub(crate) fn rules(file: &str) -> Result<(NetworkPolicy, PolicyRules), CliError> {
    let (settings, rules) = read(file)?;
    settings.network.policy().zip(rules).ok_or_else(|| {
        CliError::new(CONFIG, format!("the network of {file} has no policy"))
            .hint("add [network] mode = \"policy\", and [[network.allow]] for each target")
    })
}

/// The settings of a config file and the rules of its policy. Of the rest of the VM only the syntax is
/// checked.
fn read(file: &str) -> Result<(Settings, Option<PolicyRules>), CliError> {
    let path = Path::new(file);
    let ConfigFile { settings, mistakes, is_broken } = config::read(path)?;
    let (rules, problems) = match check::policy_rules(&settings) {
        Ok(rules) => (rules, Vec::new()),
        // It is unknown what the lines that are not TOML were to set.
        Err(_) if is_broken => (None, Vec::new()),
        Err(problems) => (None, problems),
    };
    match CliError::of_file(path, mistakes, check::failure(&settings, None, problems)) {
        Some(failure) => Err(failure),
        None => Ok((settings, rules)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flow_of_line_is_its_destination() {
        let flow = |line: &str| flow_of(line.as_bytes()).ok();
        let line = |event: &str, reason: &str| {
            format!(r#"{{"event":"{event}","reason":"{reason}","destination":"pypi.org:443"}}"#)
        };
        let pypi = || "pypi.org:443".parse().unwrap();
        assert_eq!(flow(&line("flow-opened", "no-rule")), Some(Some(SeenFlow::Opened(pypi()))));
        let closed = flow(&line("flow-refused", "host-address"));
        assert_eq!(closed, Some(Some(SeenFlow::ToHost(pypi()))));
        for other in
            [line("flow-refused", "no-rule"), line("flow-opened", "own-network"), "".into()]
        {
            assert_eq!(flow(&other), Some(None), "{other}");
        }
        for broken in ["{", "[]", r#"{"event":"flow-opened"}"#] {
            assert_eq!(flow(broken), None, "{broken}");
        }
    }
}
