//! Which sections run.

use std::{process::exit, time::Instant};

use crate::{drift, feed, giveback, idle, open, table::Table};

/// Measures, and says what was seen.
pub(crate) type Section = fn() -> Vec<Table>;

const ALL: [(&str, Section); 6] = [
    ("open", open::measure),
    ("drift", drift::measure),
    ("thousand", drift::thousand::measure),
    ("giveback", giveback::measure),
    ("idle", idle::measure),
    ("feed", feed::measure),
];

pub(crate) fn run() {
    // cargo adds `--bench`.
    let asked: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if let [word, url] = asked.as_slice()
        && word == idle::FLOOR
    {
        idle::be_the_floor(url);
    }
    if let Some(unknown) = asked.iter().find(|word| !ALL.iter().any(|(name, _)| name == word)) {
        eprintln!("no section {unknown}; there are: {}", ALL.map(|(name, _)| name).join(", "));
        exit(64);
    }
    for (name, measure) in ALL {
        if asked.is_empty() || asked.iter().any(|word| word == name) {
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
