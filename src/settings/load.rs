//! From files, environment and flags to settings that are checked as a whole.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path as FilePath, PathBuf},
};

use config::{Config, ConfigError, Source as Origin, Value as Merged, ValueKind};
use toml::{Table, Value};

use super::{
    Problem, Problems, Reach, Settings, ShownValue,
    layer::Layer,
    path::Path,
    problem::{Findings, Place, Places},
    raw::Raw,
    schema::{Kind, ROOT},
    show, sources, validate,
};

/// The defaults that are part of the program.
pub const DEFAULTS: &str = include_str!("../../config/default.toml");

/// The files that are looked for when none is named; the first one that is there holds.
pub const SEARCH: [&str; 2] = ["/etc/worker-gate/worker-gate.toml", "./worker-gate.toml"];

/// Where settings may come from. The process's surroundings are values here, so that a test can be sure of them.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// `--config`; a missing file is an error.
    pub file: Option<PathBuf>,
    /// The files to look for when none is named; usually [`SEARCH`].
    pub search: Vec<PathBuf>,
    /// The environment: `WORKER_GATE__BROKER__URL` and the like, and `CELERY_BROKER_URL`.
    pub env: BTreeMap<String, String>,
    /// `--set`: `key=value`, the last one wins.
    pub set: Vec<String>,
    /// The gate's name if settings give none.
    pub hostname: String,
}

/// Settings, and where each of them came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What holds.
    pub settings: Settings,
    /// Every value for people, in the order of the documentation.
    pub values: Vec<ShownValue>,
    /// The settings file that was read.
    pub file: Option<PathBuf>,
}

/// Reads every layer, merges them and checks the result.
///
/// # Errors
/// Everything that is wrong, at once. Only where a file is no TOML at all, what depends on several layers is left out.
pub fn load(source: &Source) -> Result<Loaded, Problems> {
    loaded(source, None)
}

/// The same with this text in place of what the file of this name says.
///
/// # Errors
/// As for [`load`].
pub fn load_text(source: &Source, path: &FilePath, text: &str) -> Result<Loaded, Problems> {
    loaded(source, Some((path, text)))
}

/// What leads to the gates, and every value of all layers. There need not be a file, a check or a worker.
///
/// # Errors
/// Everything that cannot be read, and everything that is wrong with what leads to the gates.
pub fn reach(source: &Source) -> Result<(Reach, Vec<ShownValue>), Problems> {
    let mut findings = Findings::default();
    let (merged, _) = layers(source, None, &mut findings);
    let outcome = merged.and_then(|merged| {
        let (raw, places, values) = read(merged, source, &mut findings)?;
        validate::reach(raw, &places, &mut findings).map(|reach| (reach, values))
    });
    match (findings.into_problems(), outcome) {
        (Some(problems), _) => Err(problems),
        (None, Some(found)) => Ok(found),
        (None, None) => Err(defect()),
    }
}

fn loaded(source: &Source, text: Option<(&FilePath, &str)>) -> Result<Loaded, Problems> {
    let mut findings = Findings::default();
    let (merged, file) = layers(source, text, &mut findings);
    let outcome = merged.and_then(|merged| finish(merged, source, &mut findings));
    if file.is_none() && source.file.is_none() && !findings.is_empty() {
        let searched: Vec<_> = source.search.iter().map(|path| path.display().to_string()).collect();
        let what = format!("no settings file was found at {}", searched.join(" or "));
        findings.unusable(None, &Path::default(), what, "write one, or name one with --config");
    }
    match (findings.into_problems(), outcome) {
        (Some(problems), _) => Err(problems),
        (None, Some((settings, values))) => Ok(Loaded { settings, values, file }),
        (None, None) => Err(defect()),
    }
}

fn defect() -> Problems {
    Problems::from(Problem {
        place: None,
        key: String::new(),
        what: "the settings could not be put together".to_owned(),
        remedy: "report this as a defect of worker-gate".to_owned(),
    })
}

/// The values of all layers with their places.
struct Sum {
    table: Table,
    places: Places,
}

/// Reads and merges the layers. No sum if a file cannot be read: what it says is not known then.
fn layers(source: &Source, text: Option<(&FilePath, &str)>, findings: &mut Findings) -> (Option<Sum>, Option<PathBuf>) {
    let Some(mut layers) = sources::defaults(DEFAULTS, findings).map(|layer| vec![layer]) else { return (None, None) };
    let (mut readable, mut file) = (true, None);
    if let Some((path, text)) = text {
        match sources::document(path, text, findings) {
            Some(layer) => layers.push(layer),
            None => readable = false,
        }
        file = Some(path.to_owned());
    } else if let Some((path, opened)) = sources::find(source.file.as_deref(), &source.search, findings) {
        match sources::file(&path, opened, findings) {
            Some(layer) => layers.push(layer),
            None => readable = false,
        }
        file = Some(path);
    } else {
        // Without a file that was named, nothing else can be judged; without any, the other layers may be enough.
        readable = findings.is_empty();
    }
    let given = |name: &str| name.to_uppercase().starts_with(sources::PREFIX);
    let variables: Vec<_> = source.env.iter().filter(|(name, _)| given(name)).collect();
    let below = if variables.is_empty() { Table::new() } else { merge(&layers).unwrap_or_default() };
    for (name, text) in variables {
        layers.extend(sources::variable(name, text, &below, findings));
    }
    for argument in &source.set {
        layers.extend(sources::flag(argument, findings));
    }
    if !readable {
        return (None, file);
    }
    let Ok(table) = merge(&layers) else { return (None, file) };
    let mut places = Places::default();
    for layer in layers {
        places.overlay(layer.places);
    }
    let mut sum = Sum { table, places };
    fill_from_celery(source, &mut sum);
    (Some(sum), file)
}

