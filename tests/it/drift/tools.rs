//! Another version of a checked tool, by every way in which one gets there.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use serde_json::Value;

use super::{LANE, SOON, Stage, changed, codex::folder_of, kinds, sh};
use crate::support::{
    celery::venv,
    facts::Fact,
    gate::Host,
    vhost::vhost,
    wait::{throughout, until},
};

const CHECK: &str = "codex_cli";
/// Nothing else comes of a change when nothing has come for so long: the gate waits for 200 ms without a write.
const CALM: Duration = Duration::from_secs(1);

/// A tool, and how one version of it takes the place of another. The lines run in the home, with `$VERSION`.
struct Tool {
    name: &'static str,
    /// The folders of the home that are put in front of PATH.
    folders: &'static str,
    /// The command that says the version.
    command: &'static str,
    /// Before the gate starts.
    lay_out: &'static str,
    /// The change.
    change: &'static str,
}

/// The first one, another one that is allowed, and one that is not.
struct Versions {
    first: &'static str,
    allowed: &'static str,
    refused: &'static str,
    require: &'static str,
}

const MADE_UP: Versions = Versions { first: "1.0.0", allowed: "1.1.0", refused: "2.0.0", require: "<2" };

/// A line that writes a script to `new`.
const NEW: &str = r"printf '#!/bin/sh\necho tool %s\n' $VERSION >new; chmod 755 new; ";

const TOOLS: &[Tool] = &[
    Tool {
        name: "a script that is written in place",
        folders: "bin",
        command: "tool",
        lay_out: "mkdir -p bin; cp new bin/tool",
        change: "cat new >bin/tool",
    },
    Tool {
        name: "a script that is replaced",
        folders: "bin",
        command: "tool",
        lay_out: "mkdir -p bin; cp new bin/tool",
        change: "mv new bin/tool",
    },
    Tool {
        name: "a link to the folder of a version",
        folders: "bin",
        command: "tool",
        lay_out: "mkdir -p bin opt/$VERSION; cp new opt/$VERSION/tool; ln -s $VERSION opt/current;
                  ln -s ../opt/current/tool bin/tool",
        change: "mkdir -p opt/$VERSION; cp new opt/$VERSION/tool; ln -sfn $VERSION opt/current",
    },
    Tool {
        name: "a link on PATH",
        folders: "opt/current/bin",
        command: "tool",
        lay_out: "mkdir -p opt/$VERSION/bin; cp new opt/$VERSION/bin/tool; ln -s $VERSION opt/current",
        change: "mkdir -p opt/$VERSION/bin; cp new opt/$VERSION/bin/tool; ln -sfn $VERSION opt/current",
    },
    Tool {
        name: "a folder that is replaced",
        folders: "app/bin",
        command: "tool",
        lay_out: "mkdir -p app/bin; cp new app/bin/tool",
        change: "mkdir -p next/bin; mv new next/bin/tool; mv app old; mv next app; rm -r old",
    },
    Tool {
        name: "a file that comes before it on PATH",
        folders: "none early bin",
        command: "tool",
        lay_out: "mkdir -p early bin; cp new bin/tool",
        // Each wins over those before it: in a folder that is there, and in one that is not; and then it goes.
        change: "if ! [ -e early/tool ]; then mv new early/tool; elif ! [ -e none ]; then mkdir none; mv new none/tool;
                 else rm none/tool early/tool; fi",
    },
    Tool {
        name: "an interpreter",
        folders: "bin",
        command: "tool",
        lay_out: r#"mkdir -p bin; cp new bin/interpreter; printf '#!%s/bin/interpreter\n' "$PWD" >bin/tool; chmod 755 bin/tool"#,
        change: "mv new bin/interpreter",
    },
];

const NPM: Tool = Tool {
    name: "npm install",
    folders: "node_modules/.bin",
    command: "json5",
    lay_out: INSTALL_JSON5,
    change: INSTALL_JSON5,
};
const INSTALL_JSON5: &str = "npm install --prefix . --no-audit --no-fund --no-update-notifier json5@$VERSION";
const JSON5: Versions = Versions { first: "2.2.2", allowed: "2.2.3", refused: "2.2.1", require: ">=2.2.2" };

