//! Numbers for people, on the terminal, and for programs, in a file.

use std::{fs, path::Path, time::Duration};

use serde_json::{Value, json};

/// What was measured under one heading.
pub(crate) struct Table {
    title: String,
    rows: Vec<Row>,
    notes: Vec<String>,
}

struct Row {
    what: String,
    unit: &'static str,
    sample: Sample,
    /// The floor's name and how many times the floor this is.
    ratio: Option<(String, f64)>,
    target: Option<Target>,
}

struct Target {
    bound: Bound,
    is_met: bool,
}

enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

/// Values of one kind.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sample(Vec<f64>);

impl Sample {
    /// One value.
    pub(crate) fn one(value: f64) -> Self {
        Self(vec![value])
    }

    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// In milliseconds.
    pub(crate) fn push_time(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1e3);
    }

    pub(crate) fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    pub(crate) fn median(&self) -> f64 {
        self.at(0.5)
    }

    pub(crate) fn p99(&self) -> f64 {
        self.at(0.99)
    }

    /// The smallest value that so large a share of all values does not exceed.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a sample has some hundreds of values"
    )]
    fn at(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let index = (share * sorted.len() as f64).ceil() as usize;
        sorted[index.clamp(1, sorted.len()) - 1]
    }
}

impl Table {
    pub(crate) fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), rows: Vec::new(), notes: Vec::new() }
    }

    /// Adds a line.
    pub(crate) fn row(&mut self, what: &str, unit: &'static str, sample: &Sample) -> &mut Self {
        self.rows.push(Row { what: what.to_owned(), unit, sample: sample.clone(), ratio: None, target: None });
        self
    }

    /// Says of the last line how many times the floor it is.
    pub(crate) fn against(&mut self, floor: &str, sample: &Sample) -> &mut Self {
        if let Some(row) = self.rows.last_mut() {
            row.ratio = Some((floor.to_owned(), row.sample.median() / sample.median()));
        }
        self
    }

    /// Says what the median of the last line should be.
    pub(crate) fn at_most(&mut self, at_most: f64) -> &mut Self {
        if let Some(row) = self.rows.last_mut() {
            row.target = Some(Target { bound: Bound::AtMost(at_most), is_met: row.sample.median() <= at_most });
        }
        self
    }

    /// The same, for what should not be less.
    pub(crate) fn at_least(&mut self, at_least: f64) -> &mut Self {
        if let Some(row) = self.rows.last_mut() {
            row.target = Some(Target { bound: Bound::AtLeast(at_least), is_met: row.sample.median() >= at_least });
        }
        self
    }

    pub(crate) fn note(&mut self, text: impl Into<String>) -> &mut Self {
        self.notes.push(text.into());
        self
    }

    pub(crate) fn print(&self) {
        println!("\n{}", self.title);
        let head = ["", "n", "median", "p90", "p99", "max", "", "", ""].map(str::to_owned);
        let mut lines = vec![head];
        for row in &self.rows {
            let sample = &row.sample;
            let mut number = |share| if sample.0.len() > 1 { figure(sample.at(share)) } else { String::new() };
            let others = [0.9, 0.99, 1.0].map(&mut number);
            let [p90, p99, max] = others;
            let ratio = row.ratio.as_ref().map_or(String::new(), |(floor, ratio)| format!("{ratio:.2} x {floor}"));
            let target = row.target.as_ref().map_or(String::new(), |target| {
                let met = if target.is_met { "met" } else { "MISSED" };
                match target.bound {
                    Bound::AtMost(bound) => format!("target at most {bound}: {met}"),
                    Bound::AtLeast(bound) => format!("target at least {bound}: {met}"),
                }
            });
            let n = sample.0.len().to_string();
            lines.push([
                row.what.clone(),
                n,
                figure(sample.median()),
                p90,
                p99,
                max,
                row.unit.to_owned(),
                ratio,
                target,
            ]);
        }
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default();
        let widths: [usize; 9] = std::array::from_fn(width);
        for line in &lines {
            let cell = |(column, text): (usize, &String)| {
                let width = widths[column];
                if (1..=5).contains(&column) { format!("{text:>width$}") } else { format!("{text:<width$}") }
            };
            println!("  {}", line.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ").trim_end());
        }
        for note in &self.notes {
            println!("  {note}");
        }
    }

    /// Writes the section's file, with what the machine was doing meanwhile.
    pub(crate) fn write(section: &str, tables: &[Self]) {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        let (dir, text) = (
            target.join("bench"),
            json!({
                "section": section,
                "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
                "load": fs::read_to_string("/proc/loadavg").unwrap_or_default().trim(),
                "tables": tables.iter().map(Self::json).collect::<Vec<_>>(),
            }),
        );
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("{section}.json")), format!("{text:#}\n")).unwrap();
    }

    fn json(&self) -> Value {
        let row = |row: &Row| {
            let sample = &row.sample;
            let (at_most, at_least) = match &row.target {
                Some(Target { bound: Bound::AtMost(bound), .. }) => (Some(bound), None),
                Some(Target { bound: Bound::AtLeast(bound), .. }) => (None, Some(bound)),
                None => (None, None),
            };
            json!({
                "what": row.what,
                "unit": row.unit,
                "n": sample.0.len(),
                "median": sample.median(),
                "p90": sample.at(0.9),
                "p99": sample.at(0.99),
                "max": sample.at(1.0),
                "ratio": row.ratio.as_ref().map(|(_, ratio)| ratio),
                "ratio_to": row.ratio.as_ref().map(|(floor, _)| floor),
                "target_at_most": at_most,
                "target_at_least": at_least,
                "target_met": row.target.as_ref().map(|target| target.is_met),
            })
        };
        json!({ "title": self.title, "rows": self.rows.iter().map(row).collect::<Vec<_>>(), "notes": self.notes })
    }
}

/// Three significant digits or so.
fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
