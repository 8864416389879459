//! The roll-ups equal a recount of the records, whatever happened to these.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use keybridge_ledger::{
    GroupBy, InterceptionFilter, Ledger, NewTokenUsage, NewToolUsage, Opening, Recount, ServedBy,
    Session, SessionFilter, Settlement, Usage, UsageFilter,
    record::{Outcome, Quality},
    store::{Cells, execute},
};
use uuid::Uuid;

use crate::{
    records::{User, contract, opening, opening_at, settled, user},
    support::Fixture,
};

fn usage(quality: Quality, input: u64, output: u64) -> NewTokenUsage {
    NewTokenUsage {
        quality,
        input_tokens: Some(input),
        output_tokens: Some(output),
        ..NewTokenUsage::default()
    }
}

fn with_usage(outcome: Outcome, usages: Vec<NewTokenUsage>, tools: usize) -> Settlement {
    let tool = NewToolUsage { tool: "Bash".into(), ..NewToolUsage::default() };
    Settlement { token_usages: usages, tool_usages: vec![tool; tools], ..settled(outcome) }
}

/// An opening of a model in a client's session.
fn of(user: &User, model: &str, session: &str) -> Opening {
    let mut opening = opening(user);
    opening.interception.provider = "anthropic".into();
    opening.interception.model = Some(model.into());
    opening.interception.client = Some("codex".into());
    opening.interception.credential_kind = Some("byok".into());
    opening.interception.client_session_id = Some(session.into());
    opening
}

/// Checks that the roll-ups equal a recount, and returns it.
#[track_caller]
fn check(ledger: &Ledger) -> Recount {
    let recount = ledger.recount().unwrap();
    assert_eq!((recount.different_sums, recount.not_summed), (0, 0), "{recount:?}");
    recount
}

/// The numbers in a row of a statement, after its text.
fn row(ledger: &Ledger, sql: &str) -> (String, Vec<i64>) {
    rows(ledger, sql).remove(0)
}

fn rows(ledger: &Ledger, sql: &str) -> Vec<(String, Vec<i64>)> {
    let mut found = Vec::new();
    let mut read = |row: &mut dyn Cells| {
        let text = row.text()?.unwrap_or_default();
        let mut numbers = Vec::new();
        while let Ok(Some(number)) = row.integer() {
            numbers.push(number);
        }
        found.push((text, numbers));
        Ok(())
    };
    let timeout = std::time::Duration::from_secs(10);
    ledger.database().run(timeout, sql, &[], &mut read).unwrap();
    found
}

/// Outcomes, tokens, unknown usages and tool calls by model.
const BY_MODEL: &str = "SELECT model, CAST(sum(completed) AS BIGINT), CAST(sum(failed) AS BIGINT),
      CAST(sum(interrupted) AS BIGINT), CAST(sum(input_tokens) AS BIGINT),
      CAST(sum(estimated_output_tokens) AS BIGINT), CAST(sum(unknown_usages) AS BIGINT),
      CAST(sum(tool_calls) AS BIGINT) FROM usage_slots GROUP BY model ORDER BY model";
const SESSION: &str = "SELECT first_prompt || '|' || last_prompt, requests, completed, failed,
      interrupted, input_tokens, output_tokens, tool_calls FROM sessions";

