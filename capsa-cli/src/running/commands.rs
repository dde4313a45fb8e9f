//! `capsa ps`, `capsa stop`, `capsa pause`, `capsa resume`, `capsa network` and `capsa gc`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use capsa::internal::escape_control_line;
use capsa_io::run_dir;
use serde_json::{Value, json};

use super::protocol::{RunInfo, SocketRequest};
use super::registry::{self, RunningVm};
use crate::commands::Subcommand;
use crate::failure::{CliError, OK};
use crate::flags::{Arguments, usage};
use crate::json_output;
use crate::print::print;

/// `capsa ps`: lists the running VMs.
pub(crate) fn ps(json: bool) -> Result<u8, CliError> {
    let all = registry::running_vms()?;
    if json {
        let vms: Vec<Value> = all.iter().map(RunningVm::json).collect();
        return print(&json_output::document("ps", json!({"vms": vms})));
    }
    let mut rows = vec![
        ["NAME", "ID", "BACKEND", "OWNER", "SINCE", "CONSOLE", "FORWARDS", "STATUS"]
            .map(String::from),
    ];
    for vm in &all {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        let info = vm.info.as_ref();
        rows.push([
            or_none(vm.name().map(String::from)),
            vm.id.clone(),
            or_none(info.map(|info| info.backend.clone())),
            vm.owner.to_string(),
            or_none(info.map(|info| since(info.started))),
            or_none(info.map(|info| if info.has_console { "yes" } else { "no" }.into())),
            or_none(info.map(|info| info.forwards.join(",")).filter(|text| !text.is_empty())),
            or_none(info.map(RunInfo::status_and_errors)),
        ]);
    }
    print(&columns(&rows))
}

/// `capsa stop`: stops VMs and waits until they have ended.
pub(crate) fn stop(arguments: &Arguments) -> Result<u8, CliError> {
    let command = Some(arguments.command);
    let options = &arguments.settings.options;
    let request = match (options.kill, arguments.settings.grace) {
        (true, Some(_)) => return Err(usage("--kill cannot be used with --grace", command)),
        (true, None) => SocketRequest::Kill {},
        (false, grace) => SocketRequest::Stop { grace: grace.map(|grace| grace.as_secs_f64()) },
    };
    let vms = match (options.all, arguments.operands.is_empty()) {
        (true, true) => {
            registry::running_vms()?.into_iter().filter(|vm| vm.info.is_some()).collect()
        }
        (true, false) => return Err(usage("--all cannot be used with names", command)),
        (false, true) => return Err(usage("missing the name or ID of a VM", command)),
        (false, false) => arguments
            .operands
            .iter()
            .map(|name| registry::find(name))
            .collect::<Result<Vec<_>, _>>()?,
    };
    // All VMs get the request before this waits for the first of them.
    let requested: Vec<_> = vms.iter().map(|vm| (vm, vm.request(&request))).collect();
    let (mut stopped, mut failed) = (Vec::new(), None);
    for (vm, requested) in requested {
        let end = requested.and_then(|(stream, accepted)| vm.await_end(stream, &accepted));
        let end = match end {
            Ok(end) => end,
            Err(failure) => {
                failed = Some(failure);
                continue;
            }
        };
        let report = end["report"].as_str().unwrap_or("ended without a report");
        match arguments.settings.options.json {
            true => stopped.push(json!({"name": vm.name(), "id": vm.id, "end": end})),
            false => drop(print_end(vm, report)?),
        }
    }
    if arguments.settings.options.json {
        print(&json_output::document("stop", json!({"vms": stopped})))?;
    }
    failed.map_or(Ok(OK), Err)
}

/// `capsa pause` and `capsa resume`: wait until the guest is paused or runs.
pub(crate) fn pause(arguments: &Arguments) -> Result<u8, CliError> {
    let Some(name) = arguments.operands.first() else {
        return Err(usage("missing the name or ID of a VM", Some(arguments.command)));
    };
    let (request, status) = match arguments.command {
        Subcommand::Resume => (SocketRequest::Resume {}, "running"),
        _ => (SocketRequest::Pause {}, "paused"),
    };
    let vm = registry::find(name)?;
    vm.request(&request)?;
    print_end(&vm, status)
}

