use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    thread::JoinHandle,
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Job, MAX_WRITES, Queue, Receipt, Room, Write, start};
use crate::{
    Condition, LedgerError, Opening, OutagePolicy, Recorder, RecorderError, Settlement,
    SpoolConfig, SpoolFileKind,
    record::{Interception, Outcome},
    spool_files,
    store::{StoreWriter, WriterConnection},
    write::journal::Journal,
    write::outage::Outage,
    write::queue::WakeOn,
    write::replay,
    write::spool::Spool,
};

fn spool_leftovers(dir: &Path) -> std::io::Result<u64> {
    crate::spool_leftovers(dir, None)
}

/// The number of attempts of a settlement that the store cannot commit, and of one that it refuses.
const SLOW: u32 = 666;
const REFUSED: u32 = 667;

/// A store that can be set down, and that lists the committed writes. A batch with a [`SLOW`] settlement
/// is never committed.
#[derive(Clone, Default)]
struct UnreliableStore {
    is_down: Arc<AtomicBool>,
    /// Whether every commit takes too long.
    is_slow: Arc<AtomicBool>,
    /// Whether commits do not end.
    hangs: Arc<AtomicBool>,
    slow_commits: Arc<AtomicUsize>,
    committed: Arc<Mutex<Vec<String>>>,
}

impl UnreliableStore {
    fn committed(&self) -> Vec<String> {
        self.committed.lock().unwrap().clone()
    }

    fn answer(&self) -> Result<(), LedgerError> {
        if self.is_down.load(Ordering::SeqCst) {
            return Err(LedgerError::Database("disk full".into()));
        }
        Ok(())
    }
}

impl WriterConnection for UnreliableStore {
    fn write(&mut self, work: &mut dyn FnMut(&mut dyn StoreWriter)) {
        work(self);
    }
}

impl StoreWriter for UnreliableStore {
    fn commit(
        &mut self,
        batch: &[Write],
    ) -> Result<Vec<Result<Receipt, LedgerError>>, LedgerError> {
        while self.hangs.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.answer()?;
        let attempts = |write: &Write| match write {
            Write::Settle(_, settlement) => settlement.attempts,
            _ => 0,
        };
        if self.is_slow.load(Ordering::SeqCst) || batch.iter().any(|w| attempts(w) == SLOW) {
            self.slow_commits.fetch_add(1, Ordering::SeqCst);
            return Err(LedgerError::slow_commit(Duration::from_secs(4)));
        }
        let mut committed = self.committed.lock().unwrap();
        for write in batch.iter().filter(|write| attempts(write) != REFUSED) {
            match write {
                Write::Open(..) => committed.push("open".to_owned()),
                Write::Note(..) => committed.push("note".to_owned()),
                Write::Settle(_, settlement) => {
                    committed.push(format!("{} {}", settlement.outcome, settlement.attempts));
                }
                Write::Record(..) => committed.push("record".to_owned()),
                Write::Keep(..) => committed.push("keep".to_owned()),
                Write::Objects(..) => committed.push("objects".to_owned()),
                Write::Nothing => {}
            }
        }
        let receipt = |write| match attempts(write) {
            REFUSED => Err(LedgerError::no_record()),
            _ => Ok(Receipt::default()),
        };
        Ok(batch.iter().map(receipt).collect())
    }

    fn probe(&mut self) -> Result<(), LedgerError> {
        if self.is_slow.load(Ordering::SeqCst) {
            return Err(LedgerError::slow_commit(Duration::from_secs(1)));
        }
        self.answer()
    }
}

/// More than anything here takes.
const LONG: Duration = Duration::from_secs(30);

/// A recorder over a moody store.
struct World {
    store: UnreliableStore,
    outage: Arc<Outage>,
    recorder: Recorder,
    queue: Queue,
    threads: [JoinHandle<()>; 2],
}

impl World {
    fn new(policy: OutagePolicy, spool: Option<SpoolConfig>) -> Self {
        Self::with(policy, spool, None)
    }

    /// With a journal beside the spool.
    fn journaling(spool: &SpoolConfig) -> Self {
        Self::with(OutagePolicy::Refuse, Some(spool.clone()), Some(Journal::new(&spool.dir, None)))
    }