const PIP: Tool = Tool {
    name: "pip install",
    folders: "app/bin",
    command: "wheel",
    lay_out: "\"$PYTHON\" -m venv app; app/bin/python -m pip install --disable-pip-version-check wheel==$VERSION",
    change: "app/bin/python -m pip install --disable-pip-version-check wheel==$VERSION",
};
const PIP_TARGET: Tool = Tool {
    name: "pip install --target",
    folders: "app/bin",
    command: "wheel",
    lay_out: INSTALL_WHEEL,
    change: INSTALL_WHEEL,
};
const INSTALL_WHEEL: &str =
    "\"$PYTHON\" -m pip install --disable-pip-version-check --upgrade --target app wheel==$VERSION";
const WHEEL: Versions = Versions { first: "0.42.0", allowed: "0.43.0", refused: "0.44.0", require: "<0.44" };

/// A gate that checks a tool so rarely that only a change of it leads to another run.
struct Trial<'a> {
    tool: &'a Tool,
    stage: Stage,
}

impl<'a> Trial<'a> {
    fn new(tool: &'a Tool, versions: &Versions, argument: &str) -> Self {
        let (vhost, host) = (vhost(), Host::new("tools"));
        let home = host.home();
        version(&home, tool.lay_out, versions.first);
        let tools = host.tool("codex").parent().unwrap().display().to_string();
        let mut path: Vec<_> = tool.folders.split(' ').map(|folder| home.join(folder).display().to_string()).collect();
        path.extend([tools.clone(), folder_of("node").display().to_string(), "/usr/bin".to_owned()]);
        let path = path.join(":");
        let mut settings = host.settings(&vhost.url(), LANE);
        for (from, to) in [
            (format!("{tools}:/usr/bin"), path),
            (
                r#"run = [["codex", "--version"], ["codex", "login", "status"]]"#.to_owned(),
                format!("run = [[{:?}, {argument:?}]]", tool.command),
            ),
            ("require = \">=0.1\"".to_owned(), format!("require = {:?}", versions.require)),
            ("every = \"1s\"".to_owned(), "every = \"5m\"".to_owned()),
            // A busy machine must not fail a check that would not run again for minutes.
            ("timeout = \"5s\"".to_owned(), "timeout = \"60s\"".to_owned()),
            (
                "edge = \"route\"".to_owned(),
                format!("edge = \"route\"\nenv = {{ PYTHONPATH = {:?} }}", home.join("app")),
            ),
        ] {
            settings = changed(&settings, &from, &to);
        }
        let trial = Self { tool, stage: Stage::with(host, vhost, &settings, Host::start) };
        assert_eq!(trial.record()["checks"][CHECK]["version"], versions.first, "{}", tool.name);
        trial
    }

    fn record(&self) -> Value {
        self.stage.gate.wait_for(SOON, LANE, "a record", |_| true)
    }

    /// Brings this version in and gives the facts about the worker that follow, up to when nothing more comes.
    fn change(&self, to: &str) -> Vec<Fact> {
        let told = self.stage.facts.all().len();
        version(&self.stage.host.home(), self.tool.change, to);
        let what = format!("{}: {to} has been checked", self.tool.name);
        until(SOON, &what, || {
            self.stage.facts.all()[told..].iter().any(|fact| fact.body["version_change"]["new"]["version"] == to)
        });
        self.stage.gate.wait_for(SOON, LANE, &what, |record| record["reason"]["code"] != "tool_changed");
        let checked = SystemTime::now();
        until(SOON, "nothing more comes", || {
            let last = self.stage.facts.all().iter().map(|fact| fact.received).max().unwrap().max(checked);
            SystemTime::now().duration_since(last).is_ok_and(|age| age > CALM)
        });
        let facts = self.stage.facts.all().split_off(told);
        let took: Vec<_> = facts.iter().filter_map(|fact| fact.body["latency_ms"].as_f64()).collect();
        println!("{} to {to}: {:?}, edge after {took:?} ms", self.tool.name, kinds(&facts));
        facts
    }

