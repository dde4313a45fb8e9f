//! The backends, and how one of them is chosen.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use capsa_chv::CloudHypervisor;
use capsa_io::probe::{self, Programs};
use capsa_io::{ephemeral, facts, run_dir};
use capsa_proto::backend::{Availability, HypervisorBackend, ProbePlan, ProbeReport};
use capsa_proto::capabilities::{
    BackendCapabilities, ValidatedSpec, Violation, ViolationKind, validate,
};
use capsa_proto::host::{HostFacts, Os, Reason};
use capsa_proto::path::HostPath;
use capsa_proto::plan::{AgentProgram, LaunchPlan, OverlayPlan, RunDirPlan};
use capsa_proto::spec::{Accelerator, GuestOs, VmSpec};
use capsa_qemu::Qemu;
use capsa_vfkit::Vfkit;
use serde::Serialize;

use crate::error::run_dir_violation;
use crate::{Error, Result};

/// Forces a backend if the program does not.
const FORCE: &str = "CAPSA_BACKEND";

/// A rejected backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Rejection {
    /// The name of the backend.
    pub backend: &'static str,
    /// All its blockers or violations.
    pub reasons: Vec<Reason>,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reasons: Vec<_> = self.reasons.iter().map(ToString::to_string).collect();
        write!(f, "{}: {}", self.backend, reasons.join("; "))
    }
}

/// What a backend supports, and whether it can be used on this host.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct BackendReport {
    /// The name of the backend.
    pub name: &'static str,
    /// Whether it exists for this OS.
    pub supports_os: bool,
    /// Blockers, missing features and warnings on this host.
    #[serde(flatten)]
    pub availability: Availability,
    /// What the backend supports.
    pub capabilities: BackendCapabilities,
    /// The helper programs that some VMs need, whether or not they are installed.
    pub helpers: Vec<HelperReport>,
}

/// A helper program of a hypervisor; it serves shares, the network or vsock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HelperReport {
    /// The name of the program.
    pub name: &'static str,
    /// Its path; `None` when it was not found.
    pub program: Option<String>,
    /// The version it reports; `None` when the probe failed.
    pub version: Option<String>,
}

/// Reports on all backends, in the order in which they are tried on this host.
///
/// Probes the programs it finds: blocks for about 100 ms the first time.
pub fn backends() -> Vec<BackendReport> {
    // The directory does not matter: no VM is planned.
    let host = facts::host_facts(None, HostPath::new("/").expect("a path"));
    in_order(host.os)
        .into_iter()
        .map(|backend| {
            let plan = backend.probe(host.arch, None);
            let found = probe::ask(&plan, &Programs::new());
            BackendReport {
                name: backend.name(),
                supports_os: backend.supports_os(host.os),
                availability: backend.availability(&host, &found),
                capabilities: backend.capabilities().clone(),
                helpers: helpers(backend.name(), &plan, &found),
            }
        })
        .collect()
}

/// The probe results of helper programs. The first probe of each program is for its version.
fn helpers(backend: &str, plan: &ProbePlan, found: &ProbeReport) -> Vec<HelperReport> {
    let mut helpers: Vec<HelperReport> = Vec::new();
    for probe in plan.probes.iter().filter(|probe| probe.program != backend) {
        let name = probe.program;
        if helpers.iter().any(|helper| helper.name == name) {
            continue;
        }
        // A probe of a program's options does not contain its version.
        let line = found.output(probe.key).and_then(|output| output.lines().next());
        let line = line.filter(|line| !line.starts_with("Usage"));
        let version = line.map(|line| line.strip_prefix(name).unwrap_or(line).trim().to_owned());
        helpers.push(HelperReport { name, program: found.found(probe.key), version });
    }
    helpers
}

/// A VM spec that was checked and planned.
pub(crate) struct Planned {
    pub(crate) backend: Arc<dyn HypervisorBackend>,
    pub(crate) plan: LaunchPlan,
    /// The backends tried before this one, with the reasons for the rejection.
    pub(crate) rejected: Vec<Rejection>,
}

/// Whether the plan must be usable on this host.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strictness {
    /// The VM will run on this host.
    Run,
    /// The plan is only shown: a forced backend may be unusable on this host.
    DryRun,
}