/// `capsa network up` and `down`: takes the link of a VM's network up or down.
pub(crate) fn set_link(name: &str, state: &str) -> Result<u8, CliError> {
    let vm = registry::find(name)?;
    vm.request(&SocketRequest::Link { up: state == "up" })?;
    print_end(&vm, &format!("network {state}"))
}

/// `capsa network set`: replaces the policy of a VM's network by that of a config file.
pub(crate) fn set_policy(name: &str, file: &str) -> Result<u8, CliError> {
    let (policy, _) = crate::policy::rules(file)?;
    let vm = registry::find(name)?;
    vm.request(&SocketRequest::Policy { policy })?;
    print_end(&vm, "network policy set")
}

/// Prints how a request ended. A hypervisor can write to the run directory, so that the texts may have
/// control characters.
fn print_end(vm: &RunningVm, end: &str) -> Result<u8, CliError> {
    print(&(escape_control_line(&format!("{}: {end}", vm.label())) + "\n"))
}

/// `capsa gc`: removes run directories whose owner has died, and kills processes left of it.
pub(crate) fn gc(arguments: &Arguments) -> Result<u8, CliError> {
    let base = run_dir::base();
    let dry = arguments.settings.options.dry_run;
    let swept: Vec<(PathBuf, Vec<u32>)> = if dry {
        let left = registry::run_dirs()?.into_iter().filter(|found| !found.is_owned);
        left.map(|found| (found.path, found.children)).collect()
    } else {
        let swept = run_dir::sweep(&base)
            .map_err(|error| registry::run_dir_failure("remove run directories", &error))?;
        swept.into_iter().map(|swept| (swept.path, swept.killed)).collect()
    };
    if arguments.settings.options.json {
        let swept: Vec<Value> =
            swept.iter().map(|(path, killed)| json!({"run_dir": path, "killed": killed})).collect();
        return print(&json_output::document("gc", json!({"dry_run": dry, "removed": swept})));
    }
    let mut out = String::new();
    for (path, killed) in &swept {
        let (remove, kill) = if dry { ("would remove", "kill") } else { ("removed", "killed") };
        let _ = write!(out, "{remove} {}", path.display());
        if !killed.is_empty() {
            let killed: Vec<String> = killed.iter().map(ToString::to_string).collect();
            let _ = write!(out, ", {kill} {}", killed.join(" "));
        }
        out.push('\n');
    }
    if swept.is_empty() {
        let _ = writeln!(out, "nothing to remove in {}", base.display());
    }
    print(&out)
}

/// The time since then, in its two largest units.
fn since(started: u64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = now.as_secs().saturating_sub(started);
    let text = humantime::format_duration(Duration::from_secs(seconds)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let rows = rows.iter().map(|row| row.each_ref().map(|cell| escape_control_line(cell)));
    let rows: Vec<[String; N]> = rows.collect();
    let width = |n: usize| rows.iter().map(|row| row[n].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_have_the_width_of_their_widest_cell() {
        let rows =
            [["NAME", "ID"], ["a-long-name", "1"], ["b", "2"]].map(|row| row.map(String::from));
        assert_eq!(columns(&rows), "NAME         ID\na-long-name  1\nb            2\n");
    }

    #[test]
    fn columns_escape_control_characters() {
        let rows = [["a\u{1b}]0;title\u{7}", "b\nc"].map(String::from)];
        assert_eq!(columns(&rows), "a\\u{1b}]0;title\\u{7}  b\\nc\n");
    }

    #[test]
    fn since_has_two_units() {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(since(now - 90_061), "1day 1h");
        assert_eq!(since(now + 100), "0s");
    }
}
