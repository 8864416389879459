//! What is decided before the store generates the records: users, sessions, clients, models and phrases.

use anyhow::ensure;

use super::{
    random::{Random, Weights},
    words,
};

pub(super) const HOUR_US: u64 = 3_600_000_000;
const DAY_US: u64 = 24 * HOUR_US;
/// Interceptions for each session, on average.
const SESSION_REQUESTS: u64 = 25;
const MAX_SESSION_REQUESTS: u64 = 400;
/// Requests of the long session, `session-of-5000-steps`; of a small store at most a quarter.
const LONG_SESSION_REQUESTS: u64 = 5_000;
/// Its user: the third, who has about a seventeenth of all requests. `benches/reads.py` knows both names.
const LONG_SESSION_USER: u64 = 3;
/// The number of prompts with the rare word.
const RARE_PROMPTS: u64 = 5;
/// Time between two requests of a session.
const GAP_US: (u64, u64) = (12_000_000, 75_000_000);
/// Rows in one statement.
const ROWS: usize = 1_000;

/// Weight and range of the number of requests of a session.
const SESSION_SIZES: [(u64, u64, u64); 5] =
    [(30, 1, 3), (30, 4, 12), (25, 13, 40), (12, 41, 120), (3, 121, 300)];
/// Sessions by hour of a working day in UTC, of a company in Berlin. The last day counts as a Thursday, so that
/// the last 24 hours have as many on whatever day a store is made.
const HOURS: [u64; 24] =
    [2, 1, 1, 1, 2, 5, 20, 60, 95, 100, 90, 60, 70, 95, 95, 85, 55, 25, 15, 12, 10, 8, 5, 3];
/// How many times fewer sessions a day of the weekend has.
const WEEKEND_DIVISOR: u64 = 8;

/// Provider instance, its type, endpoint, dialect, model, served model, and the small model of its agents.
const MODELS: [[&str; 7]; 12] = [
    [
        "anthropic",
        "anthropic",
        "/v1/messages",
        "messages",
        "claude-opus-4-8",
        "claude-opus-4-8",
        "2",
    ],
    [
        "anthropic",
        "anthropic",
        "/v1/messages",
        "messages",
        "claude-sonnet-5",
        "claude-sonnet-5",
        "2",
    ],
    [
        "anthropic",
        "anthropic",
        "/v1/messages",
        "messages",
        "claude-haiku-4-5",
        "claude-haiku-4-5-20251001",
        "2",
    ],
    [
        "bedrock",
        "bedrock",
        "/v1/messages",
        "messages",
        "claude-opus-4-6",
        "anthropic.claude-opus-4-6-v1",
        "4",
    ],
    [
        "bedrock",
        "bedrock",
        "/v1/messages",
        "messages",
        "claude-sonnet-4-6",
        "anthropic.claude-sonnet-4-6-v1",
        "4",
    ],
    ["openai", "openai", "/v1/responses", "responses", "gpt-5.2-codex", "gpt-5.2-codex", "6"],
    ["openai", "openai", "/v1/responses", "responses", "gpt-5-mini", "gpt-5-mini-2025-08-07", "6"],
    [
        "openai",
        "openai",
        "/v1/chat/completions",
        "chat_completions",
        "gpt-4.1",
        "gpt-4.1-2025-04-14",
        "6",
    ],
    ["copilot", "copilot", "/chat/completions", "chat_completions", "gpt-5.2", "gpt-5.2", "9"],
    [
        "copilot",
        "copilot",
        "/chat/completions",
        "chat_completions",
        "grok-code-fast-1",
        "grok-code-fast-1",
        "9",
    ],
    [
        "local",
        "openai",
        "/v1/chat/completions",
        "chat_completions",
        "qwen3-coder",
        "qwen3-coder",
        "10",
    ],
    [
        "router",
        "openai",
        "/v1/chat/completions",
        "chat_completions",
        "gemini-3-pro",
        "google/gemini-3-pro",
        "11",
    ],
];

/// A client, its `User-Agent`, its weight, and its models with their weights.
struct Client {
    name: &'static str,
    user_agent: &'static str,
    weight: u64,
    models: &'static [(u64, u64)],
}

