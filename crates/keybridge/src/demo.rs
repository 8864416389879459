//! `keybridge demo`: a tour over real HTTP against simulated providers, and the trail it leaves.

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use keybridge_ledger::{
    InterceptionDetail, Ledger,
    record::{Outcome, Quality},
};
use keybridge_telemetry::log;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use crate::{
    cli::{Cli, DemoOptions, Exit, interceptions},
    config::{Config, Overrides},
    env::Env,
    print::Table,
    serve::{self, Given, Server},
    signals::End,
    simulate::Simulated,
};

/// The user's own credential on the tour; only the simulated provider ever sees it.
const OWN_CREDENTIAL: &str = "sk-my-own-key-0123456789";

/// One request of the tour.
#[derive(Debug, Clone, Copy)]
struct Stop {
    endpoint: &'static str,
    whose: Whose,
    streaming: bool,
    scenario: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Company,
    Own,
}

const MESSAGES: &str = "/anthropic/v1/messages";
const CHAT: &str = "/openai/v1/chat/completions";
const RESPONSES: &str = "/openai/v1/responses";
const COPILOT: &str = "/copilot/chat/completions";

const fn stop(
    endpoint: &'static str,
    whose: Whose,
    streaming: bool,
    scenario: &'static str,
) -> Stop {
    Stop { endpoint, whose, streaming, scenario }
}

/// A model that calls an injected tool where there is one.
const INJECTED: &str = "agent";

/// Each dialect with the company's key and with an own credential, streaming and not; then with an
/// injected tool.
const TOUR: [Stop; 17] = [
    stop(MESSAGES, Whose::Company, true, "thinking+tool"),
    stop(MESSAGES, Whose::Company, false, "cached"),
    stop(MESSAGES, Whose::Own, true, "text"),
    stop(MESSAGES, Whose::Own, false, "tool"),
    stop(CHAT, Whose::Company, true, "parallel-tools"),
    stop(CHAT, Whose::Company, false, "text"),
    stop(CHAT, Whose::Own, true, "reasoning"),
    stop(CHAT, Whose::Own, false, "cached"),
    stop(RESPONSES, Whose::Company, true, "reasoning+tool"),
    stop(RESPONSES, Whose::Company, false, "commentary"),
    stop(RESPONSES, Whose::Own, true, "custom-tool"),
    stop(RESPONSES, Whose::Own, false, "web-search"),
    stop(COPILOT, Whose::Own, true, "text"),
    stop(COPILOT, Whose::Own, false, "tool"),
    stop(MESSAGES, Whose::Company, true, INJECTED),
    stop(CHAT, Whose::Own, false, INJECTED),
    stop(RESPONSES, Whose::Company, true, INJECTED),
];

pub(crate) fn command(cli: &Cli, options: &DemoOptions) -> Result<(), Exit> {
    let dir = tempfile::tempdir()?;
    let overrides = Overrides {
        listen: Some(if options.exit { "127.0.0.1:0" } else { "127.0.0.1:8787" }.into()),
        store: Some(format!("sqlite://{}", dir.path().join("demo.db").display())),
    };
    // The demonstration is the same everywhere: neither file nor environment count.
    let mut config = Config::load(None, &Env::default(), &overrides).map_err(Exit::Config)?;
    config.log.level = "warn".into();
    log::start(&config.log);
    config.ledger.spool = None;
    let ledger = Cli::open_to_serve(&config)?;
    serve::block_on(async {
        let server =
            Server::start(config, ledger, Simulated::ProvidersAndTools, Given::default()).await?;
        let Some(token) = server.first_token.clone() else {
            return Err(anyhow::anyhow!("the demonstration's store is not new").into());
        };
        let (url, ledger) = (server.public_url.clone(), server.ledger.clone());
        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        if options.exit {
            let serving = tasks.spawn(server.serve(shutdown.clone()));
            let toured = tour(cli, &url, token.expose(), &ledger).await;
            shutdown.cancel();
            serving.await.map_err(anyhow::Error::from)??;
            return Ok(toured?);
        }
        let end = End::listen()?;
        let touring = async {
            tour(cli, &url, token.expose(), &ledger).await?;
            eprintln!("\nthe bridge goes on at {url} with the token {}", token.expose());
            eprintln!("its records: {url}/api/v1/interceptions; Ctrl-C ends");
            anyhow::Ok(())
        };
        let serving = server.until_told(end);
        tokio::pin!(serving);
        tokio::select! {
            ended = &mut serving => return ended,
            toured = touring => toured?,
        }
        serving.await
    })
}

/// Makes every request, checks its record and prints the trail.
async fn tour(cli: &Cli, url: &str, token: &str, ledger: &Ledger) -> anyhow::Result<()> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let mut trail = Vec::new();
    for (number, stop) in TOUR.iter().enumerate() {
        let wish = if stop.scenario == INJECTED { ": use the injected tool" } else { "" };
        let prompt = format!("Stop {} of the tour{wish}", number + 1);
        let what = format!("{} ({:?}, streaming: {})", stop.endpoint, stop.whose, stop.streaming);
        let id = visit(&client, url, token, stop, &prompt).await.with_context(|| what.clone())?;
        let detail = settled(ledger, id).await?;
        check(stop, &prompt, &detail).with_context(|| what)?;
        eprintln!("{:>2} ok  {} {}", number + 1, stop.endpoint, stop.scenario);
        trail.push(detail);
    }
    show(cli, &trail).map_err(|exit| anyhow::anyhow!("the trail cannot be printed: {exit:?}"))
}

