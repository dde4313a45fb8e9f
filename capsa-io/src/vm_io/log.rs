//! Writes the log records of a VM's core with `tracing`.

use capsa_proto::vm::LogRecord;

/// Writes one record: statuses as `info`, messages and events as `debug`, inputs as `trace`.
pub(super) fn write(record: &LogRecord) {
    match record {
        LogRecord::Input(input) => tracing::trace!(?input, "input"),
        LogRecord::Sent(message) => {
            tracing::debug!(message = message.purpose, "control message");
        }
        LogRecord::Replied(message, reply) => {
            tracing::debug!(message = message.purpose, ?reply, "control reply");
        }
        LogRecord::ControlEvent(event) => tracing::debug!(?event, "control event"),
        LogRecord::PipeEvent(event) => tracing::debug!(%event, "event"),
        LogRecord::ControlUp => tracing::debug!("control channel is up"),
        LogRecord::ControlLost(Some(error)) => tracing::warn!("control channel: {error}"),
        LogRecord::ControlLost(None) => tracing::debug!("control channel closed"),
        LogRecord::Exited(process, exit) => tracing::info!(%process, %exit, "exited"),
        LogRecord::DiskError(error) => tracing::warn!("{error}"),
        LogRecord::Status(status) => tracing::info!(%status, "status"),
    }
}
