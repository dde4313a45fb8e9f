//! The JSON that `--json` and `--progress json` print: one object with `schema`, `kind` and the keys
//! of that kind.
//!
//! The manual lists the kinds and their keys. A schema may get new keys; removing a key or changing
//! its meaning makes a new schema.

use serde::Serialize;
use serde_json::{Value, json};

/// The schema's number.
pub(crate) const SCHEMA: u32 = 1;

/// An object on several lines, for standard output.
pub(crate) fn document(kind: &str, content: impl Serialize) -> String {
    let text = serde_json::to_string_pretty(&object(kind, content));
    format!("{}\n", text.expect("maps have text keys"))
}

/// An object on one line, without the line feed.
pub(crate) fn line(kind: &str, content: impl Serialize) -> String {
    object(kind, content).to_string()
}

fn object(kind: &str, content: impl Serialize) -> Value {
    let mut object = json!({"schema": SCHEMA, "kind": kind});
    let content = serde_json::to_value(content).expect("output is plain data");
    let Value::Object(content) = content else { panic!("the content of {kind} is not an object") };
    object.as_object_mut().expect("created as an object above").extend(content);
    object
}
