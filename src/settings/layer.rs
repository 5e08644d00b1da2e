//! One layer of settings, read strictly: nothing is coerced, unknown keys are errors, and all errors are found at once.

use std::ops::Range;

use toml::{
    Spanned, Table, Value,
    de::{DeArray, DeTable, DeValue},
};

use super::{
    duration,
    path::Path,
    problem::{Findings, Place, Places, quote},
    schema::{Field, Kind},
};

/// What one file, variable or flag says, without what cannot be used of it.
#[derive(Debug, Default)]
pub(super) struct Layer {
    pub(super) table: Table,
    pub(super) places: Places,
}

/// No tool's config is nested as deeply; merging takes time with the square of the depth.
const DEEPEST: usize = 24;

/// Reads values against the schema.
pub(super) struct Reader<'a> {
    /// Takes the problems.
    pub(super) findings: &'a mut Findings,
    /// Takes the places of what was read.
    pub(super) places: &'a mut Places,
    /// Turns a span of the text into a place.
    pub(super) locate: &'a dyn Fn(Range<usize>) -> Place,
}

impl Reader<'_> {
    /// Reads one value. `None` if nothing of it can be used; then a problem says why.
    pub(super) fn value(&mut self, kind: &Kind, path: &Path, item: &Spanned<DeValue<'_>>) -> Option<Value> {
        let place = (self.locate)(item.span());
        let table = matches!(item.get_ref(), DeValue::Table(_));
        self.places.note(path.clone(), place, table);
        match (kind, item.get_ref()) {
            (Kind::Text | Kind::Secret, DeValue::String(text)) => {
                if text.contains('\0') {
                    return self.unusable(path, item, "the text has a null character in it".to_owned(), "leave it out");
                }
                Some(Value::String(text.to_string()))
            }
            (Kind::Bool, DeValue::Boolean(value)) => Some(Value::Boolean(*value)),
            (Kind::Int(least, most), DeValue::Integer(number)) => {
                match i64::from_str_radix(number.as_str(), number.radix()) {
                    Ok(number) if (*least..=*most).contains(&number) => Some(Value::Integer(number)),
                    Ok(_) | Err(_) => self.unexpected(kind, path, item),
                }
            }
            (Kind::Duration(least), DeValue::String(text)) => match duration::at_least(text, *least) {
                Ok(_) => Some(Value::String(text.to_string())),
                Err(why) => {
                    let what = format!("{} is {why}", quote(text));
                    self.unusable(path, item, what, &format!("write {}", kind.expected()))
                }
            },
            (Kind::OneOf(names), DeValue::String(text)) if names.contains(&text.as_ref()) => {
                Some(Value::String(text.to_string()))
            }
            (Kind::List(element), DeValue::Array(array)) => Some(self.list(element, path, array)),
            (Kind::Table(fields), DeValue::Table(table)) => Some(Value::Table(self.table(fields, path, table))),
            (Kind::Map(kind), DeValue::Table(table)) => {
                Some(Value::Table(self.entries(path, table, |reader, path, item| reader.value(kind, path, item))))
            }
            (Kind::Free, DeValue::Table(table)) => Some(Value::Table(self.entries(path, table, Self::free))),
            _ => self.unexpected(kind, path, item),
        }
    }

    /// Reads the keys of a table; unknown ones are problems.
    pub(super) fn table(&mut self, fields: &[Field], path: &Path, table: &DeTable<'_>) -> Table {
        let mut read = Table::new();
        for (key, item) in table {
            let name = key.get_ref().as_ref();
            let path = path.key(name);
            if let Some(field) = fields.iter().find(|field| field.name == name) {
                if let Some(value) = self.value(&field.kind, &path, item) {
                    read.insert(name.to_owned(), value);
                }
            } else {
                let place = (self.locate)(key.span());
                self.findings.unusable(Some(place), &path, "there is no such setting", known(fields, name));
            }
        }
        read
    }

    fn list(&mut self, element: &Kind, path: &Path, array: &DeArray<'_>) -> Value {
        // An element that cannot be used leaves an empty one of its kind behind, so that the indexes of the others
        // still tell where they stand. Nothing is made of such settings: the problem has been noted.
        let empty = || match element {
            Kind::List(_) => Some(Value::Array(Vec::new())),
            Kind::Table(_) => Some(Value::Table(Table::new())),
            Kind::Text
            | Kind::Secret
            | Kind::Bool
            | Kind::Int(..)
            | Kind::Duration(_)
            | Kind::OneOf(_)
            | Kind::Map(_)
            | Kind::Free => None,
        };
        let items = array.iter().enumerate();
        Value::Array(items.filter_map(|(at, item)| self.value(element, &path.at(at), item).or_else(empty)).collect())
    }

    fn entries(
        &mut self,
        path: &Path,
        table: &DeTable<'_>,
        mut value: impl FnMut(&mut Self, &Path, &Spanned<DeValue<'_>>) -> Option<Value>,
    ) -> Table {
        let mut read = Table::new();
        for (key, item) in table {
            let name = key.get_ref().as_ref();
            let path = path.key(name);
            if name.is_empty() || name.contains(char::is_control) {
                let place = (self.locate)(key.span());
                let what = format!("{} cannot be a name", quote(name));
                self.findings.unusable(Some(place), &path, what, "give it a name that can be printed");
            } else if let Some(value) = value(self, &path, item) {
                read.insert(name.to_owned(), value);
            }
        }
        read
    }

    /// Reads a value of any form, apart from those that could not be handed on unchanged.
    pub(super) fn free(&mut self, path: &Path, item: &Spanned<DeValue<'_>>) -> Option<Value> {
        let place = (self.locate)(item.span());
        self.places.note(path.clone(), place, matches!(item.get_ref(), DeValue::Table(_)));
        let refuse = |reader: &mut Self, what: &str| {
            reader.unusable(path, item, what.to_owned(), "write text, a number, a boolean, a list or a table")
        };
        if path.depth() > DEEPEST {
            return refuse(self, "it is nested too deeply");
        }
        match item.get_ref() {
            DeValue::String(text) => Some(Value::String(text.to_string())),
            DeValue::Boolean(value) => Some(Value::Boolean(*value)),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Some(Value::Integer(number)),
                Err(_) => refuse(self, "the number does not fit into 64 bits"),
            },
            DeValue::Float(number) => match number.as_str().parse::<f64>() {
                Ok(number) if number.is_finite() => Some(Value::Float(number)),
                Ok(_) | Err(_) => refuse(self, "a number must be finite here"),
            },
            DeValue::Datetime(_) => refuse(self, "a date or time is not supported here"),
            DeValue::Array(array) => {
                let items = array.iter().enumerate();
                Some(Value::Array(items.filter_map(|(at, item)| self.free(&path.at(at), item)).collect()))
            }
            DeValue::Table(table) => Some(Value::Table(self.entries(path, table, Self::free))),
        }
    }

    fn unexpected(&mut self, kind: &Kind, path: &Path, item: &Spanned<DeValue<'_>>) -> Option<Value> {
        let what = format!("found {}", found(kind, item.get_ref()));
        self.unusable(path, item, what, &format!("write {}", kind.expected()))
    }

    fn unusable(&mut self, path: &Path, item: &Spanned<DeValue<'_>>, what: String, remedy: &str) -> Option<Value> {
        let place = (self.locate)(item.span());
        self.findings.unusable(Some(place), path, what, remedy);
        None
    }
}

