//! Snapshot sets: all or nothing, whoever fails and wherever the process dies.

use crate::lab::{KIB, Lab, MIB, pattern, shows, write};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vhdkit::chain::{Chain, ChainOptions};
use vhdkit::ops::{
    Hooks, Moment, Participant, Phase, Recovered, Session, SessionOptions, SessionState, SetInfo, SnapshotDisk,
    abort_session, recover_sessions, sessions,
};
use vhdkit::{Error, ErrorKind, Result, Watch};

/// What participants heard, in order.
type Heard = Arc<Mutex<Vec<(String, Moment)>>>;

/// Notes what it hears, and fails where it is told to.
struct Recorder {
    name: String,
    heard: Heard,
    fails_at: Option<Moment>,
}

impl Recorder {
    fn boxed(name: &str, heard: &Heard, fails_at: Option<Moment>) -> Box<dyn Participant> {
        Box::new(Self { name: name.to_owned(), heard: Arc::clone(heard), fails_at })
    }

    fn hear(&self, moment: Moment) -> Result<()> {
        self.heard.lock().unwrap().push((self.name.clone(), moment));
        if self.fails_at == Some(moment) { Err(Error::new(ErrorKind::Io, "it said no")) } else { Ok(()) }
    }
}

impl Participant for Recorder {
    fn name(&self) -> &str {
        &self.name
    }
    fn prepare(&mut self, _: &SetInfo) -> Result<()> {
        self.hear(Moment::Prepare)
    }
    fn freeze(&mut self, _: &SetInfo, limit: Duration) -> Result<()> {
        assert!(!limit.is_zero());
        self.hear(Moment::Freeze)
    }
    fn thaw(&mut self, _: &SetInfo) -> Result<()> {
        self.hear(Moment::Thaw)
    }
    fn post(&mut self, _: &SetInfo) -> Result<()> {
        self.hear(Moment::Post)
    }
    fn abort(&mut self, _: &SetInfo) -> Result<()> {
        self.hear(Moment::Abort)
    }
}

/// Three disks in two formats, one of them a chain already, and the leaves they are to get.
struct Disks {
    lab: Lab,
    disks: Vec<SnapshotDisk>,
    before: Vec<Vec<u8>>,
}

impl Disks {
    fn new() -> Self {
        let lab = Lab::new();
        let base = lab.disk("vm/c.vhdx", 4 * MIB);
        write(&base, 5, &pattern(70 * KIB, 1));
        let c = lab.child("vm/c1.vhdx", &base);
        write(&c, 2 * MIB, &pattern(9 * KIB, 2));
        let d = lab.disk("vm/d.vhd", 3 * MIB);
        write(&d, MIB - 3, &pattern(8 * KIB, 3));
        let e = lab.disk("other/e.vhdx", 2 * MIB);
        let disk = |leaf: &Path, child: &str| SnapshotDisk { leaf: leaf.to_path_buf(), child: lab.path(child) };
        let disks = vec![disk(&c, "vm/c2.vhdx"), disk(&d, "vm/d1.vhd"), disk(&e, "other/e1.vhdx")];
        let before = disks.iter().map(|disk| shows(&disk.leaf)).collect();
        Self { lab, disks, before }
    }

    fn registry(&self) -> PathBuf {
        self.lab.root.join("records")
    }

    fn options(&self) -> SessionOptions {
        SessionOptions::new().registry(self.registry())
    }

    fn session(&self, options: &SessionOptions) -> Session {
        Session::new(&self.disks, options).unwrap()
    }

    /// Whether the set is there; nothing in between is let through, and no disk shows anything else than before.
    #[track_caller]
    fn is_set(&self) -> bool {
        let there: Vec<bool> = self.disks.iter().map(|disk| disk.child.exists()).collect();
        assert!(there.iter().all(|&one| one == there[0]), "{there:?}");
        for (disk, before) in self.disks.iter().zip(&self.before) {
            assert!(shows(&disk.leaf) == *before);
            if there[0] {
                assert!(shows(&disk.child) == *before);
                let chain = Chain::open(&disk.child, &ChainOptions::new()).unwrap();
                assert_eq!(fs::canonicalize(chain.layers()[1].path().unwrap()).unwrap(), disk.leaf);
            }
        }
        assert_eq!(sessions(self.registry()).unwrap(), [], "no record is left");
        let strange: Vec<String> = self.lab.files().into_iter().filter(|name| name.ends_with(".snapshot")).collect();
        assert_eq!(strange, Vec::<String>::new());
        there[0]
    }
}