    /// Whatever came of a change, it began with a shut edge, because what was proven was void.
    fn shut_first(&self, facts: &[Fact]) {
        let name = self.tool.name;
        let first =
            facts.iter().find(|fact| !["worker-health-check", "gate-heartbeat"].contains(&fact.kind())).unwrap();
        assert_eq!((first.kind(), &first.body["edge"]), ("worker-quarantined", &Value::from("shut")), "{name}");
        let reason = &first.body["reason"];
        assert_eq!(reason["code"], "tool_changed", "{name}: {reason}");
        let detail = reason["detail"].as_str().unwrap();
        assert!(detail.contains(CHECK) && detail.contains('/'), "{name}: {reason}");
        assert!(!reason["remedy"].as_str().unwrap().is_empty(), "{name}: {reason}");
        let time = |fact: &Fact| fact.body["checks"][CHECK]["checked_at"].as_str().unwrap().parse::<jiff::Timestamp>();
        let admitted = facts.iter().filter(|fact| fact.kind() == "worker-admitted");
        for admitted in admitted {
            assert!(time(admitted).unwrap() > time(first).unwrap(), "{name}: admitted without another run");
        }
    }

    /// The facts tell of one version and then of another one.
    fn told(&self, facts: &[Fact], from: &str, to: &str) {
        let changes: Vec<_> = facts.iter().filter(|fact| fact.kind() == "worker-version-changed").collect();
        let change = |fact: &Fact, side: &str, key: &str| {
            let change = &fact.body["version_change"];
            assert_eq!(change["check"], CHECK);
            change[side][key].as_str().unwrap_or_default().to_owned()
        };
        let (first, last) = (changes.first().unwrap(), changes.last().unwrap());
        let seen = (change(first, "old", "version"), change(last, "new", "version"));
        assert_eq!(seen, (from.to_owned(), to.to_owned()), "{}", self.tool.name);
        for fact in changes {
            let [old, new] = ["old", "new"].map(|side| change(fact, side, "fingerprint"));
            assert!(old != new && old.len() == 64 && new.len() == 64, "{}: {old} {new}", self.tool.name);
        }
    }

    /// To a version that is allowed, to one that is not, and to the first one.
    fn through(&self, versions: &Versions) -> Vec<Vec<Fact>> {
        let Versions { first, allowed, refused, .. } = *versions;
        let to_allowed = self.change(allowed);
        self.shut_first(&to_allowed);
        self.told(&to_allowed, first, allowed);
        self.stage.gate.wait_for_edge(SOON, LANE, "open");

        let to_refused = self.change(refused);
        self.shut_first(&to_refused);
        self.told(&to_refused, allowed, refused);
        let record = self.stage.gate.wait_until(SOON, LANE, "quarantined");
        assert_eq!(record["reason"]["code"], "check_failed", "{}", self.tool.name);
        let rule = format!("is version {refused}, and");
        assert!(record["reason"]["detail"].as_str().unwrap().contains(&rule), "{}", record["reason"]);
        throughout(Duration::from_millis(500), "it stays shut", || !self.stage.vhost.is_open(LANE));

        // What is quarantined stays so until it is proven.
        let back = self.change(first);
        self.told(&back, refused, first);
        self.stage.gate.wait_for_edge(SOON, LANE, "open");
        vec![to_allowed, to_refused, back]
    }
}

/// Runs a line of a tool.
#[track_caller]
fn version(home: &Path, line: &str, version: &str) {
    let python = venv().join("bin/python");
    let line = if line.contains("new") { format!("{NEW}{line}") } else { line.to_owned() };
    sh(home, &line, &[("VERSION", version), ("PYTHON", python.to_str().unwrap())]);
}

