use proptest::prelude::*;

use super::*;

fn enforce(pairs: &[(&str, &str)]) -> Vec<Enforced> {
    pairs
        .iter()
        .map(|(key, literal)| {
            let table: toml::Table = toml::from_str(&format!("v = {literal}")).unwrap();
            let key = toml_edit::Key::parse(key).unwrap().iter().map(|k| k.get().to_owned()).collect();
            Enforced { key, value: table["v"].clone() }
        })
        .collect()
}

fn never() -> Vec<Enforced> {
    enforce(&[("approval_policy", "\"never\"")])
}

#[track_caller]
fn check(before: &str, pairs: &[(&str, &str)], after: &str) {
    let enforce = enforce(pairs);
    let done = plan(before, &enforce).unwrap();
    assert_eq!(done.text, after);
    check_faithful(before, &done, &enforce);
}

/// What holds for every plan: the edits make the text, and nothing is left to do.
#[track_caller]
fn check_faithful(before: &str, done: &Plan, enforce: &[Enforced]) {
    let mut spliced = String::new();
    let mut at = 0;
    for edit in &done.edits {
        assert!(edit.range.start >= at, "edits are in order and do not overlap: {done:?}");
        assert!(!edit.changes.is_empty(), "every edit names its keys: {done:?}");
        spliced.push_str(&before[at..edit.range.start]);
        spliced.push_str(&edit.replacement);
        at = edit.range.end;
    }
    spliced.push_str(&before[at..]);
    assert_eq!(spliced, done.text);
    let again = plan(&done.text, enforce).unwrap();
    assert_eq!(again, Plan { edits: Vec::new(), text: done.text.clone() });
}

const NEVER: (&str, &str) = ("approval_policy", "\"never\"");

#[test]
fn a_value_is_replaced_and_every_other_byte_stays() {
    let cases = [
        ("approval_policy = \"on-request\"\n", "approval_policy = \"never\"\n"),
        ("approval_policy=\"on-request\"", "approval_policy=\"never\""),
        ("\u{feff}approval_policy = 'x'\r\nb = 1\r\n", "\u{feff}approval_policy = \"never\"\r\nb = 1\r\n"),
        ("\t \"approval_policy\"\t=  'x'  # why\n", "\t \"approval_policy\"\t=  \"never\"  # why\n"),
        ("'approval_policy' = \"\"\"\nlong\n\"\"\" # c\n[a]\n", "'approval_policy' = \"never\" # c\n[a]\n"),
        ("approval_policy = { a = 1 }\n", "approval_policy = \"never\"\n"),
        ("approval_policy = [\n  1, # one\n]\n", "approval_policy = \"never\"\n"),
        ("approval_policy = true # é\n", "approval_policy = \"never\" # é\n"),
        (
            "s = \"\"\"\napproval_policy = \"on-request\"\n\"\"\"\n[a]\nx = 1\n",
            "s = \"\"\"\napproval_policy = \"on-request\"\n\"\"\"\napproval_policy = \"never\"\n[a]\nx = 1\n",
        ),
        (
            "# approval_policy = \"never\"\napproval_policy = \"on-request\"\n[t]\napproval_policy = \"x\"\n",
            "# approval_policy = \"never\"\napproval_policy = \"never\"\n[t]\napproval_policy = \"x\"\n",
        ),
    ];
    for (before, after) in cases {
        check(before, &[NEVER], after);
    }
}