    fn with(policy: OutagePolicy, spool: Option<SpoolConfig>, journal: Option<Journal>) -> Self {
        let store = UnreliableStore::default();
        let outage = Arc::new(Outage::new(policy, spool.map(|config| Spool::new(config, None))));
        let (queue, writer) = start(Box::new(store.clone()), &outage).unwrap();
        let replayer = replay::start(&outage, Box::new(store.clone())).unwrap();
        let recorder = Recorder::new(Uuid::now_v7(), queue.clone(), journal);
        Self { store, outage, recorder, queue, threads: [writer, replayer] }
    }

    fn fail(&self, is_down: bool) {
        self.store.is_down.store(is_down, Ordering::SeqCst);
    }

    /// Waits until the replayer has ended the outage.
    fn wait_for_recovery(&self) {
        self.wait_until("the outage ends", || self.recorder.condition() == Condition::Storing);
    }

    fn wait_until(&self, what: &str, is_so: impl Fn() -> bool) {
        let started = Instant::now();
        while !is_so() {
            assert!(started.elapsed() < LONG, "not in time: {what}; {:?}", self.outage);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn close(self) -> Vec<String> {
        self.queue.stop();
        let [writer, replayer] = self.threads;
        writer.join().unwrap();
        self.recorder.close();
        self.outage.stop();
        replayer.join().unwrap();
        self.store.committed()
    }
}

fn spool_in(dir: &Path) -> SpoolConfig {
    SpoolConfig { dir: dir.join("spool"), max_bytes: 1 << 20, max_age: Duration::from_secs(3_600) }
}

fn opening() -> Opening {
    let interception = Interception::new(Uuid::now_v7(), Uuid::now_v7(), Timestamp::now());
    Opening { interception, prompt: None, tool_results: Vec::new(), attachments: Vec::new() }
}

fn settlement(attempts: u32) -> Settlement {
    Settlement { attempts, ..Settlement::new(Timestamp::now(), Outcome::Completed) }
}

#[tokio::test]
async fn an_uncommitted_opening_is_refused_and_does_not_stay_open() {
    let world = World::new(OutagePolicy::Refuse, None);
    world.fail(true);
    let refused = world.recorder.open(opening()).await.unwrap_err();
    assert!(matches!(refused, RecorderError::Unavailable(_)), "{refused}");
    let Condition::Refusing(reason) = world.recorder.condition() else { panic!("takes records") };
    assert!(reason.contains("disk full"), "{reason}");
    world.fail(false);
    world.wait_for_recovery();
    world.recorder.open(opening()).await.unwrap().settle(settlement(1));
    // The first commit may have been written although its answer was lost.
    assert_eq!(world.close(), ["refused 0", "open", "completed 1"]);
}

#[tokio::test]
async fn settlements_wait_in_memory_without_a_spool() {
    let world = World::new(OutagePolicy::Refuse, None);
    let first = world.recorder.open(opening()).await.unwrap();
    let second = world.recorder.open(opening()).await.unwrap();
    world.fail(true);
    first.settle(settlement(1));
    second.settle(settlement(2));
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.fail(false);
    world.recorder.drained().await;
    assert_eq!(world.close(), ["open", "open", "completed 1", "completed 2"]);
}

#[tokio::test]
async fn settlements_wait_in_the_spool_while_new_requests_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = spool_in(dir.path());
    let world = World::new(OutagePolicy::Refuse, Some(config.clone()));
    let entry = world.recorder.open(opening()).await.unwrap();
    assert!(!config.dir.exists(), "nothing is made before it is needed");
    world.fail(true);
    entry.settle(settlement(1));
    world.recorder.drained().await;
    assert_eq!(spool_leftovers(&config.dir).unwrap(), 1);
    assert!(world.recorder.open(opening()).await.is_err());
    world.fail(false);
    world.wait_for_recovery();
    assert_eq!(spool_leftovers(&config.dir).unwrap(), 0);
    assert_eq!(world.close(), ["open", "completed 1"]);
}

#[tokio::test]
async fn requests_continue_with_the_spool_and_are_replayed_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let config = spool_in(dir.path());
    let world = World::new(OutagePolicy::Spool, Some(config.clone()));
    world.fail(true);
    for number in 1..=3 {
        let entry = world.recorder.open(opening()).await.unwrap();
        entry.note(crate::NewTokenUsage::default());
        entry.settle(settlement(number));
    }
    world.recorder.drained().await;
    assert_eq!(world.recorder.condition(), Condition::Spooling);
    assert_eq!(world.outage.spooled(), 9);
    assert_eq!(world.store.committed(), Vec::<String>::new());
    world.fail(false);
    world.wait_for_recovery();
    let after = world.recorder.open(opening()).await.unwrap();
    after.settle(settlement(4));
    assert_eq!(files(&config.dir), Vec::<PathBuf>::new());
    let each = |number| ["open".to_owned(), "note".to_owned(), format!("completed {number}")];
    let mut expected: Vec<String> = (1..=3).flat_map(each).collect();
    expected.extend(["open".to_owned(), "completed 4".to_owned()]);
    assert_eq!(world.close(), expected);
}

