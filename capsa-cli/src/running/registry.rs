//! Lists the running VMs of this user, finds one by name or ID, and reserves a name for a new one.
//!
//! A VM is found by its run directory. The lock in there proves that the owner is alive, so a
//! process that has the owner's old process id is never mistaken for it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufReader};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use capsa_io::run_dir::{self, LockTimeout, NameLock, RunDirEntry};
use serde_json::{Value, json};

use super::client;
use super::protocol::{RUN_INFO_FILE, RunInfo, SocketReply, SocketRequest};
use crate::failure::{CONFIG, CliError, NO_VM, START};
use crate::suggest;

/// A VM whose owner is alive.
#[derive(Debug)]
pub(super) struct RunningVm {
    /// The last part of the run directory's path.
    pub(super) id: String,
    pub(super) run_dir: PathBuf,
    /// The owner's process id.
    pub(super) owner: u32,
    /// What its run wrote about itself; `None` where another program than `capsa run` owns it.
    pub(super) info: Option<RunInfo>,
}

impl RunningVm {
    fn new(found: RunDirEntry) -> Self {
        let id = found.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let info = fs::read(found.path.join(RUN_INFO_FILE)).ok();
        let info = info.and_then(|info| serde_json::from_slice(&info).ok());
        Self { id, run_dir: found.path, owner: found.owner, info }
    }

    pub(super) fn name(&self) -> Option<&str> {
        self.info.as_ref()?.name.as_deref()
    }

    /// The name, or the ID of a VM that has none.
    pub(super) fn label(&self) -> &str {
        self.name().unwrap_or(&self.id)
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "name": self.name(),
            "id": self.id,
            "run_dir": self.run_dir,
            "owner": self.owner,
            "backend": self.info.as_ref().map(|info| &info.backend),
            "started": self.info.as_ref().map(|info| info.started),
            "hypervisor": self.info.as_ref().map(|info| info.hypervisor),
            "console": self.info.as_ref().map(|info| info.has_console),
            "status": self.info.as_ref().map(|info| &info.status),
            "disk_errors": self.info.as_ref().map(|info| &info.disk_errors),
            "forwards": self.info.as_ref().map(|info| &info.forwards),
            "services": self.info.as_ref().map(|info| &info.services),
            "link": self.info.as_ref().and_then(|info| info.link),
            "network_mode": self.info.as_ref().map(|info| &info.network_mode),
            "network": self.network_counters(),
        })
    }

    /// What the network counted. `None` if its run does not reply.
    fn network_counters(&self) -> Option<BTreeMap<String, u64>> {
        self.info.as_ref()?;
        client::request(&self.run_dir, &SocketRequest::Counters {}).ok()?.1.counters
    }

    /// Whether its run still answers requests. It does so until the VM has ended and every client
    /// has the final report; the socket of a run that is being killed may exist a moment longer.
    pub(super) fn still_runs(&self) -> bool {
        self.request(&SocketRequest::Console { input: false }).is_ok()
    }

    /// Sends a request to its run, and returns the connection with the reply.
    pub(super) fn request(
        &self,
        request: &SocketRequest,
    ) -> Result<(BufReader<UnixStream>, SocketReply), CliError> {
        let failed = |reason: String| self.not_controlled(&reason);
        if self.info.is_none() {
            return Err(failed("the VM was not started by `capsa run`".into()).hint(format!(
                "process {} owns the VM; use that program to control it",
                self.owner
            )));
        }
        let (stream, reply) = client::request(&self.run_dir, request)
            .map_err(|error| failed(format!("no reply on its control socket: {error}")))?;
        if reply.ok {
            return Ok((stream, reply));
        }
        Err(failed(reply.reason.unwrap_or_else(|| "its run rejected the request".into())))
    }

    /// Waits for the report of a stop that was `accepted`; null for a run that ended without one.
    pub(super) fn await_end(
        &self,
        mut stream: BufReader<UnixStream>,
        accepted: &SocketReply,
    ) -> Result<Value, CliError> {
        let end = client::read_end(&mut stream, accepted).map_err(|error| {
            self.not_controlled(&format!("it has not ended after the request to stop: {error}"))
                .hint(format!("end its owner: kill -9 {}", self.owner))
        });
        Ok(end?.unwrap_or_default())
    }

    fn not_controlled(&self, reason: &str) -> CliError {
        CliError::new(NO_VM, format!("cannot control {}: {reason}", self.label()))
    }
}

/// The running VMs. A VM that was built and waits for its start is not one.
pub(super) fn running_vms() -> Result<Vec<RunningVm>, CliError> {
    let found = run_dirs()?.into_iter().filter(|found| found.is_owned && found.is_started);
    Ok(found.map(RunningVm::new).collect())
}

/// All run directories, those without an owner too.
pub(super) fn run_dirs() -> Result<Vec<RunDirEntry>, CliError> {
    run_dir::list(&run_dir::base()).map_err(|error| run_dir_failure("list run directories", &error))
}

pub(super) fn run_dir_failure(operation: &str, error: &io::Error) -> CliError {
    let failure = CliError::new(CONFIG, format!("cannot {operation}: {error}"));
    if LockTimeout::of(error).is_some() {
        return failure;
    }
    failure.hint("set CAPSA_RUN_DIR as it was when the VMs were started; `capsa doctor` checks it")
}

/// The running VM with this name or ID.
pub(super) fn find(name: &str) -> Result<RunningVm, CliError> {
    let all = running_vms()?;
    let labels: Vec<String> = all.iter().map(|vm| vm.label().to_owned()).collect();
    let is_named = |vm: &RunningVm| vm.name() == Some(name) || vm.id == name;
    let mut matching: Vec<RunningVm> = all.into_iter().filter(is_named).collect();
    match (matching.pop(), matching.len()) {
        (Some(vm), 0) => Ok(vm),
        (Some(_), others) => {
            let what = format!("the name {name:?} is ambiguous: {} VMs have it", others + 1);
            Err(CliError::new(NO_VM, what).hint("use an ID from `capsa ps`"))
        }
        (None, _) => {
            let meant = suggest::did_you_mean(name, labels.iter().map(String::as_str));
            let what = format!("no running VM has the name or ID {name:?}{meant}");
            Err(CliError::new(NO_VM, what).hint("`capsa ps` lists the running VMs"))
        }
    }
}

/// Reserves a name that no running VM has, until the returned lock is dropped. Other runs that want
/// a name wait for the lock. Drop it when a [`ControlServer`](super::ControlServer) has published
/// the name.
pub(crate) fn reserve_name(name: &str) -> Result<NameLock, CliError> {
    let failed = |error| CliError::new(START, format!("cannot reserve the name {name:?}: {error}"));
    let lock = run_dir::lock_names(&run_dir::base()).map_err(failed)?;
    match running_vms()?.iter().find(|vm| vm.name() == Some(name)) {
        None => Ok(lock),
        Some(RunningVm { owner, .. }) => {
            let what =
                format!("cannot run this VM: process {owner} runs a VM with the name {name:?}");
            Err(CliError::new(CONFIG, what).hint(format!(
                "choose another --name, or stop that VM: capsa stop {name}; see `capsa ps`"
            )))
        }
    }
}
