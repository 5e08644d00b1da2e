//! Edges on RabbitMQ.

pub(crate) mod consumed;
pub(crate) mod kept;
pub mod links;
mod recycling;
pub(crate) mod remote;
pub mod route;
pub(crate) mod waiting;
pub(crate) mod wire;
