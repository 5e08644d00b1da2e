//! Whatever happens in whatever order: what an open edge takes.

use proptest::prelude::*;

use super::*;
use crate::model::{Ask, By, Order};

const TOOLS: [&str; 2] = ["codex_cli", "spec_kit"];
/// Workers of another gate's.
const PEERS: usize = 3;
const FIVE_MINUTES: u64 = 300_000;

#[derive(Debug, Clone)]
enum Happening {
    Check(bool, bool),
    Tool(bool),
    Profile(ProfileState),
    Owned,
    Down,
    Answer,
    Wait(u64),
    /// An operator's, for so long.
    Hold(Option<u64>),
    Release,
    Recheck,
    /// Which of the other gate's workers a failing check has taken out.
    Peers([bool; PEERS]),
    Unknown,
    Stop,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        16 => (any::<bool>(), proptest::bool::weighted(0.7)).prop_map(|(codex, passed)| Happening::Check(codex, passed)),
        2 => any::<bool>().prop_map(Happening::Tool),
        8 => prop_oneof![3 => Just(ProfileState::Managed), 1 => Just(ProfileState::Drifted), 1 => Just(ProfileState::Missing)]
            .prop_map(Happening::Profile),
        4 => Just(Happening::Owned),
        2 => Just(Happening::Down),
        6 => Just(Happening::Answer),
        4 => (0_u64..200_000).prop_map(Happening::Wait),
        1 => proptest::option::of(0_u64..200_000).prop_map(Happening::Hold),
        2 => Just(Happening::Release),
        1 => Just(Happening::Recheck),
        3 => any::<[bool; PEERS]>().prop_map(Happening::Peers),
        1 => Just(Happening::Unknown),
        1 => Just(Happening::Stop),
    ]
}

/// What has happened to one worker, kept as simply as can be.
struct World {
    gate: Gate,
    fail_after: u32,
    pass_after: u32,
    /// Half of the fleet may be taken out by failing checks.
    rule: bool,
    ms: u64,
    owner: Option<u64>,
    stopped: bool,
    held_until: Option<u64>,
    wanted: Wanted,
    /// Per look: how often in a row it failed, and when its newest pass began.
    looks: BTreeMap<&'static str, (u32, Option<u64>)>,
    /// Per look: passes in a row.
    passes: BTreeMap<&'static str, u32>,
    /// Per look that need not pass: when the newest one began.
    excused: BTreeMap<&'static str, u64>,
    is_known: bool,
    /// When it was heard of each of the other workers that a check had taken it out.
    heard: [Option<u64>; PEERS],
}

impl World {
    fn new(fail_after: u32, pass_after: u32, rule: bool) -> Self {
        let policy = Policy { max_quarantined: rule.then_some(50), ..policy(fail_after, pass_after) };
        Self {
            gate: gate(policy),
            fail_after,
            pass_after,
            rule,
            ms: 1_000,
            owner: None,
            stopped: false,
            held_until: None,
            wanted: Wanted::shut(),
            looks: BTreeMap::new(),
            passes: BTreeMap::new(),
            excused: BTreeMap::new(),
            is_known: false,
            heard: [None; PEERS],
        }
    }

    /// Of four workers two may be taken out, and the third failing check may not.
    fn is_suspicious(&self) -> bool {
        let lately = self.heard.iter().flatten().filter(|heard| self.ms - **heard < FIVE_MINUTES).count();
        self.rule && self.is_known && lately >= 2
    }

    fn look(&mut self, name: &'static str, passed: bool) {
        let began = self.ms - 5;
        let look = self.looks.entry(name).or_default();
        *look = if passed { (0, Some(began)) } else { (look.0 + 1, look.1) };
        let fails = look.0;
        let row = self.passes.entry(name).or_default();
        *row = if passed { *row + 1 } else { 0 };
        if *row >= self.pass_after {
            self.excused.remove(name);
        }
        let was_open = self.wanted.edge == Edge::Open;
        if self.excused.contains_key(name) || (was_open && fails >= self.fail_after && self.is_suspicious()) {
            self.excused.insert(name, began);
        }
    }

