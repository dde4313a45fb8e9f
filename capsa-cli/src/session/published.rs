//! What a run publishes in its run directory for `capsa ps` and the other commands.

use std::time::{Duration, Instant};

use super::RunLoop;
use crate::running::ControlServer;

/// The run directory is checked at most and at least this often.
pub(super) const RUN_DIR_CHECK: (Duration, Duration) =
    (Duration::from_secs(1), Duration::from_secs(60));

impl RunLoop<'_> {
    /// Publishes this run for `capsa ps`. If that fails, the VM runs without a control socket.
    pub(super) fn bind_control(&mut self) {
        match ControlServer::bind(&self.vm, self.name.as_deref(), self.grace) {
            Ok(control) => self.control = Some(control),
            Err(error) => self.reporter.warn(&format!(
                "`capsa ps` does not list this VM: cannot create its control socket: {error}"
            )),
        }
    }

    /// Publishes what has changed for `capsa ps`.
    pub(super) fn publish(&mut self) {
        if let Some(control) = &mut self.control {
            control.publish(&self.vm);
        }
    }

    /// Warns once if the run directory was removed, by hand or by a cleaner of `/tmp`. The VM keeps
    /// running, but other commands cannot find it any more.
    pub(super) fn check_run_dir(&mut self) {
        let (Some(control), Some(checked)) = (&self.control, self.run_dir_checked) else { return };
        if checked.elapsed() < RUN_DIR_CHECK.0 {
            return;
        }
        self.run_dir_checked = control.is_published().then(Instant::now);
        if self.run_dir_checked.is_none() {
            let (dir, pid) = (self.vm.launch_plan().run_dir().display(), std::process::id());
            self.reporter.warn(&format!(
                "{dir} was removed: `capsa ps`, `stop` and `console` cannot find this VM any more; \
                 stop it with `kill {pid}`"
            ));
        }
    }
}
