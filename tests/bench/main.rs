//! What worker-gate costs and how fast it is, measured on a real RabbitMQ, a real Redis and the real program, beside a floor that is
//! measured in the same run: the least that any client would have to do for the same thing. A number alone says little
//! about a program on a machine whose speed changes by the minute; its ratio to the floor says more.
//!
//! `scripts/bench` runs all sections; `scripts/bench open idle` only these. Tables go to standard output, numbers to
//! `target/bench/*.json`.

fn main() {
    sections::run();
}

#[cfg(test)]
mod alarm;
#[cfg(test)]
mod bare;
#[cfg(test)]
mod drift;
#[cfg(test)]
mod feed;
#[cfg(test)]
mod fleet;
#[cfg(test)]
mod giveback;
#[cfg(test)]
mod idle;
#[cfg(test)]
mod lane;
#[cfg(test)]
mod open;
#[cfg(test)]
mod putback;
#[cfg(test)]
mod readyz;
#[cfg(test)]
mod reclaim;
#[cfg(test)]
mod sections;
#[cfg(test)]
mod table;

/// The parts of the integration tests that a measurement needs.
#[cfg(test)]
#[path = "../it/support"]
#[expect(dead_code, reason = "the integration tests use all of it")]
mod support {
    pub(crate) mod celery;
    pub(crate) mod facts;
    pub(crate) mod gate;
    pub(crate) mod process;
    pub(crate) mod rabbitmq;
    pub(crate) mod redis;
    pub(crate) mod runtime;
    pub(crate) mod scratch;
    pub(crate) mod tasks;
    pub(crate) mod vhost;
    pub(crate) mod wait;
}
