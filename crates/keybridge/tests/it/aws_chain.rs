//! AWS's credential chain: each of its sources, simulated.
//!
//! The chain reads the environment, which all tests of a process share: each case is a process of
//! its own, with only the environment of that case: this test binary again, which [`CASE`] and
//! [`BASE`] make run that case alone.
use std::{path::Path, process::Stdio, time::Duration};

use keybridge_providers::{
    bedrock::{AssumeRole, AwsSource, BedrockApi, BedrockConfig, Rules},
    config::{ProviderConfig, ProviderType},
};
use keybridge_sim::{
    Sim,
    aws::{
        AccessKey, CONTAINER, CONTAINER_TOKEN, EXTERNAL_ID, INSTANCE, LONG_TERM, REGION, ROLE,
        ROLE_ARN,
    },
};
use tokio::process::Command;

use crate::support::{World, body, provider};

const PATH: &str = "/bedrock/v1/messages";
/// Longest that a case may take.
const CASE_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest that a request may take; less than a source that hangs has.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(6);

/// A source of credentials, and the key that it provides.
struct Case {
    name: &'static str,
    environment: Vec<(&'static str, String)>,
    /// The key, or none if there are no credentials.
    key: Option<AccessKey>,
    /// Number of requests to the source; none if it is a file or variable.
    given: std::ops::RangeInclusive<usize>,
    lifetime: Duration,
    /// How often the container's endpoint answers.
    answers: Option<usize>,
}

impl Case {
    fn new(name: &'static str, key: AccessKey, environment: Vec<(&'static str, String)>) -> Self {
        let lifetime = Duration::from_secs(3_600);
        Self { name, environment, key: Some(key), given: 0..=0, lifetime, answers: None }
    }

    /// Expects one request to the source.
    fn asked(self) -> Self {
        Self { given: 1..=1, ..self }
    }
}

/// The name of the case that a child process runs, and where the simulated AWS is.
const CASE: &str = "KEYBRIDGE_TEST_AWS_CASE";
const BASE: &str = "KEYBRIDGE_TEST_AWS_BASE";
/// Prefix of the line that a child process prints.
const ANSWER: &str = "answer: ";

#[tokio::test(flavor = "multi_thread")]
async fn each_source_of_aws_credentials_signs_requests() {
    match (std::env::var(CASE), std::env::var(BASE)) {
        (Ok(case), Ok(base)) => run_case(&case, &base).await,
        _ => run_all_cases().await,
    }
}

async fn run_all_cases() {
    let sim = Sim::new();
    let server = sim.start().await.unwrap();
    let base = server.base();
    let dir = tempfile::tempdir().unwrap();
    for case in cases(&base, dir.path()) {
        sim.clear();
        sim.aws().set_lifetime(case.lifetime);
        let before = sim.aws().issued();
        sim.aws().hang_after(case.answers.map_or(usize::MAX, |answers| before + answers));
        let child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "aws_chain::each_source_of_aws_credentials_signs_requests",
            ])
            .env_clear()
            .env(CASE, case.name)
            .env(BASE, &base)
            .env("HOME", "/nonexistent")
            .envs(case.environment.iter().cloned())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(CASE_TIMEOUT, child).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let problems = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}{problems}", case.name);
        let expected = match case.key {
            Some(key) => format!("200 {0} 200 {0}", hint(&key)),
            None => "503 null 503 null".into(),
        };
        let answer =
            said.lines().find_map(|line| line.split_once(ANSWER)).map(|(_, answer)| answer);
        assert_eq!(answer, Some(expected.as_str()), "{}: {said}{problems}", case.name);
        let issued = sim.aws().issued() - before;
        assert!(case.given.contains(&issued), "{}: asked {issued} times", case.name);
        for exchange in sim.exchanges() {
            assert_eq!(exchange.problems, Vec::<String>::new(), "{}", case.name);
        }
    }
}

/// The id of a key, masked as in records.
fn hint(key: &AccessKey) -> String {
    let id = key.access_key_id;
    format!("{}...{}", id.get(..4).unwrap(), id.get(id.len() - 4..).unwrap())
}