fn memmem(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

fn files(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test]
async fn a_spool_of_a_dead_process_is_adopted() {
    let dir = tempfile::tempdir().unwrap();
    let config = spool_in(dir.path());
    let world = World::new(OutagePolicy::Spool, Some(config.clone()));
    world.fail(true);
    world.recorder.open(opening()).await.unwrap().settle(settlement(1));
    world.recorder.drained().await;
    let next = World::new(OutagePolicy::Spool, Some(config.clone()));
    assert_eq!(next.outage.adopt(LONG), 0, "its owner lives");
    drop(world.close());
    next.fail(true);
    assert_eq!(next.outage.adopt(LONG), 0, "the start goes on without it");
    assert_eq!(spool_leftovers(&config.dir).unwrap(), 2);
    next.fail(false);
    next.wait_until("it is replayed", || spool_leftovers(&config.dir).unwrap() == 0);
    assert_eq!(next.close(), ["open", "completed 1"]);
}

#[tokio::test]
async fn a_full_spool_refuses_openings_and_accepts_settlements() {
    let dir = tempfile::tempdir().unwrap();
    let config = SpoolConfig { max_bytes: 100, ..spool_in(dir.path()) };
    let world = World::new(OutagePolicy::Spool, Some(config));
    world.fail(true);
    let entry = world.recorder.open(opening()).await.unwrap();
    let refused = world.recorder.open(opening()).await.unwrap_err();
    assert!(refused.to_string().contains("the spool has"), "{refused}");
    entry.settle(settlement(1));
    world.recorder.drained().await;
    world.fail(false);
    world.wait_for_recovery();
    assert_eq!(world.close(), ["open", "completed 1"]);
}

#[tokio::test]
async fn a_spool_that_is_too_old_refuses_openings() {
    let dir = tempfile::tempdir().unwrap();
    let config = SpoolConfig { max_age: Duration::ZERO, ..spool_in(dir.path()) };
    let world = World::new(OutagePolicy::Spool, Some(config));
    world.fail(true);
    world.recorder.open(opening()).await.unwrap().settle(settlement(1));
    let refused = world.recorder.open(opening()).await.unwrap_err();
    assert!(refused.to_string().contains("s old"), "{refused}");
}

#[tokio::test]
async fn writes_wait_in_memory_while_store_and_spool_fail() {
    let dir = tempfile::tempdir().unwrap();
    let config = spool_in(dir.path());
    std::fs::write(&config.dir, "a file where the directory should be").unwrap();
    let world = World::new(OutagePolicy::Spool, Some(config.clone()));
    let entry = world.recorder.open(opening()).await.unwrap();
    world.fail(true);
    entry.settle(settlement(1));
    let refused = world.recorder.open(opening()).await.unwrap_err();
    assert!(matches!(refused, RecorderError::Unavailable(_)), "{refused}");
    assert!(matches!(world.recorder.condition(), Condition::Refusing(_)));
    // The disk can be written again, and the store is still down.
    std::fs::remove_file(&config.dir).unwrap();
    world.recorder.drained().await;
    assert_eq!(world.recorder.condition(), Condition::Spooling);
    assert!(spool_leftovers(&config.dir).unwrap() >= 1);
    world.fail(false);
    world.wait_for_recovery();
    assert_eq!(world.close()[..2], ["open", "completed 1"]);
}

#[tokio::test]
async fn closing_commits_queued_writes() {
    let world = World::new(OutagePolicy::Refuse, None);
    let entry = world.recorder.open(opening()).await.unwrap();
    world.fail(true);
    entry.settle(settlement(7));
    let store = world.store.clone();
    let back = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        store.is_down.store(false, Ordering::SeqCst);
    });
    assert_eq!(world.close(), ["open", "completed 7"]);
    back.join().unwrap();
}

