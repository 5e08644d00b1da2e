//! Whether a worker is there to take what it is fed. Redis does not tell who consumes a list, so it is put together from what
//! the worker says and from what it takes. Pure: time comes in, nothing is asked here.
//!
//! A sign of life is a heartbeat on Celery's event exchange or an answer over its remote control; users may have turned off
//! either. Who was heard once and is silent now is away. Who was never heard, and does not answer, may have both turned off:
//! it is tried with one message, rarely, which goes back if it is not taken.

use std::time::{Duration, Instant};

/// Celery's workers send a heartbeat every 2 s; three may be lost.
const SILENCE: Duration = Duration::from_secs(6);
/// The first wait before a worker is asked again; doubled up to [`RAREST_ASK`].
const FIRST_ASK: Duration = Duration::from_millis(500);
const RAREST_ASK: Duration = Duration::from_secs(15);
/// How long a worker may be silent from the start before it is tried.
const FIRST_TRIAL: Duration = Duration::from_secs(30);
/// Between two trials that were not taken.
const LATER_TRIAL: Duration = Duration::from_secs(300);

/// What is known of one worker.
#[derive(Debug)]
pub(super) struct Presence {
    offline_after: Duration,
    since: Instant,
    heard: Option<Instant>,
    ever_heard: bool,
    /// It says itself that it does not consume the lane.
    elsewhere: bool,
    taken: Option<Instant>,
    lane: u64,
    /// Since when the lane holds something and nothing is taken.
    stuck: Option<Instant>,
    /// It took nothing for too long, and has not been heard since.
    away: bool,
    ask_at: Instant,
    ask_wait: Duration,
    try_at: Instant,
}

impl Presence {
    pub(super) fn new(now: Instant, offline_after: Duration) -> Self {
        Self {
            offline_after,
            since: now,
            heard: None,
            ever_heard: false,
            elsewhere: false,
            taken: None,
            lane: 0,
            stuck: None,
            away: false,
            ask_at: now,
            ask_wait: FIRST_ASK,
            try_at: now + FIRST_TRIAL,
        }
    }

    /// It has sent a heartbeat.
    pub(super) fn beat(&mut self, now: Instant) {
        self.heard = Some(now);
        self.ever_heard = true;
        self.away = false;
    }

    /// It has said that it goes.
    pub(super) fn leave(&mut self) {
        self.heard = None;
        self.taken = None;
        self.elsewhere = false;
    }

    /// It was asked and has said whether it consumes the lane; `None` if it said nothing.
    pub(super) fn answer(&mut self, now: Instant, consumes: Option<bool>) {
        match consumes {
            Some(consumes) => {
                self.beat(now);
                self.elsewhere = !consumes;
                self.ask_wait = FIRST_ASK;
                if consumes {
                    // It is busy, and will come to what waits.
                    self.stuck = self.stuck.map(|_| now);
                }
            }
            // What does not answer has to take something, or it counts as away.
            None if self.is_stuck(now) => self.away = true,
            None => {}
        }
    }

    /// A round has moved so many to the lane, and so many wait there now.
    pub(super) fn saw(&mut self, now: Instant, moved: u64, lane: u64) {
        let taken = (self.lane + moved).saturating_sub(lane);
        if taken > 0 {
            self.taken = Some(now);
            self.elsewhere = false;
            self.away = false;
        }
        self.lane = lane;
        self.stuck = match self.stuck {
            _ if lane == 0 => None,
            Some(since) if taken == 0 => Some(since),
            _ => Some(now),
        };
    }

    /// The lane was emptied by the gate itself.
    pub(super) fn emptied(&mut self, now: Instant) {
        self.lane = 0;
        self.stuck = None;
        self.try_at = now + LATER_TRIAL;
    }

    /// Whether it may be fed.
    pub(super) fn may_be_fed(&self, now: Instant) -> bool {
        let is_alive = self.is_heard(now) || self.taken.is_some_and(|taken| now - taken < self.offline_after);
        !self.elsewhere && !self.away && (is_alive || self.may_be_tried(now))
    }

    /// How many may wait in its lane at the most; one of those who were never heard is tried with a single message.
    pub(super) fn depth(&self, now: Instant, depth: u32) -> u32 {
        match self.may_be_fed(now) {
            false => 0,
            true if self.is_heard(now) || self.taken.is_some() => depth,
            true => 1,
        }
    }

    /// Whether what waits in its lane is to go back.
    pub(super) fn is_gone(&self, now: Instant) -> bool {
        self.is_stuck(now) && (self.away || self.elsewhere || !self.is_heard(now))
    }

    /// Whether it is to be asked now, given that there is work for it. Says when it may be asked again.
    pub(super) fn is_to_be_asked(&mut self, now: Instant, has_work: bool) -> bool {
        let unknown = has_work && (!self.is_heard(now) || self.elsewhere);
        // One that lives and takes nothing is busy, or consumes something else.
        let is_due =
            now >= self.ask_at && (unknown || self.is_stuck(now) || !self.ever_heard && self.ask_wait == FIRST_ASK);
        if is_due {
            self.ask_at = now + self.ask_wait;
            self.ask_wait = (self.ask_wait * 2).min(RAREST_ASK);
        }
        is_due
    }

