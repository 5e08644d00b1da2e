//! How fast a backlog is taken back out of the lane of a worker that has drifted: beside RabbitMQ's own shovel plugin, between
//! queues of the same kind.

use crate::{
    drift::DRIFTED,
    feed::rabbitmq::{Drain, FILL, fill, in_turn, shovel},
    feed::{FLOOR, FLOOR_LANE, SOON, calm},
    support::{
        facts::Facts,
        gate::{Host, MANAGED},
        rabbitmq::Broker,
        vhost::Vhost,
    },
    table::{Sample, Table},
};

const ROUNDS: usize = 8;
const LANE: &str = "codex-0";
const HELD: &str = "codex-0.held";

pub(crate) fn measure() -> Vec<Table> {
    let (vhost, host) = (Vhost::on(Broker::with_plugin(Some("rabbitmq_shovel"))), Host::new("reclaim"));
    let mut facts = Facts::of(&vhost);
    let settings = host.settings(&vhost.url(), LANE);
    let gate = host.start(&settings);
    facts.next(SOON, "worker-admitted", LANE);
    for queue in [FLOOR, FLOOR_LANE] {
        vhost.declare_queue(queue);
    }
    let (held, floor_lane) = (Drain::new(&vhost, HELD), Drain::new(&vhost, FLOOR_LANE));
    let (mut taken, mut shoveled, mut ratio) = <(Sample, Sample, Sample)>::default();
    let mut take = || {
        host.set_profile(DRIFTED);
        let rate = held.rate();
        facts.next(SOON, "worker-quarantined", LANE);
        host.set_profile(MANAGED);
        facts.next(SOON, "worker-admitted", LANE);
        calm();
        rate
    };
    for round in 0..ROUNDS {
        fill(&vhost, "codex", LANE);
        fill(&vhost, "", FLOOR);
        let (by_gate, by_shovel) = in_turn(round, &mut take, || shovel(&vhost, &vhost.url(), &floor_lane));
        taken.push(by_gate);
        shoveled.push(by_shovel);
        ratio.push(by_gate / by_shovel);
    }
    assert!(gate.stop().success());
    let mut table =
        Table::new(format!("reclaim: {FILL} persistent messages of 1 KiB, from the lane to the holding queue"));
    table.row("worker-gate", "messages/s", &taken).against("the shovel", &shoveled);
    table.row("  in the shovel's of the same round", "x", &ratio).at_least(1.0);
    table.row("floor: the shovel plugin over loopback, as a gate has to", "messages/s", &shoveled);
    table.note(
        "from the first to the last that comes out of a consumer of the other queue; shovel: ack-mode on-confirm",
    );
    vec![table]
}
