//! TOML keys and values as text: for files, for people, and for hashing.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::json;
use toml_edit::{Item, TableLike};

use crate::brief::beginning;

/// A string value longer than this is not shown: what someone pasted by mistake may be a secret.
const SHOWN_CHARS: usize = 32;

/// A dotted key, with quotes where TOML needs them.
pub(super) fn dotted<S: AsRef<str>>(parts: &[S]) -> String {
    parts.iter().map(|part| key(part.as_ref())).collect::<Vec<_>>().join(".")
}

/// The same, at most so many bytes of it and an ellipsis for the rest. Takes no more time than that, however long the key is.
pub(super) fn dotted_briefly<S: AsRef<str>>(parts: &[S], most: usize) -> String {
    let mut name = String::new();
    for part in parts {
        if name.len() > most {
            break;
        }
        if !name.is_empty() {
            name.push('.');
        }
        // A character more than there is room for, so that what is cut here is cut below as well.
        name.push_str(&key(beginning(part.as_ref(), most + 4)));
    }
    if name.len() > most {
        name.truncate(beginning(&name, most).len());
        name.push('\u{2026}');
    }
    name
}

fn key(part: &str) -> String {
    let bare = !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare { part.to_owned() } else { quoted(part) }
}

/// A basic string: one line, whatever is in it, so that it fits every place where a value can stand.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A value as it is written into a file.
pub(super) fn literal(value: &toml::Value) -> String {
    match value {
        toml::Value::String(s) => quoted(s),
        toml::Value::Integer(i) => i.to_string(),
        toml::Value::Float(f) => float(*f),
        toml::Value::Boolean(b) => b.to_string(),
        toml::Value::Datetime(d) => d.to_string(),
        toml::Value::Array(items) => format!("[{}]", items.iter().map(literal).collect::<Vec<_>>().join(", ")),
        toml::Value::Table(table) if table.is_empty() => "{}".to_owned(),
        toml::Value::Table(table) => {
            let pairs: Vec<_> = table.iter().map(|(k, v)| format!("{} = {}", key(k), literal(v))).collect();
            format!("{{ {} }}", pairs.join(", "))
        }
    }
}

fn float(f: f64) -> String {
    match f {
        f if f.is_nan() => "nan".to_owned(),
        f if f.is_infinite() => if f > 0.0 { "inf" } else { "-inf" }.to_owned(),
        // Debug always writes a point or an exponent, which is what makes it a float in TOML too.
        f => format!("{f:?}"),
    }
}

/// A value as it may be told to people: only what is short and plain, because anything else may be a secret.
pub(super) fn shown(value: &toml::Value) -> String {
    match value {
        toml::Value::String(s) if !plain(s) => "a string that is not shown".to_owned(),
        toml::Value::Array(_) => "an array".to_owned(),
        toml::Value::Table(_) => "a table".to_owned(),
        toml::Value::String(_)
        | toml::Value::Integer(_)
        | toml::Value::Float(_)
        | toml::Value::Boolean(_)
        | toml::Value::Datetime(_) => literal(value),
    }
}

/// The same for programs: what cannot be shown becomes a text in angle brackets.
pub(super) fn shown_json(value: &toml::Value) -> serde_json::Value {
    match value {
        toml::Value::String(s) if plain(s) => json!(s),
        toml::Value::Integer(i) => json!(i),
        toml::Value::Float(f) if f.is_finite() => json!(f),
        toml::Value::Boolean(b) => json!(b),
        toml::Value::Datetime(d) => json!(d.to_string()),
        toml::Value::Float(f) => json!(float(*f)),
        toml::Value::String(_) => json!("<not shown>"),
        toml::Value::Array(_) => json!("<array>"),
        toml::Value::Table(_) => json!("<table>"),
    }
}

/// A value of the settings in full: it is the policy, which is no secret.
pub(super) fn json_in_full(value: &toml::Value) -> serde_json::Value {
    match value {
        toml::Value::String(s) => json!(s),
        toml::Value::Array(items) => items.iter().map(json_in_full).collect(),
        toml::Value::Table(table) => table.iter().map(|(k, v)| (k.clone(), json_in_full(v))).collect(),
        toml::Value::Integer(_) | toml::Value::Float(_) | toml::Value::Boolean(_) | toml::Value::Datetime(_) => {
            shown_json(value)
        }
    }
}

fn plain(s: &str) -> bool {
    s.len() <= SHOWN_CHARS && s.chars().all(|c| c.is_ascii_graphic() || c == ' ')
}

/// A form that is equal exactly for equal values: strings, booleans and integers as in JSON, arrays in order, and
/// everything else as an object with one key that tells its type. A float is written as Rust's `{:?}` writes it, a
/// date as TOML writes it, a table with its keys sorted.
pub(super) fn canonical(value: &toml::Value) -> serde_json::Value {
    match value {
        toml::Value::String(s) => json!(s),
        toml::Value::Integer(i) => json!(i),
        toml::Value::Boolean(b) => json!(b),
        toml::Value::Float(f) => json!({ "float": float(*f) }),
        toml::Value::Datetime(d) => json!({ "datetime": d.to_string() }),
        toml::Value::Array(items) => items.iter().map(canonical).collect(),
        toml::Value::Table(table) => {
            let sorted: BTreeMap<_, _> = table.iter().map(|(k, v)| (k.as_str(), canonical(v))).collect();
            json!({ "table": sorted })
        }
    }
}

/// Whether two values are the same, type included; unlike `==`, nan is the same as nan.
pub(super) fn same(a: &toml::Value, b: &toml::Value) -> bool {
    canonical(a) == canonical(b)
}

/// What a parsed item stands for.
pub(super) fn of_item(item: &Item) -> toml::Value {
    match item {
        Item::None => toml::Value::Table(toml::Table::new()),
        Item::Value(value) => of_value(value),
        Item::Table(table) => toml::Value::Table(of_table(table)),
        Item::ArrayOfTables(tables) => {
            toml::Value::Array(tables.iter().map(|table| toml::Value::Table(of_table(table))).collect())
        }
    }
}

/// What a parsed table stands for.
pub(super) fn of_table(table: &dyn TableLike) -> toml::Table {
    table.iter().filter(|(_, item)| !item.is_none()).map(|(key, item)| (key.to_owned(), of_item(item))).collect()
}

fn of_value(value: &toml_edit::Value) -> toml::Value {
    match value {
        toml_edit::Value::String(s) => toml::Value::String(s.value().clone()),
        toml_edit::Value::Integer(i) => toml::Value::Integer(*i.value()),
        toml_edit::Value::Float(f) => toml::Value::Float(*f.value()),
        toml_edit::Value::Boolean(b) => toml::Value::Boolean(*b.value()),
        toml_edit::Value::Datetime(d) => toml::Value::Datetime(*d.value()),
        toml_edit::Value::Array(items) => toml::Value::Array(items.iter().map(of_value).collect()),
        toml_edit::Value::InlineTable(table) => toml::Value::Table(of_table(table)),
    }
}
