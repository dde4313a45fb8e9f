//! What the command `capsa` and the tests of this workspace need, and no other program: **no part of
//! this module is stable.**

use capsa_proto::lifecycle::Timing;
use capsa_proto::plan;

pub use capsa_io::run_dir::{connect, listen};
pub use capsa_proto::capabilities::{options_beside_policy, policy_rules};
pub use capsa_proto::text::escape_control_line;

use crate::LinuxVmBuilder;
use crate::backend::{LaunchPlan, Reason, Rejection};

/// All parts of a launch plan.
pub fn parts(plan: &LaunchPlan) -> &plan::LaunchPlan {
    plan.parts()
}

/// A rejected backend.
pub fn rejection(backend: &'static str, reasons: Vec<Reason>) -> Rejection {
    Rejection { backend, reasons }
}

/// Settings of a builder that no program needs.
pub trait BuilderForTests {
    /// Uses the forced backend even if it has blockers on this host, such as missing KVM or another
    /// operating system: for tests against a stand-in of a hypervisor.
    #[must_use]
    fn trust_backend(self) -> Self;

    /// Changes how long each phase of the lifecycle may take: tests must not wait for the defaults.
    #[must_use]
    fn timing(self, change: impl FnOnce(&mut Timing)) -> Self;
}

impl BuilderForTests for LinuxVmBuilder {
    fn trust_backend(mut self) -> Self {
        self.choice.trusted = true;
        self
    }

    fn timing(mut self, change: impl FnOnce(&mut Timing)) -> Self {
        change(&mut self.options.timing);
        self
    }
}