async fn ended_records_are_summed_by_slot_and_session(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let recorder = ledger.recorder();
    let mut first = of(&ada, "opus", "s");
    first.prompt = Some("the first words ".to_owned() + &"x".repeat(300));
    let entry = recorder.open(first).await.unwrap();
    recorder.drained().await;
    assert_eq!(row(&ledger, SESSION).1[..3], [1, 0, 0], "a session counts what is in progress");
    assert!(rows(&ledger, BY_MODEL).is_empty(), "and the slots do not");
    check(&ledger);
    entry.note(usage(Quality::Partial, 5, 1));
    recorder.drained().await;
    assert_eq!(check(&ledger).compared_sums, 1);
    entry.settle(with_usage(Outcome::Completed, vec![usage(Quality::Exact, 10, 20)], 2));
    let mut second = of(&ada, "haiku", "s");
    second.prompt = Some("the last words".into());
    let entry = recorder.open(second).await.unwrap();
    let unknown =
        NewTokenUsage { quality: Quality::Unknown, turn: 1, ..usage(Quality::Exact, 0, 0) };
    let usages = vec![usage(Quality::Partial, 1, 7), unknown];
    entry.settle(with_usage(Outcome::Failed, usages, 0));
    recorder.drained().await;
    let expected = [
        ("haiku".to_owned(), vec![0, 1, 0, 0, 7, 1, 0]),
        ("opus".to_owned(), vec![1, 0, 0, 10, 0, 0, 2]),
    ];
    assert_eq!(rows(&ledger, BY_MODEL), expected);
    let (prompts, numbers) = row(&ledger, SESSION);
    assert_eq!(numbers, [2, 1, 1, 0, 10, 20, 2]);
    let (first, last) = prompts.split_once('|').unwrap();
    assert!(first.starts_with("the first words xx") && first.chars().count() == 200, "{first}");
    assert_eq!(last, "the last words");
    let parts =
        rows(&ledger, "SELECT kind || ':' || value FROM session_parts ORDER BY kind, value");
    let parts: Vec<&str> = parts.iter().map(|(part, _)| part.as_str()).collect();
    assert_eq!(parts, ["credential_kind:byok", "model:haiku", "model:opus", "provider:anthropic"]);
    assert_eq!(check(&ledger).not_summed, 0);
}

async fn the_provider_that_served_has_the_sums(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let entry = ledger.recorder().open(of(&ada, "opus", "s")).await.unwrap();
    let served_by = ServedBy {
        provider: "spare".into(),
        provider_type: None,
        credential_source: "pool:second".into(),
        credential_hint: "sk-...cdef".into(),
        credential_length: 51,
        credential_fingerprint: "0123456789abcdef".into(),
        credential_scheme: None,
        body_edits: None,
        request_bytes: None,
        request_sha256: None,
    };
    entry.settle(Settlement { served_by: Some(served_by), ..settled(Outcome::Completed) });
    ledger.recorder().drained().await;
    let sums = rows(&ledger, "SELECT provider, completed FROM fleet_slots");
    assert_eq!(sums, [("spare".to_owned(), vec![1])]);
    check(&ledger);
}

async fn what_was_marked_too_early_is_summed_as_it_ended(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let recorder = ledger.recorder();
    let late = recorder.open(of(&ada, "opus", "s")).await.unwrap();
    let noted = recorder.open(of(&ada, "opus", "s")).await.unwrap();
    noted.note(usage(Quality::Partial, 5, 2));
    recorder.drained().await;
    // Another process takes this one for dead.
    let other = fixture.open();
    assert_eq!(other.claim().unwrap().interrupted, 2);
    assert_eq!(row(&ledger, BY_MODEL).1, [0, 0, 2, 0, 2, 0, 0]);
    check(&ledger);
    noted.note(usage(Quality::Partial, 5, 9));
    recorder.drained().await;
    assert_eq!(row(&ledger, BY_MODEL).1, [0, 0, 2, 0, 9, 0, 0]);
    check(&ledger);
    late.settle(with_usage(Outcome::Completed, vec![usage(Quality::Exact, 3, 4)], 1));
    recorder.drained().await;
    assert_eq!(row(&ledger, BY_MODEL).1, [1, 0, 1, 3, 9, 0, 1]);
    assert_eq!(row(&ledger, SESSION).1, [2, 1, 0, 1, 3, 4, 1]);
    check(&ledger);
    drop(noted);
}

async fn a_refused_record_changes_no_sum(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    let stranger = User { id: Uuid::now_v7() };
    let recorder = ledger.recorder();
    let good = recorder.open(of(&ada, "opus", "s"));
    let bad = recorder.open(of(&stranger, "opus", "s"));
    let (good, bad) = tokio::join!(good, bad);
    assert!(bad.is_err());
    good.unwrap().settle(with_usage(Outcome::Completed, vec![usage(Quality::Exact, 3, 4)], 0));
    recorder.drained().await;
    assert_eq!(row(&ledger, SESSION).1, [1, 1, 0, 0, 3, 4, 0]);
    check(&ledger);
}