#[tokio::test]
async fn a_caller_that_leaves_before_the_commit_leaves_no_open_record() {
    let world = World::new(OutagePolicy::Refuse, None);
    let blocked = world.store.committed.lock().unwrap();
    {
        let opening = world.recorder.open(opening());
        let mut opening = std::pin::pin!(opening);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(opening.as_mut().poll(&mut cx).is_pending());
        drop(blocked);
    }
    world.recorder.drained().await;
    assert_eq!(world.close(), ["open", "cancelled 0"]);
}

#[tokio::test]
async fn an_opening_in_the_journal_does_not_wait_for_the_commit() {
    let dir = tempfile::tempdir().unwrap();
    let config = spool_in(dir.path());
    let world = World::journaling(&config);
    let blocked = world.store.committed.lock().unwrap();
    let entry = {
        let opening = world.recorder.open(opening());
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(entry) = std::pin::pin!(opening).poll(&mut cx) else { panic!("waits") };
        entry.unwrap()
    };
    let [journal] = &files(&config.dir)[..] else { panic!("one file") };
    let written = std::fs::read(journal).unwrap();
    assert!(memmem(&written, entry.id().as_bytes()), "{written:?}");
    drop(blocked);
    entry.settle(settlement(1));
    assert_eq!(world.close(), ["open", "completed 1"]);
    assert_eq!(files(&config.dir), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_journal_of_a_dead_process_is_adopted() {
    let dir = tempfile::tempdir().unwrap();
    let config = spool_in(dir.path());
    let world = World::journaling(&config);
    let _entry = world.recorder.open(opening()).await.unwrap();
    let [journal] = &files(&config.dir)[..] else { panic!("one file") };
    assert_eq!(spool_leftovers(&config.dir).unwrap(), 0, "its owner lives");
    let mut left = std::fs::read(journal).unwrap();
    left.extend_from_slice(b"\xff\0\0\0torn");
    std::fs::write(journal.with_file_name("dead.journal"), left).unwrap();
    assert_eq!(spool_leftovers(&config.dir).unwrap(), 1);
    let next = World::journaling(&config);
    assert_eq!(next.outage.adopt(LONG), 1);
    assert_eq!(spool_leftovers(&config.dir).unwrap(), 0);
    assert_eq!(next.close(), ["open"]);
}

#[tokio::test]
async fn a_request_that_was_sent_is_not_refused_when_its_commit_fails() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::journaling(&spool_in(dir.path()));
    world.fail(true);
    let entry = world.recorder.open(opening()).await.unwrap();
    entry.settle(settlement(1));
    world.recorder.drained().await;
    assert!(world.recorder.open(opening()).await.is_err(), "the store is known to be down");
    world.fail(false);
    world.wait_for_recovery();
    assert_eq!(world.close(), ["open", "completed 1"]);
}

#[tokio::test]
async fn requests_wait_for_commits_when_the_journal_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let config = spool_in(dir.path());
    std::fs::write(&config.dir, "a file where the directory should be").unwrap();
    let world = World::journaling(&config);
    let entry = world.recorder.open(opening()).await.unwrap();
    assert_eq!(world.store.committed(), ["open"]);
    entry.settle(settlement(1));
    assert_eq!(world.close(), ["open", "completed 1"]);
}

