//! Every key that settings may have, with the form of its value.
//!
//! One table drives the strict reading of files, of the environment and of flags, the defaults of checks and workers,
//! and what `config show` hides. Values that depend on each other are looked at in `validate`.

/// The form of a value.
#[derive(Debug)]
pub(super) enum Kind {
    /// Text.
    Text,
    /// Text that nobody may see.
    Secret,
    /// `true` or `false`.
    Bool,
    /// A whole number in this range.
    Int(i64, i64),
    /// Text such as `"30s"`, of at least so many milliseconds.
    Duration(u32),
    /// One of these texts.
    OneOf(&'static [&'static str]),
    /// Any number of these.
    List(&'static Kind),
    /// These keys and no others.
    Table(&'static [Field]),
    /// Any keys, each with such a value.
    Map(&'static Kind),
    /// Any keys, with text, numbers, booleans, lists and tables.
    Free,
}

/// One key of a table.
#[derive(Debug)]
pub(super) struct Field {
    /// The key.
    pub(super) name: &'static str,
    /// The form of its value.
    pub(super) kind: Kind,
    /// What it is when it is absent, as TOML; for tables that the embedded defaults cannot hold.
    pub(super) default: Option<&'static str>,
}

const fn field(name: &'static str, kind: Kind) -> Field {
    Field { name, kind, default: None }
}

const fn or(name: &'static str, kind: Kind, default: &'static str) -> Field {
    Field { name, kind, default: Some(default) }
}

/// The whole of DESIGN.md, section 6.
pub(super) static ROOT: Kind = Kind::Table(&[
    field("gate", Kind::Table(GATE)),
    field("broker", Kind::Table(BROKER)),
    field("events", Kind::Table(EVENTS)),
    field("control", Kind::Table(CONTROL)),
    field("evidence", Kind::Table(EVIDENCE)),
    field("fleet", Kind::Table(FLEET)),
    field("checks", Kind::Map(&Kind::Table(CHECK))),
    field("profile", Kind::Table(PROFILE)),
    field("image", Kind::Table(IMAGE)),
    field("workers", Kind::List(&Kind::Table(WORKER))),
]);

static GATE: &[Field] = &[field("name", Kind::Text), field("state_dir", Kind::Text), field("listen", Kind::Text)];

static BROKER: &[Field] = &[
    field("url", Kind::Secret),
    field("heartbeat", Kind::Duration(1)),
    field("global_keyprefix", Kind::Text),
    field("priority_steps", Kind::List(&Kind::Int(0, 255))),
    field("master_name", Kind::Text),
    field("ca_file", Kind::Text),
    field("cert_file", Kind::Text),
    field("key_file", Kind::Text),
];

static EVENTS: &[Field] = &[field("exchange", Kind::Text), field("mirror_celeryev", Kind::Bool)];

static EVIDENCE: &[Field] =
    &[field("max_age", Kind::Duration(1)), field("flap_wait", Kind::Duration(0)), field("flap_max", Kind::Duration(1))];

static CONTROL: &[Field] = &[field("key_file", Kind::Text)];

static FLEET: &[Field] = &[field("max_quarantined", Kind::Text)];

static CHECK: &[Field] = &[
    field("run", Kind::List(&Kind::List(&Kind::Text))),
    field("version", Kind::Table(VERSION)),
    or("required", Kind::Bool, "true"),
    or("every", Kind::Duration(1), "\"60s\""),
    or("timeout", Kind::Duration(1), "\"10s\""),
    or("fail_after", Kind::Int(1, u32::MAX as i64), "1"),
    or("pass_after", Kind::Int(1, u32::MAX as i64), "1"),
];

static VERSION: &[Field] = &[or("command", Kind::Int(0, u32::MAX as i64), "0"), field("require", Kind::Text)];

static PROFILE: &[Field] = &[
    field("path", Kind::Text),
    field("template", Kind::Text),
    field("enforce", Kind::Free),
    field("on_drift", Kind::OneOf(&["report", "repair"])),
];

static IMAGE: &[Field] = &[
    field("manifest", Kind::Text),
    field("required", Kind::Bool),
    field("approved_base_images", Kind::List(&Kind::Text)),
    field("codex_cli_package", Kind::Text),
    field("spec_kit_package", Kind::Text),
    field("smoke", Kind::List(&Kind::List(&Kind::Text))),
];

static WORKER: &[Field] = &[
    field("name", Kind::Text),
    or("run_as", Kind::Text, "\"\""),
    or("home", Kind::Text, "\"\""),
    or("path_env", Kind::Text, "\"\""),
    or("env", Kind::Map(&Kind::Secret), "{}"),
    or("edge", Kind::OneOf(&["route", "feed"]), "\"route\""),
    field("lane", Kind::Text),
    field("intake", Kind::Table(INTAKE)),
    or("depth", Kind::Int(1, u32::MAX as i64), "1"),
    or("offline_after", Kind::Duration(1), "\"10s\""),
    or("queue_arguments", Kind::Free, "{}"),
    or("on_quarantine", Kind::OneOf(&["drain", "recycle"]), "\"drain\""),
    or("task_events", Kind::Bool, "false"),
];

static INTAKE: &[Field] = &[
    field("exchange", Kind::Text),
    // "fanout" is let through here, so that the refusal can say why.
    field("type", Kind::OneOf(&["direct", "topic", "x-consistent-hash", "fanout"])),
    field("keys", Kind::List(&Kind::Text)),
    field("queue", Kind::Text),
];

impl Kind {
    /// What a message says was expected.
    pub(super) fn expected(&self) -> String {
        match self {
            Self::Text | Self::Secret => "text in quotes".to_owned(),
            Self::Bool => "true or false".to_owned(),
            Self::Int(least, most) => format!("a whole number from {least} to {most}"),
            Self::Duration(_) => "a duration such as \"250ms\", \"30s\" or \"5m\"".to_owned(),
            Self::OneOf(names) => {
                let quoted: Vec<_> =
                    names.iter().filter(|name| **name != "fanout").map(|name| format!("\"{name}\"")).collect();
                format!("one of {}", quoted.join(", "))
            }
            Self::List(element) => match element {
                Self::List(_) => "a list of commands, each a list such as [\"codex\", \"--version\"]".to_owned(),
                Self::Table(_) => "a list of tables".to_owned(),
                Self::Text
                | Self::Secret
                | Self::Bool
                | Self::Int(..)
                | Self::Duration(_)
                | Self::OneOf(_)
                | Self::Map(_)
                | Self::Free => format!("a list in brackets, with each element {}", element.expected()),
            },
            Self::Table(_) | Self::Map(_) | Self::Free => "a table".to_owned(),
        }
    }
}
