//! Edges on RabbitMQ.

pub(crate) mod census;
pub mod links;
mod recycling;
pub(crate) mod remote;
pub mod route;
pub(crate) mod wire;