/// Who heard of the set and was neither released by the end of it nor by an abort; who is frozen still.
fn unreleased(heard: &Heard) -> Vec<String> {
    let mut last: BTreeMap<String, Vec<Moment>> = BTreeMap::new();
    for (name, moment) in heard.lock().unwrap().iter() {
        last.entry(name.clone()).or_default().push(*moment);
    }
    let is_held = |moments: &Vec<Moment>| {
        let at = |wanted: Moment| moments.iter().rposition(|&moment| moment == wanted);
        let frozen = at(Moment::Freeze).is_some() && at(Moment::Thaw) < at(Moment::Freeze);
        frozen || at(Moment::Abort).or(at(Moment::Post)).is_none()
    };
    last.into_iter().filter(|(_, moments)| is_held(moments)).map(|(name, _)| name).collect()
}

#[test]
fn a_set_gives_every_disk_a_new_leaf_that_shows_the_same() {
    let disks = Disks::new();
    let heard = Heard::default();
    let session = disks.session(&disks.options());
    let session =
        session.participant(Recorder::boxed("a", &heard, None)).participant(Recorder::boxed("b", &heard, None));
    let report = session.run(&Watch::none()).unwrap();
    assert_eq!(report.disks, disks.disks);
    assert_eq!((report.post_failures, report.recovered), (Vec::new(), Vec::new()));
    assert!(disks.is_set());
    use Moment::{Freeze, Post, Prepare, Thaw};
    let order = [("a", Prepare), ("b", Prepare), ("a", Freeze), ("b", Freeze), ("b", Thaw), ("a", Thaw)];
    let order = order.into_iter().chain([("a", Post), ("b", Post)]);
    assert_eq!(*heard.lock().unwrap(), order.map(|(name, at)| (name.to_owned(), at)).collect::<Vec<_>>());
    // The new leaves take writes, and the old ones keep what they had.
    for disk in &disks.disks {
        write(&disk.child, 100, b"later");
        assert_eq!(&shows(&disk.child)[100..105], b"later");
    }
    let kept: Vec<Vec<u8>> = disks.disks.iter().map(|disk| shows(&disk.leaf)).collect();
    assert!(kept == disks.before);
}

#[test]
fn a_participant_that_fails_undoes_the_set_and_everybody_is_released() {
    for fails_at in [Moment::Prepare, Moment::Freeze, Moment::Thaw, Moment::Post, Moment::Abort] {
        for who in ["a", "b", "c"] {
            let disks = Disks::new();
            let heard = Heard::default();
            let mut session = disks.session(&disks.options());
            for name in ["a", "b", "c"] {
                session = session.participant(Recorder::boxed(name, &heard, (name == who).then_some(fails_at)));
            }
            let done = session.run(&Watch::none());
            match (fails_at, done) {
                (Moment::Post, Ok(report)) => {
                    assert!(report.post_failures[0].starts_with(who), "{:?}", report.post_failures);
                }
                (Moment::Abort, Ok(_)) => {}
                (_, Err(error)) => {
                    assert!(error.to_string().contains("it said no"), "{error}");
                    assert!(error.hint().unwrap().contains("taken back"), "{error:?}");
                }
                (_, Ok(report)) => panic!("{fails_at} {who}: {report:?}"),
            }
            assert_eq!(disks.is_set(), matches!(fails_at, Moment::Post | Moment::Abort), "{fails_at} {who}");
            assert_eq!(unreleased(&heard), Vec::<String>::new(), "{fails_at} {who}");
        }
    }
}