/// The builder's settings for the choice of a backend.
#[derive(Debug, Clone, Default)]
pub(crate) struct BackendChoice {
    /// The forced backend.
    pub(crate) backend: Option<String>,
    /// Programs to use instead of a search.
    pub(crate) programs: Programs,
    /// Use the forced backend even if it has blockers.
    pub(crate) trusted: bool,
}

/// Chooses a backend and plans the VM. Blocks: inspects files and probes programs.
pub(crate) fn plan(spec: VmSpec, choice: &BackendChoice, strict: Strictness) -> Result<Planned> {
    let mut host = facts::host_facts(Some(&spec), planned_run_dir()?);
    host.agent = agent_program();
    check_names(&choice.programs, &host)?;
    let variable = std::env::var(FORCE).ok().filter(|name| !name.is_empty());
    let ephemeral = spec.disks.iter().position(|disk| disk.ephemeral);
    let planned = match choice.backend.clone().or(variable) {
        Some(name) => plan_on(&name, spec, &host, choice, strict),
        None => plan_on_first(spec, &host, choice),
    }?;
    match strict {
        Strictness::Run => check_directories(&planned.plan, ephemeral)?,
        Strictness::DryRun => {}
    }
    Ok(planned)
}

/// The guest agent of this build.
fn agent_program() -> std::result::Result<AgentProgram, &'static str> {
    let program = Err("the feature `agent` of Capsa is off");
    #[cfg(feature = "agent")]
    let program = program.or_else(|_: &str| capsa_agent::program().map(AgentProgram));
    program
}

/// Rejects a VM whose run directory or overlays could not be created. Creates the base directory of
/// run directories if it is missing, and waits for no lock.
fn check_directories(plan: &LaunchPlan, ephemeral: Option<usize>) -> Result<()> {
    let mut violations = Vec::new();
    let base = Path::new(plan.run_dir.as_str()).parent();
    if let Some(Err(why)) = base.map(run_dir::prepare) {
        violations.push(run_dir_violation(&why));
    }
    // QEMU creates its own overlays in the directory that Capsa uses for those of other backends. A
    // clone is in the run directory.
    let is_cloned = plan.overlays.iter().any(|o| matches!(o, OverlayPlan::Clone { .. }));
    if let Some(n) = ephemeral.filter(|_| !is_cloned)
        && let Err(why) = ephemeral::check()
    {
        let (field, kind) = (format!("disks[{n}].ephemeral"), ViolationKind::NoAccess);
        let remedy = "set TMPDIR to a directory with room for what the guest writes";
        violations.push(Violation::new(field, kind, why.to_string(), remedy));
    }
    if violations.is_empty() { Ok(()) } else { Err(Error::from_violations(violations)) }
}

/// Rejects paths of programs that no backend uses.
fn check_names(programs: &Programs, host: &HostFacts) -> Result<()> {
    let plans = in_order(host.os).into_iter().map(|backend| backend.probe(host.arch, None));
    let known: BTreeSet<_> =
        plans.flat_map(|plan| plan.probes).map(|probe| probe.program).collect();
    let unknown = programs.keys().filter(|name| !known.contains(name.as_str()));
    let names = || known.iter().copied().collect::<Vec<_>>().join(", ");
    let violations: Vec<_> = unknown
        .map(|name| {
            let reason = format!("unknown program {name:?}: no backend uses it");
            let remedy = format!("use one of {}", names());
            Violation::new(format!("programs.{name}"), ViolationKind::Unsupported, reason, remedy)
        })
        .collect();
    if violations.is_empty() { Ok(()) } else { Err(Error::from_violations(violations)) }
}

fn plan_on(
    name: &str,
    spec: VmSpec,
    host: &HostFacts,
    choice: &BackendChoice,
    strict: Strictness,
) -> Result<Planned> {
    let all = in_order(host.os);
    let Some(backend) = all.iter().find(|b| b.name() == name) else {
        let names: Vec<_> = all.iter().map(|b| b.name()).collect();
        let names = match names.split_last() {
            Some((last, others)) if !others.is_empty() => {
                format!("{} or {last}", others.join(", "))
            }
            _ => names.concat(),
        };
        let reason = Reason::new("unknown backend", format!("use {names}"));
        return Err(Error::BackendUnavailable { name: name.into(), reasons: vec![reason] });
    };
    let (found, availability) = look(backend.as_ref(), &spec, host, choice);
    let must_be_usable = strict == Strictness::Run && !choice.trusted;
    if must_be_usable && !availability.is_usable() {
        let reasons = availability.blockers;
        return Err(Error::BackendUnavailable { name: name.into(), reasons });
    }
    let checked = checked(backend.as_ref(), spec, host, &found)?;
    let plan = planned(backend.as_ref(), &checked, host, &found);
    Ok(Planned { backend: Arc::clone(backend), plan, rejected: Vec::new() })
}

