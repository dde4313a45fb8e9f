//! `capsa ps`, `capsa stop` and `capsa gc`: the machines of this user, whoever holds them.
//!
//! A machine is found by its run directory. Its owner holds a lock in there as long as it lives, so
//! that no process which has the owner's number by now is taken for it. Only those that `capsa run`
//! holds have a door ([`crate::session::control`]) and may have a name.

pub(crate) mod attach;

use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use capsa::run_dir::{self, NameLock, RunDirEntry};
use serde_json::{Value, json};

use crate::failure::{CONFIG, Failure, NO_MACHINE, OK, START};
use crate::flags::{Given, usage};
use crate::print::print;
use crate::session::control::{ABOUT, About, Request, SOCKET};
use crate::{envelope, values};

/// A machine that runs.
#[derive(Debug)]
pub(crate) struct Machine {
    /// The last part of its run directory.
    id: String,
    path: PathBuf,
    owner: u32,
    /// What its run tells of it; `None` where another program than `capsa run` holds it.
    about: Option<About>,
}

impl Machine {
    fn new(found: RunDirEntry) -> Self {
        let id = found.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let about = fs::read(found.path.join(ABOUT)).ok();
        let about = about.and_then(|about| serde_json::from_slice(&about).ok());
        Self { id, path: found.path, owner: found.owner, about }
    }

    fn name(&self) -> Option<&str> {
        self.about.as_ref()?.name.as_deref()
    }

