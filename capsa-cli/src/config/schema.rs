//! The JSON Schema of config files, for editors that check and complete TOML.

use serde_json::{Map, Value, json};

use super::table::{Key, Kind, SECTIONS, Section, Shape};

/// The schema, draft 2020-12.
pub(crate) fn schema() -> Value {
    let sections = SECTIONS.iter().map(|section| (section.name.to_owned(), shaped(section)));
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "a machine of capsa",
        "type": "object",
        "additionalProperties": false,
        "properties": sections.collect::<Map<_, _>>(),
    })
}

fn shaped(section: &Section) -> Value {
    match section.shape {
        Shape::One => table(section),
        Shape::Many => json!({"type": "array", "items": table(section)}),
        Shape::Named => json!({"type": "object", "additionalProperties": table(section)}),
    }
}

fn table(section: &Section) -> Value {
    let properties = section.keys.iter().map(|key| (key.name.to_owned(), value(key)));
    let required = section.keys.iter().filter(|key| key.is_required).map(|key| key.name);
    json!({
        "description": section.about,
        "type": "object",
        "additionalProperties": false,
        "required": required.collect::<Vec<_>>(),
        "properties": properties.collect::<Map<_, _>>(),
    })
}

fn value(key: &Key) -> Value {
    let mut value = match key.kind {
        Kind::Path => json!({"type": "string", "minLength": 1}),
        Kind::Text => json!({"type": "string"}),
        Kind::Texts => json!({"type": "array", "items": {"type": "string"}}),
        Kind::Size => json!({"type": "string", "pattern": "^ *[0-9]"}),
        Kind::Time => json!({"type": "string", "pattern": "^ *[0-9]"}),
        Kind::Count => json!({"type": "integer", "minimum": 0, "maximum": u32::MAX}),
        Kind::Switch => json!({"type": "boolean"}),
        Kind::Word(words) => json!({"enum": words}),
    };
    value["description"] = format!("{}; {} = {}", key.about, key.name, key.example).into();
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_in_it_and_nothing_else_is_allowed() {
        let schema = schema();
        assert_eq!(schema["additionalProperties"], false);
        for section in SECTIONS {
            let of = &schema["properties"][section.name];
            let table = match section.shape {
                Shape::One => of,
                Shape::Many => &of["items"],
                Shape::Named => &of["additionalProperties"],
            };
            assert_eq!(table["additionalProperties"], false, "{}", section.name);
            for key in section.keys {
                let described = table["properties"][key.name]["description"].as_str();
                assert!(described.unwrap().contains(key.example), "{}", key.name);
            }
        }
    }
}
