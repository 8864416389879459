//! `keybridge demo`: sample requests over HTTP to simulated providers, and what is recorded of them.

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use keybridge_identity::token::mask_tokens;
use keybridge_ledger::{
    InterceptionDetail, Ledger,
    record::{Outcome, Quality},
};
use keybridge_telemetry::log;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use crate::{
    cli::{self, Cli, DemoOptions, Exit, interceptions},
    config::{Config, Overrides},
    env::Env,
    print::Table,
    runtime,
    serve::{Server, StartOptions},
    signals::ShutdownSignals,
    simulate::Simulated,
};

/// The user's own credential in BYOK requests; only the simulated provider ever sees it.
const OWN_CREDENTIAL: &str = "sk-my-own-key-0123456789";

/// A sample request.
#[derive(Debug, Clone, Copy)]
struct Sample {
    endpoint: &'static str,
    credential: Credential,
    streaming: bool,
    scenario: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Credential {
    Centralized,
    Byok,
}

const MESSAGES: &str = "/anthropic/v1/messages";
const CHAT: &str = "/openai/v1/chat/completions";
const RESPONSES: &str = "/openai/v1/responses";
const COPILOT: &str = "/copilot/chat/completions";

const fn sample(
    endpoint: &'static str,
    credential: Credential,
    streaming: bool,
    scenario: &'static str,
) -> Sample {
    Sample { endpoint, credential, streaming, scenario }
}

/// The scenario of a model that calls an injected tool.
const INJECTED: &str = "agent";

/// Each dialect, centralized and BYOK, streaming and not; then with an injected tool.
const SAMPLES: &[Sample] = &[
    sample(MESSAGES, Credential::Centralized, true, "thinking+tool"),
    sample(MESSAGES, Credential::Centralized, false, "cached"),
    sample(MESSAGES, Credential::Byok, true, "text"),
    sample(MESSAGES, Credential::Byok, false, "tool"),
    sample(CHAT, Credential::Centralized, true, "parallel-tools"),
    sample(CHAT, Credential::Centralized, false, "text"),
    sample(CHAT, Credential::Byok, true, "reasoning"),
    sample(CHAT, Credential::Byok, false, "cached"),
    sample(RESPONSES, Credential::Centralized, true, "reasoning+tool"),
    sample(RESPONSES, Credential::Centralized, false, "commentary"),
    sample(RESPONSES, Credential::Byok, true, "custom-tool"),
    sample(RESPONSES, Credential::Byok, false, "web-search"),
    sample(COPILOT, Credential::Byok, true, "text"),
    sample(COPILOT, Credential::Byok, false, "tool"),
    sample(MESSAGES, Credential::Centralized, true, INJECTED),
    sample(CHAT, Credential::Byok, false, INJECTED),
    sample(RESPONSES, Credential::Centralized, true, INJECTED),
];

pub(crate) fn command(cli: &Cli, options: &DemoOptions) -> Result<(), Exit> {
    let dir = tempfile::tempdir()?;
    let overrides = Overrides {
        listen: Some(if options.exit { "127.0.0.1:0" } else { "127.0.0.1:8787" }.into()),
        store: Some(format!("sqlite://{}", dir.path().join("demo.db").display())),
    };
    // The demo is the same everywhere: it ignores the configuration file and the environment.
    let mut config = Config::load(None, &Env::default(), &overrides).map_err(Exit::Config)?;
    config.log.level = "warn".into();
    log::start(&config.log, mask_tokens);
    config.ledger.spool = None;
    let ledger = cli::open_to_serve(&config)?;
    runtime::block_on(async {
        let simulated = Simulated::ProvidersAndTools;
        let server = Server::start(config, ledger, simulated, StartOptions::default()).await?;
        let Some(token) = server.first_token.clone() else {
            return Err(anyhow::anyhow!("the store of the demo is not new").into());
        };
        let (url, ledger) = (server.public_url.clone(), server.ledger.clone());
        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        if options.exit {
            let serving = tasks.spawn(server.serve(shutdown.clone()));
            let result = send_samples(cli, &url, token.expose(), &ledger).await;
            shutdown.cancel();
            serving.await.map_err(anyhow::Error::from)??;
            return Ok(result?);
        }
        let signals = ShutdownSignals::listen()?;
        let sending = async {
            send_samples(cli, &url, token.expose(), &ledger).await?;
            eprintln!("\nkeybridge is still serving on {url}, token {}", token.expose());
            eprintln!("records: {url}/api/v1/interceptions; press Ctrl-C to stop");
            anyhow::Ok(())
        };
        let serving = server.serve_until_signal(signals);
        tokio::pin!(serving);
        tokio::select! {
            ended = &mut serving => return ended,
            result = sending => result?,
        }
        serving.await
    })
}

/// Sends every sample, checks its record and prints all records.
async fn send_samples(cli: &Cli, url: &str, token: &str, ledger: &Ledger) -> anyhow::Result<()> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let mut records = Vec::new();
    for (number, sample) in (1..).zip(SAMPLES) {
        let hint = if sample.scenario == INJECTED { ": use the injected tool" } else { "" };
        let prompt = format!("Sample request {number}{hint}");
        let Sample { endpoint, credential, streaming, scenario } = sample;
        let name = format!("{endpoint} ({credential:?}, streaming: {streaming})");
        let id = send(&client, url, token, sample, &prompt).await.with_context(|| name.clone())?;
        let record = settled_record(ledger, id).await?;
        check(sample, &prompt, &record).with_context(|| name)?;
        eprintln!("{number:>2} ok  {endpoint} {scenario}");
        records.push(record);
    }
    print_records(cli, &records)
        .map_err(|exit| anyhow::anyhow!("cannot print the records: {exit:?}"))
}

