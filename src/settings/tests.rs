use std::{
    fs,
    path::{Path as FilePath, PathBuf},
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::{load::DEFAULTS, *};

/// A file that is right, as small as can be.
const RIGHT: &str = include_str!("tests/right.toml");

fn fixtures() -> PathBuf {
    FilePath::new(env!("CARGO_MANIFEST_DIR")).join("tests/settings")
}

fn source(file: Option<&FilePath>) -> Source {
    Source { file: file.map(FilePath::to_owned), hostname: "host-1".to_owned(), ..Source::default() }
}

fn written(text: impl AsRef<[u8]>) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    file
}

fn right_with(env: &[(&str, &str)], set: &[&str]) -> Result<Loaded, Problems> {
    let file = written(RIGHT);
    let mut source = source(Some(file.path()));
    source.env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    source.set = set.iter().map(|&text| text.to_owned()).collect();
    load(&source)
}

fn shown<'a>(loaded: &'a Loaded, key: &str) -> &'a ShownValue {
    loaded.values.iter().find(|shown| shown.key == key).unwrap()
}

fn problems(env: &[(&str, &str)], set: &[&str]) -> String {
    right_with(env, set).unwrap_err().to_string()
}

#[test]
fn the_sample_in_the_readme_is_right() {
    let readme = include_str!("../../README.md");
    let sample = readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let loaded = load(&source(Some(written(sample).path()))).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(loaded.settings.workers[0].name.as_str(), "codex-0@host-1");
}

#[test]
fn what_leads_to_the_gates_needs_no_file_and_no_worker() {
    let mut source = source(None);
    source.env.insert("CELERY_BROKER_URL".to_owned(), "redis://:secret@redis:6379/2".to_owned());
    let (found, _) = reach(&source).unwrap();
    assert_eq!((found.broker.database(), found.events.exchange.as_str()), (2, "worker-gate.health"));
    assert!(load(&source).unwrap_err().to_string().contains("there is no worker"));
    // What is said of workers is read, and judged where it counts; what leads to the gates is judged here.
    let wrong = "workers=[{name=\"a b\",edge=\"feed\",lane=\"a\",intake={queue=\"a\"}}]";
    source.set = vec![wrong.to_owned(), "control.key_file=key".to_owned()];
    assert_eq!(reach(&source).unwrap().0.control.key_file, Some(PathBuf::from("key")));
    source.set.push("broker.heartbeat=1ms".to_owned());
    let problems = reach(&source).unwrap_err().to_string();
    assert!(problems.contains("broker.heartbeat") && !problems.contains("workers"), "{problems}");
    source.set = vec!["broker.beat=1s".to_owned()];
    assert!(reach(&source).unwrap_err().to_string().contains("broker.beat"));
}

