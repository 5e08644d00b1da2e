//! Whether each route's intake is as it has to be.

use std::collections::BTreeSet;

use crate::{
    amqp,
    doctor::{DoctorError, Finding},
    edge::{fault::Fault, rabbitmq::route::looking},
    settings::{EdgeKind, Settings, broker_url::AmqpUrl},
};

/// One finding for each intake at the most, since each shows one thing at a time.
pub(crate) async fn look(settings: &Settings, url: &AmqpUrl) -> Result<Vec<Finding>, DoctorError> {
    let (mut seen, mut found) = (BTreeSet::new(), Vec::new());
    for worker in &settings.workers {
        let EdgeKind::Route(intake) = &worker.edge else { continue };
        if !seen.insert(&intake.exchange) {
            continue;
        }
        let link = amqp::connect(&settings.broker, "worker-gate doctor intake").await?;
        found.extend(looking::intake(&link, worker, intake, (&url.vhost, &url.user)).await?.as_ref().map(finding));
    }
    Ok(found)
}

fn finding(fault: &Fault) -> Finding {
    let detail = format!("a gate would fail to {}", crate::chain::chain(fault));
    let remedy = fault.remedy().unwrap_or("see RabbitMQ's log for the reason").to_owned();
    Finding::serious("intake-unfit", detail, remedy)
}
