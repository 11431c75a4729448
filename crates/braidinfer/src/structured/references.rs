//! References within schemas: the grammar library reads only plain JSON pointers, so those with escapes are resolved here.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

const REFERENCE: &str = "$ref";
const DEFINITIONS: &str = "$defs";
/// Keys of schemas whose values are data, and no schemas.
pub const DATA_KEYS: [&str; 4] = ["const", "enum", "default", "examples"];

/// A schema without references that have escapes (RFC 6901, and percent signs as in URLs): their targets are copied to
/// definitions with plain names. References without a target stay, and are refused later.
///
/// Returns the pointers of the copied targets, too, by their names.
pub(super) fn with_plain_references(schema: Value) -> (Value, BTreeMap<String, String>) {
    let mut names = BTreeMap::new();
    let mut plain = schema.clone();
    rename(&mut plain, &schema, &mut names);
    let mut definitions = Map::new();
    // A copied target may have references of its own, which may be new.
    let mut copied = 0;
    while copied < names.len() {
        let waiting: Vec<(String, String)> = names
            .iter()
            .filter(|(_, name)| !definitions.contains_key(*name))
            .map(|(a, b)| (a.clone(), b.clone()))
            .collect();
        copied += waiting.len();
        for (pointer, name) in waiting {
            let mut target = schema.pointer(&pointer).cloned().unwrap_or_default();
            rename(&mut target, &schema, &mut names);
            definitions.insert(name, target);
        }
    }
    if let (false, Some(fields)) = (definitions.is_empty(), plain.as_object_mut()) {
        let own = fields.entry(DEFINITIONS).or_insert_with(|| Value::Object(Map::new()));
        match own.as_object_mut() {
            Some(own) => own.extend(definitions),
            // Such a schema is refused as it is.
            None => return (schema, BTreeMap::new()),
        }
    }
    (plain, names.into_iter().map(|(pointer, name)| (name, pointer)).collect())
}

/// Replaces the references with escapes in a part of `schema` by the names of their targets' copies, which are added to `names`
/// by the pointers to the targets.
fn rename(part: &mut Value, schema: &Value, names: &mut BTreeMap<String, String>) {
    match part {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(reference) if key == REFERENCE => {
                        if let Some(pointer) =
                            escaped_pointer(reference).filter(|pointer| schema.pointer(pointer).is_some())
                        {
                            let next = free_name(schema, names.len());
                            let name = names.entry(pointer).or_insert(next);
                            *reference = format!("#/{DEFINITIONS}/{name}");
                        }
                    }
                    _ if DATA_KEYS.contains(&key.as_str()) => {}
                    value => rename(value, schema, names),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, schema, names)),
        _ => {}
    }
}

/// A name that no definition of the schema has.
fn free_name(schema: &Value, number: usize) -> String {
    let mut name = format!("reference-{number}");
    while schema[DEFINITIONS].get(&name).is_some() {
        name.push('-');
    }
    name
}

/// The JSON pointer of a reference within the document that has escapes.
fn escaped_pointer(reference: &str) -> Option<String> {
    let fragment = reference.strip_prefix('#')?;
    if !fragment.contains(['~', '%']) {
        return None;
    }
    Some(percent_decode_str(fragment).decode_utf8().ok()?.into_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn references_with_escapes_become_plain_ones() {
        let schema = json!({
            "properties": {
                "a": {"$ref": "#/$defs/x~1y"},
                "b": {"$ref": "#/$defs/x%20y"},
                "c": {"$ref": "#/$defs/~0t"},
                "d": {"$ref": "#/$defs/plain"},
                "e": {"$ref": "#/$defs/none~1there"},
                "$ref": {"type": "integer"},
            },
            "$defs": {"x/y": {"items": {"$ref": "#/$defs/x~1y"}}, "x y": {"$ref": "#/$defs/%C3%A9"}, "~t": {}, "plain": {}, "é": {"type": "null"}},
        });
        let (plain, _) = with_plain_references(schema);
        let target =
            |reference: &Value| plain.pointer(&reference.as_str().expect("a text")[1..]).cloned().unwrap_or_default();
        let of = |key: &str| target(&plain["properties"][key]["$ref"]);
        assert_eq!(of("a")["items"]["$ref"], plain["properties"]["a"]["$ref"]);
        assert_eq!(target(&of("b")["$ref"]), json!({"type": "null"}));
        assert_eq!((of("c"), of("d")), (json!({}), json!({})));
        assert_eq!(plain["properties"]["e"]["$ref"], "#/$defs/none~1there");
        let untouched = json!({"properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": true}});
        assert_eq!(with_plain_references(untouched.clone()).0, untouched);
        let data = json!({"properties": {"a": {"const": {"$ref": "#/$defs/x~1y"}}, "b": {"$ref": "#/$defs/x~1y"}},
            "$defs": {"x/y": true, "reference-0": false}});
        let (plain, names) = with_plain_references(data.clone());
        assert_eq!(
            (&plain["properties"]["a"], &plain["$defs"]["reference-0"]),
            (&data["properties"]["a"], &json!(false))
        );
        assert_eq!(names.into_iter().collect::<Vec<_>>(), [("reference-0-".to_owned(), "/$defs/x~1y".to_owned())]);
    }
}
