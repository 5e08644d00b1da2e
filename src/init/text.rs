//! The settings file. Pure.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::{Draft, Drafted, Owner, Tool, plan::Way};
use crate::settings::{Place, ShownValue};

/// As wide as comments are.
const WIDTH: usize = 128;

/// What flags say of `gate` and of `broker`, but for the URL: without it a gate would not be as the one that has asked.
pub(super) fn given(values: &[ShownValue]) -> Vec<(String, String)> {
    let is_given = |value: &&ShownValue| {
        let is_here = value.key.starts_with("gate.") || value.key.starts_with("broker.");
        value.layer == Place::Flag && is_here && value.key != "broker.url"
    };
    values.iter().filter(is_given).map(|value| (value.key.clone(), value.value.clone())).collect()
}

/// The file as a whole.
pub fn text(draft: &Draft) -> String {
    let mut text = String::new();
    comment(
        &mut text,
        "Written by `worker-gate init` from what the broker and its workers say. Correct what is not so; `worker-gate config \
         check` and `worker-gate check` say whether it holds. What is not here is as `worker-gate config show` has it.",
    );
    let of = |table: &str| {
        let own =
            draft.given.iter().filter_map(|(key, value)| Some((key.strip_prefix(table)?.strip_prefix('.')?, value)));
        own.fold(String::new(), |mut lines, (key, value)| {
            // To a string nothing fails.
            let _ = writeln!(lines, "{key} = {value}");
            lines
        })
    };
    let gate = of("gate");
    if !gate.is_empty() {
        let _ = write!(text, "\n[gate]\n{gate}");
    }
    text.push_str("\n[broker]\n");
    let url = quoted(&draft.urls.join(";"));
    if draft.is_secret {
        comment(
            &mut text,
            "The URL has a password and is therefore not here: the gate takes it from WORKER_GATE__BROKER__URL in its \
             environment, or else from CELERY_BROKER_URL.",
        );
        let _ = writeln!(text, "# url = {url}");
    } else {
        let _ = writeln!(text, "url = {url}");
    }
    text.push_str(&of("broker"));
    checks(&mut text, &draft.tools);
    profile(&mut text, draft);
    for worker in &draft.workers {
        text.push('\n');
        self::worker(&mut text, worker);
    }
    text
}