async fn huge_figures_do_not_overflow_a_sum(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let ada = user(&ledger, "ada");
    for _ in 0..3 {
        let entry = ledger.recorder().open(of(&ada, &"m".repeat(5_000), "s")).await.unwrap();
        let usage = usage(Quality::Exact, u64::MAX, u64::MAX);
        entry.settle(with_usage(Outcome::Completed, vec![usage], 0));
    }
    ledger.recorder().drained().await;
    let (model, numbers) = row(&ledger, BY_MODEL);
    assert_eq!(model, "m".repeat(128));
    assert_eq!(numbers, [3, 0, 0, 30_000_000_000_000, 0, 0, 0]);
    check(&ledger);
}

/// Takes all roll-ups away, as a store of an earlier release has none.
fn as_an_earlier_release_left_it(ledger: &Ledger) {
    for table in
        ["usage_slots", "fleet_slots", "user_days", "latency_slots", "sessions", "session_parts"]
    {
        execute(ledger.database(), &format!("DELETE FROM {table}"), &[]).unwrap();
    }
    execute(ledger.database(), "UPDATE interceptions SET session_id = NULL", &[]).unwrap();
}

/// Some records of two people over several days.
async fn fill(ledger: &Ledger) -> [User; 2] {
    let people = [user(ledger, "ada"), user(ledger, "bob")];
    let now = Timestamp::now();
    for number in 0..60_u64 {
        let user = &people[usize::from(number % 3 == 0)];
        let hours = i64::try_from(number).unwrap();
        let at = now.checked_sub(SignedDuration::from_hours(hours)).unwrap();
        let mut opening = Opening { ..opening_at(user, at) };
        opening.interception.provider = "openai".into();
        opening.interception.model = (number % 5 != 0).then(|| format!("model-{}", number % 4));
        opening.interception.client_session_id =
            (number % 7 != 0).then(|| format!("session-{}", number / 10));
        opening.interception.agent_id = (number % 4 == 0).then(|| "helper".into());
        let entry = ledger.recorder().open(opening).await.unwrap();
        let outcomes = [Outcome::Completed, Outcome::Cancelled, Outcome::Refused];
        let outcome = outcomes[usize::try_from(number % 3).unwrap()];
        entry.settle(Settlement {
            upstream_started_at: Some(at),
            first_byte_at: Some(
                at.checked_add(SignedDuration::from_millis(number_of(number))).unwrap(),
            ),
            ended_at: at.checked_add(SignedDuration::from_secs(2)).unwrap(),
            ..with_usage(outcome, vec![usage(Quality::Exact, number, 1)], 1)
        });
    }
    ledger.recorder().drained().await;
    people
}

fn number_of(number: u64) -> i64 {
    i64::try_from(number).unwrap() * 37
}

