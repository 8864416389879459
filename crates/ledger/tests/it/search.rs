//! The list of interceptions: searches by words, and lists that end before they have read everything. Tested
//! with each kind of store.

use jiff::{SignedDuration, Timestamp};
use keybridge_ledger::{
    InterceptionFilter, Ledger, LedgerError, LedgerOptions, Opening, ReadOptions, Settlement,
    WalkBudget,
    record::{Interception, Outcome},
    store::{execute, first},
};
use uuid::Uuid;

use crate::{
    records::{contract, user},
    support::{Fixture, Sqlite},
};

/// When the first prompt of a test was sent.
const START: &str = "2026-11-20T10:00:00Z";

/// A ledger whose lists walk back in windows of few rows.
fn walking(fixture: &impl Fixture, count: u32, rows: u32) -> Ledger {
    let walk = WalkBudget::Windows { count, rows };
    let reads = ReadOptions { walk, ..ReadOptions::default() };
    fixture.open_with(&LedgerOptions { reads, ..LedgerOptions::default() })
}

/// An interception at some seconds after the start.
fn interception(user: Uuid, second: i64) -> Interception {
    let time = START.parse::<Timestamp>().unwrap() + SignedDuration::from_secs(second);
    let millis = u128::try_from(time.as_millisecond()).unwrap();
    let id = Uuid::from_u128(millis << 80 | Uuid::now_v7().as_u128() & ((1 << 80) - 1));
    Interception::new(id, user, time)
}

async fn record(ledger: &Ledger, interception: Interception, prompt: &str, outcome: Outcome) {
    let opening = Opening {
        interception,
        prompt: Some(prompt.into()),
        tool_results: Vec::new(),
        attachments: Vec::new(),
    };
    let settlement = Settlement::new(Timestamp::now(), outcome);
    ledger.recorder().record(opening, settlement).await.unwrap();
}

/// Records prompts of a user, one in each second.
async fn record_prompts(ledger: &Ledger, user: Uuid, prompts: &[&str]) {
    for (second, prompt) in (0..).zip(prompts) {
        record(ledger, interception(user, second), prompt, Outcome::Completed).await;
    }
    ledger.recorder().drained().await;
}

fn search(q: &str) -> InterceptionFilter {
    InterceptionFilter { q: Some(q.into()), limit: 500, ..InterceptionFilter::default() }
}

/// The prompts on all pages of a list, newest first.
fn prompts(ledger: &Ledger, filter: &InterceptionFilter) -> Vec<String> {
    let (mut found, mut filter) = (Vec::new(), filter.clone());
    loop {
        let page = ledger.interceptions(&filter).unwrap();
        for item in page.items {
            let detail = ledger.interception(item.interception.id).unwrap().unwrap();
            found.extend(detail.prompts.into_iter().map(|prompt| prompt.prompt));
        }
        filter.cursor = page.next_cursor;
        if filter.cursor.is_none() {
            return found;
        }
    }
}

/// Checks a condition before and after the prompts are indexed.
fn before_and_after_indexing(ledger: &Ledger, check: impl Fn(&str)) {
    check("not indexed");
    ledger.complete_search_index().unwrap();
    check("indexed");
}