fn checks(text: &mut String, tools: &[Tool]) {
    let none = tools.iter().all(|tool| tool.found.is_empty());
    if none {
        text.push('\n');
        comment(
            text,
            "None of these tools was found. Install them, or write checks of the tools that your tasks need in their place: a \
             worker gets no task until every check here has passed.",
        );
    }
    for tool in tools {
        let table = format!("[checks.{}]", tool.check);
        let program = tool.program;
        let lines = if tool.check == "codex_cli" {
            vec![
                table,
                format!(r#"run = [["{program}", "--version"], ["{program}", "login", "status"]]"#),
                r#"version = { command = 0, require = ">=0.1" }   # of what the first command prints"#.to_owned(),
            ]
        } else {
            vec![table, format!(r#"run = [["{program}", "--help"]]"#)]
        };
        text.push('\n');
        let who = tool.missing.join(" and ");
        let is_there = !tool.found.is_empty();
        if is_there {
            let found: Vec<String> = tool.found.iter().map(|path| path.display().to_string()).collect();
            comment(text, &format!("{program} is {}.", found.join(" and ")));
            if !who.is_empty() {
                comment(text, &format!("{who} has no {program} on the PATH, so that this check will fail there."));
            }
        } else if !none {
            comment(
                text,
                &format!("{who} has no {program} on the PATH. Where there is one, make these lines settings:"),
            );
        }
        for line in lines {
            let mark = if is_there || none { "" } else { "# " };
            let _ = writeln!(text, "{mark}{line}");
        }
    }
}

fn profile(text: &mut String, draft: &Draft) {
    text.push_str("\n[profile]\n");
    let has_codex = draft.tools.iter().any(|tool| tool.check == "codex_cli" && !tool.found.is_empty());
    let template = draft.profile.template.as_ref().map(|path| quoted(&path.display().to_string()));
    if has_codex || !draft.profile.found.is_empty() {
        for path in &draft.profile.found {
            comment(text, &format!("{} is there.", path.display()));
        }
        text.push_str("path = \"~/.codex/config.toml\"             # of each worker's user\n");
        if let Some(template) = template {
            let _ =
                writeln!(text, "template = {template}       # for `worker-gate profile apply`, where there is none");
        }
        text.push_str("enforce = { approval_policy = \"never\" }   # a worker has nobody who could approve\n");
    } else {
        comment(
            text,
            "There is neither codex nor a ~/.codex/config.toml, so that no config is looked after. With them, write these lines \
             instead:",
        );
        text.push_str("# path = \"~/.codex/config.toml\"\n# enforce = { approval_policy = \"never\" }\npath = \"\"\n");
    }
}

fn worker(text: &mut String, worker: &Drafted) {
    let about = if worker.about.is_empty() { String::new() } else { format!(": {}", worker.about) };
    comment(text, &format!("{}{about}.", worker.name));
    for habit in &worker.habits {
        comment(text, &format!("{}: {}. To mend it: {}.", habit.code, habit.detail, habit.remedy));
    }
    let _ = writeln!(text, "[[workers]]\nname = {}", quoted(&worker.name));
    match &worker.owner {
        Owner::Known { pid, user, home, path, codex_home } => {
            comment(text, &format!("As process {pid} of this host: its user, and what that finds."));
            let _ = writeln!(text, "run_as = {}", quoted(user));
            if let Some(home) = home {
                let _ = writeln!(text, "home = {}", quoted(&home.display().to_string()));
            }
            if let Some(path) = path {
                let _ = writeln!(text, "path_env = {}", quoted(path));
            }
            if let Some(codex_home) = codex_home {
                comment(
                    text,
                    "Its Codex looks for its config there, and so profile.path has to name config.toml in there.",
                );
                let _ = writeln!(text, "env = {{ CODEX_HOME = {} }}", quoted(codex_home));
            }
        }
        Owner::Unknown(why) => {
            comment(text, &format!("Name the user whose tools and whose config count. That could not be seen: {why}."));
            text.push_str("# run_as = \"celery\"\n");
        }
    }
    way(text, worker);
    if !worker.beside.is_empty() {
        let beside = worker.beside.join(", ");
        comment(
            text,
            &format!(
                "It also consumes {beside}. What comes there goes past the gate, which looks after one queue of a worker: give \
                 the other queues to workers of their own, or their tasks to this one's."
            ),
        );
    }
}

fn way(text: &mut String, worker: &Drafted) {
    match &worker.way {
        Way::Route { lane, exchange, kind, key, arguments, is_new } => {
            if *is_new {
                comment(
                    text,
                    &format!(
                        "Nobody else consumes {lane}, so RabbitMQ routes and no message passes through the gate. Producers have \
                         to name this exchange and this key; what they send with queue = {} goes past the gate. If they are to \
                         stay as they are: worker-gate init --edge feed",
                        quoted(lane)
                    ),
                );
            } else {
                comment(
                    text,
                    &format!(
                        "Nobody else consumes {lane}, which its application binds to the exchange {exchange} with the key {key}. \
                         That binding goes past the gate, which takes it away, and each start of the worker brings it back: let \
                         the worker's task_queues have Queue({}) without an exchange.",
                        quoted(lane)
                    ),
                );
            }
            let (lane, exchange, key) = (quoted(lane), quoted(exchange), quoted(key));
            let _ = writeln!(text, "edge = \"route\"\nlane = {lane}");
            let kind = kind.as_str();
            let _ = writeln!(text, "intake = {{ exchange = {exchange}, type = \"{kind}\", keys = [{key}] }}");
            if let Some(arguments) = inline(arguments) {
                let _ = writeln!(text, "queue_arguments = {arguments}   # as the worker declares its queue");
            }
        }
        Way::Feed { intake, lane, why } => {
            comment(
                text,
                &format!(
                    "{why} Producers stay as they are; the gate takes a message from there to the lane when the worker has room \
                     for it. The worker is to be started with -Q {}, and until then goes past the gate.",
                    queues(lane, &worker.beside)
                ),
            );
            let (intake, lane) = (quoted(intake), quoted(lane));
            let _ = writeln!(text, "edge = \"feed\"\nlane = {lane}\nintake = {{ queue = {intake} }}");
        }
    }
}

/// What `-Q` is to name: the lane, and what the worker consumes beside.
pub(super) fn queues(lane: &str, beside: &[String]) -> String {
    [&[lane.to_owned()], beside].concat().join(",")
}

/// Text as TOML has it.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Arguments as TOML has them on one line; `None` if there are none. What TOML has no value for is left out.
fn inline(arguments: &Map<String, Value>) -> Option<String> {
    let value = |value: &Value| toml::Value::try_from(value).ok();
    let all: toml::Table = arguments.iter().filter_map(|(key, it)| Some((key.clone(), value(it)?))).collect();
    (!all.is_empty()).then(|| toml::Value::Table(all).to_string())
}

/// Lines that are no settings. Whatever others have said is in here, and must not become a setting.
fn comment(text: &mut String, said: &str) {
    let said: String = said.chars().map(|char| if char.is_control() { '?' } else { char }).collect();
    let mut line = "#".to_owned();
    for word in said.split(' ') {
        if line.len() > 1 && line.chars().count() + 1 + word.chars().count() > WIDTH {
            let _ = writeln!(text, "{line}");
            line.truncate(1);
        }
        let _ = write!(line, " {word}");
    }
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::json;

    use super::*;
    use crate::{
        init::Profile,
        settings::{IntakeType, OnQuarantine, Source, load_text},
    };

    fn source() -> Source {
        Source { hostname: "h".into(), ..Source::default() }
    }

    /// A tool that is there, or is not.
    fn tool(check: &'static str, program: &'static str, found: &[&str]) -> Tool {
        let missing = if found.is_empty() { vec!["celery".to_owned()] } else { Vec::new() };
        Tool { check, program, found: found.iter().map(PathBuf::from).collect(), missing }
    }

    fn routed() -> Drafted {
        Drafted {
            name: "codex-0@host-1".into(),
            owner: Owner::Known {
                pid: 4711,
                user: "celery".into(),
                home: Some("/srv/celery".into()),
                path: Some("/opt/tools:/usr/bin".into()),
                codex_home: Some("/srv/codex".into()),
            },
            way: Way::Route {
                lane: "codex-0".into(),
                exchange: "codex-0.intake".into(),
                kind: IntakeType::Direct,
                key: "codex-0".into(),
                arguments: json!({ "x-max-priority": 9, "odd": null }).as_object().unwrap().clone(),
                is_new: true,
            },
            beside: vec!["low".into()],
            about: "pool prefork, 2 at once, takes 2 messages beforehand".into(),
            habits: Vec::new(),
        }
    }

    fn fed() -> Drafted {
        let told = crate::doctor::told::Told { prefetch: Some((8, 2)), ..Default::default() };
        Drafted {
            name: "codex-1@host-2".into(),
            owner: Owner::Unknown("it answers as process 7, and there is no such process on this machine".into()),
            way: Way::Feed {
                intake: "codex".into(),
                lane: "codex-1@host-2.lane".into(),
                why: "It is not the only one that consumes this queue.",
            },
            beside: Vec::new(),
            about: String::new(),
            habits: crate::doctor::judging::habits(OnQuarantine::Drain, "codex-1@host-2", &told, false),
        }
    }

    fn draft() -> Draft {
        Draft {
            urls: vec!["amqp://gate:***@rabbit:5672//".into()],
            is_secret: true,
            given: vec![("gate.listen".into(), "\"\"".into()), ("broker.heartbeat".into(), "\"2s\"".into())],
            tools: vec![tool("codex_cli", "codex", &["/opt/tools/codex"]), tool("spec_kit", "speckit", &[])],
            profile: Profile { found: vec!["/srv/celery/.codex/config.toml".into()], template: None },
            workers: vec![routed(), fed()],
        }
    }

    #[test]
    fn a_file_for_rabbitmq_says_why_each_setting_is_so() {
        insta::assert_snapshot!(text(&draft()), @r#"
        # Written by `worker-gate init` from what the broker and its workers say. Correct what is not so; `worker-gate config check` and
        # `worker-gate check` say whether it holds. What is not here is as `worker-gate config show` has it.

        [gate]
        listen = ""

        [broker]
        # The URL has a password and is therefore not here: the gate takes it from WORKER_GATE__BROKER__URL in its environment, or else
        # from CELERY_BROKER_URL.
        # url = "amqp://gate:***@rabbit:5672//"
        heartbeat = "2s"

        # codex is /opt/tools/codex.
        [checks.codex_cli]
        run = [["codex", "--version"], ["codex", "login", "status"]]
        version = { command = 0, require = ">=0.1" }   # of what the first command prints

        # celery has no speckit on the PATH. Where there is one, make these lines settings:
        # [checks.spec_kit]
        # run = [["speckit", "--help"]]

        [profile]
        # /srv/celery/.codex/config.toml is there.
        path = "~/.codex/config.toml"             # of each worker's user
        enforce = { approval_policy = "never" }   # a worker has nobody who could approve

        # codex-0@host-1: pool prefork, 2 at once, takes 2 messages beforehand.
        [[workers]]
        name = "codex-0@host-1"
        # As process 4711 of this host: its user, and what that finds.
        run_as = "celery"
        home = "/srv/celery"
        path_env = "/opt/tools:/usr/bin"
        # Its Codex looks for its config there, and so profile.path has to name config.toml in there.
        env = { CODEX_HOME = "/srv/codex" }
        # Nobody else consumes codex-0, so RabbitMQ routes and no message passes through the gate. Producers have to name this exchange
        # and this key; what they send with queue = "codex-0" goes past the gate. If they are to stay as they are: worker-gate init
        # --edge feed
        edge = "route"
        lane = "codex-0"
        intake = { exchange = "codex-0.intake", type = "direct", keys = ["codex-0"] }
        queue_arguments = { x-max-priority = 9 }   # as the worker declares its queue
        # It also consumes low. What comes there goes past the gate, which looks after one queue of a worker: give the other queues to
        # workers of their own, or their tasks to this one's.

        # codex-1@host-2.
        # prefetch: the worker codex-1@host-2 takes 8 messages beforehand for 2 at once; with on_quarantine = "drain" it runs all of
        # them after a quarantine. To mend it: start it with --prefetch-multiplier 1, or set worker_prefetch_multiplier = 1; or set
        # on_quarantine = "recycle".
        [[workers]]
        name = "codex-1@host-2"
        # Name the user whose tools and whose config count. That could not be seen: it answers as process 7, and there is no such
        # process on this machine.
        # run_as = "celery"
        # It is not the only one that consumes this queue. Producers stay as they are; the gate takes a message from there to the lane
        # when the worker has room for it. The worker is to be started with -Q codex-1@host-2.lane, and until then goes past the gate.
        edge = "feed"
        lane = "codex-1@host-2.lane"
        intake = { queue = "codex" }
        "#);
    }

    #[test]
    fn a_file_for_redis_without_a_password_and_without_tools_is_one_that_admits_nobody() {
        let draft = Draft {
            urls: vec!["redis://redis:6379/0".into()],
            is_secret: false,
            given: Vec::new(),
            tools: vec![tool("codex_cli", "codex", &[]), tool("spec_kit", "speckit", &[])],
            profile: Profile::default(),
            workers: vec![fed()],
        };
        insta::assert_snapshot!(text(&draft), @r#"
        # Written by `worker-gate init` from what the broker and its workers say. Correct what is not so; `worker-gate config check` and
        # `worker-gate check` say whether it holds. What is not here is as `worker-gate config show` has it.

        [broker]
        url = "redis://redis:6379/0"

        # None of these tools was found. Install them, or write checks of the tools that your tasks need in their place: a worker gets
        # no task until every check here has passed.

        [checks.codex_cli]
        run = [["codex", "--version"], ["codex", "login", "status"]]
        version = { command = 0, require = ">=0.1" }   # of what the first command prints

        [checks.spec_kit]
        run = [["speckit", "--help"]]

        [profile]
        # There is neither codex nor a ~/.codex/config.toml, so that no config is looked after. With them, write these lines instead:
        # path = "~/.codex/config.toml"
        # enforce = { approval_policy = "never" }
        path = ""

        # codex-1@host-2.
        # prefetch: the worker codex-1@host-2 takes 8 messages beforehand for 2 at once; with on_quarantine = "drain" it runs all of
        # them after a quarantine. To mend it: start it with --prefetch-multiplier 1, or set worker_prefetch_multiplier = 1; or set
        # on_quarantine = "recycle".
        [[workers]]
        name = "codex-1@host-2"
        # Name the user whose tools and whose config count. That could not be seen: it answers as process 7, and there is no such
        # process on this machine.
        # run_as = "celery"
        # It is not the only one that consumes this queue. Producers stay as they are; the gate takes a message from there to the lane
        # when the worker has room for it. The worker is to be started with -Q codex-1@host-2.lane, and until then goes past the gate.
        edge = "feed"
        lane = "codex-1@host-2.lane"
        intake = { queue = "codex" }
        "#);
    }

    #[test]
    fn what_is_left_to_do_is_said_in_its_order() {
        insta::assert_snapshot!(crate::init::steps(&draft(), " --config x.toml", &[]), @r#"
        -> give the gate the broker's URL in its environment, as WORKER_GATE__BROKER__URL or CELERY_BROKER_URL
        -> see whether every check passes, and what to do if not: worker-gate check --config x.toml
        -> start the gate: worker-gate run --config x.toml
        -> let producers name the way to codex-0@host-1: task_routes = {"TASKS.*": {"exchange": "codex-0.intake", "routing_key": "codex-0"}}
        -> restart codex-1@host-2 with -Q codex-1@host-2.lane in place of codex: until then it goes past the gate
        -> see that nothing goes past the gate: worker-gate doctor --config x.toml
        "#);
    }

    #[test]
    fn what_is_written_are_settings_as_they_are_and_they_say_what_was_meant() {
        let loaded = load_text(&source(), std::path::Path::new("x.toml"), &text(&draft())).unwrap();
        let settings = loaded.settings;
        assert_eq!(settings.workers.len(), 2);
        assert_eq!(settings.workers[0].run_as.path_env.as_deref(), Some("/opt/tools:/usr/bin"));
        assert_eq!(settings.workers[0].queue_arguments["x-max-priority"].as_integer(), Some(9));
        assert_eq!(settings.checks.keys().collect::<Vec<_>>(), ["codex_cli"]);
        assert_eq!((settings.gate.listen, settings.broker.heartbeat.as_secs()), (None, 2));
        assert!(settings.profile.is_some());
    }

    #[test]
    fn what_a_worker_is_called_cannot_become_a_setting() {
        let name = "x\"]\n[gate]\nlisten = \"0.0.0.0:1\"\n#@h";
        let evil = Drafted { name: name.to_owned(), beside: vec![name.to_owned()], ..fed() };
        let written = text(&Draft { workers: vec![evil], given: Vec::new(), ..draft() });
        let read: toml::Table = written.parse().unwrap();
        assert!(!read.contains_key("gate"), "{written}");
        assert_eq!(read["workers"][0]["name"].as_str(), Some(name));
    }
}