const CLIENTS: [Client; 8] = [
    Client {
        name: "Claude Code",
        user_agent: "claude-cli/2.1.330 (external, cli)",
        weight: 45,
        models: &[(0, 40), (1, 40), (2, 5), (3, 8), (4, 7)],
    },
    Client {
        name: "Codex",
        user_agent: "codex_cli_rs/0.169.0 (Debian 13; x86_64)",
        weight: 20,
        models: &[(5, 80), (6, 20)],
    },
    Client {
        name: "GitHub Copilot (CLI)",
        user_agent: "copilot/0.0.380",
        weight: 9,
        models: &[(8, 70), (9, 30)],
    },
    Client {
        name: "OpenCode",
        user_agent: "opencode/1.4.2",
        weight: 9,
        models: &[(1, 30), (5, 20), (10, 25), (11, 25)],
    },
    Client { name: "Zed", user_agent: "Zed/0.230.1", weight: 6, models: &[(1, 60), (7, 40)] },
    Client { name: "Kilo Code", user_agent: "Kilo-Code/5.3.0", weight: 4, models: &[(11, 1)] },
    Client {
        name: "GitHub Copilot (VS Code)",
        user_agent: "GitHubCopilotChat/0.40.1",
        weight: 4,
        models: &[(8, 1)],
    },
    Client {
        name: "OpenAI SDK (Python)",
        user_agent: "OpenAI/Python 3.54.0",
        weight: 3,
        models: &[(6, 60), (7, 40)],
    },
];

/// The size of a store, and when its records begin and end.
#[derive(Debug, Clone)]
pub(super) struct Size {
    pub(super) interceptions: u64,
    pub(super) users: u64,
    pub(super) seed: u64,
    pub(super) hours: u64,
    /// End in microseconds, at a full hour.
    pub(super) end_us: u64,
}

#[derive(Debug)]
pub(super) struct Plan {
    size: Size,
    sessions: Vec<Session>,
    phrases: Vec<String>,
}

/// A session; of the numbered things it has the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Session {
    user: u64,
    client: usize,
    model: u64,
    is_byok: bool,
    first_us: u64,
    gap_us: u64,
    requests: u64,
    /// Requests of a thread, which begins with a prompt.
    thread_requests: u64,
    /// Sub-agents.
    agents: u64,
    id: SessionId,
    is_rare: bool,
}

/// The id of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SessionId {
    /// The client names none: it is that of the thread.
    Thread,
    /// The client names one.
    Client,
    /// The known one of the long session.
    Known,
}

impl Plan {
    pub(super) fn new(size: &Size) -> anyhow::Result<Self> {
        ensure!(size.hours * HOUR_US < size.end_us, "the records would begin before 1970");
        let mut random = Random::new(size.seed);
        let phrases = words::phrases(&mut random);
        let mut draws = Draws::new(size);
        let mut sessions: Vec<Session> = session_sizes(size, &mut random)
            .into_iter()
            .map(|requests| draws.session(requests, &mut random))
            .collect();
        sessions.sort_by_key(|session| session.first_us);
        // One prompt each, at equal distances in the order of time.
        let distance = sessions.len() / usize::try_from(RARE_PROMPTS)?;
        for session in sessions
            .iter_mut()
            .skip(distance / 2)
            .step_by(distance.max(1))
            .take(usize::try_from(RARE_PROMPTS)?)
        {
            session.is_rare = true;
        }
        Ok(Self { size: size.clone(), sessions, phrases })
    }

    pub(super) fn sessions(&self) -> usize {
        self.sessions.len()
    }

    pub(super) fn interceptions(&self) -> u64 {
        self.size.interceptions
    }

    pub(super) fn seed(&self) -> u64 {
        self.size.seed
    }

    pub(super) fn start_us(&self) -> u64 {
        self.size.end_us - self.size.hours * HOUR_US
    }

    pub(super) fn end_us(&self) -> u64 {
        self.size.end_us
    }

    /// The statements that put the plan into temporary tables.
    pub(super) fn statements(&self) -> Vec<String> {
        let models = MODELS.iter().enumerate().map(|(number, row)| {
            let [texts @ .., small] = row;
            format!("({number}, '{}', {small})", texts.join("', '"))
        });
        let clients = CLIENTS.iter().enumerate();
        let clients = clients.map(|(number, client)| {
            format!("({number}, '{}', '{}')", client.name, client.user_agent)
        });
        let phrases = self.phrases.iter().enumerate();
        let phrases = phrases.map(|(number, text)| format!("({number}, '{text}')"));
        let users = (1..=self.size.users).map(|number| format!("({number})"));
        let sessions =
            self.sessions.iter().enumerate().map(|(number, session)| session.row(number + 1));
        let steps = (0..LONG_SESSION_REQUESTS).map(|step| format!("({step})"));
        let mut statements = vec![TABLES.to_owned()];
        insert(&mut statements, "seed_models", models);
        insert(&mut statements, "seed_clients", clients);
        insert(&mut statements, "seed_phrases", phrases);
        insert(&mut statements, "seed_users", users);
        insert(&mut statements, "seed_steps", steps);
        insert(&mut statements, "seed_sessions", sessions);
        statements
    }
}

