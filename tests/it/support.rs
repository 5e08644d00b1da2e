//! What the integration tests stand on: brokers, Celery workers, producers, a proxy and the gate, all real, all ended
//! when the test process ends, however it ends.

pub(crate) mod celery;
pub(crate) mod facts;
pub(crate) mod field;
pub(crate) mod flood;
pub(crate) mod gate;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod rabbitmq;
pub(crate) mod redis;
pub(crate) mod runtime;
pub(crate) mod scratch;
pub(crate) mod tasks;
pub(crate) mod vhost;
pub(crate) mod wait;
