//! Where a test may kill the gate: between two commands to the broker, which is where a machine may lose its power.
//!
//! With the cargo feature `failpoints` the environment says at which point, and at which passing of it, the process kills
//! itself: `WORKER_GATE_FAILPOINT=shut.unbound` or `WORKER_GATE_FAILPOINT=take_back.confirmed:40`. Without the feature
//! nothing of it is in the program.
//!
//! A point that the code does not pass is dead code to the compiler, and one that is not in this list does not compile; that
//! each of them is reached is for `scripts/test --faults` to show.

macro_rules! points {
    ($($point:ident = $name:literal,)*) => {
        /// A step that lies between two commands.
        #[derive(Debug, Clone, Copy)]
        pub(crate) enum Point {
            $($point,)*
        }

        /// The names of all points.
        #[cfg(feature = "failpoints")]
        pub const ALL: &[&str] = &[$($name),*];

        #[cfg(feature = "failpoints")]
        impl Point {
            const fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)*
                }
            }
        }
    };
}

points! {
    // Both edges of RabbitMQ: taking a worker.
    OwnOwned = "own.owned",
    OwnCleared = "own.cleared",
    OwnDeclared = "own.declared",
    OwnEdgeDeclared = "own.edge_declared",
    OwnTakingBack = "own.taking_back",
    OwnProbed = "own.probed",
    OwnProven = "own.proven",
    // Opening.
    OpenBegun = "open.begun",
    OpenKeyBound = "open.key_bound",
    OpenBound = "open.bound",
    OpenTold = "open.told",
    OpenCounted = "open.counted",
    OpenMoving = "open.moving",
    // Shutting.
    ShutBegun = "shut.begun",
    ShutKeyUnbound = "shut.key_unbound",
    ShutUnbound = "shut.unbound",
    ShutTold = "shut.told",
    ShutCounted = "shut.counted",
    ShutTakingBack = "shut.taking_back",
    // The account of either.
    SettleCounted = "settle.counted",
    SettleTold = "settle.told",
    // Letting a worker go.
    LetGoShut = "let_go.shut",
    LetGoStopped = "let_go.stopped",
    LetGoDisowned = "let_go.disowned",
    // The intercept: out of the lane.
    TakeBackConsuming = "take_back.consuming",
    TakeBackSpared = "take_back.spared",
    TakeBackReceived = "take_back.received",
    TakeBackPublished = "take_back.published",
    TakeBackConfirmed = "take_back.confirmed",
    TakeBackAcked = "take_back.acked",
    TakeBackStopped = "take_back.stopped",
    TakeBackFinished = "take_back.finished",
    TakeBackEnded = "take_back.ended",
    // Out of the holding queue.
    GiveBackConsuming = "give_back.consuming",
    GiveBackReceived = "give_back.received",
    GiveBackProbeDropped = "give_back.probe_dropped",
    GiveBackStrayUnbound = "give_back.stray_unbound",
    GiveBackPublished = "give_back.published",
    GiveBackConfirmed = "give_back.confirmed",
    GiveBackAcked = "give_back.acked",
    GiveBackStopped = "give_back.stopped",
    GiveBackFinished = "give_back.finished",
    GiveBackEnded = "give_back.ended",
    // Looking after the way.
    FaultShut = "fault.shut",
    BypassUnbound = "bypass.unbound",
    BypassTold = "bypass.told",
    MendDeclared = "mend.declared",
    MendOpened = "mend.opened",
    // What the worker's Celery is told, on either broker.
    RecycleBegun = "recycle.begun",
    RecycleSent = "recycle.sent",
    WakeSent = "wake.sent",
    CancelSent = "cancel.sent",
    // Feeding from a queue of RabbitMQ.
    FeedStarted = "feed.started",
    FeedConsuming = "feed.consuming",
    FeedReceived = "feed.received",
    FeedPublished = "feed.published",
    FeedConfirmed = "feed.confirmed",
    FeedLooked = "feed.looked",
    FeedAcked = "feed.acked",
    FeedCancelled = "feed.cancelled",
    FeedHandedBack = "feed.handed_back",
    FeedPaused = "feed.paused",
    FeedStopped = "feed.stopped",
    FeedEnded = "feed.ended",
    FeedAway = "feed.away",
    FeedEmptied = "feed.emptied",
    // Redis.
    RedisProven = "redis.proven",
    RedisOwned = "redis.owned",
    RedisEmptied = "redis.emptied",
    RedisBound = "redis.bound",
    RedisRebound = "redis.rebound",
    RedisOpenBegun = "redis.open_begun",
    RedisOpened = "redis.opened",
    RedisOpenTold = "redis.open_told",
    RedisRound = "redis.round",
    RedisMoved = "redis.moved",
    RedisPutBackBegun = "redis.put_back_begun",
    RedisPutBack = "redis.put_back",
    RedisShutBegun = "redis.shut_begun",
    RedisShut = "redis.shut",
    RedisShutTold = "redis.shut_told",
    RedisLetGoBegun = "redis.let_go_begun",
    RedisLetGo = "redis.let_go",
}

/// Passes a point.
#[cfg(not(feature = "failpoints"))]
pub(crate) const fn hit(_: Point) {}

/// Passes a point, and does not come back from the one that the environment names.
#[cfg(feature = "failpoints")]
pub(crate) fn hit(point: Point) {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering::Relaxed},
    };

    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };

    static ARMED: LazyLock<Option<(String, u32)>> = LazyLock::new(|| {
        let text = std::env::var("WORKER_GATE_FAILPOINT").ok()?;
        let (name, nth) = text.split_once(':').unwrap_or((&text, "1"));
        Some((name.to_owned(), nth.parse().ok()?))
    });
    static PASSED: AtomicU32 = AtomicU32::new(0);

    let Some((name, nth)) = &*ARMED else { return };
    if name == point.name() && PASSED.fetch_add(1, Relaxed) + 1 == *nth {
        // The kernel ends the calling thread before it returns, so not one more command is asked for.
        let _ = kill(Pid::this(), Signal::SIGKILL);
    }
}