/// All rows of the roll-ups, without shards.
fn all_sums(ledger: &Ledger) -> BTreeMap<&'static str, Vec<(String, Vec<i64>)>> {
    let sums = "CAST(sum(completed + 3 * cancelled + 5 * refused) AS BIGINT),
        CAST(sum(input_tokens) AS BIGINT), CAST(sum(tool_calls) AS BIGINT)";
    let text = |columns: &str| format!("{columns} || '/'");
    let by = |table: &str, columns: &str| {
        let key = text(columns);
        format!("SELECT {key}, {sums} FROM {table} GROUP BY {columns} ORDER BY 1")
    };
    let key = |columns: &[&str]| {
        columns
            .iter()
            .map(|column| format!("CAST({column} AS TEXT)"))
            .collect::<Vec<_>>()
            .join(" || ' ' || ")
    };
    let usage = key(&["user_id", "slot", "provider", "model", "client", "credential_kind"]);
    let fleet = key(&["slot", "provider", "model", "client", "credential_kind"]);
    let days = key(&["day", "user_id", "credential_kind"]);
    let latencies = key(&["slot", "provider", "model", "phase", "bucket"]);
    let sessions = key(&[
        "user_id",
        "id",
        "first_at",
        "last_at",
        "first_id",
        "last_id",
        "requests",
        "first_prompt",
        "last_prompt",
        "ended_at",
    ]);
    let parts = key(&["user_id", "session_id", "kind", "value"]);
    BTreeMap::from([
        ("usage", rows(ledger, &by("usage_slots", &usage))),
        ("fleet", rows(ledger, &by("fleet_slots", &fleet))),
        ("days", rows(ledger, &by("user_days", &days))),
        ("sessions", rows(ledger, &by("sessions", &sessions))),
        (
            "latencies",
            rows(
                ledger,
                &format!(
                    "SELECT {latencies}, CAST(sum(requests) AS BIGINT) FROM latency_slots
                     GROUP BY {latencies} ORDER BY 1"
                ),
            ),
        ),
        ("parts", rows(ledger, &format!("SELECT {parts} FROM session_parts ORDER BY 1"))),
    ])
}

async fn records_of_an_earlier_release_are_summed_in_steps(fixture: &impl Fixture) {
    let ledger = fixture.open();
    fill(&ledger).await;
    let expected = all_sums(&ledger);
    assert_eq!(expected["usage"].len(), 60);
    check(&ledger);
    as_an_earlier_release_left_it(&ledger);
    assert_eq!(ledger.recount().unwrap().not_summed, 60);
    assert!(ledger.recount().unwrap().is_sound());
    // What is written meanwhile is summed once too.
    assert_eq!(ledger.sum_records(25).unwrap(), 25);
    check_steps(&ledger, 35);
    assert_eq!(ledger.sum_records(25).unwrap(), 25);
    assert_eq!(ledger.sum_records(25).unwrap(), 10);
    assert_eq!(ledger.sum_records(25).unwrap(), 0);
    assert_eq!(all_sums(&ledger), expected);
    check(&ledger);
}

#[track_caller]
fn check_steps(ledger: &Ledger, left: u64) {
    let recount = ledger.recount().unwrap();
    assert_eq!((recount.not_summed, recount.different_sums), (left, 0), "{recount:?}");
    assert_eq!(ledger.records_to_sum().unwrap(), left);
}

async fn wrong_sums_are_found_and_summed_anew(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let [ada, _] = fill(&ledger).await;
    let expected = all_sums(&ledger);
    for sql in [
        "UPDATE usage_slots SET input_tokens = input_tokens + 1",
        "DELETE FROM fleet_slots",
        "UPDATE user_days SET completed = 77",
        "UPDATE sessions SET requests = 0, first_prompt = 'another'",
        "DELETE FROM session_parts WHERE kind = 'model'",
        "UPDATE latency_slots SET requests = requests * 2",
    ] {
        execute(ledger.database(), sql, &[]).unwrap();
        if !sql.contains("session_parts") {
            let recount = ledger.recount().unwrap();
            assert!(recount.different_sums > 0 && !recount.is_sound(), "{sql}");
        }
    }
    // Sums of what never was.
    execute(
        ledger.database(),
        "INSERT INTO fleet_slots SELECT 7, provider, model, client, credential_kind, 0, completed, failed,
           cancelled, refused, interrupted, input_tokens, output_tokens, cache_read_input_tokens,
           cache_write_input_tokens, estimated_input_tokens, estimated_output_tokens,
           estimated_cache_read_input_tokens, estimated_cache_write_input_tokens, unknown_usages, tool_calls
         FROM usage_slots LIMIT 1",
        &[],
    )
    .unwrap();
    let mut steps = 0;
    let rebuilt = ledger.rebuild_rollups(None, &mut |_step| steps += 1).unwrap();
    assert_eq!((rebuilt.slots, rebuilt.kept), (61, 0));
    assert!(steps >= 61 && rebuilt.sessions > 6, "{steps} {rebuilt:?}");
    assert_eq!(all_sums(&ledger), expected);
    // And they go on from there.
    let entry = ledger.recorder().open(of(&ada, "opus", "session-0")).await.unwrap();
    entry.settle(settled(Outcome::Completed));
    ledger.recorder().drained().await;
    check(&ledger);
    let day_ago = Timestamp::now().checked_sub(SignedDuration::from_hours(24)).unwrap();
    let rebuilt = ledger.rebuild_rollups(Some(day_ago), &mut |_step| {}).unwrap();
    assert!((24..=26).contains(&rebuilt.slots), "{rebuilt:?}");
    check(&ledger);
}

