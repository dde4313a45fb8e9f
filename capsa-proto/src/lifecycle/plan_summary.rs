//! [`PlanSummary`]: the parts of a launch plan that the lifecycle uses.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use crate::plan::{CrashReporting, LaunchPlan, Message, StopAction};
use crate::spec::RebootPolicy;

/// The parts of a launch plan that the lifecycle uses.
#[derive(Debug)]
pub(super) struct PlanSummary {
    pub(super) names: Vec<String>,
    pub(super) ends_by_itself: Vec<bool>,
    pub(super) boot: Vec<Message>,
    pub(super) power_button: Option<Message>,
    pub(super) quit: StopAction,
    pub(super) crash_reporting: CrashReporting,
    pub(super) reset_debounce: Duration,
    pub(super) on_reboot: RebootPolicy,
    pub(super) time_limit: Option<Duration>,
}

impl PlanSummary {
    /// Copies what the lifecycle needs.
    pub(super) fn new(plan: &LaunchPlan) -> Self {
        Self {
            names: plan.processes.iter().map(|p| p.name.clone()).collect(),
            ends_by_itself: plan.processes.iter().map(|p| p.ends_with_hypervisor).collect(),
            boot: plan.boot.clone(),
            power_button: plan.power_button.clone(),
            quit: plan.quit.clone(),
            crash_reporting: plan.crash_reporting.clone(),
            reset_debounce: plan.reset_debounce,
            on_reboot: plan.on_reboot,
            time_limit: plan.time_limit,
        }
    }
}
