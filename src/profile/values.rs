//! What a profile says, for whoever must not repeat it: a tool that complains about its config quotes what stands there.

use super::{Target, inspect::text_of, read, value};
use crate::{secret::Secret, settings::Enforced};

/// Every text in the profile that is not the value of an enforced key. Of a file that is no TOML, everything that could be a
/// value. Nothing, if the file cannot be read: the tool could not either.
pub fn values(target: Target<'_>) -> Vec<Secret> {
    let Ok((_, Some(snapshot))) = read::look(target.path, target.home) else { return Vec::new() };
    let mut found = Vec::new();
    match text_of(&snapshot.bytes) {
        Ok((_, root)) => {
            for (key, value) in &root {
                collect(value, &mut vec![key.as_str()], target.enforce, &mut found);
            }
        }
        Err(_) => raw(&String::from_utf8_lossy(&snapshot.bytes), &mut found),
    }
    found.into_iter().map(Secret::new).collect()
}

fn collect<'t>(value: &'t toml::Value, path: &mut Vec<&'t str>, enforce: &[Enforced], found: &mut Vec<String>) {
    if enforce.iter().any(|enforced| enforced.key == *path) {
        return;
    }
    match value {
        toml::Value::String(text) => {
            found.push(text.clone());
            // As it stands in the file, with its escapes, which is how a line of it is quoted.
            let literal = value::literal(value);
            found.push(literal.trim_matches('"').to_owned());
        }
        toml::Value::Array(items) => items.iter().for_each(|item| collect(item, path, enforce, found)),
        toml::Value::Table(table) => {
            for (key, value) in table {
                path.push(key);
                collect(value, path, enforce, found);
                path.pop();
            }
        }
        toml::Value::Integer(_) | toml::Value::Float(_) | toml::Value::Boolean(_) | toml::Value::Datetime(_) => {}
    }
}

/// Without knowing where a value begins: the rest of each line after its first `=`, and everything between quotes.
fn raw(text: &str, found: &mut Vec<String>) {
    for line in text.lines() {
        let after = line.split_once('=').map_or(line, |(_, after)| after).trim();
        found.push(after.to_owned());
        found.extend(after.split(['"', '\'']).map(|part| part.trim().to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::apply::tests::Home;

    fn of(text: &str) -> Vec<String> {
        values(Home::with(text).target()).iter().map(|value| value.reveal().to_owned()).collect()
    }

    #[test]
    fn every_text_but_an_enforced_one_is_found() {
        let found =
            of("approval_policy = 'on-request'\nmodel = 'm1'\n[mcp.a]\nenv = { T = \"t\\n1\" }\nargs = ['x', ['y']]\n");
        for text in ["m1", "t\n1", "t\\n1", "x", "y"] {
            assert!(found.iter().any(|value| value == text), "{text}: {found:?}");
        }
        assert!(!found.iter().any(|value| value.contains("on-request")));
        assert_eq!(values(Home::new().target()), []);
    }

    #[test]
    fn of_a_broken_file_everything_that_could_be_a_value_is_found() {
        let found = of("token = \"open\n[a]\nb = 'one' # two\nbare\n");
        for text in ["open", "one", "bare"] {
            assert!(found.iter().any(|value| value == text), "{text}: {found:?}");
        }
    }
}
