//! A subscriber that is too slow is cut, and told of how much.

use std::fs;

use super::{
    EXCHANGE, SOON,
    stage::{Kind, Stage, event, seqs, shown},
};
use crate::support::{
    process::Process,
    proxy::{Mode, Proxy},
    wait::{LONG, eventually, until},
};

#[test]
fn a_reader_that_is_too_slow_is_cut_at_its_backlog_and_told_how_much_it_missed() {
    const COUNT: u64 = 14_000;
    let stage = Stage::rabbitmq();
    // Nobody reads its output until the way is free.
    let [notes, out, free] = ["notes", "out", "free"].map(|name| stage.dir.join(name).display().to_string());
    let program = stage.command(&stage.url(), &[], &["--json"]);
    let words = std::iter::once(program.get_program()).chain(program.get_args());
    let words: Vec<_> = words.map(|word| word.to_str().unwrap()).collect();
    let mut shell = crate::support::process::command("/bin/sh");
    shell.arg("-c").arg(format!(
        "{} 2> {notes} | {{ for i in $(seq 1200); do [ -e {free} ] && break; sleep 0.1; done; cat > {out}; }}",
        words.join(" ")
    ));
    let _shell = Process::start(shell, &stage.dir.join("shell.log"));
    let notes = || fs::read_to_string(&notes).unwrap_or_default();
    until(SOON, "it is subscribed", || notes().contains("subscribed to"));
    let all = u32::try_from(COUNT).unwrap();
    for some in (1..=all).step_by(1000) {
        stage.publish((some..some + 1000).map(|seq| event("worker-held", seq)));
    }
    fs::write(&free, "").unwrap();
    let shown = eventually(LONG, "the newest is shown", || {
        let shown = seqs(&fs::read_to_string(&out).unwrap_or_default());
        (shown.last() == Some(&COUNT)).then_some(shown)
    });
    assert!(shown.is_sorted(), "in order");
    let missed = COUNT - shown.len() as u64;
    // The queue keeps ten thousand; some hundred more are on their way.
    assert!((1..=COUNT - 10_000).contains(&missed), "{missed}");
    let told = notes();
    assert_eq!(told.matches("missed").count(), 1, "{told}");
    assert!(told.contains(&format!("missed {missed} events of gate g (seq ")), "{missed}: {told}");
    assert!(!told.contains("the link was lost"), "{told}");
}

#[test]
fn what_the_stream_no_longer_has_is_told_once_as_missed() {
    let stage = Stage::redis();
    let Kind::Redis(redis) = &stage.broker else { unreachable!() };
    let proxy = Proxy::to(redis.port());
    let [plain, named] = [&["--json"][..], &["--json", "--durable", "tests"]]
        .map(|args| stage.subscribe_at(&redis.url_at(proxy.port()), args));
    stage.publish([event("worker-held", 1)]);
    assert_eq!((shown(SOON, &plain, 1), shown(SOON, &named, 1)), (vec![1], vec![1]));
    proxy.set(Mode::Refuse);
    stage.publish((2..=100).map(|seq| event("worker-held", seq)));
    let _: u32 = redis.ask(&["XTRIM", EXCHANGE, "MAXLEN", "10"]);
    proxy.set(Mode::Forward);
    for program in [&plain, &named] {
        let expected: Vec<u64> = std::iter::once(1).chain(91..=100).collect();
        assert_eq!(shown(SOON, program, 11), expected);
        let told = program.output();
        assert_eq!(told.matches("missed 89 events of gate g (seq 2 to 90)").count(), 1, "{told}");
    }
}