fn insert(statements: &mut Vec<String>, table: &str, rows: impl Iterator<Item = String>) {
    let rows: Vec<String> = rows.collect();
    for chunk in rows.chunks(ROWS) {
        statements.push(format!("INSERT INTO {table} VALUES {}", chunk.join(", ")));
    }
}

/// The numbers of requests of all sessions; the first is the long one.
fn session_sizes(size: &Size, random: &mut Random) -> Vec<u64> {
    let long = LONG_SESSION_REQUESTS.min(size.interceptions / 4);
    let weights = Weights::new(SESSION_SIZES.iter().map(|(weight, ..)| *weight));
    let mut sizes = vec![long];
    sizes.extend((1..size.interceptions / SESSION_REQUESTS).map(|_session| {
        let (_, low, high) = SESSION_SIZES.get(weights.draw(random)).unwrap_or(&SESSION_SIZES[0]);
        random.between(*low, *high)
    }));
    let mut sum: u64 = sizes.iter().sum();
    // The middle sizes give and take what is missing; the short sessions stay short.
    while sum != size.interceptions {
        for requests in sizes.iter_mut().skip(1) {
            if sum < size.interceptions && (4..MAX_SESSION_REQUESTS).contains(requests) {
                (*requests, sum) = (*requests + 1, sum + 1);
            } else if sum > size.interceptions && *requests > 5 {
                (*requests, sum) = (*requests - 1, sum - 1);
            }
        }
    }
    sizes
}

/// The distributions from which sessions are drawn.
struct Draws {
    start_us: u64,
    end_us: u64,
    users: Weights,
    hours: Weights,
    clients: Weights,
    is_first: bool,
}

impl Draws {
    fn new(size: &Size) -> Self {
        let start_us = size.end_us - size.hours * HOUR_US;
        Self {
            start_us,
            end_us: size.end_us,
            users: Weights::zipf(size.users),
            hours: Weights::new(
                (0..size.hours).map(|hour| hour_weight(start_us + hour * HOUR_US, size.end_us)),
            ),
            clients: Weights::new(CLIENTS.iter().map(|client| client.weight)),
            is_first: true,
        }
    }

    /// A session of a number of requests; the first one is that of the known user.
    fn session(&mut self, requests: u64, random: &mut Random) -> Session {
        let is_long = std::mem::take(&mut self.is_first);
        let drawn = u64::try_from(self.users.draw(random)).unwrap_or(0) + 1;
        let client = if is_long { 0 } else { self.clients.draw(random) };
        let models = CLIENTS.get(client).unwrap_or(&CLIENTS[0]).models;
        let weights = Weights::new(models.iter().map(|(_, weight)| *weight));
        let (first_us, gap_us) = self.times(requests, random);
        let id = match requests {
            _ if is_long => SessionId::Known,
            1..=3 if random.below(3) == 0 => SessionId::Thread,
            _ => SessionId::Client,
        };
        let has_agents = is_long || (requests >= 12 && random.below(3) == 0);
        Session {
            user: if is_long { LONG_SESSION_USER } else { drawn },
            client,
            model: models.get(weights.draw(random)).map_or(0, |(model, _)| *model),
            is_byok: random.below(100) < 35,
            first_us,
            gap_us,
            requests,
            thread_requests: if id == SessionId::Thread { requests } else { random.between(3, 9) },
            agents: if has_agents { random.between(1, 5) } else { 0 },
            id,
            is_rare: false,
        }
    }

    /// Start and distance of the requests of a session, all of which are in the period.
    fn times(&self, requests: u64, random: &mut Random) -> (u64, u64) {
        let hour = u64::try_from(self.hours.draw(random)).unwrap_or(0);
        let first_us = self.start_us + hour * HOUR_US + random.below(HOUR_US);
        let gap_us = random.between(GAP_US.0, GAP_US.1);
        let length_us = (requests + 1) * gap_us;
        let excess_us = (first_us + length_us).saturating_sub(self.end_us);
        // As many days earlier as are needed, at the same time of the day.
        let first_us = first_us.saturating_sub(excess_us.div_ceil(DAY_US) * DAY_US);
        if first_us >= self.start_us {
            return (first_us, gap_us);
        }
        (self.start_us, gap_us.min((self.end_us - self.start_us) / (requests + 1)))
    }
}

