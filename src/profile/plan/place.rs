//! Where in a text a key's value stands, or where a new key goes.

use std::ops::Range;

use toml_edit::{Document, InlineTable, Item, Table, TableLike, Value};

use crate::profile::value;

/// Why there is no such edit.
pub(super) enum Obstacle {
    /// Something is in the way that holds other keys.
    Conflict {
        /// The byte at which it begins.
        at: usize,
        /// How many parts of the path lead to it.
        depth: usize,
        /// What it is, with its article.
        found: &'static str,
    },
    /// A parsed document gives spans for everything; not here.
    NoSpan,
}

/// The one edit that gives the key its value; `None` if it has it.
pub(super) fn edit(
    text: &str,
    document: &Document<&str>,
    path: &[String],
    wanted: &toml::Value,
) -> Result<Option<(Range<usize>, String)>, Obstacle> {
    let mut item = document.as_item();
    // How many parts of the path lead to the table whose lines, or to the braces, in which a new key would be written.
    let mut owner = (0, item);
    for (depth, part) in path.iter().enumerate() {
        let Some(table) = item.as_table_like() else { return Err(conflict(depth, item)) };
        if !table.is_dotted() {
            owner = (depth, item);
        }
        match table.get(part).filter(|next| !next.is_none()) {
            Some(next) => item = next,
            None => return insertion(text, document, path, wanted, owner, (depth, item)).map(Some),
        }
    }
    if value::same(&value::of_item(item), wanted) {
        return Ok(None);
    }
    match item {
        // A dotted inline table (`{ a.b = 1 }`, seen at `a`) has no braces of its own that could be replaced.
        Item::Value(found) if !found.as_inline_table().is_some_and(InlineTable::is_dotted) => {
            let range = found.span().ok_or(Obstacle::NoSpan)?;
            Ok(Some((range, value::literal(wanted))))
        }
        Item::Value(_) | Item::Table(_) | Item::ArrayOfTables(_) | Item::None => Err(conflict(path.len(), item)),
    }
}

fn conflict(depth: usize, item: &Item) -> Obstacle {
    let found = match item {
        Item::None | Item::Table(_) => "a table",
        Item::ArrayOfTables(_) => "an array of tables",
        Item::Value(Value::InlineTable(_)) => "an inline table",
        Item::Value(Value::Array(_)) => "an array",
        Item::Value(
            Value::String(_) | Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_),
        ) => "a single value",
    };
    Obstacle::Conflict { at: item.span().map_or(0, |span| span.start), depth, found }
}

/// A new key for the table at `depth`, which has no such key.
fn insertion(
    text: &str,
    document: &Document<&str>,
    path: &[String],
    wanted: &toml::Value,
    (owner_depth, owner): (usize, &Item),
    (depth, item): (usize, &Item),
) -> Result<(Range<usize>, String), Obstacle> {
    let pair = |from: usize| format!("{} = {}", value::dotted(&path[from..]), value::literal(wanted));
    let (at, new) = match (owner, item) {
        (Item::Value(owner), _) => in_braces(text, owner, item, &pair(owner_depth)).ok_or(Obstacle::NoSpan)?,
        // Only `[a.b]` is there and `a.x` is wanted: a header of its own may come in any place, so at the end, where
        // nothing can be cut apart.
        (_, Item::Table(table)) if depth > 0 && !table.is_dotted() && table.is_implicit() => {
            let eol = line_end(text);
            let header = format!("{eol}[{}]{eol}{}", value::dotted(&path[..depth]), pair(depth));
            at_end(text, &header)
        }
        (Item::Table(owner), Item::Table(table)) => {
            // After the last key of the innermost table, so that `a.x` comes to stand beside `a.b`.
            let last = last_value(table).or_else(|| if owner_depth == 0 { None } else { owner.span() });
            match last {
                Some(last) => below(text, &last, &pair(owner_depth)),
                None => first_in_root(text, document.as_table(), &pair(0)),
            }
        }
        (_, Item::None | Item::Value(_) | Item::ArrayOfTables(_)) | (Item::None | Item::ArrayOfTables(_), _) => {
            return Err(conflict(depth, item));
        }
    };
    Ok((at..at, new))
}

