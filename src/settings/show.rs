//! The effective settings as people read them, secrets hidden.

use toml::{Table, Value};

use super::{
    broker_url,
    path::Path,
    problem::{Place, Places},
    schema::{Kind, ROOT},
};
use crate::secret::Redactor;

/// One effective value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownValue {
    /// Its key, as in `workers[0].lane`.
    pub key: String,
    /// Its value as TOML, with secrets hidden.
    pub value: String,
    /// The layer that it came from.
    pub layer: Place,
}

/// Every value, in the order of the schema.
pub(super) fn values(table: &Table, places: &Places) -> Vec<ShownValue> {
    let mut shown = Vec::new();
    for_table(&ROOT, &Path::default(), table, places, &mut shown);
    shown
}

fn for_table(kind: &Kind, path: &Path, table: &Table, places: &Places, shown: &mut Vec<ShownValue>) {
    match kind {
        Kind::Table(fields) => {
            for field in *fields {
                if let Some(value) = table.get(field.name) {
                    for_value(&field.kind, &path.key(field.name), value, places, shown);
                }
            }
        }
        Kind::Map(inner) => {
            for (name, value) in table {
                for_value(inner, &path.key(name), value, places, shown);
            }
        }
        // Values of a table of any keys have any form; the others are no tables.
        Kind::Free
        | Kind::Text
        | Kind::Secret
        | Kind::Bool
        | Kind::Int(..)
        | Kind::Duration(_)
        | Kind::OneOf(_)
        | Kind::List(_) => {
            for (name, value) in table {
                for_value(&Kind::Free, &path.key(name), value, places, shown);
            }
        }
    }
}

fn for_value(kind: &Kind, path: &Path, value: &Value, places: &Places, shown: &mut Vec<ShownValue>) {
    match (kind, value) {
        (Kind::List(element @ Kind::Table(_)), Value::Array(array)) if !array.is_empty() => {
            for (at, value) in array.iter().enumerate() {
                for_value(element, &path.at(at), value, places, shown);
            }
            return;
        }
        (_, Value::Table(table)) if !table.is_empty() => return for_table(kind, path, table, places, shown),
        _ => {}
    }
    let text = match (kind, value) {
        (Kind::List(Kind::List(Kind::Text)), Value::Array(commands)) => {
            Value::Array(commands.iter().map(command).collect()).to_string()
        }
        (Kind::Secret, Value::String(text)) if *path == Path::of(["broker", "url"]) => redacted(text),
        (Kind::Secret, _) => "\"<hidden>\"".to_owned(),
        _ => value.to_string(),
    };
    let layer = places.of(path).cloned().unwrap_or(Place::Default);
    shown.push(ShownValue { key: path.to_string(), value: text, layer });
}

/// Without what looks like a secret in it, as messages show commands.
fn command(words: &Value) -> Value {
    let Value::Array(words) = words else { return words.clone() };
    let texts: Vec<String> = words.iter().map(|word| word.as_str().unwrap_or_default().to_owned()).collect();
    let shown = Redactor::default().redact_words(&texts).into_iter().zip(words);
    // A word without a secret stays as it is written, with its tabs.
    let shown = shown.map(|(shown, word)| if shown.contains("<hidden>") { shown.into() } else { word.clone() });
    Value::Array(shown.collect())
}

fn redacted(urls: &str) -> String {
    match broker_url::parse_list(urls) {
        Ok(urls) => {
            let urls: Vec<_> = urls.iter().map(ToString::to_string).collect();
            Value::String(urls.join(";")).to_string()
        }
        Err(_) => "\"<hidden>\"".to_owned(),
    }
}