async fn sums_outlive_the_records_and_prompts_do_not(fixture: &impl Fixture) {
    let ledger = fixture.open();
    fill(&ledger).await;
    let before = all_sums(&ledger);
    let cutoff = Timestamp::now().checked_sub(SignedDuration::from_hours(30)).unwrap();
    assert!(ledger.apply_retention(cutoff).unwrap() >= 29);
    let recount = check(&ledger);
    assert!(recount.compared_sums > 30, "{recount:?}");
    let after = all_sums(&ledger);
    for table in ["usage", "fleet", "days", "latencies", "parts"] {
        assert_eq!(after[table], before[table], "{table}");
    }
    let words = rows(
        &ledger,
        "SELECT first_prompt FROM sessions WHERE first_prompt IS NOT NULL AND first_prompt_id NOT IN
           (SELECT id FROM interceptions)
         UNION ALL SELECT last_prompt FROM sessions WHERE last_prompt IS NOT NULL
           AND last_prompt_id NOT IN (SELECT id FROM interceptions)",
    );
    assert!(words.is_empty(), "{words:?}");
    let kept = row(&ledger, "SELECT '', count(*) FROM sessions WHERE first_prompt IS NOT NULL").1;
    assert!(kept[0] > 0);
    // What cannot be counted any more is not summed anew.
    let rebuilt = ledger.rebuild_rollups(None, &mut |_step| {}).unwrap();
    assert!(rebuilt.kept >= 29, "{rebuilt:?}");
    assert_eq!(all_sums(&ledger)["usage"], before["usage"]);
    check(&ledger);
}

/// The usage of all, by what is given, over the last 70 hours.
fn usage_of(ledger: &Ledger, group_by: &[GroupBy], zone: &str) -> Usage {
    let now = Timestamp::now();
    let filter = UsageFilter {
        user: None,
        user_id: None,
        provider: None,
        model: None,
        client: None,
        credential_kind: None,
        since: now.checked_sub(SignedDuration::from_hours(70)).unwrap(),
        until: now,
        group_by: group_by.to_vec(),
        time_zone: TimeZone::get(zone).unwrap(),
    };
    usage_with(ledger, filter)
}

fn usage_with(ledger: &Ledger, filter: UsageFilter) -> Usage {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ledger = ledger.clone();
    // The test's own runtime must not be blocked.
    let read = move || {
        runtime.unwrap().block_on(ledger.read(move |reader| reader.usage(&filter))).unwrap()
    };
    std::thread::scope(|scope| scope.spawn(read).join().unwrap())
}

/// The days of the records in a zone, each with its requests and tokens.
fn counted_days(ledger: &Ledger, zone: &str) -> BTreeMap<String, (u64, u64)> {
    let zone = TimeZone::get(zone).unwrap();
    let mut days = BTreeMap::new();
    let filter = InterceptionFilter { limit: 500, ..InterceptionFilter::default() };
    for item in ledger.interceptions(&filter).unwrap().items {
        let day = zone.to_datetime(item.interception.started_at).date().to_string();
        let (requests, tokens) = days.entry(day).or_insert((0, 0));
        *requests += 1;
        *tokens += item.tokens.exact.input_tokens;
    }
    days
}

