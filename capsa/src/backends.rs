//! The backends, and the choice between them.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use capsa_chv::CloudHypervisor;
use capsa_io::probe::{self, Programs};
use capsa_io::{ephemeral, facts, run_dir};
use capsa_proto::backend::{Availability, HypervisorBackend, ProbePlan, ProbeReport};
use capsa_proto::capabilities::{BackendCapabilities, Checked, Violation, ViolationKind, check};
use capsa_proto::host::{HostFacts, Os, Reason};
use capsa_proto::path::HostPath;
use capsa_proto::plan::{LaunchPlan, OverlayPlan, RunDirPlan};
use capsa_proto::sim::{self, SimulatedGuest};
use capsa_proto::spec::{Accelerator, ConsoleMode, GuestOs, RebootPolicy, VmSpec};
use capsa_qemu::Qemu;
use capsa_vfkit::Vfkit;
use serde::Serialize;

use crate::{Error, Result};

/// Forces a backend where the program does not.
const FORCE: &str = "CAPSA_BACKEND";

/// A backend and everything against it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rejection {
    /// Its name.
    pub backend: &'static str,
    /// Everything against it.
    pub reasons: Vec<Reason>,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reasons: Vec<_> = self.reasons.iter().map(ToString::to_string).collect();
        write!(f, "{}: {}", self.backend, reasons.join("; "))
    }
}

/// What one backend can do, and whether it can do it here.
#[derive(Debug, Clone, Serialize)]
pub struct BackendReport {
    /// Its name.
    pub name: &'static str,
    /// Whether it can be used here, and if not why.
    #[serde(flatten)]
    pub availability: Availability,
    /// What it can do.
    pub capabilities: BackendCapabilities,
    /// The programs beside the hypervisor that some machines need, whether or not they are here.
    pub helpers: Vec<HelperReport>,
}

/// A program beside a hypervisor: what serves its shares, its network, its sockets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HelperReport {
    /// Its name.
    pub name: &'static str,
    /// Where it is; `None` where it was not found.
    pub program: Option<String>,
    /// What it says of its version; `None` where it does not answer.
    pub version: Option<String>,
}

/// Every backend in the order in which they are tried on this host.
///
/// Runs the programs it finds, to ask their versions: blocks for some 100 ms the first time.
pub fn backends() -> Vec<BackendReport> {
    // Where machines would have their directories says nothing of a backend.
    let host = facts::host_facts(None, HostPath::new("/").expect("a path"));
    in_order(host.os)
        .into_iter()
        .map(|backend| {
            let plan = backend.probe(host.arch, None);
            let found = probe::ask(&plan, &Programs::new());
            BackendReport {
                name: backend.name(),
                availability: backend.availability(&host, &found),
                capabilities: backend.capabilities().clone(),
                helpers: helpers(backend.name(), &plan, &found),
            }
        })
        .collect()
}

/// What was found of the programs that a backend asks for beside its own. The first question to each
/// is the one for its version.
fn helpers(backend: &str, plan: &ProbePlan, found: &ProbeReport) -> Vec<HelperReport> {
    let mut helpers: Vec<HelperReport> = Vec::new();
    for probe in plan.probes.iter().filter(|probe| probe.program != backend) {
        let name = probe.program;
        if helpers.iter().any(|helper| helper.name == name) {
            continue;
        }
        // One that was asked for its options says nothing of its version.
        let line = found.output(probe.key).and_then(|said| said.lines().next());
        let line = line.filter(|line| !line.starts_with("Usage"));
        let version = line.map(|line| line.strip_prefix(name).unwrap_or(line).trim().to_owned());
        helpers.push(HelperReport { name, program: found.found(probe.key), version });
    }
    helpers
}

/// A machine that was checked and planned.
pub(crate) struct Planned {
    pub(crate) backend: Arc<dyn HypervisorBackend>,
    pub(crate) plan: LaunchPlan,
    /// The backends tried before this one, and why they were not taken.
    pub(crate) rejected: Vec<Rejection>,
    /// What plays the guest instead of a hypervisor.
    pub(crate) simulated: Option<SimulatedGuest>,
}

/// How strict a planning is about what is on this host.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strictness {
    /// The machine is to run here.
    Run,
    /// The plan is only to be seen: a forced backend need not be usable here.
    DryRun,
}

/// What is said about the choice of a backend, beside the machine itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct BackendChoice {
    /// This one or none.
    pub(crate) backend: Option<String>,
    /// Programs to use instead of a search.
    pub(crate) programs: Programs,
    /// The backend that was named is taken whatever speaks against it here.
    pub(crate) trusted: bool,
}

