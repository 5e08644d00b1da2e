use std::fs;

use nix::unistd::Uid;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::profile::{
    apply::tests::{FILE, Home},
    diff,
};

fn wrong(home: &Home) -> Failure {
    let report = inspect(home.target(), None);
    assert_eq!(report.state, ProfileState::Drifted);
    report.problem.unwrap()
}

const APPLY: &str = "worker-gate profile apply --worker codex-0@host";

#[test]
fn a_managed_profile_is_reported_with_hashes_and_the_names_of_other_keys() {
    let text = "approval_policy = 'never'\nmodel = 'secret'\n[projects.\"/a b\"]\ntrust = 'secret'\n[empty]\n[[m]]\na = 1\n[[m]]\nb.c = { d = 1 }\n";
    let home = Home::with(text);
    let at = Timestamp::from_second(7).unwrap();
    let report = inspect(home.target(), Some(at));
    let names: Vec<_> = report.extra_settings.keys().map(String::as_str).collect();
    assert_eq!(names, ["empty", "m.a", "m.b.c.d", "model", "projects.\"/a b\".trust"]);
    assert!(report.extra_settings.values().all(|hash| hash.len() == 64));
    let expected = ProfileReport {
        path: home.path.join(FILE).display().to_string(),
        owner_uid: Some(nix::unistd::geteuid().as_raw()),
        owner_gid: Some(nix::unistd::getegid().as_raw()),
        state: ProfileState::Managed,
        enforced: [("approval_policy".to_owned(), json!("never"))].into(),
        extra_settings: report.extra_settings.clone(),
        managed_on: Some(at),
        config_hash: Some(crate::hash::sha256(text.as_bytes())),
        // printf '[["approval_policy","never"]]' | sha256sum
        policy_hash: Some(POLICY_HASH.to_owned()),
        problem: None,
        wrong: vec![],
        written: report.written,
    };
    assert_eq!(report, expected);
    assert_eq!(crate::hash::sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

const POLICY_HASH: &str = "3f7dd80e466389ca316266a61cec71e4785dca77e882e046d192db218faa5dea";

#[test]
fn the_policy_hash_depends_on_the_enforced_values_only() {
    let hash = |text: &str| inspect(Home::with(text).target(), None).policy_hash.unwrap();
    let never = hash("approval_policy = 'never'");
    assert_eq!(never, hash("# c\n\"approval_policy\" = \"never\"\nmodel = 'm'\n"));
    let all = [
        never,
        hash(""),
        hash("approval_policy = ['never']"),
        hash("approval_policy = 1"),
        hash("approval_policy = 1.0"),
    ];
    let distinct: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(distinct.len(), all.len());
}

#[test]
fn drift_names_the_key_what_it_is_what_it_must_be_and_the_command() {
    let cases = [
        ("approval_policy = 'on-request'", "approval_policy is \"on-request\" and must be \"never\""),
        ("", "approval_policy is not set and must be \"never\""),
        ("approval_policy = false", "approval_policy is false and must be \"never\""),
        ("approval_policy = ['secret']", "approval_policy is an array and must be \"never\""),
        ("approval_policy = {a='secret'}", "approval_policy is a table and must be \"never\""),
        (
            "approval_policy = 'secret, much longer than any policy name is'",
            "approval_policy is a string that is not shown and must be \"never\"",
        ),
        (
            "profile = 'x y'\napproval_policy = 'never'\n[profiles.'x y']\napproval_policy = 'untrusted'",
            "approval_policy is \"untrusted\" (by profiles.\"x y\".approval_policy, which the file selects) and must be \"never\"",
        ),
    ];
    for (text, expected) in cases {
        let home = Home::with(text);
        let problem = wrong(&home);
        assert_eq!(problem.detail, format!("{}: {expected}", home.path.join(FILE).display()));
        assert_eq!(problem.remedy, APPLY);
        let report = format!("{:?}", inspect(home.target(), None));
        assert!(!report.contains("secret"), "{report}");
    }
}

#[test]
fn drift_that_the_command_cannot_mend_says_what_to_do_first() {
    let home = Home::with("a = 1\n[approval_policy]\nx = 1\n");
    let file = home.path.join(FILE);
    assert_eq!(
        wrong(&home).remedy,
        format!("remove or rename approval_policy in line 2 of {}, then run: {APPLY}", file.display())
    );
}

#[test]
fn a_broken_file_is_drift_with_its_place_and_without_its_text() {
    let home = Home::with("a = 1\ntoken = sk-secret\n");
    let problem = wrong(&home);
    assert!(problem.detail.contains("is not TOML: line 2, column 9: "), "{}", problem.detail);
    assert!(!problem.detail.contains("sk-"), "{}", problem.detail);
    let report = inspect(home.target(), None);
    assert!(report.config_hash.is_some());
    assert_eq!(report.policy_hash, None);
    assert_eq!(report.enforced["approval_policy"], serde_json::Value::Null);
}

#[test]
fn a_missing_file_or_home_is_missing() {
    let home = Home::new();
    let report = inspect(home.target(), None);
    assert_eq!(report.state, ProfileState::Missing);
    assert_eq!(report.path, home.path.join(FILE).display().to_string());
    assert_eq!(report.problem.unwrap().remedy, APPLY);
    fs::remove_dir_all(&home.path).unwrap();
    let report = inspect(home.target(), None);
    assert_eq!(report.state, ProfileState::Missing);
    assert!(report.problem.unwrap().detail.starts_with("cannot open the home /"));
}

#[test]
fn a_strangers_file_is_drift_even_if_it_says_the_right_thing() {
    let home = Home::with("approval_policy = 'never'");
    let uid = nix::unistd::geteuid().as_raw() + 1;
    let target = Target { uid: Uid::from_raw(uid), ..home.target() };
    let report = inspect(target, None);
    assert_eq!(report.state, ProfileState::Drifted);
    let problem = report.problem.unwrap();
    assert!(problem.detail.contains(&format!("and must belong to {uid}:")), "{}", problem.detail);
    assert!(problem.remedy.starts_with(&format!("chown {uid}:")), "{}", problem.remedy);
}

#[test]
fn another_value_of_another_key_shows_in_its_hash_and_nowhere_else() {
    let keys = |text: &str| inspect(Home::with(text).target(), None).extra_settings;
    let one = keys("approval_policy = 'never'\nmodel = 'a' # c\n[[m]]\na = 1\n[[m]]\na = 2\n");
    let same = keys("[[m]]\na = 1\n[[m]]\na = 2\n[x]\n").into_iter().filter(|(key, _)| key == "m.a");
    assert_eq!(same.collect::<Vec<_>>(), one.clone().into_iter().filter(|(key, _)| key == "m.a").collect::<Vec<_>>());
    let other = keys("approval_policy = 'never'\nmodel = 'b'\n[[m]]\na = 1\n[[m]]\na = 12\n");
    assert!(one.keys().eq(other.keys()) && one.iter().all(|(key, hash)| other[key] != *hash));
}

#[test]
fn a_profile_below_a_mebibyte_cannot_have_more_names_told_than_its_records_bear() {
    let keys = |text: &str| inspect(Home::with(text).target(), None).extra_settings;
    let named = |keys: &BTreeMap<String, String>| (keys.len(), keys.keys().map(String::len).sum::<usize>());
    let many = |header: &str, last: &str| {
        let keys = (0..2_000).map(|n| format!("k{n}=1\n")).collect::<Vec<_>>().concat();
        format!("[{header}]\n{keys}z={last}\n")
    };
    // A long header would stand in the name of each of its keys.
    let header = "a".repeat(50_000);
    let one = keys(&many(&header, "1"));
    assert_eq!(named(&one), (1, 256 + '\u{2026}'.len_utf8()));
    assert_ne!(one, keys(&many(&header, "2")), "a change among them is noticed");
    let (one, other) = (keys(&many("b", "1")), keys(&many("b", "2")));
    assert_eq!((one.len(), one.keys().last().unwrap().as_str()), (1001, "\u{2026} and others"));
    assert_eq!(one.iter().filter(|(key, hash)| other[*key] != **hash).count(), 1);
    let (count, bytes) = named(&keys(&many(&"b".repeat(200), "1")));
    assert!(count > 300 && bytes <= 64 * 1024 + 32, "{count} names of {bytes} bytes");
    // Keys that look alike once they are cut off are told apart in what is compared.
    let alike = |a: u8, b: u8| keys(&format!("\"{header}é1\" = {a}\n\"{header}é2\" = {b}\n"));
    assert_eq!(alike(1, 2).len(), 1);
    assert_ne!(alike(1, 2), alike(2, 1));
    let selected = format!("profile = '{header}'\n[profiles.{header}]\napproval_policy = 'no'\n");
    assert!(wrong(&Home::with(selected)).detail.len() < 1000);
}

#[test]
fn what_is_wrong_and_who_wrote_it_last_is_known_to_the_program() {
    let home = Home::with("approval_policy = 'on-request'\n");
    let report = inspect(home.target(), None);
    assert_eq!(report.wrong, ["approval_policy"]);
    assert!(report.written.unwrap().at > Timestamp::from_second(1_600_000_000).unwrap());
    let report = inspect(Home::new().target(), None);
    assert_eq!((report.wrong, report.written), (vec!["approval_policy".to_owned()], None));
}

#[test]
fn names_with_control_characters_do_not_reach_the_terminal() {
    let home = Home::new();
    std::os::unix::fs::symlink("a\u{1b}[2J", home.path.join(FILE)).unwrap();
    let report = format!("{:?}", inspect(home.target(), None).problem);
    assert!(report.contains("\\u{1b}[2J") && !report.contains('\u{1b}'), "{report}");
    let home = Home::with("approval_policy = \"\\u001b[2J\"\n\"\\u001b\" = 1\n");
    let report = inspect(home.target(), None);
    assert_eq!(report.extra_settings.keys().collect::<Vec<_>>(), ["\"\\u001B\""]);
    assert!(!report.problem.unwrap().detail.contains('\u{1b}'));
}

#[test]
fn a_diff_shows_the_enforced_keys_and_nothing_else() {
    let home = Home::with("a = { token = 'secret' }\n# secret\n[t]\ntoken = 'secret'\n");
    let path = home.path.join(FILE).display().to_string();
    assert_eq!(
        diff(home.target()).unwrap().unwrap(),
        format!("--- {path}\n+++ {path}\n@@ -2,0 +2,1 @@\n+approval_policy = \"never\"\n")
    );
    let home =
        Home::with("profile = 'x'\napproval_policy = 'on-request' # secret\n[profiles.x]\napproval_policy = 'u'");
    let path = home.path.join(FILE).display().to_string();
    assert_eq!(
        diff(home.target()).unwrap().unwrap(),
        format!(
            "--- {path}\n+++ {path}\n@@ -2,1 +2,1 @@\n-approval_policy = \"on-request\"\n+approval_policy = \"never\"\n\
             @@ -4,1 +4,1 @@\n-profiles.x.approval_policy = \"u\"\n+profiles.x.approval_policy = \"never\"\n"
        )
    );
    fs::write(home.path.join(FILE), "a = 1\napproval_policy = 'never'").unwrap();
    assert_eq!(diff(home.target()).unwrap(), None);
    fs::remove_file(home.path.join(FILE)).unwrap();
    assert_eq!(
        diff(home.target()).unwrap().unwrap(),
        format!("--- /dev/null\n+++ {path}\n@@ -1,0 +1,1 @@\n+approval_policy = \"never\"\n")
    );
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_time: 20_000, ..ProptestConfig::with_cases(plan::tests::cases()) })]

    #[test]
    fn no_bytes_at_all_make_the_look_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let home = Home::with(&bytes);
        let report = inspect(home.target(), None);
        prop_assert_eq!(report.state, ProfileState::Drifted);
        prop_assert!(report.problem.is_some_and(|problem| !problem.detail.is_empty() && !problem.remedy.is_empty()));
    }
}