fn checked(
    backend: &dyn HypervisorBackend,
    spec: VmSpec,
    host: &HostFacts,
    found: &ProbeReport,
) -> Result<ValidatedSpec> {
    if !backend.capabilities().guest_os.linux {
        return Err(Error::UnsupportedGuestOs(GuestOs::Linux));
    }
    validate(spec, backend, host, found).map_err(Error::from_violations)
}

/// Plans on the first backend that is usable here and supports the spec.
fn plan_on_first(spec: VmSpec, host: &HostFacts, choice: &BackendChoice) -> Result<Planned> {
    let mut rejected = Vec::new();
    let mut closest: Option<Vec<Violation>> = None;
    for backend in in_order(host.os) {
        let (found, availability) = look(backend.as_ref(), &spec, host, choice);
        if !availability.is_usable() {
            let reasons = availability.blockers;
            rejected.push(Rejection { backend: backend.name(), reasons });
            continue;
        }
        match validate(spec.clone(), backend.as_ref(), host, &found) {
            Ok(checked) => {
                let plan = planned(backend.as_ref(), &checked, host, &found);
                return Ok(Planned { backend, plan, rejected });
            }
            Err(violations) => {
                let reasons =
                    violations.iter().map(|v| Reason::new(v.reason.clone(), v.remedy.clone()));
                rejected.push(Rejection { backend: backend.name(), reasons: reasons.collect() });
                // Report the violations of the backend that has the fewest.
                if closest.as_ref().is_none_or(|least| violations.len() < least.len()) {
                    closest = Some(violations);
                }
            }
        }
    }
    Err(match closest {
        Some(violations) => Error::from_violations(violations),
        None => Error::NoBackendAvailable { rejected },
    })
}

fn look(
    backend: &dyn HypervisorBackend,
    spec: &VmSpec,
    host: &HostFacts,
    choice: &BackendChoice,
) -> (ProbeReport, Availability) {
    let found = probe::ask(&backend.probe(host.arch, Some(spec)), &choice.programs);
    let mut host = host.clone();
    if spec.accelerator == Accelerator::Kvm {
        // A forced accelerator skips the check of the CPU flag; the plan carries a warning.
        host.kvm.cpu_flag = true;
    }
    let availability = backend.availability(&host, &found);
    (found, availability)
}

fn planned(
    backend: &dyn HypervisorBackend,
    checked: &ValidatedSpec,
    host: &HostFacts,
    found: &ProbeReport,
) -> LaunchPlan {
    backend.plan(checked, &RunDirPlan::new(host.run_dir.clone()), host, found)
}

/// All backends: those of this OS, then QEMU, then those of other systems.
fn in_order(os: Os) -> Vec<Arc<dyn HypervisorBackend>> {
    let qemu: Arc<dyn HypervisorBackend> = Arc::new(Qemu::new());
    let chv: Arc<dyn HypervisorBackend> = Arc::new(CloudHypervisor::new());
    let vfkit: Arc<dyn HypervisorBackend> = Arc::new(Vfkit::new());
    match os {
        Os::Linux => vec![chv, qemu, vfkit],
        Os::MacOs => vec![vfkit, qemu, chv],
        _ => vec![qemu, chv, vfkit],
    }
}

/// The run directory for the next VM.
pub(crate) fn planned_run_dir() -> Result<HostPath> {
    let path = run_dir::fresh_path();
    let absolute = std::path::absolute(&path).unwrap_or_else(|_| path.clone());
    let text = absolute.into_os_string().into_string().ok();
    text.and_then(|text| HostPath::new(text).ok()).ok_or_else(|| {
        Error::from_violations(vec![Violation::new(
            "run_dir",
            ViolationKind::Malformed,
            format!("{path:?} is not UTF-8"),
            "set CAPSA_RUN_DIR to another directory: control channels carry paths as JSON text",
        )])
    })
}