async fn prompts_are_found_by_their_words(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada").id;
    let long = format!("{} end", "word".repeat(30_000));
    record_prompts(
        &ledger,
        ada,
        &[
            "Fix the parser, please",
            "Größe der Straße: CAFÉ",
            "全文検索を直して",
            "ship it 🚀 now",
            "call foo_bar(\"x-ray\", 3.14) AND NEAR(y)",
            &long,
            "owner:ada OR prompt:none -minus * ^caret",
            "ΑΘΗΝΑ ПРИВЕТ İstanbul",
        ],
    )
    .await;
    let cases: &[(&str, &[usize])] = &[
        ("parser", &[0]),
        ("PARSER please", &[0]),
        ("please fix", &[0]),
        ("pars", &[]),
        ("pars*", &[0]),
        ("fix*", &[0]),
        ("\"the parser\"", &[0]),
        ("parser missing", &[]),
        ("GRÖSSE", &[]),
        ("GRÖßE", &[1]),
        ("grosse", &[]),
        ("straße café", &[1]),
        ("cafe", &[]),
        ("stra*", &[1]),
        ("検索", &[2]),
        ("全文検索 直", &[2]),
        ("🚀", &[3]),
        ("foo_bar", &[4]),
        ("x-ray", &[4]),
        ("3.14", &[4]),
        ("NEAR(y)", &[4]),
        ("NEAR(y foo", &[4]),
        ("near AND call", &[4]),
        ("call OR parser", &[]),
        ("end", &[]),
        ("word*", &[5]),
        ("owner:ada", &[6]),
        ("owner:none", &[6]),
        ("-minus", &[6]),
        ("^caret *", &[6]),
        ("prompt:\"none\" 'owner'", &[6]),
        ("{owner}:ada", &[6]),
        ("αθηνα привет", &[7]),
        ("İSTANBUL", &[7]),
        ("istanbul", &[]),
        ("\\ ' ada", &[6]),
        ("o*", &[6]),
    ];
    let all = prompts(&ledger, &InterceptionFilter::default());
    before_and_after_indexing(&ledger, |when| {
        for (q, expected) in cases {
            let expected: Vec<&String> =
                expected.iter().map(|number| &all[all.len() - 1 - number]).collect();
            let found = prompts(&ledger, &search(q));
            assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{when}: {q}");
        }
    });
    // The word is longer than what is indexed of it.
    let long_word = "WORD".repeat(30_000);
    assert_eq!(prompts(&ledger, &search(&long_word)).len(), 1);
    for q in ["", " ", "*", "\"\" - (", "。、"] {
        let error = ledger.interceptions(&search(q)).unwrap_err();
        assert!(matches!(&error, LedgerError::Query(_)), "{q}: {error}");
        assert!(error.to_string().contains("`q`"), "{error}");
    }
}

async fn the_start_of_a_very_long_prompt_is_searched(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada").id;
    let different: String = (0..60_000).map(|number| format!("w{number} ")).collect();
    let texts = [
        format!("{different} last"),
        "検".repeat(200_000),
        format!("first {} behind", "é ".repeat(40_000)),
        "\u{1} \u{fffd} x\u{300}y \u{200d}".to_owned(),
    ];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    record_prompts(&ledger, ada, &texts).await;
    before_and_after_indexing(&ledger, |when| {
        let count = |q: &str| ledger.interceptions(&search(q)).unwrap().items.len();
        let counts = ["w0", "w9000 w1", "last", "検", "first", "behind", "x\u{300}y"].map(count);
        assert_eq!(counts, [1, 1, 0, 1, 1, 0, 1], "{when}");
    });
}

/// A filter, and the numbers of the prompts that it selects.
type FilterCase = (InterceptionFilter, fn(u32) -> bool);

async fn a_search_has_the_filters_of_a_list(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let (ada, bob) = (user(&ledger, "ada").id, user(&ledger, "bob").id);
    for second in 0..60 {
        let mut one = interception(if second % 3 == 0 { bob } else { ada }, second);
        one.model = Some(if second % 2 == 0 { "even" } else { "odd" }.into());
        one.client_session_id = Some(format!("s{}", second % 5));
        let outcome = if second % 10 == 0 { Outcome::Failed } else { Outcome::Completed };
        record(&ledger, one, &format!("common n{second}"), outcome).await;
    }
    ledger.recorder().drained().await;
    let start: Timestamp = START.parse().unwrap();
    let at = |second| Some(start + SignedDuration::from_secs(second));
    let filters: [FilterCase; 8] = [
        (search("common"), |_| true),
        (InterceptionFilter { user: Some("bob".into()), ..search("common") }, |n| n % 3 == 0),
        (InterceptionFilter { user_id: Some(ada), ..search("common") }, |n| n % 3 != 0),
        (InterceptionFilter { model: Some("odd".into()), ..search("common") }, |n| n % 2 == 1),
        (InterceptionFilter { session: Some("s3".into()), ..search("common") }, |n| n % 5 == 3),
        (InterceptionFilter { outcome: Some(Outcome::Failed), ..search("common") }, |n| {
            n % 10 == 0
        }),
        (InterceptionFilter { since: at(20), until: at(30), ..search("common") }, |n| {
            (20..30).contains(&n)
        }),
        (InterceptionFilter { user: Some("eve".into()), ..search("common") }, |_| false),
    ];
    before_and_after_indexing(&ledger, |when| {
        for (filter, expected) in &filters {
            let expected: Vec<String> =
                (0..60).rev().filter(|n| expected(*n)).map(|n| format!("common n{n}")).collect();
            for limit in [1, 7, 500] {
                let filter = InterceptionFilter { limit, ..filter.clone() };
                assert_eq!(prompts(&ledger, &filter), expected, "{when}: {filter:?}");
                let filter = InterceptionFilter { q: None, ..filter };
                assert_eq!(prompts(&ledger, &filter), expected, "without words: {filter:?}");
            }
        }
    });
    let both = InterceptionFilter { user_id: Some(ada), user: Some("bob".into()), ..search("n1") };
    assert_eq!(prompts(&ledger, &both), Vec::<String>::new());
}