#[test]
fn a_journal_stays_small() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::new(dir.path(), None);
    let prompt = Some("x".repeat(100_000));
    let write = Write::Open(Uuid::now_v7(), Box::new(Opening { prompt, ..opening() }));
    let append = || journal.append(&write).unwrap();
    (0..100).for_each(|_| drop(append()));
    let length = |path: &PathBuf| std::fs::metadata(path).unwrap().len();
    let lengths = |dir| files(dir).iter().map(length).collect::<Vec<_>>();
    assert!(
        matches!(lengths(dir.path())[..], [length] if length < 200_000),
        "a new file was started"
    );
    let tickets: Vec<_> = (0..100).map(|_| append()).collect();
    let sizes = lengths(dir.path());
    assert!(sizes.len() > 1 && sizes.iter().all(|size| *size < 5_000_000), "{sizes:?}");
    journal.close();
    drop(tickets);
    assert_eq!(files(dir.path()), Vec::<PathBuf>::new());
}

#[test]
fn the_writer_keeps_sleeping_without_a_waiting_caller() {
    let queue = Queue::new(&Arc::new(Outage::new(OutagePolicy::Refuse, None)));
    let slept = |wake_on| queue.sleep(wake_on, Some(Duration::ZERO));
    let settle = || Write::Settle(Uuid::now_v7(), Box::new(settlement(1)));
    assert!(!slept(WakeOn::AnyJob));
    queue.send(Job::new(settle()));
    assert!(slept(WakeOn::AnyJob));
    assert!(!slept(WakeOn::UrgentJob));
    let (answer, _committed) = tokio::sync::oneshot::channel();
    queue.send(Job { answer: Some(answer), ..Job::new(Write::Nothing) });
    assert!(slept(WakeOn::UrgentJob));
    let (mut batch, mut room) = (Vec::new(), Room::new(1));
    assert!(!queue.take(&mut batch, &mut room), "it is full");
    assert!(slept(WakeOn::UrgentJob), "the job with a waiting caller is still queued");
    queue.take(&mut batch, &mut Room::new(MAX_WRITES));
    assert_eq!(batch.len(), 2);
    assert!(!slept(WakeOn::UrgentJob) && !queue.is_drained());
    queue.stop();
    assert!(queue.is_drained());
}

#[test]
fn jobs_in_quick_succession_share_a_commit() {
    let mut pace = super::Pace::default();
    let mut now = Instant::now();
    let mut arrive = |pace: &mut super::Pace, jobs, after_millis| {
        now += Duration::from_millis(after_millis);
        pace.arrived(jobs, now);
        pace.is_worth_waiting()
    };
    assert!(!arrive(&mut pace, 1, 1));
    assert!((0..100).any(|_| arrive(&mut pace, 10, 1)), "10,000 a second");
    assert!((0..100).any(|_| !arrive(&mut pace, 1, 2)), "500 a second");
    assert!(!arrive(&mut pace, 10_000, 60_000), "many at once, then none for a minute");
}

/// The one file with what was set aside: its entries and their reason.
fn set_aside(dir: &Path) -> (u64, String) {
    let mut files = spool_files(dir).unwrap();
    files.retain(|file| file.kind == SpoolFileKind::Aside);
    let [file] = &files[..] else { panic!("{files:?}") };
    let reason = file.reasons.keys().next().unwrap();
    (file.entries, reason.clone())
}

