//! The two forms in which Prometheus takes metrics.

use std::fmt::Write;

/// OpenMetrics, as prometheus-client writes it.
pub(super) const OPEN: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The form from before OpenMetrics, which every reader knows: promtool, for one, knows no other.
pub(super) const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether whoever asks can read OpenMetrics. Prometheus says so; who says nothing, as curl, gets the older form.
pub(super) fn wants_open(accept: Option<&str>) -> bool {
    accept.is_some_and(|accept| accept.contains("application/openmetrics-text"))
}

/// OpenMetrics in the older form. The two differ in how they call a counter (its samples have `_total` behind the name, and in
/// the older form that is part of the name), and in lines that only OpenMetrics has.
pub(super) fn classic(open: &str) -> String {
    let mut text = String::with_capacity(open.len() + open.len() / 16);
    let mut help = "";
    for line in open.lines() {
        if let Some(line) = line.strip_prefix("# HELP ") {
            // It comes before the type, which decides on the name.
            help = line;
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) {
            let total = if kind == "counter" { "_total" } else { "" };
            let help = help.strip_prefix(name).unwrap_or_default();
            // A String takes everything.
            let _ = writeln!(text, "# HELP {name}{total}{help}\n# TYPE {name}{total} {kind}");
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}