async fn usage_is_that_of_the_records_in_every_zone(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let [_, bob] = fill(&ledger).await;
    for zone in ["UTC", "Europe/Berlin", "Asia/Kolkata", "America/Los_Angeles"] {
        let usage = usage_of(&ledger, &[GroupBy::Day], zone);
        let expected = counted_days(&ledger, zone);
        let days: BTreeMap<String, (u64, u64)> = usage
            .groups
            .iter()
            .map(|group| {
                let tokens = group.sums.tokens.exact.input_tokens;
                (group.values[0].clone().unwrap(), (group.sums.requests(), tokens))
            })
            .collect();
        assert_eq!(days, expected, "{zone}");
        assert_eq!((usage.time_zone.as_str(), usage.is_approximate), (zone, false));
        assert_eq!(usage.total.requests(), 60);
        let hours = usage_of(&ledger, &[GroupBy::Hour], zone);
        assert_eq!((hours.groups.len(), hours.total), (60, usage.total), "{zone}");
    }
    assert!(usage_of(&ledger, &[GroupBy::Day], "Asia/Kathmandu").is_approximate);
    let by = |group_by: &[GroupBy]| {
        let groups = usage_of(&ledger, group_by, "UTC").groups;
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
        groups
            .iter()
            .map(|group| {
                let values: Vec<String> = group.values.iter().map(text).collect();
                (values.join(" "), group.sums.requests())
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(by(&[GroupBy::User]), [("ada".into(), 40), ("bob".into(), 20)]);
    let models = by(&[GroupBy::User, GroupBy::Model]);
    assert!(models.contains(&("bob -".to_owned(), 4)), "{models:?}");
    assert_eq!(models.iter().map(|(_, requests)| requests).sum::<u64>(), 60);
    assert_eq!(by(&[]), [(String::new(), 60)]);
    // People over a long period are read from days, with the parts of days at both ends.
    let now = Timestamp::now();
    for hours in [24 * 9, 24 * 8 + 5, 50] {
        let since = now.checked_sub(SignedDuration::from_hours(hours)).unwrap();
        let filter = UsageFilter {
            user: None,
            user_id: None,
            provider: None,
            model: None,
            client: None,
            credential_kind: None,
            since,
            until: now,
            group_by: vec![GroupBy::User],
            time_zone: TimeZone::UTC,
        };
        let all = usage_with(&ledger, filter.clone());
        let of_bob = usage_with(&ledger, UsageFilter { user_id: Some(bob.id), ..filter });
        assert_eq!(of_bob.groups, all.groups[1..2], "{hours}");
    }
    let running = ledger.recorder().open(opening(&bob)).await.unwrap();
    ledger.recorder().drained().await;
    assert_eq!(usage_of(&ledger, &[], "UTC").in_progress, 1);
    drop(running);
}

async fn sessions_are_listed_by_their_activity_and_filtered(fixture: &impl Fixture) {
    let ledger = fixture.open();
    fill(&ledger).await;
    let list = |filter: SessionFilter| ledger.sessions(&filter).unwrap();
    let all = list(SessionFilter { limit: 500, ..SessionFilter::default() });
    assert!(all.items.windows(2).all(|pair| pair[0].last_at >= pair[1].last_at));
    assert_eq!(all.items.iter().map(|session| session.requests).sum::<u64>(), 60);
    // Page by page the same.
    let (mut paged, mut cursor) = (Vec::new(), None);
    loop {
        let page = list(SessionFilter { limit: 4, cursor, ..SessionFilter::default() });
        paged.extend(page.items);
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(paged, all.items);
    let named = all.items.iter().find(|session| session.id == "session-1").unwrap();
    let of_session = InterceptionFilter {
        session: Some("session-1".into()),
        user: Some(named.user.clone()),
        ..InterceptionFilter::default()
    };
    let requests = ledger.interceptions(&of_session).unwrap().items;
    assert_eq!(u64::try_from(requests.len()).unwrap(), named.requests);
    let models: BTreeSet<String> =
        requests.iter().filter_map(|item| item.interception.model.clone()).collect();
    assert_eq!(named.models, Vec::from_iter(models));
    let agents: BTreeSet<&String> =
        requests.iter().filter_map(|item| item.interception.agent_id.as_ref()).collect();
    assert_eq!(named.agents, u64::try_from(agents.len()).unwrap());
    assert_eq!(named.providers, ["openai"]);
    assert_eq!(named.first_prompt.as_deref(), Some("hello"));
    assert_eq!(named.requests, named.completed + named.cancelled + named.refused);
    let ids = |filter| -> Vec<(String, String)> {
        list(filter).items.into_iter().map(|session| (session.id, session.user)).collect()
    };
    let with = |condition: &dyn Fn(&Session) -> bool| -> Vec<(String, String)> {
        let found = all.items.iter().filter(|session| condition(session));
        found.map(|session| (session.id.clone(), session.user.clone())).collect()
    };
    let default = || SessionFilter { limit: 500, ..SessionFilter::default() };
    assert_eq!(
        ids(SessionFilter { user: Some("bob".into()), ..default() }),
        with(&|session| session.user == "bob")
    );
    assert_eq!(
        ids(SessionFilter { model: Some("model-3".into()), ..default() }),
        with(&|session| session.models.contains(&"model-3".to_owned()))
    );
    assert_eq!(
        ids(SessionFilter { outcome: Some(Outcome::Refused), ..default() }),
        with(&|session| session.refused > 0)
    );
    assert_eq!(
        ids(SessionFilter { provider: Some("openai".into()), ..default() }),
        with(&|_| true)
    );
    assert!(ids(SessionFilter { provider: Some("none".into()), ..default() }).is_empty());
    assert!(ids(SessionFilter { outcome: Some(Outcome::InProgress), ..default() }).is_empty());
    let since = all.items[3].last_at;
    assert_eq!(
        ids(SessionFilter { since: Some(since), ..default() }),
        with(&|session| session.last_at >= since)
    );
    let until = all.items[3].first_at;
    assert_eq!(
        ids(SessionFilter { until: Some(until), ..default() }),
        with(&|session| session.first_at < until)
    );
}

async fn sessions_are_found_by_the_words_of_their_prompts(fixture: &impl Fixture) {
    let ledger = fixture.open();
    let [_, bob] = fill(&ledger).await;
    let unusual = Opening { prompt: Some("a zebra".into()), ..of(&bob, "opus", "session-1") };
    ledger.recorder().open(unusual).await.unwrap().settle(settled(Outcome::Completed));
    ledger.recorder().drained().await;
    let found = |q: &str, user: Option<&str>| -> Vec<(String, String)> {
        let (q, user) = (Some(q.to_owned()), user.map(str::to_owned));
        let filter = SessionFilter { q, user, limit: 500, ..SessionFilter::default() };
        let page = ledger.sessions(&filter).unwrap();
        assert_eq!(page.searched_until, None);
        page.items.into_iter().map(|session| (session.id, session.user)).collect()
    };
    let all = SessionFilter { limit: 500, ..SessionFilter::default() };
    let all = ledger.sessions(&all).unwrap().items;
    assert_eq!(found("HELLO", None).len(), all.len());
    assert_eq!(found("zebra", None), [("session-1".to_owned(), "bob".to_owned())]);
    assert!(found("zebra", Some("ada")).is_empty());
    assert!(found("hello zebra", None).is_empty(), "words of one prompt");
}

contract!(
    ended_records_are_summed_by_slot_and_session,
    the_provider_that_served_has_the_sums,
    what_was_marked_too_early_is_summed_as_it_ended,
    a_refused_record_changes_no_sum,
    huge_figures_do_not_overflow_a_sum,
    records_of_an_earlier_release_are_summed_in_steps,
    wrong_sums_are_found_and_summed_anew,
    sums_outlive_the_records_and_prompts_do_not,
    usage_is_that_of_the_records_in_every_zone,
    sessions_are_listed_by_their_activity_and_filtered,
    sessions_are_found_by_the_words_of_their_prompts,
);