#[test]
fn a_missing_root_key_gets_a_line_after_the_last_root_key() {
    let cases = [
        ("", "approval_policy = \"never\"\n"),
        ("\u{feff}", "\u{feff}approval_policy = \"never\"\n"),
        ("# only a comment", "# only a comment\napproval_policy = \"never\""),
        ("# only a comment\r\n", "# only a comment\r\napproval_policy = \"never\"\r\n"),
        ("a = 1", "a = 1\napproval_policy = \"never\""),
        ("a = 1 # c\n\n\n[t]\nb = 2\n", "a = 1 # c\napproval_policy = \"never\"\n\n\n[t]\nb = 2\n"),
        ("  a = 1\r\n[t]\r\n", "  a = 1\r\n  approval_policy = \"never\"\r\n[t]\r\n"),
        ("\u{feff}  a = 1\n", "\u{feff}  a = 1\n  approval_policy = \"never\"\n"),
        ("a.b = 1\nc = 2\na.d = 3\n[t]\n", "a.b = 1\nc = 2\na.d = 3\napproval_policy = \"never\"\n[t]\n"),
        ("a = '''\r\n[no]\r\n'''\r\n[t]", "a = '''\r\n[no]\r\n'''\r\napproval_policy = \"never\"\r\n[t]"),
        ("a = [\n1,\n# [x]\n]\n[[t]]\n", "a = [\n1,\n# [x]\n]\napproval_policy = \"never\"\n[[t]]\n"),
        ("[t]\nb = 2", "approval_policy = \"never\"\n\n[t]\nb = 2"),
        ("\u{feff}[[t]]\r\n", "\u{feff}approval_policy = \"never\"\r\n\r\n[[t]]\r\n"),
        ("# file\n\n# table\n[t]\n", "# file\n\napproval_policy = \"never\"\n\n# table\n[t]\n"),
        ("# table\n[t.u]\n[t]\n", "approval_policy = \"never\"\n\n# table\n[t.u]\n[t]\n"),
    ];
    for (before, after) in cases {
        check(before, &[NEVER], after);
    }
}

#[test]
fn several_missing_root_keys_share_one_place() {
    let two = [NEVER, ("sandbox", "true")];
    check("[t]\n", &two, "approval_policy = \"never\"\nsandbox = true\n\n[t]\n");
    check("a = 1", &two, "a = 1\napproval_policy = \"never\"\nsandbox = true");
    let done = plan("a = 1", &enforce(&two)).unwrap();
    assert_eq!(done.edits.len(), 1);
    assert_eq!(done.changed(), ["approval_policy", "sandbox"]);
}

#[test]
fn a_nested_key_goes_where_its_table_is_written() {
    let want = [("a.x", "1")];
    let cases = [
        ("", "a.x = 1\n"),
        ("b = 1\n[c]\n", "b = 1\na.x = 1\n[c]\n"),
        ("[a]\n", "[a]\nx = 1\n"),
        ("[a]", "[a]\nx = 1"),
        ("  [ a ] # c\r\n[b]\r\n", "  [ a ] # c\r\n  x = 1\r\n[b]\r\n"),
        ("[a]\ny = 1 # y\n\n# b\n[b]\n", "[a]\ny = 1 # y\nx = 1\n\n# b\n[b]\n"),
        ("[a]\nb.c = 1\n[a.d]\ne = 1\n", "[a]\nb.c = 1\nx = 1\n[a.d]\ne = 1\n"),
        ("[a]\nx = 2 # two\n", "[a]\nx = 1 # two\n"),
        ("a.y = 1\nb = 1\n", "a.y = 1\na.x = 1\nb = 1\n"),
        ("a . \"x\" = 2\n", "a . \"x\" = 1\n"),
        ("a = {}\n", "a = { x = 1 }\n"),
        ("a = { }\n", "a = { x = 1 }\n"),
        ("a = { y = 1 } # c\n", "a = { y = 1, x = 1 } # c\n"),
        ("a = {y=[1,2],x=2}\n", "a = {y=[1,2],x=1}\n"),
        ("a = { y.z = 1 , b = { c = 1 } }\n", "a = { y.z = 1 , b = { c = 1 }, x = 1 }\n"),
        ("[a.b]\ny = 1\n", "[a.b]\ny = 1\n\n[a]\nx = 1\n"),
        ("[a.b]\r\ny = 1", "[a.b]\r\ny = 1\r\n\r\n[a]\r\nx = 1"),
        ("[a.b]\n[a]\n[c]\n", "[a.b]\n[a]\nx = 1\n[c]\n"),
    ];
    for (before, after) in cases {
        check(before, &want, after);
    }
}

#[test]
fn a_deeper_key_keeps_the_prefix_of_its_lines() {
    let want = [("t.a.b.x", "[1, \"two\"]")];
    let cases = [
        ("[t]\na.b.c = 1\nd = 1\n", "[t]\na.b.c = 1\na.b.x = [1, \"two\"]\nd = 1\n"),
        ("[t]\na.c = 1\n", "[t]\na.c = 1\na.b.x = [1, \"two\"]\n"),
        ("t = { a.b.c = 1, d = 2 }", "t = { a.b.c = 1, a.b.x = [1, \"two\"], d = 2 }"),
        ("[t]\na = { b = {} }\n", "[t]\na = { b = { x = [1, \"two\"] } }\n"),
        ("[t.a.b.c]\n[[u]]\n", "[t.a.b.c]\n[[u]]\n\n[t.a.b]\nx = [1, \"two\"]\n"),
    ];
    for (before, after) in cases {
        check(before, &want, after);
    }
}