async fn a_rare_word_is_found_however_old(fixture: &impl Fixture) {
    const HOURS_BETWEEN: i64 = 8;
    let ledger = fixture.open();
    let (ada, bob) = (user(&ledger, "ada").id, user(&ledger, "bob").id);
    for number in 0..250 {
        let user = if number % 2 == 0 { ada } else { bob };
        let word = if [3, 110, 111, 240].contains(&number) { "rare" } else { "usual" };
        let mut one = interception(user, number * HOURS_BETWEEN * 3_600);
        one.model = Some(if number < 111 { "old" } else { "new" }.into());
        record(&ledger, one, &format!("{word} n{number}"), Outcome::Completed).await;
    }
    ledger.recorder().drained().await;
    let start: Timestamp = START.parse().unwrap();
    let at = |number| Some(start + SignedDuration::from_hours(number * HOURS_BETWEEN));
    let filters: [(InterceptionFilter, &[u32]); 7] = [
        (search("rare"), &[240, 111, 110, 3]),
        (InterceptionFilter { user: Some("bob".into()), ..search("rare") }, &[111, 3]),
        (InterceptionFilter { model: Some("old".into()), ..search("rare") }, &[110, 3]),
        (InterceptionFilter { since: at(110), ..search("rare") }, &[240, 111, 110]),
        (InterceptionFilter { until: at(111), ..search("rare") }, &[110, 3]),
        (InterceptionFilter { since: at(4), until: at(111), ..search("rare n*") }, &[110]),
        (search("rare usual"), &[]),
    ];
    before_and_after_indexing(&ledger, |when| {
        for (filter, expected) in &filters {
            let expected: Vec<String> = expected.iter().map(|n| format!("rare n{n}")).collect();
            for limit in [1, 2, 500] {
                let filter = InterceptionFilter { limit, ..filter.clone() };
                assert_eq!(prompts(&ledger, &filter), expected, "{when}: {filter:?}");
            }
        }
    });
}

async fn prompts_of_one_moment_are_on_pages_in_order(fixture: &impl Fixture) {
    let ledger = walking(fixture, 1, 2);
    let ada = user(&ledger, "ada").id;
    // Recorded in another order than that of their ids, some of them after the index.
    for round in 0..2 {
        for number in 0..10_i64 {
            let second = (number * 7 + round) % 10 / 5;
            let prompt = format!("same {round} {number}");
            record(&ledger, interception(ada, second), &prompt, Outcome::Completed).await;
        }
        ledger.recorder().drained().await;
        if round == 0 {
            ledger.complete_search_index().unwrap();
        }
    }
    let all = prompts(&ledger, &InterceptionFilter::default());
    assert_eq!(all.len(), 20);
    before_and_after_indexing(&ledger, |when| {
        for limit in [1, 3, 20] {
            let filter = InterceptionFilter { limit, ..search("same") };
            assert_eq!(prompts(&ledger, &filter), all, "{when}, by {limit}");
        }
    });
}

