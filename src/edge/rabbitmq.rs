//! Edges on RabbitMQ.

pub mod links;
pub(crate) mod remote;
pub mod route;
