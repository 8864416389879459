//! The figures that providers are known to send.

use serde_json::{Value as Json, json};

use super::{IterationKind, Observation, Observer, Usage, sse, usage};
use crate::Dialect;

/// Observes a whole answer.
fn whole(dialect: Dialect, body: &Json) -> Observation {
    let mut observer = Observer::body(dialect);
    observer.observe(body.to_string().as_bytes());
    observer.finish();
    observer.take()
}

/// Observes a stream of these events.
fn streamed(dialect: Dialect, events: &[Json]) -> Observation {
    let events: Vec<String> = events.iter().map(Json::to_string).collect();
    let mut observer = Observer::stream(dialect);
    observer.observe(sse(events.iter().map(|event| ("", event.as_str()))).as_bytes());
    observer.finish();
    observer.take()
}

/// The usage without its raw object, which must be the one that was sent.
fn read(observed: Observation, sent: &Json) -> Usage {
    let mut usage = *observed.usage.unwrap();
    assert_eq!(serde_json::from_str::<Json>(&std::mem::take(&mut usage.raw)).unwrap(), *sent);
    usage
}

/// Reads a usage object in all places where the OpenAI dialects have one.
fn openai(sent: &Json) -> Usage {
    let response = json!({"id": "r", "usage": sent});
    let places = [
        whole(Dialect::ChatCompletions, &json!({"choices": [], "usage": sent})),
        whole(Dialect::ChatCompletions, &json!({"choices": [{"usage": sent}], "usage": null})),
        whole(Dialect::ChatCompletions, &json!({"choices": [], "x_groq": {"usage": sent}})),
        streamed(Dialect::ChatCompletions, &[json!({"choices": [], "usage": sent})]),
        streamed(
            Dialect::ChatCompletions,
            &[json!({"choices": [{"delta": {}, "finish_reason": "stop", "usage": sent}]})],
        ),
        streamed(
            Dialect::ChatCompletions,
            &[
                json!({"choices": [{"delta": {}, "finish_reason": "stop"}]}),
                json!({"choices": [], "x_groq": {"id": "x", "usage": sent}}),
            ],
        ),
        whole(Dialect::Responses, &response),
        streamed(
            Dialect::Responses,
            &[json!({"type": "response.completed", "response": response})],
        ),
        streamed(
            Dialect::Responses,
            &[json!({"type": "response.completed", "response": {}, "usage": sent})],
        ),
    ];
    let mut places = places.into_iter().map(|place| {
        assert!(place.usage_is_final);
        read(place, sent)
    });
    let first = places.next().unwrap();
    assert!(places.all(|place| place == first), "{sent}");
    first
}

#[test]
fn figures_of_the_openai_dialects_are_read_in_every_spelling() {
    let none: [(&str, u64); 0] = [];
    for (sent, expected) in [
        (json!({"prompt_tokens": 9}), usage([Some(9), None, Some(0), Some(0)], none)),
        (json!({"output_tokens": 8}), usage([None, Some(8), None, None], none)),
        // Cache writes are part of the prompt.
        (
            json!({"prompt_tokens": 2600, "completion_tokens": 40,
                "prompt_tokens_details": {"cached_tokens": 1900, "cache_write_tokens": 512}}),
            usage([188, 40, 1900, 512], none),
        ),
        (
            json!({"input_tokens": 100, "output_tokens": 1,
                "input_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 30,
                    "cache_write_tokens_details": {"ttl_12h_tokens": 20}}}),
            Box::new(Usage {
                cache_write_long_tokens: Some(20),
                ..*usage([10, 1, 60, 30], [("cache_write_ttl_12h", 20)])
            }),
        ),
        (
            json!({"prompt_tokens": 100, "completion_tokens": 1, "cache_read_input_tokens": 60,
                "cache_creation_input_tokens": 30}),
            usage([10, 1, 60, 30], none),
        ),
        (
            json!({"prompt_tokens": 1300, "completion_tokens": 11, "prompt_cache_hit_tokens": 1280,
                "prompt_cache_miss_tokens": 20}),
            usage([20, 11, 1280, 0], [("prompt_cache_miss_tokens", 20)]),
        ),
        (
            json!({"prompt_tokens": 30, "completion_tokens": 2, "cached_tokens": 20}),
            usage([10, 2, 20, 0], none),
        ),
        // The first that is there counts, an explicit zero too.
        (
            json!({"prompt_tokens": 30, "completion_tokens": 2, "cached_tokens": 20,
                "prompt_tokens_details": {"cached_tokens": 0}}),
            usage([30, 2, 0, 0], none),
        ),
        (
            json!({"prompt_tokens": 30, "completion_tokens": 2, "cached_tokens": 20,
                "prompt_tokens_details": {"cached_tokens": null}}),
            usage([10, 2, 20, 0], none),
        ),
        (
            json!({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}),
            usage([Some(0), None, Some(4), Some(0)], none),
        ),
    ] {
        assert_eq!(openai(&sent), *expected, "{sent}");
    }
}

