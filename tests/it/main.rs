//! Integration tests: real brokers, started by the tests on free ports, and real Celery workers.
#![cfg(test)]

mod behaviour;
mod cli;
mod doctor;
mod drift;
mod edges;
mod enemy;
mod events;
mod feed;
mod fleet;
mod guarantees;
mod harness;
mod image;
mod init;
mod intakes;
mod metrics;
mod newcomer;
mod pages;
mod quarantine;
mod refusals;
mod rehome;
mod reload;
mod repair;
mod stack;
mod support;
mod systemd;
mod wheel;