async fn send(
    client: &Client<HttpConnector, Full<Bytes>>,
    url: &str,
    token: &str,
    sample: &Sample,
    prompt: &str,
) -> anyhow::Result<Uuid> {
    let (model, stream) = (format!("sim-{}", sample.scenario), sample.streaming);
    let body = match sample.endpoint {
        RESPONSES => serde_json::json!({ "model": model, "stream": stream, "input": prompt }),
        _ => serde_json::json!({
            "model": model, "stream": stream, "max_tokens": 1_000,
            "messages": [{ "role": "user", "content": prompt }],
        }),
    };
    let request = Request::post(format!("{url}{}", sample.endpoint))
        .header("content-type", "application/json")
        .header("user-agent", "keybridge-demo");
    let request = match sample.credential {
        Credential::Centralized => request.header("authorization", format!("Bearer {token}")),
        Credential::Byok => request
            .header("x-ai-governance-token", token)
            .header("authorization", format!("Bearer {OWN_CREDENTIAL}")),
    };
    let response = client.request(request.body(Full::new(body.to_string().into()))?).await?;
    let status = response.status();
    let id = response.headers().get("x-keybridge-interception-id").cloned();
    let body = response.into_body().collect().await?.to_bytes();
    ensure!(status.is_success(), "status {status}: {}", String::from_utf8_lossy(&body));
    ensure!(!body.is_empty(), "the response is empty");
    Ok(id.context("the response has no interception id")?.to_str()?.parse()?)
}

/// The record of a request whose response has been read.
async fn settled_record(ledger: &Ledger, id: Uuid) -> anyhow::Result<InterceptionDetail> {
    let recorder = ledger.recorder();
    recorder.drained().await;
    let ledger = ledger.clone();
    let found = tokio::task::spawn_blocking(move || ledger.interception(id)).await??;
    found.context("the request was not recorded")
}

/// Checks that a record says what was sent and received.
fn check(sample: &Sample, prompt: &str, detail: &InterceptionDetail) -> anyhow::Result<()> {
    let record = &detail.item.interception;
    ensure!(record.outcome == Outcome::Completed, "the recorded outcome is {}", record.outcome);
    ensure!(detail.item.user == "admin", "the recorded user is {}", detail.item.user);
    let (kind, hint) = match sample.credential {
        Credential::Centralized => ("centralized", "sk-s...6789"),
        Credential::Byok => ("byok", "sk-m...6789"),
    };
    ensure!(
        record.credential_kind.as_deref() == Some(kind),
        "the recorded credential is not {kind}"
    );
    ensure!(record.credential_hint.as_deref() == Some(hint), "the recorded hint is not {hint}");
    ensure!(record.streaming == sample.streaming, "streaming is recorded incorrectly");
    let prompts: Vec<&str> = detail.prompts.iter().map(|row| row.prompt.as_str()).collect();
    ensure!(prompts == [prompt], "the recorded prompts are {prompts:?}");
    let turns = if sample.scenario == INJECTED { 2 } else { 1 };
    ensure!(
        detail.token_usages.len() == turns,
        "{} token rows are recorded",
        detail.token_usages.len()
    );
    for usage in &detail.token_usages {
        ensure!(usage.quality == Quality::Exact, "the token counts are {}", usage.quality);
        ensure!(usage.input_tokens == Some(keybridge_sim::INPUT_TOKENS), "input tokens are wrong");
        ensure!(
            usage.output_tokens == Some(keybridge_sim::OUTPUT_TOKENS),
            "output tokens are wrong"
        );
    }
    let has_tools =
        ["tool", "web-search", INJECTED].iter().any(|word| sample.scenario.contains(word));
    ensure!(detail.tool_usages.is_empty() != has_tools, "tool calls are recorded incorrectly");
    for tool in &detail.tool_usages {
        ensure!(
            tool.injected == (sample.scenario == INJECTED),
            "{} is recorded incorrectly",
            tool.tool
        );
        ensure!(tool.invocation_error.is_none(), "{} failed", tool.tool);
    }
    Ok(())
}

fn print_records(cli: &Cli, records: &[InterceptionDetail]) -> Result<(), Exit> {
    if cli.json {
        return crate::print::json_lines(records);
    }
    let items: Vec<_> = records.iter().map(|detail| detail.item.clone()).collect();
    println!("\nRecords: who sent what, with which credential, and the tokens it took\n");
    interceptions::table(&items).print()?;
    println!("\nPrompts, tool calls and thinking\n");
    let mut table = Table::new(["PROMPT", "CREDENTIAL SOURCE", "TOOLS", "THINKING"]);
    for detail in records {
        let tools = detail.tool_usages.iter().map(|row| match row.injected {
            true => format!("{} (injected)", row.tool),
            false => row.tool.clone(),
        });
        let tools: Vec<String> = tools.collect();
        let thinking: Vec<&str> = detail.thoughts.iter().map(|row| row.content.as_str()).collect();
        table.row(&[
            detail.prompts.iter().map(|row| row.prompt.as_str()).collect(),
            detail.item.interception.credential_source.clone().unwrap_or_default(),
            tools.join(", "),
            thinking.join(" | "),
        ]);
    }
    table.print()
}
