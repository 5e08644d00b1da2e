//! One row for each death, and what was counted after it.

use std::fmt;

use crate::cases::Case;

/// What became of the messages of one case.
#[derive(Debug)]
pub(crate) struct Row {
    case: Case,
    /// What was wrong with it apart from the counts.
    pub(crate) problem: Option<String>,
    pub(crate) count: Count,
}

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Count {
    /// Confirmed by the broker.
    pub(crate) sent: usize,
    /// Those that the broker handed back first, because it was just taking the edge away; they were sent again.
    pub(crate) handed_back: usize,
    /// Different ones that came out of the lane.
    pub(crate) run: usize,
    /// What still waits somewhere.
    pub(crate) left: usize,
    pub(crate) lost: usize,
    pub(crate) twice: usize,
    /// How many may be there twice.
    pub(crate) twice_allowed: usize,
    /// What came out of the lane between the death and the next admission.
    pub(crate) unfit: usize,
    /// Accounts that were told.
    pub(crate) accounts: usize,
}

impl Row {
    pub(crate) fn new(case: Case, count: Count) -> Self {
        Self { case, problem: None, count }
    }

    pub(crate) fn failed(case: Case, problem: String) -> Self {
        Self { problem: Some(problem), ..Self::new(case, Count::default()) }
    }

    pub(crate) fn is_ok(&self) -> bool {
        let Count { sent, lost, twice, twice_allowed, unfit, .. } = self.count;
        self.problem.is_none() && sent > 0 && lost == 0 && unfit == 0 && twice <= twice_allowed
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Count { sent, handed_back, run, left, lost, twice, twice_allowed, unfit, accounts } = self.count;
        let point = format!("{}{}", self.case.point, if self.case.celery { " (Celery)" } else { "" });
        let (edge, nth) = (self.case.edge.name(), self.case.nth);
        let twice = format!("{twice}/{twice_allowed}");
        let verdict = if self.is_ok() { "ok" } else { "WRONG" };
        write!(
            f,
            "{edge:13}  {point:32} {nth:>3} {sent:>7} {handed_back:>4} {run:>7} {left:>5} {accounts:>4} {lost:>4} {twice:>8} \
             {unfit:>5}  {verdict}"
        )?;
        self.problem.as_ref().map_or(Ok(()), |problem| write!(f, ": {}", problem.lines().next().unwrap_or_default()))
    }
}

/// All rows, and what they come to.
pub(crate) fn print(rows: &[Row]) {
    println!(
        "\n{:13}  {:32} {:>3} {:>7} {:>4} {:>7} {:>5} {:>4} {:>4} {:>8} {:>5}",
        "edge", "killed at", "nth", "sent", "back", "run", "left", "acc.", "lost", "twice", "unfit"
    );
    rows.iter().for_each(|row| println!("{row}"));
    let sum = |of: fn(&Count) -> usize| rows.iter().map(|row| of(&row.count)).sum::<usize>();
    println!(
        "\n{} deaths, {} of them as they must be; {} sent, {} lost, {} twice, {} to an unfit worker, {} handed back",
        rows.len(),
        rows.iter().filter(|row| row.is_ok()).count(),
        sum(|count| count.sent),
        sum(|count| count.lost),
        sum(|count| count.twice),
        sum(|count| count.unfit),
        sum(|count| count.handed_back),
    );
    println!(
        "nth: at which passing of the point. back: handed back by the broker to the producer, and sent again. acc.: accounts\n\
         told, all balanced. twice: so many of at most so many that a move may have between its confirm and its ack.\n\
         unfit: came out of the lane after the death, once what it had was gone, and before the next admission."
    );
}
