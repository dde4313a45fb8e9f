//! The JSON Schema of config files, for editors that check and complete TOML.

use serde_json::{Map, Value, json};

use crate::settings::{SECTIONS, Section, Setting, Shape, ValueKind};
use crate::values::Bounds;

/// The schema, draft 2020-12.
pub(crate) fn schema() -> Value {
    let mut sections = Map::new();
    for section in SECTIONS {
        // A section inside another follows it.
        let (into, name) = match section.name.split_once('.') {
            None => (&mut sections, section.name),
            Some((outer, inner)) => {
                let outer =
                    sections.get_mut(outer).and_then(|outer| outer["properties"].as_object_mut());
                (outer.expect("the outer section is a table"), inner)
            }
        };
        into.insert(name.to_owned(), section_schema(section));
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Config file of capsa",
        "type": "object",
        "additionalProperties": false,
        "properties": sections,
    })
}

fn section_schema(section: &Section) -> Value {
    match section.shape {
        Shape::One => table(section),
        Shape::Many => json!({"type": "array", "items": table(section)}),
        Shape::Named => json!({"type": "object", "additionalProperties": table(section)}),
    }
}

fn table(section: &Section) -> Value {
    let properties = section.rows().map(|row| (row.key_name().to_owned(), value(row)));
    let required = section.rows().filter(|row| row.required).map(Setting::key_name);
    json!({
        "description": section.help,
        "type": "object",
        "additionalProperties": false,
        "required": required.collect::<Vec<_>>(),
        "properties": properties.collect::<Map<_, _>>(),
    })
}

fn value(row: &Setting) -> Value {
    let mut value = match row.kind {
        ValueKind::Path(_) => json!({"type": "string", "minLength": 1}),
        ValueKind::Paths(_) => {
            json!({"type": "array", "items": {"type": "string", "minLength": 1}})
        }
        ValueKind::String(_) | ValueKind::Text(_) => json!({"type": "string"}),
        ValueKind::List(_) => json!({"type": "array", "items": {"type": "string"}}),
        ValueKind::Size(_) | ValueKind::Time(_) => json!({"type": "string", "pattern": "^ *[0-9]"}),
        ValueKind::Number(Bounds(min, max), _) => {
            json!({"type": "integer", "minimum": min, "maximum": max})
        }
        ValueKind::Port(_) => port(),
        ValueKind::Ports(_) => json!({"type": "array", "items": port()}),
        ValueKind::Switch(_) => json!({"type": "boolean"}),
        ValueKind::Choice(_) => json!({"enum": row.words()}),
    };
    value["description"] = format!("{}; {} = {}", row.help(), row.key_name(), row.example).into();
    value
}

fn port() -> Value {
    json!({"type": "integer", "minimum": 1, "maximum": u16::MAX})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schema_has_every_key_and_allows_no_other() {
        let schema = schema();
        assert_eq!(schema["additionalProperties"], false);
        for section in SECTIONS {
            let path = section.name.replace('.', "/properties/");
            let of = schema.pointer(&format!("/properties/{path}")).unwrap();
            let table = match section.shape {
                Shape::One => of,
                Shape::Many => &of["items"],
                Shape::Named => &of["additionalProperties"],
            };
            assert_eq!(table["additionalProperties"], false, "{}", section.name);
            for row in section.rows() {
                let described = table["properties"][row.key_name()]["description"].as_str();
                assert!(described.unwrap().contains(row.example), "{}", row.key);
            }
        }
    }
}