    /// When something here changes by itself.
    pub(super) fn wake_at(&self, now: Instant, has_work: bool) -> Option<Instant> {
        let stuck = self.stuck.map(|since| (since + self.offline_after).max(self.ask_at));
        let asked = (has_work && (!self.is_heard(now) || self.elsewhere)).then_some(self.ask_at);
        let tried = (has_work && !self.ever_heard && self.lane == 0).then_some(self.try_at);
        // Of a heartbeat that fails to come nobody tells.
        let silent = self.heard.filter(|_| self.lane > 0).map(|heard| heard + SILENCE);
        [stuck, asked, tried, silent].into_iter().flatten().filter(|at| *at > now).min()
    }

    /// Whether it was heard within the time that three heartbeats take.
    pub(super) fn is_heard(&self, now: Instant) -> bool {
        self.heard.is_some_and(|heard| now - heard < SILENCE)
    }

    /// Whether silence says anything: it was heard before, or has been listened to for as long.
    pub(super) fn is_known(&self, now: Instant) -> bool {
        self.ever_heard || now - self.since >= SILENCE
    }

    fn may_be_tried(&self, now: Instant) -> bool {
        !self.ever_heard && now >= self.try_at
    }

    fn is_stuck(&self, now: Instant) -> bool {
        self.stuck.is_some_and(|since| now - since >= self.offline_after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFLINE: Duration = Duration::from_secs(10);
    const SECOND: Duration = Duration::from_secs(1);

    fn presence() -> (Presence, Instant) {
        let now = Instant::now();
        (Presence::new(now, OFFLINE), now)
    }

    #[test]
    fn who_was_never_heard_is_not_fed_until_it_is_tried_with_one_message() {
        let (mut presence, now) = presence();
        assert!(presence.is_to_be_asked(now, false), "at once, so that it is known when the edge opens");
        assert_eq!(presence.depth(now + SECOND * 29, 8), 0);
        assert_eq!(presence.depth(now + SECOND * 31, 8), 1);
        presence.saw(now + SECOND * 31, 1, 1);
        assert!(!presence.is_gone(now + SECOND * 40));
        assert!(presence.is_gone(now + SECOND * 41));
        presence.emptied(now + SECOND * 41);
        assert_eq!(presence.depth(now + SECOND * 100, 8), 0);
        assert_eq!(presence.depth(now + SECOND * 342, 8), 1);
    }

    #[test]
    fn a_trial_that_is_taken_makes_the_worker_one_that_is_fed() {
        let (mut presence, now) = presence();
        let tried = now + SECOND * 31;
        presence.saw(tried, 1, 1);
        presence.saw(tried + SECOND, 0, 0);
        assert_eq!(presence.depth(tried + SECOND * 2, 8), 8);
    }

    #[test]
    fn who_beats_is_fed_and_who_falls_silent_is_not_and_its_lane_goes_back() {
        let (mut presence, now) = presence();
        presence.beat(now);
        assert_eq!(presence.depth(now + SECOND, 3), 3);
        presence.saw(now + SECOND, 3, 3);
        assert!(!presence.is_gone(now + SECOND * 5));
        assert_eq!(presence.depth(now + SECOND * 7, 3), 0);
        assert!(presence.is_gone(now + SECOND * 11));
        presence.emptied(now + SECOND * 11);
        assert_eq!(presence.depth(now + SECOND * 1000, 3), 0, "it was heard once, so it has heartbeats, and is away");
        presence.beat(now + SECOND * 1001);
        assert_eq!(presence.depth(now + SECOND * 1001, 3), 3);
    }

    #[test]
    fn a_busy_worker_that_says_that_it_consumes_the_lane_keeps_what_waits_there() {
        let (mut presence, now) = presence();
        presence.answer(now, Some(true));
        presence.saw(now, 1, 1);
        for at in 1..40 {
            let at = now + SECOND * at;
            presence.beat(at);
            assert!(!presence.is_gone(at));
            if presence.is_to_be_asked(at, true) {
                presence.answer(at, Some(true));
            }
        }
    }

    #[test]
    fn a_worker_that_lives_and_does_not_consume_the_lane_is_not_fed_until_it_does() {
        let (mut presence, now) = presence();
        presence.answer(now, Some(false));
        assert_eq!(presence.depth(now, 3), 0);
        presence.answer(now + SECOND, Some(true));
        assert_eq!(presence.depth(now + SECOND, 3), 3);
        presence.saw(now + SECOND, 1, 1);
        let later = now + SECOND * 12;
        presence.beat(later);
        assert!(!presence.is_gone(later), "it is asked first");
        assert!(presence.is_to_be_asked(later, true));
        presence.answer(later, None);
        assert!(presence.is_gone(later), "and does not answer");
    }
}