#[test]
fn abort_at_every_state_and_again() {
    for steps in 0..=5 {
        let disks = Disks::new();
        let heard = Heard::default();
        let mut session = disks.session(&disks.options()).participant(Recorder::boxed("a", &heard, None));
        let go: [fn(&mut Session) -> Result<()>; 5] =
            [Session::prepare, Session::freeze, Session::commit, Session::thaw, |session| session.complete().map(drop)];
        go.iter().take(steps).for_each(|go| go(&mut session).unwrap());
        let aborted = session.abort();
        if steps >= 4 {
            assert_eq!(aborted.unwrap_err().kind(), ErrorKind::Refused, "past the point of no return");
            if steps == 4 {
                session.complete().unwrap();
            }
            assert!(disks.is_set());
            continue;
        }
        let report = aborted.unwrap();
        assert_eq!(session.abort().unwrap(), report);
        assert_eq!(session.state(), SessionState::Aborted);
        assert_eq!(report.released.len(), usize::from(steps > 0));
        assert_eq!(report.removed.len(), if steps == 3 { 3 } else { 0 });
        assert!(!disks.is_set());
        assert_eq!(unreleased(&heard), Vec::<String>::new());
        assert_eq!(session.prepare().unwrap_err().kind(), ErrorKind::Refused, "it serves one set");
    }
}

#[test]
fn a_dropped_session_aborts() {
    for steps in 1..=3 {
        let disks = Disks::new();
        let heard = Heard::default();
        let mut session = disks.session(&disks.options()).participant(Recorder::boxed("a", &heard, None));
        let go: [fn(&mut Session) -> Result<()>; 3] = [Session::prepare, Session::freeze, Session::commit];
        go.iter().take(steps).for_each(|go| go(&mut session).unwrap());
        drop(session);
        assert!(!disks.is_set());
        assert_eq!(unreleased(&heard), Vec::<String>::new());
    }
}

#[test]
fn a_process_that_dies_at_any_step_leaves_all_or_nothing() {
    let mut outcomes = [0, 0];
    for step in 0.. {
        let disks = Disks::new();
        let heard = Heard::default();
        let people = || ["a", "b"].map(|name| Recorder::boxed(name, &heard, None));
        let mut session = disks.session(&disks.options().stop_before(step));
        for participant in people() {
            session = session.participant(participant);
        }
        match session.run(&Watch::none()) {
            Ok(_) => {
                assert!(step >= 19, "only {step} steps");
                break;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}"),
        }
        let recorded = sessions(disks.registry()).unwrap();
        assert_eq!(recorded.len(), usize::from(step > 0));
        assert!(recorded.iter().all(|session| !session.live));
        let ended = recover_sessions(disks.registry(), None, &mut people()).unwrap();
        let finished = matches!(ended.first(), Some(Recovered::Finished { .. }));
        assert_eq!(disks.is_set(), finished, "step {step}");
        assert_eq!(unreleased(&heard), Vec::<String>::new(), "step {step}: {:?}", heard.lock().unwrap());
        outcomes[usize::from(finished)] += 1;
        assert_eq!(recover_sessions(disks.registry(), None, &mut []).unwrap(), [], "nothing is left to recover");
    }
    assert!(outcomes[0] > 10 && outcomes[1] > 4, "{outcomes:?}");
}

#[test]
fn the_next_session_ends_a_dead_one_first() {
    let disks = Disks::new();
    let dead = disks.session(&disks.options().stop_before(6));
    dead.run(&Watch::none()).unwrap_err();
    let report = disks.session(&disks.options()).run(&Watch::none()).unwrap();
    assert!(matches!(report.recovered.as_slice(), [Recovered::Aborted(_)]), "{report:?}");
    assert!(disks.is_set());
}

#[test]
fn a_leaf_that_was_written_to_is_never_removed() {
    // Died when every new leaf had its name but the record did not say so yet; then one of them was used.
    let mut met = false;
    for step in 0..40 {
        let disks = Disks::new();
        if disks.session(&disks.options().stop_before(step)).run(&Watch::none()).is_ok() {
            break;
        }
        let at = sessions(disks.registry()).unwrap().first().map(|session| session.phase);
        if at != Some(Phase::Committing) || !disks.disks[0].child.exists() {
            continue;
        }
        met = true;
        write(&disks.disks[0].child, 0, b"mine");
        let id = sessions(disks.registry()).unwrap()[0].id.clone();
        let refused = abort_session(disks.registry(), &id, &mut []).unwrap_err();
        assert_eq!((refused.kind(), refused.path()), (ErrorKind::Refused, Some(disks.disks[0].child.as_path())));
        let ended = recover_sessions(disks.registry(), None, &mut []).unwrap();
        assert!(matches!(ended.as_slice(), [Recovered::Finished { .. }]), "{ended:?}");
        assert_eq!(&shows(&disks.disks[0].child)[..4], b"mine");
        assert!(disks.disks.iter().all(|disk| disk.child.exists()));
        assert!(shows(&disks.disks[1].child) == disks.before[1]);
        assert!(shows(&disks.disks[2].child) == disks.before[2]);
    }
    assert!(met);
}

