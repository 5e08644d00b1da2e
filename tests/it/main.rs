//! Integration tests: real brokers, started by the tests on free ports, and real Celery workers.
#![cfg(test)]

mod cli;
mod drift;
mod enemy;
mod events;
mod guarantees;
mod harness;
mod intakes;
mod refusals;
mod reload;
mod repair;
mod support;