fn cases(base: &str, dir: &Path) -> Vec<Case> {
    let own = |key: AccessKey| {
        let mut own = vec![
            ("AWS_ACCESS_KEY_ID", key.access_key_id.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", key.secret_access_key.to_owned()),
        ];
        own.extend(key.session_token.map(|token| ("AWS_SESSION_TOKEN", token.to_owned())));
        own
    };
    let file = dir.join("credentials");
    let section = |name: &str, key: &AccessKey| {
        let token = key.session_token.unwrap_or_default();
        format!(
            "[{name}]\naws_access_key_id={}\naws_secret_access_key={}\n{}\n",
            key.access_key_id,
            key.secret_access_key,
            if token.is_empty() { String::new() } else { format!("aws_session_token={token}") }
        )
    };
    let text = section("default", &LONG_TERM) + &section("other", &INSTANCE);
    std::fs::write(&file, text).unwrap();
    let shared = vec![("AWS_SHARED_CREDENTIALS_FILE", file.to_str().unwrap().to_owned())];
    let metadata = |address: &str| vec![("AWS_EC2_METADATA_SERVICE_ENDPOINT", address.to_owned())];
    let container = || {
        vec![
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{base}/aws/container")),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN", CONTAINER_TOKEN.to_owned()),
        ]
    };
    let sts = ("AWS_ENDPOINT_URL_STS", format!("{base}/aws/sts"));
    let mut role = own(LONG_TERM);
    role.push(sts.clone());
    vec![
        Case::new("static", LONG_TERM, own(INSTANCE)),
        Case::new("environment", LONG_TERM, own(LONG_TERM)),
        Case::new("temporary environment", CONTAINER, own(CONTAINER)),
        Case::new("shared file", LONG_TERM, shared.clone()),
        Case::new("profile", INSTANCE, [shared, own(LONG_TERM)].concat()),
        Case::new("container", CONTAINER, container()).asked(),
        Case {
            // Under five minutes are left: each use of the keys begins a fetch, if none is running.
            lifetime: Duration::from_secs(60),
            given: 2..=4,
            ..Case::new("container, soon expiring", CONTAINER, container())
        },
        Case {
            // The keys are valid: nothing waits for the fetch that hangs.
            lifetime: Duration::from_secs(60),
            given: 1..=1,
            answers: Some(1),
            ..Case::new("container, then silent", CONTAINER, container())
        },
        Case::new("instance metadata", INSTANCE, metadata(&format!("{base}/aws"))).asked(),
        Case::new("role", ROLE, role).asked(),
        Case::new("static role", ROLE, vec![sts]).asked(),
        Case { key: None, ..Case::new("nothing", LONG_TERM, metadata("http://127.0.0.1:1")) },
    ]
}

/// The provider of a case.
fn bedrock(name: &str, base: &str) -> ProviderConfig {
    let keys = AwsSource::Static {
        access_key_id: LONG_TERM.access_key_id.into(),
        secret_access_key: LONG_TERM.secret_access_key.into(),
        session_token: None,
    };
    let source = match name {
        "static" | "static role" => keys,
        "profile" => AwsSource::Profile("other".into()),
        _ => AwsSource::Chain,
    };
    let assume_role = name.ends_with("role").then(|| AssumeRole {
        arn: ROLE_ARN.into(),
        session_name: "keybridge".into(),
        external_id: Some(EXTERNAL_ID.into()),
    });
    ProviderConfig {
        bedrock: Some(BedrockConfig {
            region: REGION.into(),
            api: BedrockApi::Runtime,
            model: "anthropic.claude-sonnet-4-5-20250929-v1:0".into(),
            small_fast_model: None,
            source,
            assume_role,
            rules: Rules::built_in().unwrap(),
        }),
        ..provider(ProviderType::Bedrock, base)
    }
}

/// Sends two requests with the credentials of this process, and prints the responses.
async fn run_case(name: &str, base: &str) {
    let world = World::with(|config| config.providers = vec![bedrock(name, base)]).await;
    let mut answers = Vec::new();
    for _ in 0..2 {
        let bearer = format!("Bearer {}", world.token);
        let headers = [("authorization", bearer.as_str()), ("x-sim-scenario", "text")];
        let sent = world.send(world.post(PATH, &headers, body(PATH, "text", true)));
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, sent).await.unwrap();
        let records = world.records().await;
        let hint = records.last().unwrap().get("credential_hint").cloned().unwrap_or_default();
        answers.push(format!("{} {}", answer.status.as_u16(), hint.as_str().unwrap_or("null")));
        assert!(!answer.text().contains(CONTAINER.secret_access_key));
    }
    println!("{ANSWER}{}", answers.join(" "));
}
