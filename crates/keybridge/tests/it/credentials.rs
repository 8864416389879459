//! Where credentials go, for every combination of headers: nothing that begins like a bridge token and
//! no credential of another user reaches a provider, a record, a log or a dump.

use proptest::{prelude::*, sample::select, test_runner::TestRunner};

use crate::support::{
    ANTHROPIC_KEY, CapturedLog, OPENAI_KEY, World, body, in_own_process, user_with_token,
};

const OWN_KEY: &str = "sk-ant-own-key-0123456789";
const OWN_BEARER: &str = "sk-ant-oat01-own-0123456789";

/// What a header contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    Absent,
    Empty,
    Token,
    OthersToken,
    BadToken,
    OwnKey,
    OwnBearer,
    Basic,
}

/// The values of the relevant headers, and the route.
#[derive(Debug, Clone)]
struct Case {
    path: &'static str,
    headers: Vec<(&'static str, Value, bool)>,
}

const NAMES: &[&str] = &[
    "authorization",
    "x-api-key",
    "x-ai-governance-token",
    "x-coder-ai-governance-token",
    "x-coder-ai-governance-byok-token",
    "x-some-header",
    "cookie",
];

fn cases() -> impl Strategy<Value = Case> {
    use Value::{Absent, BadToken, Basic, Empty, OthersToken, OwnBearer, OwnKey, Token};
    let value = || {
        let values = [Absent, Absent, Absent, Empty, Token, Token, OthersToken, BadToken, OwnKey];
        let mut values = values.to_vec();
        values.extend([OwnKey, OwnBearer, Basic]);
        (select(values), any::<bool>())
    };
    let paths = [
        "/anthropic/v1/messages",
        "/openai/v1/responses",
        "/openai/v1/chat/completions",
        "/copilot/v1/messages",
        "/anthropic/v1/messages/count_tokens",
        "/openai/v1/responses/compact",
    ];
    (select(paths.to_vec()), proptest::collection::vec(value(), NAMES.len())).prop_map(
        |(path, values)| Case {
            path,
            headers: NAMES.iter().zip(values).map(|(n, (v, bearer))| (*n, v, bearer)).collect(),
        },
    )
}

struct Tokens {
    mine: String,
    others: String,
    bad: String,
}

impl Tokens {
    fn text(&self, value: Value) -> Option<&str> {
        match value {
            Value::Absent => None,
            Value::Empty => Some(""),
            Value::Token => Some(&self.mine),
            Value::OthersToken => Some(&self.others),
            Value::BadToken => Some(&self.bad),
            Value::OwnKey => Some(OWN_KEY),
            Value::OwnBearer => Some(OWN_BEARER),
            Value::Basic => Some("Basic dXNlcjpwYXNz"),
        }
    }
}

async fn try_case(world: &World, tokens: &Tokens, case: &Case) {
    world.sim.clear();
    let mut headers: Vec<(&str, String)> = Vec::new();
    for (name, value, as_bearer) in &case.headers {
        // An unknown header is passed on unless it contains a token.
        let passes = matches!(value, Value::OwnKey | Value::OwnBearer) && *name == "x-some-header";
        if let Some(text) = tokens.text(*value).filter(|_| !passes) {
            let wrap = *name == "authorization" || *as_bearer;
            let wrap = wrap && *value != Value::Basic && !text.is_empty();
            headers.push((name, if wrap { format!("Bearer {text}") } else { text.to_owned() }));
        }
    }
    let headers: Vec<(&str, &str)> =
        headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let answer = world.send(world.post(case.path, &headers, body(case.path, "text", false))).await;
    let governed: Vec<Value> = case
        .headers
        .iter()
        .filter(|(name, value, _)| name.contains("governance") && *value != Value::Absent)
        .map(|(_, value, _)| *value)
        .collect();
    for exchange in world.sim.exchanges() {
        for (name, value) in &exchange.headers {
            let value = String::from_utf8_lossy(value);
            assert!(!value.contains("kb_"), "{name} of {case:?}");
            assert!(
                !NAMES[2..5].contains(&name.as_str()) && name != "cookie",
                "{name} of {case:?}"
            );
        }
        assert_eq!(exchange.problems, Vec::<String>::new(), "{case:?}");
        let sent: Vec<String> = exchange
            .headers
            .iter()
            .filter(|(name, _)| name == "authorization" || name == "x-api-key")
            .map(|(_, value)| String::from_utf8_lossy(value).replace("Bearer ", ""))
            .collect();
        let company_keys = [ANTHROPIC_KEY, OPENAI_KEY];
        assert_eq!(sent.len(), 1, "one credential: {case:?}");
        if governed.is_empty() {
            assert!(company_keys.contains(&sent[0].as_str()), "the company's key: {case:?}");
        } else {
            let own = [OWN_KEY, OWN_BEARER].contains(&sent[0].as_str());
            assert!(own || company_keys.contains(&sent[0].as_str()), "{case:?}");
        }
    }
    let is_known = |value: &Value| matches!(value, Value::Token | Value::OthersToken);
    if !case.headers.iter().any(|(_, value, _)| is_known(value)) {
        assert_status!(answer, 401, "{case:?}");
    }
    assert!(!answer.text().contains(&tokens.mine) && !answer.text().contains(&tokens.others));
}

#[test]
fn no_secret_goes_where_it_does_not_belong() {
    if !in_own_process("credentials::no_secret_goes_where_it_does_not_belong") {
        return;
    }
    let log = CapturedLog::start(tracing::Level::TRACE);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dumps = tempfile::tempdir().unwrap();
    let world = runtime.block_on(World::with(|config| {
        for provider in &mut config.providers {
            provider.dump = Some(crate::support::dumps(dumps.path()));
        }
    }));
    let tokens = Tokens {
        mine: world.token.clone(),
        others: user_with_token(&world.ledger, "bob"),
        bad: "kb_0123456789012345678901234567890123456789012345678".into(),
    };
    let config =
        ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new(config)
        .run(&cases(), |case| {
            runtime.block_on(try_case(&world, &tokens, &case));
            Ok(())
        })
        .unwrap();

    let records = serde_json::to_string(&runtime.block_on(world.records())).unwrap();
    let mut texts = vec![("records", records)];
    let database = std::fs::read(world.dir().join("keybridge.db")).unwrap();
    texts.push(("store", String::from_utf8_lossy(&database).into_owned()));
    texts.push(("log", log.text()));
    for file in std::fs::read_dir(dumps.path()).unwrap() {
        texts.push(("dump", std::fs::read_to_string(file.unwrap().path()).unwrap()));
    }
    assert!(texts.len() > 100, "exchanges were dumped");
    let secrets =
        [&tokens.mine, &tokens.others, &tokens.bad, OWN_KEY, OWN_BEARER, ANTHROPIC_KEY, OPENAI_KEY];
    for (what, text) in &texts {
        for secret in secrets {
            assert!(!text.contains(secret), "{secret} stands in a {what}");
        }
    }
}