    fn happen(&mut self, happening: &Happening) -> Step {
        self.ms += 10;
        let tool_of = |codex: bool| TOOLS[usize::from(!codex)];
        let input = match *happening {
            Happening::Check(codex, passed) => {
                self.look(tool_of(codex), passed);
                check(self.ms, tool_of(codex), passed)
            }
            Happening::Tool(codex) => {
                self.looks.entry(tool_of(codex)).or_default().1 = None;
                self.excused.remove(tool_of(codex));
                self.passes.remove(tool_of(codex));
                tool(self.ms, tool_of(codex))
            }
            Happening::Profile(state) => {
                let managed = state == ProfileState::Managed;
                self.looks.insert("profile", if managed { (0, Some(self.ms - 5)) } else { (u32::MAX, None) });
                profile(self.ms, state)
            }
            Happening::Owned => {
                self.owner = Some(self.ms);
                self.excused.clear();
                owned(self.ms)
            }
            Happening::Down => {
                self.owner = None;
                self.excused.clear();
                edge(EdgeReport::Down(Reason::new(Code::BrokerUnreachable, "lost", "")))
            }
            Happening::Answer => edge(EdgeReport::Is(self.wanted, at(self.ms).mono)),
            Happening::Wait(more) => {
                self.ms += more;
                Input::Tick
            }
            Happening::Hold(length) => {
                self.held_until = Some(length.map_or(u64::MAX, |length| self.ms + length));
                self.excused.clear();
                return self.order(Ask::Hold { until: length.map(|length| at(self.ms + length).wall) });
            }
            Happening::Release => {
                self.held_until = None;
                return self.order(Ask::Release);
            }
            Happening::Recheck => return self.order(Ask::Recheck),
            Happening::Peers(out) => {
                self.is_known = true;
                for (heard, out) in self.heard.iter_mut().zip(out) {
                    *heard = if out { heard.or(Some(self.ms)) } else { None };
                }
                Input::Fleet(FleetNews::All(peers(out)))
            }
            Happening::Unknown => {
                self.is_known = false;
                self.excused.clear();
                Input::Fleet(FleetNews::Unknown)
            }
            Happening::Stop => {
                self.stopped = true;
                Input::Stop
            }
        };
        self.gate.step(at(self.ms), input)
    }

    fn order(&mut self, ask: Ask) -> Step {
        let by = By { user: None, claims: "ann@desk".into() };
        self.gate.order(at(self.ms), Order { worker: name(), ask, by, reason: String::new() }).0
    }

    /// The promise, stated a second time, more slowly and with none of the first one's words.
    fn holds(&mut self, step: &Step) -> Result<(), TestCaseError> {
        for (_, new) in &step.wanted {
            prop_assert!(new.change > self.wanted.change);
            self.wanted = *new;
        }
        let admission = self.gate.records()[0].admission.unwrap();
        prop_assert_eq!(admission == Admission::Admitted, self.wanted.edge == Edge::Open);
        if self.wanted.edge == Edge::Shut {
            self.excused.clear();
            return Ok(());
        }
        prop_assert!(!self.stopped);
        prop_assert!(self.held_until.is_none_or(|until| self.ms >= until), "an operator holds it");
        let owner = self.owner.expect("open without an owner");
        for name in ["codex_cli", "spec_kit", "profile"] {
            let began = if let Some(began) = self.excused.get(name) {
                *began
            } else {
                let (fails, passed) = self.looks[name];
                prop_assert!(fails < self.fail_after, "{name} failed {fails} times");
                passed.expect("never passed")
            };
            prop_assert!(began >= owner, "{name} was looked at before the gate owned the worker");
            // A tick is due at the stale moment; other inputs may come before it is delivered.
            prop_assert!(step.wake_at.is_some_and(|wake| wake <= at(began).mono + MAX_AGE));
        }
        let code = self.gate.records()[0].reason.as_ref().map(|reason| reason.code);
        prop_assert_eq!(code == Some(Code::FleetSuspect), !self.excused.is_empty());
        Ok(())
    }
}

fn peers(out: [bool; PEERS]) -> Vec<Peer> {
    let peer = |(n, out): (usize, bool)| Peer {
        gate: "h2".into(),
        worker: WorkerName::new(&format!("peer-{n}@h2")),
        intake: "exchange codex".into(),
        admission: if out { Admission::Quarantined } else { Admission::Admitted },
        code: Some(if out { "check_failed" } else { "fit" }.into()),
    };
    out.into_iter().enumerate().map(peer).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whenever the wanted edge is open, the gate owns the worker, has not been stopped, no operator holds the worker, and each
    /// required look that began since then and was the last of its kind passed and is fresh, or is excused: then it failed while
    /// the edge was open and while failing checks had taken half of the known fleet out, and has run of late.
    #[test]
    fn an_edge_is_wanted_open_only_with_fresh_proof_by_its_owner(
        fail_after in 1_u32..3, pass_after in 1_u32..3, rule in any::<bool>(),
        happenings in proptest::collection::vec(happening(), 1..120),
    ) {
        let mut world = World::new(fail_after, pass_after, rule);
        for happening in &happenings {
            let step = world.happen(happening);
            world.holds(&step)?;
        }
    }
}