#[test]
fn every_wrong_file_is_answered_with_place_key_and_remedy() {
    let mut files: Vec<_> = fs::read_dir(fixtures()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    assert!(files.len() >= 60, "{} wrong files are too few: were they moved?", files.len());
    insta::with_settings!({ snapshot_path => fixtures().join("snapshots"), prepend_module_to_snapshot => false, omit_expression => true }, {
        for file in files {
            let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
            let Err(problems) = load(&source(Some(&file))) else { panic!("{name} was accepted") };
            assert!(problems.iter().next().is_some());
            let text = problems.to_string().replace(file.to_str().unwrap(), "FILE");
            assert!(!text.contains("geheim") && !text.contains("4711"), "{name} shows a secret: {text}");
            insta::assert_snapshot!(name, text);
        }
    });
}

#[test]
fn the_embedded_defaults_are_right_and_name_every_key_that_has_no_other_default() {
    let mut findings = problem::Findings::default();
    let layer = sources::defaults(DEFAULTS, &mut findings).unwrap();
    assert_eq!(findings.into_problems(), None);
    let schema::Kind::Table(tables) = &schema::ROOT else { panic!("the root is a table") };
    let mut keys = 0;
    for table in tables.iter().filter(|table| !matches!(table.name, "checks" | "workers")) {
        let schema::Kind::Table(fields) = &table.kind else { panic!("{} is a table", table.name) };
        for field in *fields {
            assert!(layer.table[table.name].get(field.name).is_some(), "{}.{} has no default", table.name, field.name);
            keys += 1;
        }
    }
    assert!(keys > 15, "only {keys} keys were looked at");
}

#[test]
fn the_examples_in_the_defaults_are_right_and_show_every_key() {
    let examples: Vec<_> = DEFAULTS.lines().filter_map(|line| line.strip_prefix("#|")).collect();
    let file = written(examples.join("\n"));
    let loaded = load(&source(Some(file.path()))).unwrap();
    // What an example leaves out would show with the layer of the defaults.
    let left_out = |shown: &&ShownValue| shown.key.starts_with("checks") || shown.key.starts_with("workers");
    for shown in loaded.values.iter().filter(left_out) {
        assert_ne!(shown.layer, Place::Default, "{} is not in the examples", shown.key);
    }
    let bare: String = "[checks.codex_cli]\nrun = [[\"codex\", \"--version\"], [\"codex\", \"login\", \"status\"]]\n\
        version = { require = \">=0.1\" }\n[[workers]]\nname = \"codex-0@host-1\"\nrun_as = \"celery\"\nlane = \"codex-0\"\n\
        intake = { exchange = \"codex\", type = \"direct\", keys = [\"codex-0\"] }\n"
        .to_owned();
    let file = written(bare);
    let without = load(&source(Some(file.path()))).unwrap();
    let text = |loaded: &Loaded| format!("{:?}", loaded.settings);
    assert_eq!(text(&loaded), text(&without), "an example shows another value than the default");
}

#[test]
fn everything_that_the_documentation_shows_is_read() {
    let file = written(include_str!("tests/full.toml"));
    let Settings { gate, broker, events, control, evidence, fleet, checks, profile, image, workers } =
        load(&source(Some(file.path()))).unwrap().settings;
    assert_eq!((gate.name.as_str(), gate.listen.as_deref()), ("host-1", Some("127.0.0.1:9464")));
    assert_eq!(broker.heartbeat, Duration::from_secs(5));
    assert_eq!(broker.urls, [BrokerUrl::parse("amqp://guest:guest@localhost:5672//").unwrap()]);
    assert_eq!(broker.priority_steps, [0, 3, 6, 9]);
    assert_eq!((events.exchange.as_str(), events.mirror_celeryev), ("worker-gate.health", false));
    assert_eq!(evidence.max_age, Duration::from_secs(300));
    assert_eq!(control.key_file, Some(PathBuf::from("/etc/worker-gate/control.key")));
    assert_eq!(fleet.max_quarantined, Some(50));
    let codex = &checks["codex_cli"];
    assert_eq!((codex.run.len(), codex.every, codex.timeout), (2, Duration::from_secs(60), Duration::from_secs(10)));
    assert_eq!(codex.version.as_ref().unwrap().require.to_string(), ">=0.1");
    assert_eq!(checks["spec_kit"].run, [["speckit", "--help"]]);
    assert!(checks["spec_kit"].required);
    let profile = profile.unwrap();
    assert_eq!(profile.template, Some(PathBuf::from("/etc/codex/config.toml")));
    assert_eq!(profile.enforce, [Enforced { key: vec!["approval_policy".to_owned()], value: "never".into() }]);
    assert_eq!(image.manifest, PathBuf::from("/etc/worker-gate/image.json"));
    let worker = &workers[0];
    assert_eq!((worker.name.as_str(), worker.run_as.user.as_deref()), ("codex-0@host-1", Some("celery")));
    assert_eq!((worker.on_quarantine, worker.task_events), (OnQuarantine::Drain, true));
    let EdgeKind::Route(intake) = &worker.edge else { panic!("{:?}", worker.edge) };
    assert_eq!((intake.exchange.as_str(), intake.kind), ("codex", IntakeType::Direct));
}

#[test]
fn the_limit_for_a_fleet_is_a_percentage_and_nobody_has_one_who_does_not_ask_for_it() {
    let limit = |set: &[&str]| right_with(&[], set).unwrap().settings.fleet.max_quarantined;
    assert_eq!(limit(&[]), None);
    assert_eq!(limit(&["fleet.max_quarantined="]), None);
    assert_eq!(limit(&["fleet.max_quarantined=1%"]), Some(1));
    assert_eq!(limit(&["fleet.max_quarantined=99%"]), Some(99));
    for wrong in ["50", "0%", "100%", "+5%", "5.5%", "%", "half", "50 %", "1000%"] {
        let text = problems(&[], &[&format!("fleet.max_quarantined={wrong}")]);
        assert!(text.contains("is not a part of the workers; write a percentage from \"1%\" to \"99%\""), "{text}");
    }
    assert_eq!(right_with(&[], &[]).unwrap().settings.control.key_file, None);
}

#[test]
fn later_layers_win_and_are_named() {
    let loaded = right_with(
        &[
            ("WORKER_GATE__GATE__NAME", "from-env"),
            ("WORKER_GATE__EVIDENCE__MAX_AGE", "6m"),
            ("WORKER_GATE__CHECKS__DISKROOT__EVERY", "7s"),
            ("WORKER_GATE__BROKER__PRIORITY_STEPS", "[0, 5]"),
            ("WORKER_GATE__EVENTS__MIRROR_CELERYEV", "true"),
            ("WORKER_GATE__PROFILE__ENFORCE", "{ model = \"m\" }"),
        ],
        &["evidence.max_age=8m", "profile.enforce.\"a b\".c=[1, 2]", "gate.listen="],
    )
    .unwrap();
    for (key, value, layer) in [
        ("gate.name", "\"from-env\"", "environment WORKER_GATE__GATE__NAME"),
        ("evidence.max_age", "\"8m\"", "--set"),
        ("checks.DiskRoot.every", "\"7s\"", "environment WORKER_GATE__CHECKS__DISKROOT__EVERY"),
        ("broker.priority_steps", "[0, 5]", "environment WORKER_GATE__BROKER__PRIORITY_STEPS"),
        ("events.mirror_celeryev", "true", "environment WORKER_GATE__EVENTS__MIRROR_CELERYEV"),
        ("profile.enforce.model", "\"m\"", "environment WORKER_GATE__PROFILE__ENFORCE"),
        ("profile.enforce.\"a b\".c", "[1, 2]", "--set"),
        ("profile.enforce.approval_policy", "\"never\"", "default"),
        ("gate.listen", "\"\"", "--set"),
        ("broker.heartbeat", "\"5s\"", "default"),
    ] {
        let shown = shown(&loaded, key);
        assert_eq!((shown.value.as_str(), shown.layer.to_string().as_str()), (value, layer), "{key}");
    }
    assert!(shown(&loaded, "workers[0].lane").layer.to_string().ends_with(":7:8"));
    assert_eq!(loaded.settings.gate.listen, None);
    assert_eq!(loaded.settings.checks["DiskRoot"].every, Duration::from_secs(7));
}

#[test]
fn what_looks_like_a_secret_in_a_command_is_not_shown() {
    let run = "checks.DiskRoot.run=[[\"curl\", \"-H\", \"Authorization: Bearer geheim4711\"], [\"t\", \"--token\", \"geheim\"]]";
    let loaded = right_with(&[], &[run, "image.smoke=[[\"t\", \"--api-key=geheim\"]]"]).unwrap();
    let expected = "[[\"curl\", \"-H\", \"Authorization: Bearer <hidden>\"], [\"t\", \"--token\", \"<hidden>\"]]";
    assert_eq!(shown(&loaded, "checks.DiskRoot.run").value, expected);
    assert_eq!(shown(&loaded, "image.smoke").value, "[[\"t\", \"--api-key=<hidden>\"]]");
    assert_eq!(loaded.settings.checks["DiskRoot"].run[1][2], "geheim");
}

#[test]
fn a_list_of_a_later_layer_replaces_the_earlier_one_with_all_its_places() {
    let workers =
        "[{ name = \"w@h\", lane = \"w\", intake = { exchange = \"x\", type = \"topic\", keys = [\"w.#\"] } }]";
    let loaded = right_with(&[("WORKER_GATE__WORKERS", workers)], &[]).unwrap();
    assert_eq!(loaded.settings.workers.len(), 1);
    assert_eq!(shown(&loaded, "workers[0].lane").layer, Place::Environment("WORKER_GATE__WORKERS".to_owned()));
    assert_eq!(shown(&loaded, "workers[0].depth").layer, Place::Default);
}

#[test]
fn celerys_broker_url_fills_in_only_when_nobody_else_says_where_the_broker_is() {
    let celery = ("CELERY_BROKER_URL", "amqp://c:geheim@celery//");
    let host = |env: &[_], set: &[_]| shown(&right_with(env, set).unwrap(), "broker.url").clone();
    let filled = host(&[celery], &[]);
    assert_eq!(
        (filled.value.as_str(), filled.layer.to_string().as_str()),
        ("\"amqp://c:***@celery:5672//\"", "environment CELERY_BROKER_URL")
    );
    assert_eq!(host(&[("CELERY_BROKER_URL", "")], &[]).layer, Place::Default);
    assert_eq!(
        host(&[celery, ("WORKER_GATE__BROKER__URL", "amqp://env")], &[]).value,
        "\"amqp://guest:***@env:5672//\""
    );
    assert_eq!(host(&[celery], &["broker.url=amqp://flag"]).layer, Place::Flag);
    let file = written(format!("[broker]\nurl = \"amqp://file\"\n{RIGHT}"));
    let mut source = source(Some(file.path()));
    source.env.insert(celery.0.to_owned(), celery.1.to_owned());
    assert!(shown(&load(&source).unwrap(), "broker.url").value.contains("@file:"));
    let wrong = problems(&[("CELERY_BROKER_URL", "amqp://c:geheim/x@celery")], &[]);
    assert!(wrong.starts_with("environment CELERY_BROKER_URL: broker.url: the port"), "{wrong}");
    assert!(!wrong.contains("geheim"), "{wrong}");
}

#[test]
fn what_environment_and_flags_get_wrong_is_all_said_at_once() {
    let text = problems(
        &[
            ("WORKER_GATE__BROKER__HARTBEAT", "5s"),
            ("WORKER_GATE__BROKER__HEARTBEAT__X", "5s"),
            ("WORKER_GATE__BROKER", "geheim"),
            ("WORKER_GATE__BROKER____URL", "x"),
            ("WORKER_GATE__", "x"),
            ("worker_gate__gate__name", "x"),
            ("WORKER_GATE__EVENTS__MIRROR_CELERYEV", "yes"),
            ("WORKER_GATE__IMAGE__REQUIRED", "1"),
            ("WORKER_GATE__CHECKS__DISKROOT__FAIL_AFTER", "1.7"),
            ("WORKER_GATE__CHECKS__DISKROOT__EVERY", "\"5s\""),
            ("WORKER_GATE__WORKERS__0__NAME", "x"),
            ("WORKER_GATE__PROFILE__ENFORCE__MODEL", "x"),
            ("WORKER_GATE__BROKER__URL", "amqp://u:geheim@h:x"),
            ("WORKER_GATE_LOG", "debug"),
        ],
        &[
            "gate.name",
            "=x",
            "a b=c",
            "gate.nam=x",
            "profile.enforce.model=bare",
            "gate.listen=9464",
            "events.exchange=amqp://u:geheim@h/\u{1}",
            "broker.url=amqp://u:geheim@h#",
        ],
    );
    assert!(!text.contains("geheim"), "{text}");
    insta::with_settings!({ snapshot_path => fixtures().join("snapshots"), prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("environment_and_flags", text);
    });
}

#[test]
fn checks_that_are_the_same_in_capitals_cannot_be_meant_by_a_variable() {
    let file = written(format!("{RIGHT}\n[checks.diskroot]\nrun = [[\"true\"]]\n"));
    let mut source = source(Some(file.path()));
    source.env.insert("WORKER_GATE__CHECKS__DISKROOT__EVERY".to_owned(), "7s".to_owned());
    let text = load(&source).unwrap_err().to_string();
    assert!(text.contains("\"DiskRoot\" and \"diskroot\" are the same in capitals"), "{text}");
}

#[test]
fn a_named_file_must_be_there_and_a_usual_one_may_be_missing() {
    let folder = tempfile::tempdir().unwrap();
    let (missing, there) = (folder.path().join("missing.toml"), folder.path().join("there.toml"));
    fs::write(&there, RIGHT).unwrap();
    let text = load(&source(Some(&missing))).unwrap_err().to_string();
    assert!(text.contains("missing.toml: cannot be opened") && text.contains("--config"), "{text}");
    let search =
        |paths: &[&PathBuf]| Source { search: paths.iter().map(|&path| path.clone()).collect(), ..source(None) };
    assert_eq!(load(&search(&[&missing, &there])).unwrap().file, Some(there.clone()));
    let text = load(&search(&[&missing])).unwrap_err().to_string();
    assert!(text.contains("no settings file was found at") && text.contains("there is no worker"), "{text}");
    let text = load(&search(&[&folder.path().to_owned(), &there])).unwrap_err().to_string();
    assert!(text.contains("cannot be read"), "a folder was skipped: {text}");
}

#[test]
fn an_empty_path_turns_the_profile_off() {
    assert!(right_with(&[], &["profile.path="]).unwrap().settings.profile.is_none());
    assert!(right_with(&[], &[]).unwrap().settings.profile.is_some());
}

#[test]
fn enforced_tables_are_taken_apart_into_their_keys() {
    let loaded = right_with(&[], &["profile.enforce={ approval_policy = { a = 1, b.c = true } }"]).unwrap();
    let keys: Vec<_> = loaded.settings.profile.unwrap().enforce.iter().map(|key| key.key.join("/")).collect();
    assert_eq!(keys, ["approval_policy/a", "approval_policy/b/c"]);
}

#[test]
fn a_byte_order_mark_and_crlf_do_not_move_the_places() {
    let file = written("\u{feff}[gate]\r\nname = 5\r\n");
    let text = load(&source(Some(file.path()))).unwrap_err().to_string();
    assert!(text.contains(":2:8: gate.name: found the number 5"), "{text}");
    let file = written(b"[gate]\nname = \"\xff\"\n");
    let text = load(&source(Some(file.path()))).unwrap_err().to_string();
    assert!(text.contains(":2:9: not UTF-8"), "{text}");
}

#[test]
fn feeds_may_share_a_queue_and_redis_may_name_an_exchange() {
    let text = RIGHT.replace("edge = \"route\"", "edge = \"feed\"");
    let text =
        text.replace("{ exchange = \"codex\", type = \"direct\", keys = [\"codex-0\"] }", "{ queue = \"codex\" }");
    let second = "[[workers]]\nname = \"v@h\"\nlane = \"v\"\nedge = \"feed\"\nintake = { queue = \"codex\" }\n";
    let file = written(format!("{text}\n{second}"));
    assert_eq!(load(&source(Some(file.path()))).unwrap().settings.workers.len(), 2);
    let redis = [
        "broker.url=redis://localhost/0",
        "workers=[{ name = \"w\", lane = \"w\", edge = \"feed\", intake = { exchange = \"x\", type = \"topic\", keys = [\"a.#\"] } }]",
    ];
    let loaded = right_with(&[], &redis).unwrap();
    let EdgeKind::Feed(feed) = &loaded.settings.workers[0].edge else { panic!("no feed") };
    assert!(matches!(&feed.intake, FeedIntake::Exchange { kind: IntakeType::Topic, .. }));
}

/// 2,500 for each of the four properties are 10,000 in all, which takes half a minute in a debug build; by default it is
/// a fifth of that.
fn cases() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(500);
    ProptestConfig { cases, ..ProptestConfig::default() }
}