#[test]
fn the_total_shows_what_output_and_prompt_leave_out() {
    for (sent, expected) in [
        // Reasoning on top of the output, with and without its own figure.
        (
            json!({"prompt_tokens": 30, "completion_tokens": 4, "total_tokens": 434,
                "completion_tokens_details": {"reasoning_tokens": 400}}),
            [30, 404, 0, 0],
        ),
        (
            json!({"prompt_tokens": 30, "completion_tokens": 4, "total_tokens": 434}),
            [30, 404, 0, 0],
        ),
        // Reasoning within the output.
        (
            json!({"prompt_tokens": 30, "completion_tokens": 404, "total_tokens": 434,
                "completion_tokens_details": {"reasoning_tokens": 400}}),
            [30, 404, 0, 0],
        ),
        // A prompt without its cached part.
        (
            json!({"prompt_tokens": 30, "completion_tokens": 4, "total_tokens": 134,
                "cache_read_input_tokens": 100}),
            [30, 4, 100, 0],
        ),
        (
            json!({"prompt_tokens": 130, "completion_tokens": 4, "total_tokens": 234,
                "prompt_tokens_details": {"cached_tokens": 100},
                "completion_tokens_details": {"reasoning_tokens": 100}}),
            [30, 104, 100, 0],
        ),
        // No output at all.
        (json!({"prompt_tokens": 8, "total_tokens": 8}), [8, 0, 0, 0]),
        (json!({"prompt_tokens": 8, "completion_tokens": 3, "total_tokens": 2}), [8, 3, 0, 0]),
    ] {
        let read = openai(&sent);
        assert_eq!(read, Usage { extra: read.extra.clone(), ..*usage(expected, []) }, "{sent}");
        assert_eq!(read.extra["total_tokens"].as_u64(), sent["total_tokens"].as_u64());
    }
}

#[test]
fn every_other_number_is_kept() {
    let sent = json!({
        "prompt_tokens": 50, "completion_tokens": 9, "total_tokens": 59.0,
        "prompt_tokens_details": {"audio_tokens": 1, "image_tokens": 2, "video_tokens": 77},
        "completion_tokens_details": {"audio_tokens": 3, "reasoning_tokens": 4,
            "accepted_prediction_tokens": 5, "rejected_prediction_tokens": 6},
        "search_units": 4, "search_context_size": "low", "cost": 0.0042, "balance": -0.5,
        "cost_details": {"upstream_inference_cost": 1e-7, "nothing": null},
        "server_tool_use": {"web_search_requests": 2},
        "cache_creation": {"ephemeral_5m_input_tokens": 7},
        "cost_in_usd_ticks": 42_000_000, "list": [1, 2],
    });
    let expected = json!({
        "total_tokens": 59, "prompt_audio": 1, "prompt_image": 2, "prompt_video": 77,
        "completion_audio": 3, "completion_reasoning": 4, "completion_accepted_prediction": 5,
        "completion_rejected_prediction": 6, "search_units": 4, "cost": 0.0042, "balance": -0.5,
        "cost_details.upstream_inference_cost": 1e-7, "web_search_requests": 2,
        "ephemeral_5m_input_tokens": 7, "cost_in_usd_ticks": 42_000_000,
    });
    let read = openai(&sent);
    assert_eq!(json!(read.extra), expected);
    assert_eq!(read.cache_write_input_tokens, Some(7));
    let many = (0..500).map(|number| (format!("n{number}"), json!(number))).collect();
    assert_eq!(openai(&Json::Object(many)).extra.len(), 100);
}

#[test]
fn what_is_no_number_of_tokens_is_unknown() {
    for value in
        [json!("12"), json!(-5), json!(12.5), json!(u64::MAX), json!(1_u64 << 41), json!([1])]
    {
        let read = openai(&json!({"prompt_tokens": value, "completion_tokens": 3}));
        assert_eq!((read.input_tokens, read.output_tokens), (None, Some(3)), "{value}");
        assert!(read.is_unreadable);
        let start = json!({"type": "message_start", "message": {"usage": {"input_tokens": value,
            "output_tokens": 1}}});
        let end = json!({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 34.0}});
        let read = streamed(Dialect::Messages, &[start, end]).usage.unwrap();
        assert_eq!((read.input_tokens, read.output_tokens), (None, Some(34)), "{value}");
        assert!(read.is_unreadable);
    }
    let empty = json!({"prompt_tokens": null, "completion_tokens": null});
    for sent in [json!({}), empty] {
        assert_eq!(openai(&sent), Usage::default());
    }
}

