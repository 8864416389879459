use std::{
    sync::{Arc, Mutex},
    task::{Context, Waker},
};

use jiff::Timestamp;
use uuid::Uuid;

use super::{Receipt, Write, spawn};
use crate::{
    LedgerError, Opening, Recorder, RecorderError, Settlement,
    record::{Interception, Outcome},
    store::StoreWriter,
};

/// A store whose commits fail as long as it is told to, and that notes what was committed.
#[derive(Clone, Default)]
struct Moody {
    failures: Arc<Mutex<u32>>,
    committed: Arc<Mutex<Vec<String>>>,
}

impl StoreWriter for Moody {
    fn commit(
        &mut self,
        batch: &[Write],
    ) -> Result<Vec<Result<Receipt, LedgerError>>, LedgerError> {
        let mut failures = self.failures.lock().unwrap();
        if *failures > 0 {
            *failures -= 1;
            return Err(LedgerError::Database("disk full".into()));
        }
        let mut committed = self.committed.lock().unwrap();
        let name = |write: &Write| match write {
            Write::Open(_) => "open".to_owned(),
            Write::Settle(_, settlement) => format!("settle {}", settlement.attempts),
            Write::Record(..) => "record".to_owned(),
            Write::Nothing => "nothing".to_owned(),
        };
        committed.extend(batch.iter().map(name));
        Ok(batch.iter().map(|_| Ok(Receipt::default())).collect())
    }
}

fn opening() -> Opening {
    let interception = Interception::new(Uuid::now_v7(), Uuid::now_v7(), Timestamp::now());
    Opening { interception, prompt: None, tool_results: Vec::new() }
}

fn settlement(attempts: u32) -> Settlement {
    Settlement { attempts, ..Settlement::new(Timestamp::now(), Outcome::Completed) }
}

#[tokio::test]
async fn an_opening_that_is_not_committed_is_refused_and_never_comes_later() {
    let store = Moody::default();
    *store.failures.lock().unwrap() = 1;
    let (queue, _handle) = spawn(Box::new(store.clone())).unwrap();
    let recorder = Recorder::new(queue);
    let refused = recorder.open(opening()).await.unwrap_err();
    assert!(matches!(refused, RecorderError::Unavailable(_)), "{refused}");
    assert!(!recorder.is_ready());
    let entry = recorder.open(opening()).await.unwrap();
    assert!(recorder.is_ready());
    entry.settle(settlement(1));
    recorder.drained().await;
    assert_eq!(*store.committed.lock().unwrap(), ["open", "settle 1", "nothing"]);
}

#[tokio::test]
async fn settlements_wait_for_the_store_in_order() {
    let store = Moody::default();
    let (queue, _handle) = spawn(Box::new(store.clone())).unwrap();
    let recorder = Recorder::new(queue);
    let first = recorder.open(opening()).await.unwrap();
    let second = recorder.open(opening()).await.unwrap();
    *store.failures.lock().unwrap() = 2;
    first.settle(settlement(1));
    second.settle(settlement(2));
    recorder.drained().await;
    let committed = store.committed.lock().unwrap().clone();
    let settled: Vec<_> = committed.iter().filter(|name| name.starts_with("settle")).collect();
    assert_eq!(settled, ["settle 1", "settle 2"]);
}

#[tokio::test]
async fn closing_writes_what_waits() {
    let store = Moody::default();
    let (queue, handle) = spawn(Box::new(store.clone())).unwrap();
    let recorder = Recorder::new(queue.clone());
    let entry = recorder.open(opening()).await.unwrap();
    *store.failures.lock().unwrap() = 1;
    entry.settle(settlement(7));
    queue.stop();
    handle.join().unwrap();
    assert_eq!(*store.committed.lock().unwrap(), ["open", "settle 7"]);
}

#[tokio::test]
async fn whoever_leaves_before_the_commit_leaves_no_open_record() {
    let store = Moody::default();
    let (queue, _handle) = spawn(Box::new(store.clone())).unwrap();
    let recorder = Recorder::new(queue);
    let blocked = store.committed.lock().unwrap();
    {
        let opening = recorder.open(opening());
        let mut opening = std::pin::pin!(opening);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(opening.as_mut().poll(&mut cx).is_pending());
        drop(blocked);
    }
    recorder.drained().await;
    assert_eq!(*store.committed.lock().unwrap(), ["open", "settle 0", "nothing"]);
}
