//! What `--json` prints: one object with `schema`, `kind` and what belongs to that kind.
//!
//! The kinds and their keys are in the manual. Keys may be added within a schema; one that goes or
//! changes its meaning makes a new schema.

use serde::Serialize;
use serde_json::{Value, json};

/// The number of the schema.
pub(crate) const SCHEMA: u32 = 1;

/// An object on several lines, for standard output.
pub(crate) fn document(kind: &str, content: impl Serialize) -> String {
    let text = serde_json::to_string_pretty(&object(kind, content));
    format!("{}\n", text.expect("values have only texts for keys"))
}

/// An object on one line, without its end.
pub(crate) fn line(kind: &str, content: impl Serialize) -> String {
    object(kind, content).to_string()
}

fn object(kind: &str, content: impl Serialize) -> Value {
    let mut object = json!({"schema": SCHEMA, "kind": kind});
    let content = serde_json::to_value(content).expect("what is printed is plain data");
    let Value::Object(content) = content else { panic!("{kind} is no object") };
    object.as_object_mut().expect("made above").extend(content);
    object
}
