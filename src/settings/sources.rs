//! The layers as they come: a file, the environment's variables, flags.

use std::{
    fs::File,
    io::{self, Read},
    ops::Range,
    path::{Path as FilePath, PathBuf},
};

use toml::{
    Spanned, Table, Value,
    de::{DeTable, DeValue},
};

use super::{
    layer::{Layer, Reader, known},
    path::Path,
    problem::{Findings, Place, quote},
    schema::{Kind, ROOT},
};

/// Variables that begin like this are settings.
pub(super) const PREFIX: &str = "WORKER_GATE__";

/// Three thousand workers fit in it; a device or a log named by mistake does not. Some checks compare every worker
/// with every other, so that this bounds the time, too.
const LONGEST_FILE: u64 = 1024 * 1024;

/// Opens the named file, or the first of the usual ones that is there. An unreadable one is a problem, not skipped:
/// what it says would silently not hold.
pub(super) fn find(named: Option<&FilePath>, search: &[PathBuf], findings: &mut Findings) -> Option<(PathBuf, File)> {
    let (candidates, may_miss) = match named {
        Some(path) => (vec![path.to_owned()], false),
        None => (search.to_owned(), true),
    };
    for path in candidates {
        match File::open(&path) {
            Ok(file) => return Some((path, file)),
            Err(error) if may_miss && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let remedy = "name a file that can be read with --config";
                findings.unusable(Some(whole(&path)), &Path::default(), format!("cannot be opened: {error}"), remedy);
                return None;
            }
        }
    }
    None
}

/// Reads a settings file. `None` if it is no TOML at all.
pub(super) fn file(path: &FilePath, file: File, findings: &mut Findings) -> Option<Layer> {
    let mut bytes = Vec::new();
    let unusable = |findings: &mut Findings, place: Place, what: String, remedy: &str| {
        findings.unusable(Some(place), &Path::default(), what, remedy);
        None
    };
    if let Err(error) = file.take(LONGEST_FILE + 1).read_to_end(&mut bytes) {
        let remedy = "name a file that can be read with --config";
        return unusable(findings, whole(path), format!("cannot be read: {error}"), remedy);
    }
    if bytes.len() as u64 > LONGEST_FILE {
        return unusable(findings, whole(path), "longer than 1 MiB".to_owned(), "is this the settings file?");
    }
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let valid =
                String::from_utf8_lossy(error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or(b""));
            let place = Lines::new(path, &valid).place(valid.len()..valid.len());
            return unusable(findings, place, "not UTF-8".to_owned(), "save the file as UTF-8");
        }
    };
    document(path, text.strip_prefix('\u{feff}').unwrap_or(&text), findings)
}

/// Reads TOML text that `path` stands for in messages.
pub(super) fn document(path: &FilePath, text: &str, findings: &mut Findings) -> Option<Layer> {
    let lines = Lines::new(path, text);
    let (root, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        // Only message and place: the line itself may hold a password.
        for error in errors {
            let place = lines.place(error.span().unwrap_or_default());
            findings.unusable(Some(place), &Path::default(), error.message().to_owned(), "mend the TOML here");
        }
        return None;
    }
    let mut layer = Layer::default();
    let locate = |span| lines.place(span);
    let mut reader = Reader { findings, places: &mut layer.places, locate: &locate };
    if let Kind::Table(fields) = &ROOT {
        layer.table = reader.table(fields, &Path::default(), root.get_ref());
    }
    Some(layer)
}

/// Reads the embedded defaults.
pub(super) fn defaults(text: &str, findings: &mut Findings) -> Option<Layer> {
    let mut layer = document(FilePath::new("config/default.toml"), text, findings)?;
    layer.places.all_at(&Place::Default);
    Some(layer)
}

/// Reads one variable. `below` is what the layers below say: names of checks are found in it whatever their case.
pub(super) fn variable(name: &str, text: &str, below: &Table, findings: &mut Findings) -> Option<Layer> {
    let place = Place::Environment(name.to_owned());
    let rest = name.get(PREFIX.len()..).unwrap_or_default();
    let keys: Vec<String> = rest.split("__").map(str::to_lowercase).collect();
    if name.chars().any(char::is_lowercase) {
        findings.unusable(Some(place), &Path::default(), "there is no such setting", "write the name in capitals");
        return None;
    }
    single(&keys, text, &place, Some(below), findings)
}

/// Reads one `--set KEY=VALUE`.
pub(super) fn flag(argument: &str, findings: &mut Findings) -> Option<Layer> {
    let refuse = |findings: &mut Findings, what: &str| {
        let remedy = "write --set KEY=VALUE, such as --set broker.heartbeat=5s";
        findings.unusable(Some(Place::Flag), &Path::default(), what, remedy);
    };
    // The argument is not shown: the value may be a password.
    let Some((key, text)) = argument.split_once('=') else {
        refuse(findings, "there is no \"=\" in the argument");
        return None;
    };
    let Some(keys) = dotted(key) else {
        refuse(findings, "what stands before the \"=\" is not a key");
        return None;
    };
    single(&keys, text, &Place::Flag, None, findings)
}

/// Takes a dotted key apart, as TOML does.
fn dotted(key: &str) -> Option<Vec<String>> {
    if key.contains(char::is_control) {
        return None;
    }
    let line = format!("{key} = 0");
    let root = DeTable::parse(&line).ok()?;
    let mut keys = Vec::new();
    let mut table = root.get_ref();
    loop {
        let (key, value) = table.iter().next()?;
        keys.push(key.get_ref().to_string());
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            DeValue::Integer(_) => return Some(keys),
            DeValue::String(_) | DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) => {
                return None;
            }
        }
    }
}