/// Chooses a backend and plans the machine. Looks at files and runs programs: blocks.
pub(crate) fn plan(spec: VmSpec, choice: &BackendChoice, strict: Strictness) -> Result<Planned> {
    let host = facts::host_facts(Some(&spec), planned_run_dir()?);
    check_names(&choice.programs, &host)?;
    let variable = std::env::var(FORCE).ok().filter(|name| !name.is_empty());
    let ephemeral = spec.disks.iter().position(|disk| disk.ephemeral);
    let planned = match choice.backend.clone().or(variable) {
        Some(name) => plan_on(&name, spec, &host, choice, strict),
        None => plan_on_first(spec, &host, choice),
    }?;
    match strict {
        Strictness::Run => try_places(&planned.plan, ephemeral)?,
        Strictness::DryRun => {}
    }
    Ok(planned)
}

/// Refuses a machine whose own files could not be made. Its run directory's is made on the way, if
/// need be, as the start would.
fn try_places(plan: &LaunchPlan, ephemeral: Option<usize>) -> Result<()> {
    let mut violations = Vec::new();
    let mut refuse = |field: String, why: std::io::Error, remedy| {
        let kind = ViolationKind::NoAccess;
        violations.push(Violation::new(field, kind, why.to_string(), remedy));
    };
    let base = Path::new(plan.run_dir.as_str()).parent();
    if let Some(Err(why)) = base.map(run_dir::prepare) {
        let remedy = "set CAPSA_RUN_DIR to a directory that is yours alone, or can be made";
        refuse("run_dir".into(), why, remedy);
    }
    // QEMU makes its overlays by itself, where we make those of others. A clone is in the run directory.
    let is_cloned = plan.overlays.iter().any(|o| matches!(o, OverlayPlan::Clone { .. }));
    if let Some(n) = ephemeral.filter(|_| !is_cloned)
        && let Err(why) = ephemeral::check()
    {
        let remedy = "set TMPDIR to a directory with room for what the guest writes";
        refuse(format!("disks[{n}].ephemeral"), why, remedy);
    }
    if violations.is_empty() { Ok(()) } else { Err(Error::from_violations(violations)) }
}

/// Plans a machine that is played. Looks at nothing.
pub(crate) fn plan_simulated(
    simulated: SimulatedGuest,
    console: ConsoleMode,
    on_reboot: RebootPolicy,
    time_limit: Option<Duration>,
) -> Result<Planned> {
    let at = RunDirPlan::new(planned_run_dir()?);
    let plan = sim::plan(&at, console, on_reboot, time_limit);
    let backend = Arc::new(sim::SimBackend::default());
    Ok(Planned { backend, plan, rejected: Vec::new(), simulated: Some(simulated) })
}

/// A program that no backend asks for would be named in vain.
fn check_names(programs: &Programs, host: &HostFacts) -> Result<()> {
    let plans = in_order(host.os).into_iter().map(|backend| backend.probe(host.arch, None));
    let known: BTreeSet<_> =
        plans.flat_map(|plan| plan.probes).map(|probe| probe.program).collect();
    let unknown = programs.keys().filter(|name| !known.contains(name.as_str()));
    let names = || known.iter().copied().collect::<Vec<_>>().join(", ");
    let violations: Vec<_> = unknown
        .map(|name| {
            let reason = format!("no backend uses a program called {name}");
            let remedy = format!("name one of {}", names());
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
        let reason = Reason::new("there is no such backend", format!("use {}", names.join(" or ")));
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
    Ok(Planned { backend: Arc::clone(backend), plan, rejected: Vec::new(), simulated: None })
}

fn checked(
    backend: &dyn HypervisorBackend,
    spec: VmSpec,
    host: &HostFacts,
    found: &ProbeReport,
) -> Result<Checked> {
    if !backend.capabilities().guest_os.linux {
        return Err(Error::UnsupportedGuestOs(GuestOs::Linux));
    }
    check(spec, backend, host, found).map_err(Error::from_violations)
}

/// The first backend that is usable here and can do everything that is asked.
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
        match check(spec.clone(), backend.as_ref(), host, &found) {
            Ok(checked) => {
                let plan = planned(backend.as_ref(), &checked, host, &found);
                return Ok(Planned { backend, plan, rejected, simulated: None });
            }
            Err(violations) => {
                let reasons =
                    violations.iter().map(|v| Reason::new(v.reason.clone(), v.remedy.clone()));
                rejected.push(Rejection { backend: backend.name(), reasons: reasons.collect() });
                // What the most willing backend minds is the least there is to mend.
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
        // Whoever forces KVM where it answers gets it, with a warning in the plan.
        host.kvm.cpu_flag = true;
    }
    let availability = backend.availability(&host, &found);
    (found, availability)
}

fn planned(
    backend: &dyn HypervisorBackend,
    checked: &Checked,
    host: &HostFacts,
    found: &ProbeReport,
) -> LaunchPlan {
    backend.plan(checked, &RunDirPlan::new(host.run_dir.clone()), host, found)
}

/// Those made for this host first, then QEMU, then those of other hosts.
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

/// The run directory of the next machine.
fn planned_run_dir() -> Result<HostPath> {
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