/// `CELERY_BROKER_URL` is where the workers look; it holds if nobody said otherwise to the gate.
fn fill_from_celery(source: &Source, sum: &mut Sum) {
    const NAME: &str = "CELERY_BROKER_URL";
    let path = Path::of(["broker", "url"]);
    let Some(url) = source.env.get(NAME).filter(|url| !url.is_empty()) else { return };
    if sum.places.of(&path) != Some(&Place::Default) {
        return;
    }
    if let Some(broker) = sum.table.get_mut("broker").and_then(Value::as_table_mut) {
        broker.insert("url".to_owned(), Value::String(url.clone()));
        sum.places.note(path, Place::Environment(NAME.to_owned()), false);
    }
}

fn finish(sum: Sum, source: &Source, findings: &mut Findings) -> Option<(Settings, Vec<ShownValue>)> {
    let (raw, places, values) = read(sum, source, findings)?;
    validate::settings(raw, &places, findings).map(|settings| (settings, values))
}

/// The values with their types, and as people read them.
fn read(mut sum: Sum, source: &Source, findings: &mut Findings) -> Option<(Raw, Places, Vec<ShownValue>)> {
    if let Some(name) = sum.table.get_mut("gate").and_then(|gate| gate.get_mut("name"))
        && name.as_str() == Some("")
    {
        *name = Value::String(source.hostname.clone());
        sum.places.note(Path::of(["gate", "name"]), Place::HostName, false);
    }
    fill(&ROOT, &Path::default(), &mut sum.table, &mut sum.places);
    let values = show::values(&sum.table, &sum.places);
    match serde_path_to_error::deserialize(Value::Table(sum.table)) {
        Ok(raw) => Some((raw, sum.places, values)),
        Err(error) => {
            // The strict reading has refused everything that could bring us here. The cause is left out: it may
            // quote a value.
            let remedy = "report this as a defect of worker-gate";
            findings.unusable(None, &Path::of([error.path().to_string().as_str()]), "cannot be read", remedy);
            None
        }
    }
}

/// Adds what checks and workers need and do not say.
fn fill(kind: &Kind, path: &Path, table: &mut Table, places: &mut Places) {
    match kind {
        Kind::Table(fields) => {
            for field in *fields {
                let path = path.key(field.name);
                if let Some(default) = field.default
                    && !table.contains_key(field.name)
                    && let Some(value) = literal(default)
                {
                    places.note(path.clone(), Place::Default, value.is_table());
                    table.insert(field.name.to_owned(), value);
                }
                fill_value(&field.kind, &path, table.get_mut(field.name), places);
            }
        }
        Kind::Map(inner) => {
            for (name, value) in table.iter_mut() {
                fill_value(inner, &path.key(name), Some(value), places);
            }
        }
        Kind::Text
        | Kind::Secret
        | Kind::Bool
        | Kind::Int(..)
        | Kind::Duration(_)
        | Kind::OneOf(_)
        | Kind::List(_)
        | Kind::Free => {}
    }
}

fn fill_value(kind: &Kind, path: &Path, value: Option<&mut Value>, places: &mut Places) {
    match (kind, value) {
        (_, Some(Value::Table(table))) => fill(kind, path, table, places),
        (Kind::List(element), Some(Value::Array(array))) => {
            for (at, value) in array.iter_mut().enumerate() {
                fill_value(element, &path.at(at), Some(value), places);
            }
        }
        _ => {}
    }
}

/// A value from its TOML text.
fn literal(text: &str) -> Option<Value> {
    text.parse().ok()
}

/// Lays the layers on each other, tables key by key.
fn merge(layers: &[Layer]) -> Result<Table, ConfigError> {
    let mut builder = Config::builder();
    for layer in layers {
        builder = builder.add_source(Tree(layer.table.clone()));
    }
    builder.build()?.try_deserialize()
}

/// A layer as `config` takes it. Its values are all of the right type already, so that nothing is left to coerce.
#[derive(Debug, Clone)]
struct Tree(Table);

impl Origin for Tree {
    fn clone_into_box(&self) -> Box<dyn Origin + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<HashMap<String, Merged>, ConfigError> {
        Ok(self.0.iter().map(|(key, value)| (key.clone(), merged(value))).collect())
    }
}

fn merged(value: &Value) -> Merged {
    let kind = match value {
        Value::String(text) => ValueKind::String(text.clone()),
        Value::Integer(number) => ValueKind::I64(*number),
        Value::Float(number) => ValueKind::Float(*number),
        Value::Boolean(value) => ValueKind::Boolean(*value),
        // The strict reading lets no date through; `config` knows none.
        Value::Datetime(date) => ValueKind::String(date.to_string()),
        Value::Array(array) => ValueKind::Array(array.iter().map(merged).collect()),
        Value::Table(table) => {
            ValueKind::Table(table.iter().map(|(key, value)| (key.clone(), merged(value))).collect())
        }
    };
    Merged::new(None, kind)
}
