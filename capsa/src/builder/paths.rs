//! Resolves the paths of a description. Reads no file.

use std::path::Path;

use capsa_io::facts;
use capsa_proto::capabilities::{Violation, ViolationKind};
use capsa_proto::path::HostPath;

/// Resolves paths, once: the result is what is checked, planned and passed to hypervisors. Collects a
/// violation for each path that is invalid.
#[derive(Default)]
pub(super) struct Paths {
    pub(super) violations: Vec<Violation>,
}

impl Paths {
    /// The resolved path, or `/` in place of an invalid one.
    pub(super) fn taken(&mut self, field: &str, path: &Path) -> HostPath {
        self.take(field, path).unwrap_or_else(|| HostPath::new("/").expect("a path"))
    }

    pub(super) fn take(&mut self, field: &str, path: &Path) -> Option<HostPath> {
        if path.as_os_str().is_empty() {
            let kind = ViolationKind::NotGiven;
            self.violations.push(Violation::new(field, kind, "the path is empty", "set a path"));
            return None;
        }
        let resolved = if path.as_os_str().as_encoded_bytes().contains(&0) {
            None
        } else {
            match facts::resolve(path) {
                Ok(resolved) => Some(resolved),
                Err(why) => {
                    self.violations.push(Violation::new(
                        field,
                        ViolationKind::WrongType,
                        format!("{} cannot be passed to a hypervisor: {why}", path.display()),
                        "give the path of a file, or copy it to one",
                    ));
                    return None;
                }
            }
        };
        let text = resolved.and_then(|path| path.into_os_string().into_string().ok());
        let taken = text.and_then(|text| HostPath::new(text).ok());
        if taken.is_none() {
            self.violations.push(Violation::new(
                field,
                ViolationKind::Malformed,
                format!("{path:?} is not UTF-8 or contains a NUL byte"),
                "rename it: control channels carry paths as JSON text",
            ));
        }
        taken
    }
}
