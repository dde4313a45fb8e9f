//! One suite of scenarios that every backend must pass.
//!
//! A [`Scenario`] is a claim about what a user sees, written once. A [`Subject`] is a backend that is
//! held to it: the real programs, and our stand-ins for those that cannot run everywhere. What one
//! backend shows and another need not (its words, its address for the host) is in
//! [`subject::Nature`]; a scenario asks for it there and knows no backend by name.
//!
//! A scenario names the leaves of the capability table that it proves. Where a backend does not
//! claim one of them, it is not run: the suite asks for that one thing instead and expects the
//! refusal, before anything is spawned, with a remedy. So a table that claims less than it can, or
//! refuses nothing of what it leaves out, is found as well.
//!
//! The suite says nothing about timing, and nothing about how a backend does what it does: that is
//! each backend's own tests' business. It runs as tests (`tests/tests/conformance.rs`) and as the
//! program `conformance`, for machines that have the hypervisor and not the sources.
//!
//! | theme | what it shows |
//! | --- | --- |
//! | [`boot`] | what was asked for arrives; what cannot boot says so |
//! | [`console`] | both ways, from the first byte, however far the reader is behind |
//! | [`ends`] | each way a machine ends is told apart |
//! | [`stops`] | the stop ladder, on guests and hypervisors that heed it and that do not |
//! | [`calls`] | calls from many threads and at the wrong moment |
//! | [`outside`] | hypervisors and helpers that somebody else kills |
//! | [`disks`] | formats, order, read-only, thrown away |
//! | [`shares`] | both ways, and read-only on the host |
//! | [`vsock`] | streams without a network, both ways |
//! | [`network`] | NAT: an address, and the host |
//! | `vsock` | streams between host and guest, both ways, many on a port |
//! | [`leaks`] | nothing is left behind |

pub mod boot;
pub mod calls;
pub mod claims;
pub mod console;
pub mod disks;
pub mod ends;
pub mod leaks;
pub mod machine;
pub mod network;
pub mod outside;
pub mod shares;
pub mod stage;
pub mod stops;
pub mod subject;
pub mod vsock;

pub use stage::Stage;
pub use subject::Subject;

/// What one scenario shows.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// A claim: `a_read_only_share_holds_on_the_host`.
    pub name: &'static str,
    /// The leaves of the capability table that it proves, as `image_formats.qcow2`.
    pub uses: &'static [&'static str],
    /// The guest it needs.
    pub guest: Needs,
    /// It counts what the whole process has, so nothing else may run beside it.
    pub alone: bool,
    run: fn(&Stage<'_>),
}

/// The guest that a scenario needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// One that listens, echoes, powers off and resets: the nano guest, or Linux where the subject
    /// runs no other.
    Any,
    /// A Linux with a shell and drivers.
    Linux,
    /// The same with virtio-9p, which needs the distribution's larger kernel.
    Linux9p,
}

/// What became of a scenario. A failure is a panic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is as claimed.
    Passed,
    /// The backend does not claim this leaf, and refuses what would need it.
    NotClaimed(&'static str),
    /// Nothing was shown, because of what this machine lacks.
    CannotRun(String),
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
        vsock::SCENARIOS,
        leaks::SCENARIOS,
    ];
    themes.into_iter().flatten()
}

impl Scenario {
    /// For a guest of any kind; proves no capability that is not proved by booting at all.
    const fn any(name: &'static str, run: fn(&Stage<'_>)) -> Self {
        Self { name, uses: &[], guest: Needs::Any, alone: false, run }
    }

    /// For a Linux guest.
    const fn linux(name: &'static str, run: fn(&Stage<'_>)) -> Self {
        Self { guest: Needs::Linux, ..Self::any(name, run) }
    }

    const fn uses(self, uses: &'static [&'static str]) -> Self {
        Self { uses, ..self }
    }

    /// Holds `subject` to it.
    ///
    /// # Panics
    ///
    /// When the subject fails it.
    pub fn run(&self, subject: &Subject) -> Verdict {
        if let Some(leaf) = self.unclaimed(subject) {
            claims::assert_refused(leaf, subject);
            return Verdict::NotClaimed(leaf);
        }
        match self.stage(subject) {
            Err(why) => Verdict::CannotRun(why),
            Ok(stage) => {
                (self.run)(&stage);
                Verdict::Passed
            }
        }
    }

    /// The first leaf that it proves and `subject` does not claim.
    pub fn unclaimed(&self, subject: &Subject) -> Option<&'static str> {
        self.uses.iter().copied().find(|leaf| !subject.claims(leaf))
    }

    /// What it runs on.
    ///
    /// # Errors
    ///
    /// What this machine lacks for it.
    pub fn stage<'a>(&self, subject: &'a Subject) -> Result<Stage<'a>, String> {
        if let Some(why) = self.uses.iter().find_map(|leaf| subject.lacks(leaf)) {
            return Err(why);
        }
        Stage::new(subject, self.guest)
    }
}
