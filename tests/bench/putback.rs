//! How long Redis is busy when a long lane is put back: beside a loop that moves as many, one by one.

use std::time::{Duration, Instant};

use redis::{Connection, Script, pipe};

use crate::{
    support::redis::Redis,
    table::{Sample, Table},
};

const ROUNDS: usize = 5;
const MESSAGES: usize = 1_000_000;
const SIZE: usize = 256;
const SCRIPT: &str = include_str!("../../src/edge/redis/scripts/put_back.lua");
const LOOP: &str = "for _ = 1, tonumber(ARGV[1]) do redis.call('LMOVE', KEYS[1], KEYS[2], 'LEFT', 'RIGHT') end";

pub(crate) fn measure() -> Vec<Table> {
    let redis = Redis::start();
    let mut connection = redis.connect().unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let (mut short, mut long, mut floor, mut ratio) = <(Sample, Sample, Sample, Sample)>::default();
    for _ in 0..ROUNDS {
        let by_loop = by_loop(&mut connection);
        short.push(put_back(&mut connection, MESSAGES, 1_000));
        let by_script = put_back(&mut connection, MESSAGES, MESSAGES);
        long.push(by_script);
        floor.push(by_loop);
        ratio.push(by_script / by_loop);
    }
    let mut table = Table::new(
        "putback: a million messages of 256 bytes go from a lane to the head of the intake on Redis, in order",
    );
    table.row("worker-gate, as many wait in the intake", "ms", &long).against("the floor", &floor);
    table.row("  in the floor's of the same round", "x", &ratio).at_most(3.0);
    table.row("worker-gate, a thousand wait in the intake", "ms", &short).against("the floor", &floor);
    table.row("floor: a script that does LMOVE a million times", "ms", &floor);
    table.note("the shorter of the two is moved, and the longer one renamed");
    vec![table]
}

fn by_loop(connection: &mut Connection) -> f64 {
    fill(connection, "floor", MESSAGES);
    let script = Script::new(LOOP);
    let begin = Instant::now();
    let () = script.key("floor").key("floor.to").arg(MESSAGES).invoke(connection).unwrap();
    let took = begin.elapsed();
    assert_eq!(length(connection, "floor.to"), MESSAGES);
    let () = redis::cmd("DEL").arg("floor.to").query(connection).unwrap();
    took.as_secs_f64() * 1e3
}

fn put_back(connection: &mut Connection, lane: usize, intake: usize) -> f64 {
    fill(connection, "lane", lane);
    fill(connection, "intake", intake);
    let () = redis::cmd("SET").arg("owner").arg("me").query(connection).unwrap();
    let script = Script::new(SCRIPT);
    let mut invocation = script.prepare_invoke();
    invocation.key("owner").key("edge").key("intake").key("lane").arg("me").arg("shut");
    let begin = Instant::now();
    let (moved, _): (usize, Option<Vec<u8>>) = invocation.invoke(connection).unwrap();
    let took = begin.elapsed();
    assert_eq!((moved, length(connection, "intake"), length(connection, "lane")), (lane, lane + intake, 0));
    let () = redis::cmd("DEL").arg("intake").query(connection).unwrap();
    took.as_secs_f64() * 1e3
}

fn fill(connection: &mut Connection, list: &str, messages: usize) {
    const BATCH: usize = 1_000;
    let message = vec![b'x'; SIZE];
    for _ in 0..messages / BATCH {
        let () = pipe().cmd("LPUSH").arg(list).arg(vec![message.as_slice(); BATCH]).ignore().query(connection).unwrap();
    }
}

fn length(connection: &mut Connection, list: &str) -> usize {
    redis::cmd("LLEN").arg(list).query(connection).unwrap()
}