#[tokio::test]
async fn a_write_that_cannot_be_committed_is_set_aside_and_the_others_go_on() {
    for journals in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let config = spool_in(dir.path());
        let world = if journals {
            World::journaling(&config)
        } else {
            World::new(OutagePolicy::Refuse, Some(config.clone()))
        };
        let mut entries = Vec::new();
        for _ in 0..9 {
            entries.push(world.recorder.open(opening()).await.unwrap());
        }
        // All of them are in one batch.
        let blocked = world.store.committed.lock().unwrap();
        for (number, entry) in (1..).zip(entries) {
            entry.settle(settlement(if number == 5 { SLOW } else { number }));
        }
        drop(blocked);
        // Requests are never refused meanwhile, whatever the policy says of outages.
        world.wait_until("it is set aside", || {
            let condition = world.recorder.condition();
            assert!(!matches!(condition, Condition::Refusing(_)), "{condition:?}");
            world.outage.metrics.set_aside.get() == 1
        });
        world.recorder.open(opening()).await.unwrap().settle(settlement(10));
        world.wait_for_recovery();
        let (entries, reason) = set_aside(&config.dir);
        assert_eq!(entries, 1);
        assert!(reason.contains("longer than 4 s; it was tried 3 times"), "{reason}");
        let committed = world.close();
        let settled: Vec<&String> = committed.iter().filter(|write| *write != "open").collect();
        let expected = [1, 2, 3, 4, 6, 7, 8, 9, 10].map(|number| format!("completed {number}"));
        assert_eq!(settled, expected.iter().collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn nothing_is_set_aside_while_nothing_can_be_committed() {
    let dir = tempfile::tempdir().unwrap();
    let config = spool_in(dir.path());
    let world = World::new(OutagePolicy::Spool, Some(config.clone()));
    world.store.is_slow.store(true, Ordering::SeqCst);
    for number in 1..=3 {
        world.recorder.open(opening()).await.unwrap().settle(settlement(number));
    }
    world.wait_until("it was tried", || world.store.slow_commits.load(Ordering::SeqCst) > 6);
    assert_eq!(world.outage.metrics.outage.get(), 1);
    assert_eq!(world.outage.metrics.set_aside.get(), 0);
    world.store.is_slow.store(false, Ordering::SeqCst);
    world.wait_for_recovery();
    let committed = world.close();
    assert_eq!(committed.iter().filter(|write| *write == "open").count(), 3);
    assert_eq!(committed.len(), 6);
    assert_eq!(spool_leftovers(&config.dir).unwrap(), 0);
}

#[tokio::test]
async fn a_settlement_that_the_store_refuses_is_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let config = spool_in(dir.path());
    let world = World::new(OutagePolicy::Refuse, Some(config.clone()));
    for attempts in [1, REFUSED, REFUSED, 2] {
        world.recorder.open(opening()).await.unwrap().settle(settlement(attempts));
        world.recorder.drained().await;
    }
    let (entries, reason) = set_aside(&config.dir);
    assert_eq!((entries, world.outage.metrics.set_aside.get()), (2, 2));
    assert!(reason.contains("its record is not in the store"), "{reason}");
    let expected = ["open", "completed 1", "open", "open", "open", "completed 2"];
    assert_eq!(world.close(), expected);
}

#[tokio::test]
async fn a_write_that_is_too_large_delays_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let config = SpoolConfig { max_bytes: 1 << 30, ..spool_in(dir.path()) };
    let world = World::new(OutagePolicy::Refuse, Some(config.clone()));
    let entry = world.recorder.open(opening()).await.unwrap();
    world.store.hangs.store(true, Ordering::SeqCst);
    // The store does not answer, and the request goes on: its continuation is in the spool.
    let large = [("key".to_owned(), "x".repeat(20 << 20))];
    entry.keep(Uuid::now_v7(), &large).await.unwrap();
    let other = world.recorder.open(opening()).await.unwrap();
    world.store.hangs.store(false, Ordering::SeqCst);
    entry.settle(settlement(1));
    other.settle(settlement(2));
    world.wait_for_recovery();
    assert_eq!(world.close(), ["open", "keep", "open", "completed 1", "completed 2"]);
    assert_eq!(spool_leftovers(&config.dir).unwrap(), 0);
}

#[tokio::test]
async fn a_start_does_not_wait_for_a_write_that_cannot_be_committed() {
    let dir = tempfile::tempdir().unwrap();
    let config = spool_in(dir.path());
    let mut spool = Spool::new(config.clone(), None);
    let settle = |attempts| Write::Settle(Uuid::now_v7(), Box::new(settlement(attempts)));
    spool.append([settle(SLOW), settle(1), settle(REFUSED), settle(2)].iter()).unwrap();
    drop(spool);
    let world = World::new(OutagePolicy::Spool, Some(config.clone()));
    world.outage.adopt(LONG);
    assert_eq!(world.recorder.condition(), Condition::Storing);
    world.wait_until("the others are committed", || world.outage.spooled() == 0);
    world.wait_until("the file is gone", || set_aside_only(&config.dir));
    assert_eq!(set_aside(&config.dir).0, 2);
    assert_eq!(world.close(), ["completed 1", "completed 2"]);
}

fn set_aside_only(dir: &Path) -> bool {
    spool_files(dir).unwrap().iter().all(|file| file.kind == SpoolFileKind::Aside)
}