/// Reads one value at `keys`. With `below`, names came in one case only and are matched to what is there.
fn single(keys: &[String], text: &str, place: &Place, below: Option<&Table>, findings: &mut Findings) -> Option<Layer> {
    let mut at = Spot { kind: &ROOT, inside_free: false, path: Path::default() };
    let mut names = Vec::new();
    let mut there = below;
    for key in keys {
        match at.down(key, below.is_some(), there) {
            Ok((next, name)) => {
                there = there.and_then(|table| table.get(&name)).and_then(Value::as_table);
                names.push(name);
                at = next;
            }
            Err((what, remedy)) => {
                findings.unusable(Some(place.clone()), &at.path.key(key), what, remedy);
                return None;
            }
        }
    }
    let item = match at.parse(text) {
        Ok(item) => item,
        Err((what, remedy)) => {
            findings.unusable(Some(place.clone()), &at.path, what, remedy);
            return None;
        }
    };
    let mut layer = Layer::default();
    let locate = |_: Range<usize>| place.clone();
    let mut reader = Reader { findings, places: &mut layer.places, locate: &locate };
    let mut value = if at.inside_free { reader.free(&at.path, &item) } else { reader.value(at.kind, &at.path, &item) }?;
    while let Some(name) = names.pop() {
        value = Value::Table(Table::from_iter([(name, value)]));
    }
    if let Value::Table(table) = value {
        layer.table = table;
    }
    Some(layer)
}

/// What was found and what to write instead.
type Refusal = (String, String);

/// A place in the schema on the way down to a value.
struct Spot {
    kind: &'static Kind,
    /// Below a table of any keys, where a value may have any form.
    inside_free: bool,
    path: Path,
}

impl Spot {
    fn down(&self, key: &str, any_case: bool, there: Option<&Table>) -> Result<(Self, String), Refusal> {
        let no_such = || "there is no such setting".to_owned();
        let whole = |example: &str| {
            let what = "there is no way to this setting from here".to_owned();
            Err((what, format!("give {} as a whole, as TOML, such as {example}", self.path)))
        };
        let (kind, name) = match self.kind {
            Kind::Table(fields) => match fields.iter().find(|field| field.name == key) {
                Some(field) => (&field.kind, key.to_owned()),
                None => return Err((no_such(), known(fields, key))),
            },
            Kind::Map(inner) => {
                let name = if any_case { name_in_any_case(key, there)? } else { key.to_owned() };
                (*inner, name)
            }
            Kind::Free if any_case => return whole("{ key = \"value\" }"),
            Kind::Free => (self.kind, key.to_owned()),
            Kind::List(_) => return whole("[...]"),
            Kind::Text | Kind::Secret | Kind::Bool | Kind::Int(..) | Kind::Duration(_) | Kind::OneOf(_) => {
                return Err((no_such(), format!("{} has no keys of its own", self.path)));
            }
        };
        let inside_free = matches!(self.kind, Kind::Free);
        Ok((Self { kind, inside_free, path: self.path.key(&name) }, name))
    }

    /// Text is written bare; everything else as in TOML.
    fn parse<'t>(&self, text: &'t str) -> Result<Spanned<DeValue<'t>>, Refusal> {
        let bare = matches!(self.kind, Kind::Text | Kind::Secret | Kind::Duration(_) | Kind::OneOf(_));
        if !bare {
            return DeValue::parse(text).map_err(|error| {
                let expected = if self.inside_free { "text in quotes".to_owned() } else { self.kind.expected() };
                (format!("not a TOML value: {}", error.message()), format!("write {expected}"))
            });
        }
        if text.len() > 1 && text.starts_with('"') && text.ends_with('"') {
            return Err(("quotes would become part of the text".to_owned(), "write it without them".to_owned()));
        }
        Ok(Spanned::new(0..text.len(), DeValue::String(text.into())))
    }
}

/// The name that a variable means, which can only be written in capitals.
fn name_in_any_case(key: &str, there: Option<&Table>) -> Result<String, Refusal> {
    let mut same = there.iter().flat_map(|table| table.keys()).filter(|name| name.to_lowercase() == key);
    match (same.next(), same.next()) {
        (None, _) => Ok(key.to_owned()),
        (Some(name), None) => Ok(name.clone()),
        (Some(one), Some(other)) => {
            let what = format!("{} and {} are the same in capitals", quote(one), quote(other));
            Err((what, "use --set, or give one another name".to_owned()))
        }
    }
}

fn whole(path: &FilePath) -> Place {
    Place::File { path: path.to_owned(), line: 0, column: 0 }
}

/// Turns byte offsets into lines and columns.
struct Lines<'a> {
    path: &'a FilePath,
    text: &'a str,
    /// Where each line starts.
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(path: &'a FilePath, text: &'a str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { path, text, starts: std::iter::once(0).chain(breaks).collect() }
    }

    fn place(&self, span: Range<usize>) -> Place {
        let line = self.starts.partition_point(|start| *start <= span.start);
        let start = self.starts.get(line.saturating_sub(1)).copied().unwrap_or_default();
        let before = self.text.get(start..span.start).unwrap_or_default();
        Place::File { path: self.path.to_owned(), line, column: before.chars().count() + 1 }
    }
}