#[test]
fn two_keys_of_one_new_table_or_pair_of_braces_are_written_together() {
    let want = [("a.x", "1"), ("z", "0"), ("a.\"y y\"", "\"\\u0007\"")];
    let cases = [
        ("[a.b]\n", "z = 0\n\n[a.b]\n\n[a]\nx = 1\n\"y y\" = \"\\u0007\"\n"),
        ("a = {}\n", "a = { x = 1, \"y y\" = \"\\u0007\" }\nz = 0\n"),
        ("", "a.x = 1\na.\"y y\" = \"\\u0007\"\nz = 0\n"),
    ];
    for (before, after) in cases {
        check(before, &want, after);
    }
}

#[test]
fn the_selected_profile_is_mended_too() {
    let cases = [
        (
            "profile = \"x\"\napproval_policy = \"never\"\n[profiles.x]\napproval_policy = \"on-request\" # legacy\n",
            "profile = \"x\"\napproval_policy = \"never\"\n[profiles.x]\napproval_policy = \"never\" # legacy\n",
        ),
        (
            "profile = \"x\"\n[profiles]\nx = { approval_policy = \"on-request\" }\ny = { approval_policy = \"u\" }\n",
            "profile = \"x\"\napproval_policy = \"never\"\n[profiles]\nx = { approval_policy = \"never\" }\ny = { approval_policy = \"u\" }\n",
        ),
    ];
    for (before, after) in cases {
        check(before, &[NEVER], after);
    }
    // Settings that speak of that place themselves are obeyed to the letter.
    check(
        "profile = 'x'\n[profiles.x]\na = 1\n",
        &[("a", "2"), ("profiles.x.a", "3")],
        "profile = 'x'\na = 2\n[profiles.x]\na = 3\n",
    );
    // Enforcing the selection changes which profile counts.
    check(
        "profile = 'x'\n[profiles.x]\na = 1\n[profiles.y]\na = 1\n",
        &[("a", "2"), ("profile", "\"y\"")],
        "profile = \"y\"\na = 2\n[profiles.x]\na = 1\n[profiles.y]\na = 2\n",
    );
}

#[test]
fn a_text_that_is_as_wanted_is_left_alone() {
    for text in [
        "approval_policy = \"never\"",
        "\u{feff}approval_policy='never'\r\n",
        "\"approval_policy\" = \"\"\"never\"\"\" # c\n[profiles.x]\napproval_policy = \"untrusted\"\n",
    ] {
        let done = plan(text, &never()).unwrap();
        assert_eq!(done, Plan { edits: Vec::new(), text: text.to_owned() });
    }
    let tables = enforce(&[("hooks", "[{ a = 1 }]"), ("n", "nan")]);
    assert!(plan("n = nan\n[[hooks]]\na = 1\n", &tables).unwrap().edits.is_empty());
}

#[test]
fn what_would_lose_other_settings_is_refused_with_its_line() {
    let cases = [
        ("x = 1\n[approval_policy]\ny = 1\n", "approval_policy", "a table", 2),
        ("\napproval_policy.y = 1\n", "approval_policy", "a table", 2),
        ("[[approval_policy]]\n", "approval_policy", "an array of tables", 1),
        // The line is the file's, also when an edit above it has come before.
        ("profile = 'x'\n\n[profiles.x.approval_policy]\ny = 1\n", "profiles.x.approval_policy", "a table", 3),
    ];
    for (text, place, found, line) in cases {
        let result = plan(text, &never());
        let key = place.to_owned();
        assert_eq!(result, Err(PlanError::Conflict { key, place: place.to_owned(), found, line }));
    }
    let nested = enforce(&[("a.b.c", "1")]);
    for (text, place, found) in [
        ("a = 1\n", "a", "a single value"),
        ("a.b = [1]\n", "a.b", "an array"),
        ("a = { b.c.d = 1 }\n", "a.b.c", "an inline table"),
        ("[[a]]\n", "a", "an array of tables"),
    ] {
        let key = "a.b.c".to_owned();
        let expected = PlanError::Conflict { key, place: place.to_owned(), found, line: 1 };
        assert_eq!(plan(text, &nested), Err(expected), "{text}");
    }
}