#[test]
fn what_cannot_be_a_set_is_refused_before_anybody_hears_of_it() {
    let disks = Disks::new();
    let heard = Heard::default();
    let refused = |list: &[SnapshotDisk]| {
        let session = match Session::new(list, &disks.options()) {
            Ok(session) => session,
            Err(error) => return error.kind(),
        };
        let mut session = session.participant(Recorder::boxed("a", &heard, None));
        session.prepare().unwrap_err().kind()
    };
    let disk = |leaf: &Path, child: &str| SnapshotDisk { leaf: leaf.to_path_buf(), child: disks.lab.path(child) };
    let leaf = &disks.disks[0].leaf;
    assert_eq!(refused(&[]), ErrorKind::InvalidInput);
    assert_eq!(refused(&[disk(leaf, "vm/x.vhdx"), disk(&disks.disks[1].leaf, "vm/x.vhdx")]), ErrorKind::InvalidInput);
    assert_eq!(refused(&[disk(leaf, "vm/x.vhdx"), disk(leaf, "vm/y.vhdx")]), ErrorKind::InvalidInput);
    assert_eq!(refused(&[disk(leaf, "vm/c.vhdx")]), ErrorKind::Refused, "the new leaf exists");
    assert_eq!(refused(&[disk(&disks.lab.path("vm/none.vhdx"), "vm/x.vhdx")]), ErrorKind::NotFound);
    fs::write(disks.lab.path("vm/text.vhdx"), "no image").unwrap();
    assert_eq!(refused(&[disk(&disks.lab.path("vm/text.vhdx"), "vm/x.vhdx")]), ErrorKind::UnknownFormat);
    let twice = disks.session(&disks.options());
    let mut twice =
        twice.participant(Recorder::boxed("a", &heard, None)).participant(Recorder::boxed("a", &heard, None));
    assert_eq!(twice.prepare().unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(*heard.lock().unwrap(), []);
    assert!(!disks.is_set());
    // One at a time.
    let mut first = disks.session(&disks.options());
    first.prepare().unwrap();
    assert_eq!(disks.session(&disks.options()).prepare().unwrap_err().kind(), ErrorKind::InUse);
    assert!(sessions(disks.registry()).unwrap()[0].live);
    first.abort().unwrap();
    assert!(!disks.is_set());
}

#[test]
fn a_freeze_that_takes_too_long_ends_the_set() {
    let disks = Disks::new();
    let released = disks.lab.path("released");
    let hooks = Hooks::new("guest")
        .on(Moment::Freeze, "tail -f /dev/null")
        .on(Moment::Abort, format!("touch {}", released.display()));
    let session = disks.session(&disks.options().freeze_limit(Duration::from_millis(200)));
    let error = session.participant(Box::new(hooks)).run(&Watch::none()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("longer than"), "{error}");
    assert!(released.exists());
    assert!(!disks.is_set());
}

#[test]
fn hooks_in_a_record_that_others_can_write_are_not_run() {
    for private in [true, false] {
        let disks = Disks::new();
        let ran = disks.lab.path("ran");
        let hooks = Hooks::new("guest").on(Moment::Abort, format!("touch {}", ran.display()));
        let session = disks.session(&disks.options().stop_before(3)).participant(Box::new(hooks));
        session.run(&Watch::none()).unwrap_err();
        if !private {
            fs::set_permissions(disks.registry(), fs::Permissions::from_mode(0o777)).unwrap();
        }
        let ended = recover_sessions(disks.registry(), None, &mut []).unwrap();
        let [Recovered::Aborted(report)] = ended.as_slice() else { panic!("{ended:?}") };
        assert_eq!(ran.exists(), private);
        assert_eq!(report.failures.is_empty(), private, "{report:?}");
        assert!(!disks.is_set());
    }
}