/// What stands where something else was expected; the value itself only where it cannot be a secret.
fn found(kind: &Kind, value: &DeValue<'_>) -> String {
    let hidden = matches!(kind, Kind::Secret);
    match value {
        DeValue::String(text) if !hidden => format!("the text {}", quote(text)),
        DeValue::Integer(number) if !hidden => format!("the number {number}"),
        DeValue::Float(number) if !hidden => format!("the number {number}"),
        DeValue::Boolean(value) if !hidden => value.to_string(),
        DeValue::String(_) => "text".to_owned(),
        DeValue::Integer(_) | DeValue::Float(_) => "a number".to_owned(),
        DeValue::Boolean(_) => "a boolean".to_owned(),
        DeValue::Datetime(_) => "a date or time".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// What to write instead of an unknown key.
pub(super) fn known(fields: &[Field], name: &str) -> String {
    let nearest = fields.iter().map(|field| (distance(field.name, name), field.name)).min();
    match nearest {
        Some((distance, nearest)) if distance <= 2 => format!("did you mean \"{nearest}\"?"),
        Some(_) | None => {
            let names: Vec<_> = fields.iter().map(|field| field.name).collect();
            format!("there are {}", names.join(", "))
        }
    }
}

/// How many letters must be put in, left out or changed to make one word of the other. Only the start of a long word
/// is looked at: no key is as long.
fn distance(one: &str, other: &str) -> usize {
    const LONGEST: usize = 32;
    let other: Vec<char> = other.chars().take(LONGEST).collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut next = vec![i + 1];
        for ((b, corner), above) in other.iter().zip(&row).zip(row.iter().skip(1)) {
            let left = next.last().copied().unwrap_or_default();
            next.push((corner + usize::from(a != *b)).min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_of_two_words_counts_single_letters() {
        for (one, other, expected) in
            [("lane", "lane", 0), ("lane", "lan", 1), ("", "abc", 3), ("heartbeat", "hartbeat", 1)]
        {
            assert_eq!(distance(one, other), expected, "{one} {other}");
            assert_eq!(distance(other, one), expected, "{other} {one}");
        }
    }
}
