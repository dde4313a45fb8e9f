//! One suite of scenarios that every backend must pass.
//!
//! A [`Scenario`] tests one behaviour of the public API. A [`Subject`] is a backend under test: with the
//! real programs, or with a stand-in for a hypervisor that cannot run everywhere. What may differ
//! between backends (error texts, the address of the host) is in [`subject::BackendTraits`]; a scenario
//! never names a backend.
//!
//! A scenario lists the leaves of the capability table that it tests. If the backend does not support
//! one of them, the scenario does not run: the suite builds a VM that uses this leaf and expects a
//! violation with a remedy. So the suite also finds a table that lists too little.
//!
//! The suite does not test times or the internals of a backend: the backends have their own tests. It
//! runs as tests (`tests/tests/conformance.rs`) and as the program `conformance`, for hosts that have the
//! hypervisor and not the sources.
//!
//! | theme | what it tests |
//! | --- | --- |
//! | [`boot`] | the hardware of the spec; starts that fail |
//! | [`console`] | both directions, from the first byte, with readers of any speed |
//! | [`ends`] | the ways in which a VM ends |
//! | [`stops`] | the stop ladder, with guests and hypervisors that react or not |
//! | [`calls`] | calls from many threads and in the wrong phase |
//! | [`outside`] | hypervisors and helper processes that another process kills |
//! | [`disks`] | formats, order, read-only, ephemeral |
//! | [`shares`] | both directions, and read-only on the host |
//! | [`network`] | NAT: the address of the guest, the host |
//! | [`reach`] | NAT: closed ports of the host, forwards, services |
//! | [`vsock`] | streams in both directions, many on a port |
//! | [`leaks`] | resources after many VMs |

pub mod boot;
pub mod calls;
pub mod capabilities;
pub mod console;
pub mod disks;
pub mod ends;
pub mod fixture;
pub mod leaks;
pub mod network;
pub mod outside;
pub mod reach;
pub mod shares;
pub mod stops;
pub mod subject;
pub mod vm;
pub mod vsock;

pub use fixture::Fixture;
pub use subject::Subject;

/// A test that every backend must pass.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// For example `virtio_fs_read_only_holds_on_host`.
    pub name: &'static str,
    /// The leaves of the capability table that it tests, for example `image_formats.qcow2`.
    pub uses: &'static [&'static str],
    /// The kind of guest.
    pub guest: GuestKind,
    /// It counts the resources of the process, so it runs in a process of its own.
    pub alone: bool,
    run: fn(&Fixture<'_>),
}

/// The kind of guest of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestKind {
    /// The nano guest, or Linux if the subject cannot boot it.
    Any,
    /// Linux with a shell and drivers.
    Linux,
    /// Linux with virtio-9p, which needs the distribution's generic kernel.
    Linux9p,
}

/// The result of a scenario. A failure is a panic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScenarioResult {
    /// The backend passed.
    Passed,
    /// The backend does not support this leaf, and rejects a VM that uses it.
    Unsupported(&'static str),
    /// The host does not have a program or a guest that the scenario needs: the reason.
    Skipped(String),
}

/// Every scenario, by theme.
pub fn scenarios() -> impl Iterator<Item = &'static Scenario> {
    let themes = [
        boot::SCENARIOS,
        console::SCENARIOS,
        ends::SCENARIOS,
        stops::SCENARIOS,
        calls::SCENARIOS,
        outside::SCENARIOS,
        disks::SCENARIOS,
        shares::SCENARIOS,
        network::SCENARIOS,
        reach::SCENARIOS,
        vsock::SCENARIOS,
        leaks::SCENARIOS,
    ];
    themes.into_iter().flatten()
}

impl Scenario {
    /// A scenario for any guest, without capabilities.
    const fn any(name: &'static str, run: fn(&Fixture<'_>)) -> Self {
        Self { name, uses: &[], guest: GuestKind::Any, alone: false, run }
    }

    /// A scenario for a Linux guest.
    const fn linux(name: &'static str, run: fn(&Fixture<'_>)) -> Self {
        Self { guest: GuestKind::Linux, ..Self::any(name, run) }
    }

    const fn uses(self, uses: &'static [&'static str]) -> Self {
        Self { uses, ..self }
    }

    /// Runs the scenario on a subject.
    ///
    /// # Panics
    ///
    /// When the subject fails.
    pub fn run(&self, subject: &Subject) -> ScenarioResult {
        if let Some(leaf) = self.first_unsupported(subject) {
            capabilities::assert_rejected(leaf, subject);
            return ScenarioResult::Unsupported(leaf);
        }
        match self.fixture(subject) {
            Err(why) => ScenarioResult::Skipped(why),
            Ok(fixture) => {
                (self.run)(&fixture);
                ScenarioResult::Passed
            }
        }
    }

    /// The first leaf of the scenario that `subject` does not support.
    pub fn first_unsupported(&self, subject: &Subject) -> Option<&'static str> {
        self.uses.iter().copied().find(|leaf| !subject.supports(leaf))
    }

    /// The subject, guest and directory of the scenario.
    ///
    /// # Errors
    ///
    /// When the host does not have a program or a guest that the scenario needs.
    pub fn fixture<'a>(&self, subject: &'a Subject) -> Result<Fixture<'a>, String> {
        if let Some(why) = self.uses.iter().find_map(|leaf| subject.missing_program(leaf)) {
            return Err(why);
        }
        Fixture::new(subject, self.guest)
    }
}
