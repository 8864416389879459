use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    thread::JoinHandle,
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Job, MAX_BATCH_BYTES, MAX_BATCH_JOBS, Queue, Receipt, Room, Write, start};
use crate::{
    Condition, LedgerError, Opening, OutagePolicy, Recorder, RecorderError, Settlement,
    SpoolConfig,
    record::{Interception, Outcome},
    store::StoreWriter,
    write::journal::Journal,
    write::outage::{self, Outage},
    write::queue::WakeOn,
    write::spool::{Spool, spool_leftovers},
};

/// A store that can be set down, and that lists the committed writes.
#[derive(Clone, Default)]
struct UnreliableStore {
    is_down: Arc<AtomicBool>,
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

impl StoreWriter for UnreliableStore {
    fn commit(
        &mut self,
        batch: &[Write],
    ) -> Result<Vec<Result<Receipt, LedgerError>>, LedgerError> {
        self.answer()?;
        let mut committed = self.committed.lock().unwrap();
        for write in batch {
            match write {
                Write::Open(..) => committed.push("open".to_owned()),
                Write::Note(..) => committed.push("note".to_owned()),
                Write::Settle(_, settlement) => {
                    committed.push(format!("{} {}", settlement.outcome, settlement.attempts));
                }
                Write::Record(..) => committed.push("record".to_owned()),
                Write::Keep(..) => committed.push("keep".to_owned()),
                Write::Nothing => {}
            }
        }
        Ok(batch.iter().map(|_| Ok(Receipt::default())).collect())
    }

    fn probe(&mut self) -> Result<(), LedgerError> {
        self.answer()
    }
}

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
        Self::with(OutagePolicy::Refuse, Some(spool.clone()), Some(Journal::new(&spool.dir)))
    }

    fn with(policy: OutagePolicy, spool: Option<SpoolConfig>, journal: Option<Journal>) -> Self {
        let store = UnreliableStore::default();
        let outage = Arc::new(Outage::new(policy, spool.map(Spool::new)));
        let (queue, writer) = start(Box::new(store.clone()), &outage).unwrap();
        let replayer = outage::start(&outage, Box::new(store.clone())).unwrap();
        let recorder = Recorder::new(Uuid::now_v7(), queue.clone(), journal);
        Self { store, outage, recorder, queue, threads: [writer, replayer] }
    }

    fn fail(&self, is_down: bool) {
        self.store.is_down.store(is_down, Ordering::SeqCst);
    }

    /// Waits until the replayer has ended the outage.
    fn wait_for_recovery(&self) {
        let started = Instant::now();
        while self.recorder.condition() != Condition::Storing {
            assert!(started.elapsed() < Duration::from_secs(10), "the outage does not end");
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
    Opening { interception, prompt: None, tool_results: Vec::new() }
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
    assert_eq!(next.outage.adopt(&mut next.store.clone()).unwrap(), 0, "its owner lives");
    drop(world.close());
    next.fail(true);
    assert!(next.outage.adopt(&mut next.store.clone()).is_err());
    next.fail(false);
    next.outage.adopt(&mut next.store.clone()).unwrap();
    assert_eq!(spool_leftovers(&config.dir).unwrap(), 0);
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
    assert_eq!(next.outage.adopt(&mut next.store.clone()).unwrap(), 1);
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
    let journal = Journal::new(dir.path());
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
    let (mut batch, mut room) = (Vec::new(), Room { jobs: 1, bytes: MAX_BATCH_BYTES });
    queue.take(&mut batch, &mut room);
    assert!(
        room.is_full() && slept(WakeOn::UrgentJob),
        "the job with a waiting caller is still queued"
    );
    queue.take(&mut batch, &mut Room { jobs: MAX_BATCH_JOBS, bytes: MAX_BATCH_BYTES });
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