async fn a_list_without_an_index_says_how_far_it_has_searched(fixture: &impl Fixture) {
    let ledger = walking(fixture, 2, 10);
    let (ada, bob) = (user(&ledger, "ada").id, user(&ledger, "bob").id);
    for second in 0..55 {
        let mut one = interception(if second < 50 { ada } else { bob }, second);
        one.model = Some(if second == 3 { "rare" } else { "usual" }.into());
        record(&ledger, one, "hello", Outcome::Completed).await;
    }
    ledger.recorder().drained().await;
    let mut filter =
        InterceptionFilter { model: Some("rare".into()), ..InterceptionFilter::default() };
    let (mut searched, mut found) = (Vec::new(), 0);
    loop {
        let page = ledger.interceptions(&filter).unwrap();
        found += page.items.len();
        filter.cursor = page.next_cursor.clone();
        assert_eq!(page.searched_until.is_some(), page.next_cursor.is_some());
        let Some(until) = page.searched_until else { break };
        searched.push(until.as_second() - START.parse::<Timestamp>().unwrap().as_second());
        let json = serde_json::to_value(ledger.interceptions(&filter).unwrap()).unwrap();
        assert_eq!(json.get("searched_until").is_some(), !json["next_cursor"].is_null());
    }
    assert_eq!((searched, found), (vec![35, 15], 1));

    // A user's index is walked in their own rows.
    filter = InterceptionFilter { user: Some("bob".into()), cursor: None, ..filter };
    let page = ledger.interceptions(&filter).unwrap();
    assert_eq!((page.items.len(), page.next_cursor, page.searched_until), (0, None, None));
    // A full page is no early end, and a list that an index serves has none.
    for (model, outcome) in
        [(Some("usual".into()), None), (None, None), (None, Some(Outcome::Failed))]
    {
        let filter =
            InterceptionFilter { model, outcome, limit: 5, ..InterceptionFilter::default() };
        let page = ledger.interceptions(&filter).unwrap();
        assert_eq!(
            (page.items.len(), page.searched_until),
            (if outcome.is_none() { 5 } else { 0 }, None)
        );
    }
    // A period ends the walk, and so does the first record.
    let start: Timestamp = START.parse().unwrap();
    filter = InterceptionFilter {
        user: None,
        since: Some(start + SignedDuration::from_mins(11)),
        ..filter
    };
    let page = ledger.interceptions(&filter).unwrap();
    assert_eq!((page.items.len(), page.next_cursor), (0, None));
}

async fn the_period_of_a_list_is_that_of_the_start(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada").id;
    let start: Timestamp = START.parse().unwrap();
    // The clock that made the ids was some minutes off.
    for (id_second, started_second) in [(0, 300), (600, 310), (320, 320)] {
        let mut one = interception(ada, id_second);
        one.started_at = start + SignedDuration::from_secs(started_second);
        record(&ledger, one, &format!("at {started_second}"), Outcome::Completed).await;
    }
    ledger.recorder().drained().await;
    let at = |second| Some(start + SignedDuration::from_secs(second));
    for q in [None, Some("at".to_owned())] {
        let filter = InterceptionFilter { since: at(300), until: at(320), q, ..search("") };
        assert_eq!(prompts(&ledger, &filter), ["at 310", "at 300"]);
        let filter = InterceptionFilter { since: at(320), until: None, ..filter };
        assert_eq!(prompts(&ledger, &filter), ["at 320"]);
    }
}

async fn retention_removes_words_with_their_records(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada").id;
    record_prompts(&ledger, ada, &["old secret", "old other"]).await;
    ledger.complete_search_index().unwrap();
    let late = interception(ada, 5);
    record(&ledger, late, "old late", Outcome::Completed).await;
    ledger.recorder().drained().await;
    let cutoff = START.parse::<Timestamp>().unwrap() + SignedDuration::from_mins(1);
    assert_eq!(ledger.apply_retention(cutoff).unwrap(), 3);
    assert_eq!(prompts(&ledger, &search("old")), Vec::<String>::new());
    // What is recorded next may have the rowids of what was removed.
    for round in 0..3 {
        record(&ledger, interception(ada, 100 + round), "new word", Outcome::Completed).await;
        ledger.recorder().drained().await;
        let expected = usize::try_from(round + 1).unwrap();
        assert_eq!(prompts(&ledger, &search("new")).len(), expected);
        ledger.complete_search_index().unwrap();
        assert_eq!(prompts(&ledger, &search("new")).len(), expected);
    }
}