#[test]
fn no_figure_of_a_stream_shrinks() {
    let chat = |figures: &[[u64; 3]]| {
        let chunk = |[prompt, completion, cached]: &[u64; 3]| {
            json!({"choices": [{"delta": {"content": "a"}}], "usage": {"prompt_tokens": prompt,
                "completion_tokens": completion,
                "prompt_tokens_details": {"cached_tokens": cached}}})
        };
        let chunks: Vec<Json> = figures.iter().map(chunk).collect();
        let read = *streamed(Dialect::ChatCompletions, &chunks).usage.unwrap();
        Usage { raw: String::new(), ..read }
    };
    assert_eq!(chat(&[[50, 1, 0], [50, 7, 20]]), *usage([30, 7, 20, 0], []));
    assert_eq!(chat(&[[50, 7, 20], [0, 0, 0]]), *usage([30, 7, 20, 0], []));
    assert_eq!(chat(&[[50, 7, 20], [50, 8, 0]]), *usage([30, 8, 20, 0], []));

    let messages = |first: Json, later: Json| {
        let start = json!({"type": "message_start", "message": {"usage": first}});
        let end = json!({"type": "message_delta", "delta": {}, "usage": later});
        let read = *streamed(Dialect::Messages, &[start, end]).usage.unwrap();
        Usage { raw: String::new(), ..read }
    };
    let figures = |input: u64, cache_read: u64, cache_write: u64, output: u64| {
        json!({"input_tokens": input, "cache_read_input_tokens": cache_read,
            "cache_creation_input_tokens": cache_write, "output_tokens": output})
    };
    for (first, later, expected) in [
        (figures(1521, 8800, 0, 0), figures(0, 0, 0, 44), [1521, 44, 8800, 0]),
        (figures(1521, 8800, 0, 9), figures(1600, 0, 3, 2), [1600, 9, 8800, 3]),
        (figures(21, 4000, 300, 1), figures(25, 4400, 350, 9), [25, 9, 4400, 350]),
        // The same prompt, divided otherwise.
        (figures(14, 0, 35203, 1), figures(14, 35203, 0, 2), [14, 2, 35203, 0]),
        (figures(21_000, 0, 0, 1), figures(500, 20_500, 0, 2), [500, 2, 20_500, 0]),
    ] {
        assert_eq!(messages(first.clone(), later), *usage(expected, []), "{first}");
    }
}