#[test]
fn another_version_of_a_tool_shuts_the_edge_until_it_has_been_checked() {
    for tool in TOOLS {
        let trial = Trial::new(tool, &MADE_UP, "--version");
        let [to_allowed, to_refused, _] = trial.through(&MADE_UP).try_into().unwrap();
        // A change that takes a moment is one change.
        assert_eq!(
            kinds(&to_allowed),
            ["worker-quarantined", "worker-version-changed", "worker-admitted"],
            "{}",
            tool.name
        );
        assert_eq!(kinds(&to_refused), ["worker-quarantined", "worker-version-changed"], "{}", tool.name);
        trial.stage.told_no_secret();
    }
}

#[test]
fn npm_and_pip_bring_another_version_and_the_edge_is_shut_until_it_has_been_checked() {
    for (tool, versions, argument) in
        [(NPM, JSON5, "--version"), (PIP, WHEEL, "version"), (PIP_TARGET, WHEEL, "version")]
    {
        let trial = Trial::new(&tool, &versions, argument);
        trial.through(&versions);
        trial.stage.told_no_secret();
    }
}

#[test]
fn a_tool_that_cannot_be_run_any_more_quarantines_and_the_same_one_again_is_checked_again() {
    let tool = &TOOLS[1];
    let mut trial = Trial::new(tool, &MADE_UP, "--version");
    for (line, back, detail) in [
        ("mv bin/tool away", "mv away bin/tool", "was not found on the PATH"),
        ("chmod 644 bin/tool", "chmod 755 bin/tool", "may not run"),
        ("mv bin away", "mv away bin", "was not found on the PATH"),
        ("mkfifo pipe; mv bin/tool away; mv pipe bin/tool", "mv away bin/tool", "was not found on the PATH"),
        (
            "ln -sf none bin/link; mv bin/tool away; mv bin/link bin/tool",
            "mv away bin/tool",
            "was not found on the PATH",
        ),
    ] {
        trial.stage.sh(line, "");
        let fact = trial.stage.quarantined(line, &["tool_changed"], CHECK);
        let failed = trial.stage.gate.wait_for(SOON, LANE, line, |record| record["reason"]["code"] == "check_failed");
        println!("{line}: {} -> {}", fact.body["reason"], failed["reason"]);
        assert!(failed["reason"]["detail"].as_str().unwrap().contains(detail), "{line}: {}", failed["reason"]);
        trial.stage.opens_after(back);
    }
    let told = trial.stage.facts.all().len();
    trial.stage.sh("touch bin/other; mkdir bin/folder; rm -r bin/folder; chmod 600 bin/other; rm bin/other", "");
    throughout(CALM, "what lies beside a tool is none of its business", || {
        kinds(&trial.stage.facts.all().split_off(told)).is_empty()
    });
    let facts = trial.change(MADE_UP.first);
    trial.shut_first(&facts);
    trial.told(&facts, MADE_UP.first, MADE_UP.first);
    assert_eq!(kinds(&facts), ["worker-quarantined", "worker-version-changed", "worker-admitted"]);
    trial.stage.told_no_secret();
}

#[test]
fn a_tool_that_nobody_requires_may_change_and_is_checked_again() {
    let (vhost, host) = (vhost(), Host::new("optional"));
    let settings =
        changed(&host.settings(&vhost.url(), LANE), "[checks.spec_kit]\n", "[checks.spec_kit]\nrequired = false\n");
    let mut stage = Stage::with(host, vhost, &settings, Host::start);
    let told = stage.facts.all().len();
    stage.sh("echo '# another one' >>../tools/speckit", "");
    let fact = stage.facts.next(SOON, "worker-version-changed", LANE);
    assert_eq!(fact.body["version_change"]["check"], "spec_kit");
    throughout(Duration::from_millis(500), "it stays open", || stage.vhost.is_open(LANE));
    assert_eq!(kinds(&stage.facts.all().split_off(told)), ["worker-version-changed"]);
    stage.told_no_secret();
}