/// The weight of an hour that begins at a time before the end.
fn hour_weight(time_us: u64, end_us: u64) -> u64 {
    let hour = usize::try_from(time_us / HOUR_US % 24).ok().and_then(|hour| HOURS.get(hour));
    let weight = hour.copied().unwrap_or_default() * WEEKEND_DIVISOR;
    match ((end_us - 1) / DAY_US - time_us / DAY_US) % 7 {
        // Sunday and Saturday.
        4 | 5 => weight / WEEKEND_DIVISOR,
        _ => weight,
    }
}

impl Session {
    fn row(&self, number: usize) -> String {
        let Self { user, client, model, first_us, gap_us, requests, .. } = self;
        let Self { thread_requests, agents, .. } = self;
        let [is_byok, is_named, is_long, is_rare] =
            [self.is_byok, self.id != SessionId::Thread, self.id == SessionId::Known, self.is_rare]
                .map(u8::from);
        format!(
            "({number}, {user}, {client}, {model}, {is_byok}, {first_us}, {gap_us}, {requests}, \
             {thread_requests}, {agents}, {is_named}, {is_long}, {is_rare})"
        )
    }
}

/// The tables of the plan; every number is 64 bits wide, as the macros compute with it.
const TABLES: &str = "
CREATE TEMPORARY TABLE seed_models (number BIGINT PRIMARY KEY, provider TEXT, provider_type TEXT,
    endpoint TEXT, dialect TEXT, model TEXT, model_served TEXT, small BIGINT);
CREATE TEMPORARY TABLE seed_clients (number BIGINT PRIMARY KEY, name TEXT, user_agent TEXT);
CREATE TEMPORARY TABLE seed_phrases (number BIGINT PRIMARY KEY, phrase TEXT);
CREATE TEMPORARY TABLE seed_users (number BIGINT PRIMARY KEY);
CREATE TEMPORARY TABLE seed_steps (step BIGINT PRIMARY KEY);
CREATE TEMPORARY TABLE seed_sessions (session BIGINT PRIMARY KEY, user_number BIGINT, client BIGINT,
    model BIGINT, is_byok BIGINT, first_us BIGINT, gap_us BIGINT, requests BIGINT, thread_requests BIGINT,
    agents BIGINT, is_named BIGINT, is_long BIGINT, is_rare BIGINT)";

#[cfg(test)]
mod tests {
    use super::*;

    /// 28 November 2026, 12:00 UTC.
    const END_US: u64 = 1_795_867_200_000_000;

    fn plan(interceptions: u64, hours: u64) -> Plan {
        let size = Size { interceptions, users: 200, seed: 1, hours, end_us: END_US };
        Plan::new(&size).unwrap()
    }

    #[test]
    fn sessions_have_all_requests_and_lie_in_the_period() {
        for (interceptions, hours) in [(1_000, 24), (20_000, 24 * 30), (100_000, 24 * 7)] {
            let plan = plan(interceptions, hours);
            let sessions = u64::try_from(plan.sessions()).unwrap();
            assert_eq!(sessions, interceptions / SESSION_REQUESTS);
            assert_eq!(plan.sessions.iter().map(|s| s.requests).sum::<u64>(), interceptions);
            for session in &plan.sessions {
                assert!(session.first_us >= plan.start_us());
                let end_us = session.first_us + session.requests * session.gap_us;
                assert!(end_us < plan.end_us(), "{session:?}");
                assert!(session.gap_us >= 8_000_000, "{session:?}");
            }
            assert_eq!(plan.sessions.iter().filter(|s| s.is_rare).count(), 5);
        }
    }

    #[test]
    fn one_session_has_5_000_requests_and_a_known_user() {
        let plan = plan(100_000, 24 * 30);
        let long: Vec<_> = plan.sessions.iter().filter(|s| s.requests > 400).collect();
        assert_eq!(long.len(), 1);
        assert_eq!((long[0].requests, long[0].user), (LONG_SESSION_REQUESTS, LONG_SESSION_USER));
    }

    #[test]
    fn a_plan_is_that_of_its_seed() {
        assert_eq!(plan(20_000, 240).sessions, plan(20_000, 240).sessions);
    }

    #[test]
    fn most_sessions_are_in_the_hours_of_working_days() {
        let weight = |days: u64, hour| {
            hour_weight(END_US - 12 * HOUR_US - days * DAY_US + hour * HOUR_US, END_US)
        };
        let by_day: Vec<u64> = (0..8).map(|days| weight(days, 9) / weight(4, 9)).collect();
        assert_eq!(by_day, [8, 8, 8, 8, 1, 1, 8, 8]);
        assert!(weight(0, 9) > 50 * weight(0, 2));
    }
}