async fn visit(
    client: &Client<HttpConnector, Full<Bytes>>,
    url: &str,
    token: &str,
    stop: &Stop,
    prompt: &str,
) -> anyhow::Result<Uuid> {
    let (model, stream) = (format!("sim-{}", stop.scenario), stop.streaming);
    let body = match stop.endpoint {
        RESPONSES => serde_json::json!({ "model": model, "stream": stream, "input": prompt }),
        _ => serde_json::json!({
            "model": model, "stream": stream, "max_tokens": 1_000,
            "messages": [{ "role": "user", "content": prompt }],
        }),
    };
    let request = Request::post(format!("{url}{}", stop.endpoint))
        .header("content-type", "application/json")
        .header("user-agent", "keybridge-demo");
    let request = match stop.whose {
        Whose::Company => request.header("authorization", format!("Bearer {token}")),
        Whose::Own => request
            .header("x-ai-governance-token", token)
            .header("authorization", format!("Bearer {OWN_CREDENTIAL}")),
    };
    let response = client.request(request.body(Full::new(body.to_string().into()))?).await?;
    let status = response.status();
    let id = response.headers().get("x-keybridge-interception-id").cloned();
    let body = response.into_body().collect().await?.to_bytes();
    ensure!(status.is_success(), "answered {status}: {}", String::from_utf8_lossy(&body));
    ensure!(!body.is_empty(), "answered nothing");
    Ok(id.context("the answer names no interception")?.to_str()?.parse()?)
}

/// The record of a request whose answer has been read.
async fn settled(ledger: &Ledger, id: Uuid) -> anyhow::Result<InterceptionDetail> {
    let recorder = ledger.recorder();
    recorder.drained().await;
    let ledger = ledger.clone();
    let found = tokio::task::spawn_blocking(move || ledger.interception(id)).await??;
    found.context("the request left no record")
}

/// Whether a record says what was done.
fn check(stop: &Stop, prompt: &str, detail: &InterceptionDetail) -> anyhow::Result<()> {
    let record = &detail.item.interception;
    ensure!(record.outcome == Outcome::Completed, "recorded as {}", record.outcome);
    ensure!(detail.item.user == "admin", "recorded for {}", detail.item.user);
    let (kind, hint) = match stop.whose {
        Whose::Company => ("centralized", "sk-s...6789"),
        Whose::Own => ("byok", "sk-m...6789"),
    };
    ensure!(record.credential_kind.as_deref() == Some(kind), "not recorded as {kind}");
    ensure!(record.credential_hint.as_deref() == Some(hint), "the hint is not {hint}");
    ensure!(record.streaming == stop.streaming, "streaming is recorded wrongly");
    let prompts: Vec<&str> = detail.prompts.iter().map(|row| row.prompt.as_str()).collect();
    ensure!(prompts == [prompt], "the prompts are {prompts:?}");
    let turns = if stop.scenario == INJECTED { 2 } else { 1 };
    ensure!(detail.token_usages.len() == turns, "{} rows of tokens", detail.token_usages.len());
    for usage in &detail.token_usages {
        ensure!(usage.quality == Quality::Exact, "the tokens are {}", usage.quality);
        ensure!(usage.input_tokens == Some(keybridge_sim::INPUT_TOKENS), "input tokens are wrong");
        ensure!(
            usage.output_tokens == Some(keybridge_sim::OUTPUT_TOKENS),
            "output tokens are wrong"
        );
    }
    let has_tools =
        ["tool", "web-search", INJECTED].iter().any(|word| stop.scenario.contains(word));
    ensure!(detail.tool_usages.is_empty() != has_tools, "tool calls are recorded wrongly");
    for tool in &detail.tool_usages {
        ensure!(tool.injected == (stop.scenario == INJECTED), "{} is recorded wrongly", tool.tool);
        ensure!(tool.invocation_error.is_none(), "{} failed", tool.tool);
    }
    Ok(())
}

fn show(cli: &Cli, trail: &[InterceptionDetail]) -> Result<(), Exit> {
    if cli.json {
        return crate::print::json_lines(trail);
    }
    let items: Vec<_> = trail.iter().map(|detail| detail.item.clone()).collect();
    println!("\nThe trail: who asked for what, with whose credential, and what it took\n");
    interceptions::table(&items).print()?;
    println!("\nPrompts, tools and thoughts\n");
    let mut table = Table::new(["PROMPT", "SOURCE", "TOOLS", "THOUGHTS"]);
    for detail in trail {
        let tools = detail.tool_usages.iter().map(|row| match row.injected {
            true => format!("{} (injected)", row.tool),
            false => row.tool.clone(),
        });
        let tools: Vec<String> = tools.collect();
        let thoughts: Vec<&str> = detail.thoughts.iter().map(|row| row.content.as_str()).collect();
        table.row(&[
            detail.prompts.iter().map(|row| row.prompt.as_str()).collect(),
            detail.item.interception.credential_source.clone().unwrap_or_default(),
            tools.join(", "),
            thoughts.join(" | "),
        ]);
    }
    table.print()
}
