//! Which sections run.

use std::{process::exit, time::Instant};

use crate::{alarm, drift, feed, fleet, giveback, idle, open, putback, readyz, reclaim, table::Table};

type Section = fn() -> Vec<Table>;

/// A word that other names begin with stands for all of them: `feed`.
const ALL: [(&str, Section); 15] = [
    ("open", open::measure),
    ("drift", drift::measure),
    ("thousand", drift::thousand::measure),
    ("giveback", giveback::measure),
    ("reclaim", reclaim::measure),
    ("putback", putback::measure),
    ("alarm", alarm::measure),
    ("idle", idle::measure),
    ("fleet", fleet::measure),
    ("readyz", readyz::measure),
    ("feed-redis", feed::redis::measure),
    ("feed-rabbitmq", feed::rabbitmq::measure),
    ("feed-delay", feed::delay::measure),
    ("feed-free", feed::free::measure),
    ("feed-idle", feed::idle::measure),
];

pub(crate) fn run() {
    // cargo adds `--bench`.
    let asked: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if let [word, url] = asked.as_slice()
        && word == idle::FLOOR
    {
        idle::be_the_floor(url);
    }
    if let Some(unknown) = asked.iter().find(|word| !ALL.iter().any(|(name, _)| stands_for(word, name))) {
        eprintln!("no section {unknown}; there are: {}", ALL.map(|(name, _)| name).join(", "));
        exit(64);
    }
    for (name, measure) in ALL {
        if asked.is_empty() || asked.iter().any(|word| stands_for(word, name)) {
            let begin = Instant::now();
            eprintln!("[bench] {name} ...");
            let tables = measure();
            eprintln!("[bench] {name}: {:.0} s", begin.elapsed().as_secs_f64());
            for table in &tables {
                table.print();
            }
            Table::write(name, &tables);
        }
    }
}

fn stands_for(word: &str, name: &str) -> bool {
    name.strip_prefix(word).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}
