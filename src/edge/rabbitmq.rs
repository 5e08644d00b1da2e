//! Edges on RabbitMQ.

pub(crate) mod census;
pub mod links;
pub(crate) mod remote;
pub mod route;
pub(crate) mod wire;