/// What a file that a tool or a person has garbled is made of.
fn token() -> impl Strategy<Value = String> {
    let words = [
        "gate",
        "broker",
        "checks",
        "workers",
        "profile",
        "enforce",
        "name",
        "url",
        "run",
        "every",
        "intake",
        "keys",
        "lane",
        "a",
        "\"a.b\"",
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        "=",
        ".",
        ",",
        "\n",
        "\r\n",
        "\"",
        "'",
        "\"\"\"",
        "#",
        " ",
        "5",
        "-1",
        "1.5",
        "nan",
        "0x",
        "true",
        "\"5s\"",
        "1979-05-27",
        "\"amqp://u:p@h\"",
        "\\u0000",
        "\u{feff}",
        "\t",
        "9999999999999999999",
    ];
    prop_oneof![6 => proptest::sample::select(words.to_vec()).prop_map(str::to_owned), 1 => "\\PC{0,4}"]
}

/// Loads within a bound that no busy machine reaches, and whatever comes of it can be printed.
fn survives(source: &Source) -> Result<(), TestCaseError> {
    let start = Instant::now();
    match load(source) {
        Ok(loaded) => prop_assert!(!loaded.values.is_empty() && !loaded.settings.workers.is_empty()),
        Err(problems) => prop_assert!(!problems.to_string().is_empty()),
    }
    prop_assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    Ok(())
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn no_heap_of_tokens_makes_load_panic(tokens in prop::collection::vec(token(), 0..80)) {
        let file = written(tokens.concat());
        survives(&source(Some(file.path())))?;
    }

    #[test]
    fn no_garbled_settings_make_load_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..12, token()), 1..6),
        full: bool,
    ) {
        let mut text = if full { include_str!("tests/full.toml") } else { RIGHT }.as_bytes().to_vec();
        for (at, removed, put) in edits {
            let at = at.index(text.len() + 1);
            let end = (at + removed).min(text.len());
            text.splice(at..end, put.into_bytes());
        }
        let file = written(text);
        survives(&source(Some(file.path())))?;
    }

    #[test]
    fn no_values_of_the_wrong_kind_make_load_panic(
        at in any::<prop::sample::Index>(), other in any::<prop::sample::Index>(),
        value in "(\"[a-z.#*~/:@;0-9 ]{0,12}\"|-?[0-9]{1,20}|\\[\\]|\\[\\[\\]\\]|\\{\\}|\\[\\{\\}, 5\\]|true|[0-9]\\.[0-9]e[0-9]{1,3})",
    ) {
        let mut lines: Vec<String> = include_str!("tests/full.toml").lines().map(str::to_owned).collect();
        for (index, value) in [(at, value), (other, "\"\"".to_owned())] {
            let line = index.get(&lines).clone();
            let at = index.index(lines.len());
            if let Some((key, _)) = line.split_once('=') {
                lines[at] = format!("{key}= {value}");
            } else {
                lines.remove(at);
            }
        }
        let file = written(lines.join("\n"));
        survives(&source(Some(file.path())))?;
    }

    #[test]
    fn no_environment_and_no_flag_makes_load_panic(
        name in "(GATE|BROKER|CHECKS|WORKERS|PROFILE|A|)(__(NAME|URL|ENFORCE|DISKROOT|EVERY|RUN|0|X|)){0,4}",
        key in "(gate|broker|checks|workers|profile|a|\"\")?(\\.(name|url|enforce|DiskRoot|every|run|\"x y\"|0|)){0,6}",
        value in prop::collection::vec(token(), 0..12), celery in "(amqp|redis|x)://\\PC{0,20}",
    ) {
        let file = written(RIGHT);
        let mut source = source(Some(file.path()));
        let value = value.concat();
        source.env.insert(format!("WORKER_GATE__{name}"), value.clone());
        source.env.insert("CELERY_BROKER_URL".to_owned(), celery);
        source.set = vec![format!("{key}={value}"), value];
        survives(&source)?;
    }
}

#[test]
fn a_file_without_end_is_refused_and_no_more_problems_are_listed_than_anybody_reads() {
    let text = load(&source(Some(FilePath::new("/dev/zero")))).unwrap_err().to_string();
    assert!(text.contains("longer than 1 MiB"), "{text}");
    let file = written((0..2000).map(|at| format!("k{at} = 1\n")).collect::<Vec<_>>().concat());
    let problems = load(&source(Some(file.path()))).unwrap_err();
    assert_eq!(problems.iter().count(), 1001);
    assert_eq!(problems.iter().last().unwrap().what, "1002 more problems are not listed");
}