    /// Whatever people would call it.
    pub(crate) fn called(&self) -> &str {
        self.name().unwrap_or(&self.id)
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name(),
            "id": self.id,
            "run_dir": self.path,
            "owner": self.owner,
            "backend": self.about.as_ref().map(|about| &about.backend),
            "started": self.about.as_ref().map(|about| about.started),
            "hypervisor": self.about.as_ref().map(|about| about.hypervisor),
            "console": self.about.as_ref().map(|about| about.has_console),
        })
    }

    /// Whether its run still answers. It does so until it has told everybody of the end; the door of one
    /// that is being killed may stand open a moment longer.
    pub(crate) fn still_runs(&self) -> bool {
        self.ask(&Request::Console { r#type: false }).is_ok()
    }

    /// Asks its run for something, and gives the connection with the answer.
    pub(crate) fn ask(&self, request: &Request) -> Result<(BufReader<UnixStream>, Value), Failure> {
        let called = self.called();
        let cannot =
            |why: String| Failure::new(NO_MACHINE, format!("cannot reach {called}: {why}"));
        if self.about.is_none() {
            let owner = self.owner;
            return Err(cannot("no `capsa run` holds it".into())
                .hint(format!("it belongs to process {owner}, which may offer a way to stop it")));
        }
        let asked = (|| {
            let mut stream = UnixStream::connect(self.path.join(SOCKET))?;
            stream.write_all(format!("{}\n", serde_json::to_string(request)?).as_bytes())?;
            let mut stream = BufReader::new(stream);
            let mut answer = String::new();
            stream.read_line(&mut answer)?;
            Ok((stream, serde_json::from_str::<Value>(&answer)?))
        })();
        let (stream, answer) = asked.map_err(|error: io::Error| cannot(error.to_string()))?;
        match answer["ok"].as_bool() {
            Some(true) => Ok((stream, answer)),
            _ => Err(cannot(answer["why"].as_str().unwrap_or("it refused").to_owned())),
        }
    }
}

/// The machines that run.
fn all() -> Result<Vec<Machine>, Failure> {
    let found = found()?.into_iter().filter(|found| found.is_owned);
    Ok(found.map(Machine::new).collect())
}

fn found() -> Result<Vec<RunDirEntry>, Failure> {
    run_dir::list(&run_dir::base()).map_err(|error| cannot_look("look for machines", &error))
}

fn cannot_look(do_what: &str, error: &io::Error) -> Failure {
    Failure::new(CONFIG, format!("cannot {do_what}: {error}"))
        .hint("set CAPSA_RUN_DIR as it was for the machines; `capsa doctor` tells more")
}

/// The machine with this name, or this id.
pub(crate) fn named(name: &str) -> Result<Machine, Failure> {
    let all = all()?;
    let known: Vec<String> = all.iter().map(|machine| machine.called().to_owned()).collect();
    let mut those: Vec<Machine> = all
        .into_iter()
        .filter(|machine| machine.name() == Some(name) || machine.id == name)
        .collect();
    match (those.pop(), those.len()) {
        (Some(machine), 0) => Ok(machine),
        (Some(_), _) => {
            Err(Failure::new(NO_MACHINE, format!("several machines are called {name}"))
                .hint("use its ID, see `capsa ps`"))
        }
        (None, _) => {
            let meant = crate::near::hint(name, known.iter().map(String::as_str));
            let failure = Failure::new(NO_MACHINE, format!("no machine is called {name:?}{meant}"));
            Err(failure.hint("see `capsa ps`"))
        }
    }
}

/// Takes a name that no machine has. It is taken once a [`crate::session::control`] has begun; until then
/// the value is to be held, and whoever else wants a name waits.
pub(crate) fn take_name(name: &str) -> Result<NameLock, Failure> {
    let cannot = |error| Failure::new(START, format!("cannot name this machine: {error}"));
    let turn = run_dir::lock_names(&run_dir::base()).map_err(cannot)?;
    match all()?.iter().find(|machine| machine.name() == Some(name)) {
        None => Ok(turn),
        Some(Machine { owner, .. }) => {
            let what =
                format!("cannot run this machine: another is called {name}, of process {owner}");
            Err(Failure::new(CONFIG, what).hint(format!(
                "give it another --name, or end that one: capsa stop {name}; see `capsa ps`"
            )))
        }
    }
}

/// `capsa ps`.
pub(crate) fn ps(json: bool) -> Result<u8, Failure> {
    let all = all()?;
    if json {
        let machines: Vec<Value> = all.iter().map(Machine::json).collect();
        return print(&envelope::document("ps", json!({"machines": machines})));
    }
    let mut rows = vec![["NAME", "ID", "BACKEND", "OWNER", "SINCE", "CONSOLE"].map(String::from)];
    for machine in &all {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        let about = machine.about.as_ref();
        rows.push([
            or_none(machine.name().map(String::from)),
            machine.id.clone(),
            or_none(about.map(|about| about.backend.clone())),
            machine.owner.to_string(),
            or_none(about.map(|about| since(about.started))),
            or_none(about.map(|about| if about.has_console { "yes" } else { "no" }.into())),
        ]);
    }
    print(&columns(&rows))
}

/// `capsa stop`.
pub(crate) fn stop(given: &Given) -> Result<u8, Failure> {
    let command = Some(given.command);
    let grace = given.one("--grace", values::duration)?;
    let request = match (given.has("--kill"), grace) {
        (true, Some(_)) => return Err(usage("--kill gives no --grace", command)),
        (true, None) => Request::Kill {},
        (false, grace) => Request::Stop { grace: grace.map(|grace| grace.as_secs_f64()) },
    };
    let machines = match (given.has("--all"), given.operands.is_empty()) {
        (true, true) => all()?.into_iter().filter(|machine| machine.about.is_some()).collect(),
        (true, false) => return Err(usage("--all needs no names", command)),
        (false, true) => return Err(usage("no machine is named", command)),
        (false, false) => {
            given.operands.iter().map(|name| named(name)).collect::<Result<Vec<_>, _>>()?
        }
    };
    // All are asked before one is waited for.
    let asked: Vec<_> = machines.iter().map(|machine| (machine, machine.ask(&request))).collect();
    let (mut told, mut failed) = (Vec::new(), None);
    for (machine, asked) in asked {
        let (mut stream, _) = match asked {
            Ok(answer) => answer,
            Err(failure) => {
                failed = Some(failure);
                continue;
            }
        };
        let mut last = String::new();
        let _ = stream.read_line(&mut last);
        // A run that was killed tells nothing, and its machine is gone with it.
        let end: Value = serde_json::from_str(&last).unwrap_or(Value::Null);
        let report = end["report"].as_str().unwrap_or("its run ended");
        match given.has("--json") {
            true => told.push(json!({"name": machine.name(), "id": machine.id, "end": end})),
            false => drop(print(&format!("{}: {report}\n", machine.called()))?),
        }
    }
    if given.has("--json") {
        print(&envelope::document("stop", json!({"machines": told})))?;
    }
    failed.map_or(Ok(OK), Err)
}

/// `capsa gc`.
pub(crate) fn gc(given: &Given) -> Result<u8, Failure> {
    let base = run_dir::base();
    let dry = given.has("--dry-run");
    let swept: Vec<(PathBuf, Vec<u32>)> = if dry {
        let left = found()?.into_iter().filter(|found| !found.is_owned);
        left.map(|found| (found.path, found.children)).collect()
    } else {
        let swept = run_dir::sweep(&base).map_err(|error| cannot_look("sweep", &error))?;
        swept.into_iter().map(|swept| (swept.path, swept.killed)).collect()
    };
    if given.has("--json") {
        let swept: Vec<Value> =
            swept.iter().map(|(path, killed)| json!({"run_dir": path, "killed": killed})).collect();
        return print(&envelope::document("gc", json!({"dry_run": dry, "removed": swept})));
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

/// How long ago, in its two largest units.
fn since(started: u64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = now.as_secs().saturating_sub(started);
    let text = humantime::format_duration(Duration::from_secs(seconds)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |n: usize| rows.iter().map(|row| row[n].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut out = String::new();
    for row in rows {
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
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows =
            [["NAME", "ID"], ["a-long-name", "1"], ["b", "2"]].map(|row| row.map(String::from));
        assert_eq!(columns(&rows), "NAME         ID\na-long-name  1\nb            2\n");
    }

    #[test]
    fn a_time_since_has_two_units() {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(since(now - 90_061), "1day 1h");
        assert_eq!(since(now + 100), "0s");
    }
}