#[test]
fn a_syntax_error_names_the_place_and_not_the_text() {
    let error = plan("a = 1\ntoken = sk-very-secret\n", &never()).unwrap_err();
    assert_eq!(error.remedy(), "mend line 2");
    assert!(!error.to_string().contains("sk-very"), "{error}");
    assert!(error.to_string().contains("line 2, column"), "{error}");
}

#[test]
fn deep_nesting_is_an_error_and_not_a_crash() {
    let many = 100_000;
    for text in [
        format!("a = {}", "[".repeat(many)),
        format!("a = {}{}", "[".repeat(many), "]".repeat(many)),
        format!("a = {}1{}", "{b=".repeat(many), "}".repeat(many)),
        format!("a{} = 1", ".b".repeat(many)),
        format!("[a{}]", ".b".repeat(many)),
        format!("a = {}1{}", "{b=".repeat(79), "}".repeat(79)),
        "[[a.b.c.d]]\n".repeat(1_000),
        (0..60).map(|i| format!("[[a{}]]", ".b".repeat(i))).collect::<Vec<_>>().join("\n"),
    ] {
        let _ = plan(&text, &never());
    }
}

fn comment() -> BoxedStrategy<String> {
    prop_oneof![Just(String::new()), "[ \t]{0,2}#[a-z\\[\\]=\" é]{0,8}"].boxed()
}

fn key() -> BoxedStrategy<String> {
    prop_oneof![
        3 => Just("approval_policy".to_owned()),
        2 => Just("\"approval_policy\"".to_owned()),
        2 => Just("profile".to_owned()),
        2 => Just("sandbox".to_owned()),
        3 => "[a-d]",
        1 => "\"[a-c .é]{0,3}\"",
        1 => "'[a-c #=]{0,3}'",
    ]
    .boxed()
}

fn dotted_key() -> BoxedStrategy<String> {
    prop_oneof![
        4 => key(),
        3 => (key(), "[ ]{0,1}\\.[ ]{0,1}", key()).prop_map(|(a, dot, b)| format!("{a}{dot}{b}")),
        1 => (key(), key(), key()).prop_map(|(a, b, c)| format!("{a}.{b}.{c}")),
        1 => Just("profiles.x".to_owned()),
        1 => Just("profiles.x.approval_policy".to_owned()),
    ]
    .boxed()
}

fn toml_value() -> BoxedStrategy<String> {
    let leaf = prop_oneof![
        Just("\"never\"".to_owned()),
        Just("\"x\"".to_owned()),
        Just("'on-request'".to_owned()),
        Just("\"\"\"\napproval_policy = \"x\"\n[a]\n\"\"\"".to_owned()),
        Just("'''\r\nprofile = 'x'\r\n'''".to_owned()),
        Just("0x_1".to_owned()),
        Just("1979-05-27T07:32:00Z".to_owned()),
        Just("-inf".to_owned()),
        Just("nan".to_owned()),
        "[0-9]{1,3}",
        "[0-9]\\.[0-9]{1,2}",
        prop::bool::ANY.prop_map(|b| b.to_string()),
    ];
    leaf.boxed()
        .prop_recursive(2, 8, 4, |inner| {
            prop_oneof![
                (prop::collection::vec(inner.clone(), 0..4), "[ \n]{0,2}")
                    .prop_map(|(items, space)| format!("[{space}{}{space}]", items.join(&format!(",{space}")))),
                (prop::collection::vec((dotted_key(), inner), 0..4), "[ ]{0,2}").prop_map(|(pairs, space)| {
                    let pairs: Vec<_> = pairs.into_iter().map(|(k, v)| format!("{k}{space}={space}{v}")).collect();
                    format!("{{{space}{}{space}}}", pairs.join(&format!("{space},")))
                }),
            ]
            .boxed()
        })
        .boxed()
}

fn line() -> BoxedStrategy<String> {
    let pair = ("[ \t]{0,2}", dotted_key(), "[ \t]{0,2}", toml_value(), comment())
        .prop_map(|(indent, k, space, v, comment)| format!("{indent}{k}{space}={space}{v}{comment}"));
    prop_oneof![
        6 => pair,
        2 => (dotted_key(), comment()).prop_map(|(k, comment)| format!("[{k}]{comment}")),
        1 => (dotted_key(), comment()).prop_map(|(k, comment)| format!("  [[ {k} ]]{comment}")),
        1 => comment(),
        1 => Just(String::new()),
    ]
    .boxed()
}

