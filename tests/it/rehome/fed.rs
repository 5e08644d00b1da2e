//! Workers that share a queue: what the lane of one that is gone still has is anybody's again.

use serde_json::json;

use super::{SOON, lives_and_goes, rehomes, starts};
use crate::support::{
    field::{Field, INTAKE, Kind, each_once, for_each_feed},
    tasks::Task,
};

for_each_feed! {
    what_is_left_in_the_lane_of_a_fed_worker_goes_back_to_the_shared_queue_and_runs_elsewhere
}

fn what_is_left_in_the_lane_of_a_fed_worker_goes_back_to_the_shared_queue_and_runs_elsewhere(kind: Kind) {
    let field = Field::new(kind);
    let app = field.app();
    lives_and_goes(&field);
    let marks = |prefix: &'static str| (0..5).map(move |n| Task::mark(format!("{prefix}{n}")));
    field.publish(marks("waiting-"));
    field.publish_past(0, marks("left-"));
    let answer = rehomes(&field, 5);
    assert_eq!(answer["entry"], json!({ "queue": INTAKE }));
    assert_eq!((field.waiting(), field.in_lane(0)), (10, 0));
    let _other = starts(&field);
    let _worker = field.worker(&app, 1);
    each_once(&app.wait_for_runs(SOON, 10), 10);
    let order: Vec<_> = app.marks().into_iter().map(|mark| mark.id).collect();
    let names = |prefix| (0..5).map(move |n| format!("{prefix}{n}"));
    // On Redis to the head of the queue, on RabbitMQ to its end.
    let expected: Vec<_> = match kind {
        Kind::FeedRedis => names("left-").chain(names("waiting-")).collect(),
        Kind::FeedRabbitmq | Kind::Route => names("waiting-").chain(names("left-")).collect(),
    };
    assert_eq!(order, expected);
}