/// Inside `{ … }`, after the last key of the innermost dotted table, or as the first key.
fn in_braces(text: &str, owner: &Value, item: &Item, pair: &str) -> Option<(usize, String)> {
    if let Some(last) = item.as_table_like().and_then(last_value) {
        return Some((last.end, format!(", {pair}")));
    }
    let braces = owner.span()?;
    let inside = text.get(braces.start + 1..braces.end - 1)?;
    let closing = if inside.is_empty() { " " } else { "" };
    Some((braces.start + 1, format!(" {pair}{closing}")))
}

/// The last value that is written in the table's own lines or braces.
fn last_value(table: &dyn TableLike) -> Option<Range<usize>> {
    let spans = table.iter().filter_map(|(_, item)| match item {
        Item::Value(Value::InlineTable(inner)) if inner.is_dotted() => last_value(inner),
        Item::Value(value) => value.span(),
        Item::Table(inner) if inner.is_dotted() => last_value(inner),
        Item::Table(_) | Item::ArrayOfTables(_) | Item::None => None,
    });
    spans.max_by_key(|span| span.end)
}

/// On a line of its own below the line on which `above` ends, indented as the line on which it starts.
fn below(text: &str, above: &Range<usize>, pair: &str) -> (usize, String) {
    let start = text[..above.start].rfind('\n').map_or_else(|| bom(text), |newline| newline + 1);
    let line = &text[start..above.start];
    let indent = &line[..line.len() - line.trim_start_matches([' ', '\t']).len()];
    match text[above.end..].find('\n') {
        Some(newline) => {
            let at = above.end + newline + 1;
            let eol = if text[..at].ends_with("\r\n") { "\r\n" } else { "\n" };
            (at, format!("{indent}{pair}{eol}"))
        }
        None => (text.len(), format!("{}{indent}{pair}", line_end(text))),
    }
}

/// The first key of the root. Comment lines right above the first header belong to that table, so the key goes above
/// them; comments further up, with a blank line after them, speak of the file and stay at the top.
fn first_in_root(text: &str, root: &Table, pair: &str) -> (usize, String) {
    let Some(header) = first_header(root) else { return at_end(text, pair) };
    let header_line = text[..header].rfind('\n').map_or_else(|| bom(text), |newline| newline + 1);
    let mut at = bom(text);
    let mut line_start = at;
    for line in text[at..header_line].split_inclusive('\n') {
        line_start += line.len();
        if line.trim().is_empty() {
            at = line_start;
        }
    }
    let eol = line_end(text);
    (at, format!("{pair}{eol}{eol}"))
}

/// Where the first `[` of a header stands.
fn first_header(table: &Table) -> Option<usize> {
    let below = table.iter().filter_map(|(_, item)| match item {
        Item::Table(inner) => first_header_at(inner),
        Item::ArrayOfTables(tables) => tables.iter().filter_map(first_header_at).min(),
        Item::Value(_) | Item::None => None,
    });
    below.min()
}

fn first_header_at(table: &Table) -> Option<usize> {
    let own = if table.is_implicit() || table.is_dotted() { None } else { table.span().map(|span| span.start) };
    own.into_iter().chain(first_header(table)).min()
}

/// At the end; a text that ends without a newline still does so afterwards.
fn at_end(text: &str, lines: &str) -> (usize, String) {
    let eol = line_end(text);
    let new =
        if text.ends_with('\n') || text.len() == bom(text) { format!("{lines}{eol}") } else { format!("{eol}{lines}") };
    (text.len(), new)
}

/// The text's own way to end a line.
fn line_end(text: &str) -> &'static str {
    match text.find('\n') {
        Some(newline) if text[..newline].ends_with('\r') => "\r\n",
        Some(_) | None => "\n",
    }
}

/// How many bytes the BOM takes.
fn bom(text: &str) -> usize {
    if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 }
}