/// Documents that are TOML, or nearly so: clashing keys are left in, since a user's file may have them.
fn document() -> BoxedStrategy<String> {
    (
        prop::bool::weighted(0.2),
        prop::collection::vec(line(), 0..10),
        prop_oneof![Just("\n"), Just("\r\n")],
        any::<bool>(),
    )
        .prop_map(|(bom, mut lines, eol, last)| {
            // Keys that clash in the root would make nearly every long document invalid.
            let mut seen = std::collections::HashSet::new();
            lines.retain(|line| seen.insert(line.split(['=', '#']).next().unwrap_or("").trim().to_owned()));
            let bom = if bom { "\u{feff}" } else { "" };
            format!("{bom}{}{}", lines.join(eol), if last { eol } else { "" })
        })
        .boxed()
}

fn wanted() -> impl Strategy<Value = Vec<Enforced>> {
    let sets: [&[(&str, &str)]; 5] = [
        &[NEVER],
        &[NEVER, ("sandbox.approval_policy", "[1, { a = 1 }]"), ("sandbox.b", "1.5")],
        &[("a.b.c", "true"), ("d", "1979-05-27"), ("a.b.\"d d\"", "\"\"")],
        &[("profile", "\"x\""), ("approval_policy", "\"never\"")],
        &[("a", "1"), ("b", "\"never\""), ("c.d", "-inf"), ("profiles.x.a", "2")],
    ];
    proptest::sample::select(sets.map(enforce).to_vec())
}

/// How often documents parse and get edits: without this a generator that only makes rubbish would pass.
#[test]
fn the_random_documents_are_mostly_toml_and_mostly_need_edits() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let (mut parsed, mut edited) = (0, 0);
    for _ in 0..500 {
        let (text, enforce) = (document(), wanted()).new_tree(&mut runner).unwrap().current();
        parsed += usize::from(policy::parse(&text).is_ok());
        edited += usize::from(plan(&text, &enforce).is_ok_and(|done| !done.edits.is_empty()));
    }
    assert!(parsed > 200 && edited > 150, "{parsed} parsed, {edited} got edits, of 500");
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_time: 20_000, ..ProptestConfig::with_cases(cases()) })]

    #[test]
    fn only_the_enforced_keys_change_in_any_document(text in document(), enforce in wanted()) {
        match plan(&text, &enforce) {
            Ok(done) => {
                check_faithful(&text, &done, &enforce);
                let mut before = value::of_table(policy::parse(&text).unwrap().as_table());
                let mut after = value::of_table(policy::parse(&done.text).unwrap().as_table());
                let selected = after.get("profile").and_then(toml::Value::as_str).map(str::to_owned);
                for key in &enforce {
                    let shadow = selected.as_deref().and_then(|name| policy::shadow_of(&key.key, name, &enforce));
                    for path in std::iter::once(key.key.clone()).chain(shadow) {
                        remove(&mut before, &path);
                        remove(&mut after, &path);
                    }
                }
                // A table that was made for an enforced key may be left over, empty.
                prune(&mut before);
                prune(&mut after);
                prop_assert!(value::same(&toml::Value::Table(before), &toml::Value::Table(after)));
            }
            Err(PlanError::Unfaithful) => prop_assert!(false, "a plan was not what it should be"),
            Err(PlanError::Syntax(_)) => prop_assert!(policy::parse(&text).is_err()),
            Err(PlanError::Conflict { line, .. }) => prop_assert!(line <= text.lines().count().max(1)),
        }
    }

    #[test]
    fn no_text_at_all_makes_the_plan_panic(text in "(?s)\\PC{0,40}|[\\[\\]{}=.,\"'#\r\nab\u{feff} \t]{0,40}", enforce in wanted()) {
        let _ = plan(&text, &enforce);
    }
}

/// `PROPTEST_CASES` says otherwise; 2,000 take about five seconds in a debug build.
pub(in crate::profile) fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(2_000)
}

fn remove(table: &mut toml::Table, path: &[String]) {
    if let [last] = path {
        table.remove(last);
    } else if let Some(inner) = table.get_mut(&path[0]).and_then(toml::Value::as_table_mut) {
        remove(inner, &path[1..]);
    }
}

fn prune(table: &mut toml::Table) {
    for inner in table.iter_mut().filter_map(|(_, value)| value.as_table_mut()) {
        prune(inner);
    }
    table.retain(|_, value| value.as_table().is_none_or(|inner| !inner.is_empty()));
}
