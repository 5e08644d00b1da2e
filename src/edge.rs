//! Owns the way from the intake to the lane, and reconciles it with what is wanted.
//!
//! An edge is not commanded: its task takes the newest [`Wanted`](crate::model::Wanted), compares it with what it last made
//! of the broker, acts, and tells what it saw as an [`EdgeReport`](crate::model::EdgeReport). What is *absent*: no edge
//! looks at checks or profiles, and none decides whether a worker is fit.

mod celery;
pub mod fault;
pub mod links;
pub mod route;
