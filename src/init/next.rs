//! What is left to do once the file is there. Pure.

use std::fmt::Write as _;

use super::{Draft, plan::Way, text};
use crate::doctor::Finding;

/// One step a line, in the order in which they are best taken. `option` is what other commands need to find the file.
pub fn steps(draft: &Draft, option: &str, found: &[Finding]) -> String {
    let mut steps = String::new();
    let mut step = |step: &str| {
        // To a string nothing fails.
        let _ = writeln!(steps, "-> {step}");
    };
    if draft.is_secret {
        step("give the gate the broker's URL in its environment, as WORKER_GATE__BROKER__URL or CELERY_BROKER_URL");
    }
    step(&format!("see whether every check passes, and what to do if not: worker-gate check{option}"));
    for finding in found {
        step(&format!("{}; {}", finding.detail, finding.remedy));
    }
    step(&format!("start the gate: worker-gate run{option}"));
    for worker in &draft.workers {
        match &worker.way {
            Way::Feed { intake, lane, .. } => {
                let queues = text::queues(lane, &worker.beside);
                step(&format!(
                    "restart {} with -Q {queues} in place of {intake}: until then it goes past the gate",
                    worker.name
                ));
            }
            Way::Route { exchange, key, is_new: true, .. } => {
                let (exchange, key) = (text::quoted(exchange), text::quoted(key));
                step(&format!(
                    "let producers name the way to {}: task_routes = {{\"TASKS.*\": {{\"exchange\": {exchange}, \
                     \"routing_key\": {key}}}}}",
                    worker.name
                ));
            }
            Way::Route { lane, exchange, is_new: false, .. } => step(&format!(
                "let the task_queues of {} have Queue({}) without the exchange {exchange}: with it, it goes past the gate",
                worker.name,
                text::quoted(lane)
            )),
        }
    }
    step(&format!("see that nothing goes past the gate: worker-gate doctor{option}"));
    steps
}