#[test]
fn the_split_of_cache_writes_is_kept_when_a_later_total_outgrows_it() {
    let start = json!({"type": "message_start", "message": {"usage": {"input_tokens": 21,
        "cache_creation_input_tokens": 300, "output_tokens": 1, "service_tier": "priority",
        "speed": "fast", "inference_geo": "us",
        "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200}}}});
    let end = json!({"type": "message_delta", "delta": {}, "usage": {
        "cache_creation_input_tokens": 450, "output_tokens": 7, "service_tier": null}});
    let seen = streamed(Dialect::Messages, &[start, end]);
    assert_eq!(seen.service_tier.as_deref(), Some("priority"));
    let read = read(
        seen,
        &json!({"input_tokens": 21, "cache_creation_input_tokens": 450, "output_tokens": 7,
            "service_tier": "priority", "speed": "fast", "inference_geo": "us",
            "cache_creation": {"ephemeral_5m_input_tokens": 100,
                "ephemeral_1h_input_tokens": 200}}),
    );
    assert_eq!((read.speed.as_deref(), read.region.as_deref()), (Some("fast"), Some("us")));
    assert_eq!(read.cache_write_input_tokens, Some(450));
    assert_eq!(read.cache_write_long_tokens, Some(200));
    assert_eq!(read.undivided_cache_write_tokens(), Some(150));
    assert_eq!(
        json!(read.extra),
        json!({"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200})
    );
}

fn entry(kind: &str, model: Option<&str>, [input, output]: [u64; 2]) -> Json {
    json!({"type": kind, "model": model, "input_tokens": input, "output_tokens": output})
}

/// The kind, the model, the input and the output of an iteration.
type Beyond<'a> = (IterationKind, Option<&'a str>, [Option<u64>; 2]);

/// What lies beyond the totals.
fn beyond(seen: &Observation) -> Vec<Beyond<'_>> {
    let iterations = seen.usage.as_ref().unwrap().iterations.iter();
    iterations
        .map(|one| {
            (one.kind, one.model.as_deref(), [one.usage.input_tokens, one.usage.output_tokens])
        })
        .collect()
}

#[test]
fn iterations_beyond_the_totals_are_found() {
    use IterationKind::{Advisor, Compaction, Fallback};
    let own = entry("message", None, [900, 30]);
    let last = entry("fallback_message", Some("other"), [900, 60]);
    let compaction = entry("compaction", None, [18_000, 1_500]);
    let advice = entry("advisor_message", Some("wise"), [700, 70]);
    for (totals, iterations, served, expected) in [
        ([900, 30], json!([own]), "first", vec![]),
        (
            [900, 30],
            json!([compaction, own]),
            "first",
            vec![(Compaction, None, [Some(18_000), Some(1_500)])],
        ),
        ([1800, 60], json!([own, own]), "first", vec![]),
        (
            [900, 30],
            json!([own, advice]),
            "first",
            vec![(Advisor, Some("wise"), [Some(700), Some(70)])],
        ),
        ([900, 60], json!([own, last]), "other", vec![(Fallback, None, [Some(900), Some(30)])]),
        // The totals contain both.
        ([1800, 90], json!([own, last]), "other", vec![]),
        (
            [1800, 90],
            json!([compaction, own, last]),
            "other",
            vec![(Compaction, None, [Some(18_000), Some(1_500)])],
        ),
        // The totals are those of the first model.
        (
            [900, 30],
            json!([own, last]),
            "first",
            vec![(Fallback, Some("other"), [Some(900), Some(60)])],
        ),
    ] {
        let usage = json!({"input_tokens": totals[0], "output_tokens": totals[1],
            "iterations": iterations});
        let start = json!({"type": "message_start", "message": {"model": "first", "usage":
            {"input_tokens": 900, "output_tokens": 1}}});
        let end = json!({"type": "message_delta", "delta": {}, "usage": usage});
        for seen in [
            whole(Dialect::Messages, &json!({"model": "first", "content": [], "usage": usage})),
            streamed(Dialect::Messages, &[start, end]),
        ] {
            assert_eq!(seen.model.as_deref(), Some(served), "{usage}");
            assert_eq!(beyond(&seen), expected, "{usage}");
        }
    }
}

#[test]
fn the_model_after_a_fallback_at_the_provider_is_the_one_that_served() {
    let block = |from: &str, to: &str| {
        json!({"type": "fallback", "from": {"model": from}, "to": {"model": to},
            "trigger": {"type": "refusal"}})
    };
    let start = |index: u8, block: Json| json!({"type": "content_block_start", "index": index, "content_block": block});
    let (first, second) = (block("a", "b"), block("b", "c"));
    for seen in [
        whole(Dialect::Messages, &json!({"model": "a", "content": [first, second]})),
        streamed(
            Dialect::Messages,
            &[
                json!({"type": "message_start", "message": {"model": "a"}}),
                start(0, first.clone()),
                start(1, second.clone()),
            ],
        ),
    ] {
        assert_eq!(seen.model.as_deref(), Some("c"));
        assert_eq!(seen.declined_model.as_deref(), Some("a"));
    }
}

#[test]
fn the_service_tier_of_the_answer_is_read() {
    let chunk = |tier: Json| json!({"choices": [], "service_tier": tier});
    let response = |tier: &str| json!({"id": "r", "service_tier": tier});
    for seen in [
        whole(Dialect::ChatCompletions, &chunk(json!("flex"))),
        streamed(
            Dialect::ChatCompletions,
            &[chunk(json!("auto")), chunk(json!("flex")), chunk(json!(null))],
        ),
        whole(Dialect::Responses, &response("flex")),
        streamed(
            Dialect::Responses,
            &[
                json!({"type": "response.created", "response": response("auto")}),
                json!({"type": "response.completed", "response": response("flex")}),
            ],
        ),
    ] {
        assert_eq!(seen.service_tier.as_deref(), Some("flex"));
    }
}

#[test]
fn figures_that_amazon_bedrock_adds_count_where_the_stream_has_none() {
    let metrics = json!({"inputTokenCount": 7, "outputTokenCount": 3, "cacheReadInputTokenCount": 2,
        "invocationLatency": 900});
    let stop = json!({"type": "message_stop", "amazon-bedrock-invocationMetrics": metrics});
    let start = json!({"type": "message_start", "message": {"id": "m"}});
    let seen = streamed(Dialect::Messages, &[start, stop.clone()]);
    assert!(seen.usage_is_final);
    let read = seen.usage.unwrap();
    assert_eq!((read.input_tokens, read.output_tokens), (Some(7), Some(3)));
    assert_eq!(read.cache_read_input_tokens, Some(2));
    let delta = json!({"type": "message_delta", "usage": {"input_tokens": 1, "output_tokens": 1}});
    let read = streamed(Dialect::Messages, &[delta, stop]).usage.unwrap();
    assert_eq!((read.input_tokens, read.output_tokens), (Some(1), Some(1)));
}