contract!(
    prompts_are_found_by_their_words,
    the_start_of_a_very_long_prompt_is_searched,
    a_search_has_the_filters_of_a_list,
    a_rare_word_is_found_however_old,
    prompts_of_one_moment_are_on_pages_in_order,
    a_list_without_an_index_says_how_far_it_has_searched,
    the_period_of_a_list_is_that_of_the_start,
    retention_removes_words_with_their_records,
);

fn count(ledger: &Ledger, sql: &str) -> i64 {
    first(ledger.database(), sql, &[]).unwrap().unwrap()
}

#[tokio::test]
async fn the_index_has_nothing_of_removed_records() {
    let ledger = Sqlite::new();
    let ledger = ledger.open();
    let ada = user(&ledger, "ada").id;
    record_prompts(&ledger, ada, &["one two", "two three"]).await;
    ledger.complete_search_index().unwrap();
    let matching = "SELECT count(*) FROM prompt_index WHERE prompt_index MATCH 'two'";
    assert_eq!(
        (count(&ledger, matching), count(&ledger, "SELECT count(*) FROM indexed_prompts")),
        (2, 2)
    );
    let cutoff = START.parse::<Timestamp>().unwrap() + SignedDuration::from_millis(500);
    assert_eq!(ledger.apply_retention(cutoff).unwrap(), 1);
    assert_eq!(
        (count(&ledger, matching), count(&ledger, "SELECT count(*) FROM indexed_prompts")),
        (1, 1)
    );
}

#[tokio::test]
async fn a_store_that_was_compacted_is_searched_completely() {
    let fixture = Sqlite::new();
    let ledger = fixture.open();
    let ada = user(&ledger, "ada").id;
    let texts: Vec<String> = (0..500).map(|number| format!("many n{number}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    record_prompts(&ledger, ada, &texts).await;
    ledger.complete_search_index().unwrap();
    // As if VACUUM had given other rowids: the last indexed prompt is not where it was.
    execute(ledger.database(), "UPDATE prompts SET rowid = rowid - 100 WHERE rowid > 300", &[])
        .unwrap_err();
    execute(ledger.database(), "DELETE FROM prompts WHERE rowid <= 200", &[]).unwrap();
    execute(ledger.database(), "UPDATE prompts SET rowid = rowid - 200", &[]).unwrap();
    record_prompts(&ledger, ada, &["many more"]).await;
    let check = || {
        assert_eq!(prompts(&ledger, &search("many")).len(), 301);
        assert_eq!(prompts(&ledger, &search("n499")).len(), 1);
    };
    check();
    ledger.complete_search_index().unwrap();
    check();
    let indexed = "SELECT count(*) FROM indexed_prompts";
    assert_eq!(count(&ledger, indexed), 501, "nothing is indexed twice");
    let repaired = "SELECT is_repair FROM search_position";
    assert_eq!(count(&ledger, repaired), 0);
}

#[tokio::test]
async fn many_prompts_are_searched_before_they_are_indexed() {
    let fixture = Sqlite::new();
    let ledger = walking(&fixture, 1, 1_000);
    let ada = user(&ledger, "ada").id;
    let texts: Vec<String> = (0..5_200).map(|number| format!("many n{number}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    record_prompts(&ledger, ada, &texts).await;
    let page = ledger.interceptions(&search("n100")).unwrap();
    assert!(page.items.is_empty() && page.searched_until.is_some(), "{page:?}");
    assert_eq!(prompts(&ledger, &search("n100")), ["many n100"]);
    ledger.complete_search_index().unwrap();
    let page = ledger.interceptions(&search("n100")).unwrap();
    assert_eq!((page.items.len(), page.searched_until), (1, None));
}

#[tokio::test]
async fn a_serving_process_indexes_in_the_background() {
    let fixture = Sqlite::new();
    let ledger = fixture.open();
    let ada = user(&ledger, "ada").id;
    record_prompts(&ledger, ada, &["hello"]).await;
    let _claim = ledger.claim().unwrap();
    let indexing = async {
        while count(&ledger, "SELECT count(*) FROM indexed_prompts") == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), indexing).await.unwrap();
}
