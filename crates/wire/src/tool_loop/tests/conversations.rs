//! Arbitrary conversations: streams and complete responses agree, and the client's next request is
//! restored to what the provider has seen.

use super::{chat, history, messages, responses, *};

/// A part of a model's output in a turn.
#[derive(Debug, Clone)]
enum OutputPiece {
    Text(&'static str),
    Thought(&'static str),
    /// A call of an injected tool.
    Hidden(&'static str),
    /// A call of a client's tool.
    Own(&'static str),
}

use OutputPiece::{Hidden, Own, Text, Thought};

fn words() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["a", "é\"\\", "😀\n", " x/y ", "\u{7f}\u{2028}"])
}

fn arguments() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["{}", r#"{"a":1}"#, r#"{"é":["\"","\\n"]}"#])
}

fn visible_piece() -> impl Strategy<Value = OutputPiece> {
    prop_oneof![words().prop_map(Text), words().prop_map(Thought)]
}

/// Turns that end in hidden calls only, except for the last one.
fn turns() -> impl Strategy<Value = Vec<Vec<OutputPiece>>> {
    let hidden = || arguments().prop_map(Hidden);
    let past = prop::collection::vec(prop_oneof![visible_piece(), hidden()], 0..4);
    let past = (past, hidden()).prop_map(|(mut said, call)| {
        said.push(call);
        said
    });
    let last = prop_oneof![visible_piece(), hidden(), arguments().prop_map(Own)];
    let last = (prop::collection::vec(last, 1..6), arguments()).prop_map(|(mut said, call)| {
        let is_mixed = |said: &[OutputPiece]| said.iter().any(|said| matches!(said, Own(_)));
        if !is_mixed(&said) && said.iter().any(|said| matches!(said, Hidden(_))) {
            said.push(Own(call));
        }
        said
    });
    (prop::collection::vec(past, 0..3), last).prop_map(|(mut turns, last)| {
        turns.push(last);
        turns
    })
}

fn signature(turn: usize, part: usize) -> String {
    format!("{:x>60}", format!("{turn}-{part}"))
}

fn has_calls(said: &[OutputPiece]) -> bool {
    said.iter().any(|said| matches!(said, Hidden(_) | Own(_)))
}

/// How a dialect represents output.
trait DialectFormat {
    const DIALECT: Dialect;
    const CONVERSATION: &'static str;

    fn response(turn: usize, said: &[OutputPiece]) -> Json;
    /// The same response as a stream.
    fn to_stream(response: &Json) -> String;
    /// A stream assembled again, reduced to what can be compared.
    fn assemble(stream: &str) -> Json;
    /// A complete response, reduced to what can be compared.
    fn comparable(response: &Json) -> Json;
    /// What a client adds to its conversation after a response.
    fn client_turn(response: &Json) -> Vec<Json>;
    /// Checks that a restored request extends what the provider has seen.
    fn check_extends(seen: &[Json], restored: &[Json], replied: &[Json]);
}

fn request<S: DialectFormat>(added: &[Json]) -> Json {
    let mut conversation = vec![json!({ "role": "user", "content": "hi" })];
    conversation.extend_from_slice(added);
    json!({ "model": "m", S::CONVERSATION: conversation })
}

fn check<S: DialectFormat>(turns: &[Vec<OutputPiece>], cut: usize) {
    let asking = || ClientView { wants_usage: true, ..client() };
    let bodies: Vec<Json> =
        turns.iter().enumerate().map(|(number, said)| S::response(number, said)).collect();
    let first = request::<S>(&[]);
    let (merged, requests) = run_bodies(S::DIALECT, asking(), &first.to_string(), &bodies);
    let streams: Vec<String> = bodies.iter().map(S::to_stream).collect();
    let run = run_streams(S::DIALECT, asking(), &first.to_string(), &streams, cut);

    assert_eq!(S::assemble(&run.shown), S::comparable(&merged));
    assert!(!run.shown.contains("bmcp_"), "{}", run.shown);
    assert_eq!(run.requests.len(), requests.len());
    for (streamed, whole) in run.requests.iter().zip(&requests) {
        let json = |text: &str| -> Json { serde_json::from_str(text).unwrap() };
        assert_eq!(json(streamed), json(whole));
    }
    let sent = [vec![first.to_string()], run.requests.clone()].concat();
    sent.windows(2).for_each(|pair| extends(&pair[0], &pair[1], S::CONVERSATION));

    let seen = observed(S::DIALECT, &run.shown);
    assert!(seen.error.is_none() && seen.usage_is_final);
    let count = u64::try_from(turns.len()).unwrap();
    assert_eq!(seen.usage.unwrap().output_tokens, Some(5 * count));
    let names = seen.tool_calls.iter().map(|call| call.name.as_str());
    assert!(names.eq(run.last.client_calls.iter().map(|_| "bash")));

    let (seen, continuation) = history::conversation(S::DIALECT, &first, &bodies);
    let replied = S::client_turn(&merged);
    let next = request::<S>(&replied);
    for continuation in [continuation, run.continuation] {
        let restored = history::restore(S::DIALECT, &next, &continuation);
        assert_eq!(restored.is_some(), !continuation.entries.is_empty(), "{continuation:?}");
        let Some(restored) = restored else { continue };
        let list = restored[S::CONVERSATION].as_array().unwrap();
        S::check_extends(&seen, list, &replied);
        assert_eq!(history::restore(S::DIALECT, &restored, &continuation), None, "only once");
    }
}

struct Messages;

impl DialectFormat for Messages {
    const DIALECT: Dialect = Dialect::Messages;
    const CONVERSATION: &'static str = "messages";

    fn response(turn: usize, said: &[OutputPiece]) -> Json {
        let tool = |part: usize, name: &str, arguments: &str| {
            let input: Json = serde_json::from_str(arguments).unwrap();
            json!({ "type": "tool_use", "id": format!("c{turn}_{part}"), "name": name, "input": input })
        };
        let blocks = said.iter().enumerate().map(|(part, said)| match said {
            Text(text) => json!({ "type": "text", "text": text }),
            Thought(text) => {
                json!({ "type": "thinking", "thinking": text, "signature": signature(turn, part) })
            }
            Hidden(arguments) => tool(part, ECHO, arguments),
            Own(arguments) => tool(part, "bash", arguments),
        });
        let blocks: Vec<Json> = blocks.collect();
        let stop = if has_calls(said) { "tool_use" } else { "end_turn" };
        json!({
            "id": format!("msg_{turn}"), "type": "message", "role": "assistant", "model": "m",
            "content": blocks, "stop_reason": stop,
            "usage": { "input_tokens": 10, "output_tokens": 5 },
        })
    }

    fn to_stream(response: &Json) -> String {
        let mut head = response.clone();
        head["content"] = json!([]);
        head["stop_reason"] = Json::Null;
        head["usage"]["output_tokens"] = json!(1);
        let mut stream = messages::event("message_start", json!({ "message": head }));
        for (index, block) in response["content"].as_array().unwrap().iter().enumerate() {
            let mut start = block.clone();
            let mut deltas = Vec::new();
            let mut delta = |kind: &str, key: &str, text: &str| {
                deltas.push(messages::event(
                    "content_block_delta",
                    json!({ "index": index, "delta": { "type": kind, key: text } }),
                ));
            };
            match block["type"].as_str().unwrap() {
                "text" => delta("text_delta", "text", block["text"].as_str().unwrap()),
                "thinking" => {
                    delta("thinking_delta", "thinking", block["thinking"].as_str().unwrap());
                    delta("signature_delta", "signature", block["signature"].as_str().unwrap());
                }
                _ => {
                    let input = block["input"].to_string();
                    let (one, two) = input.split_at(1);
                    delta("input_json_delta", "partial_json", one);
                    delta("input_json_delta", "partial_json", two);
                }
            }
            for key in ["text", "thinking", "signature"] {
                if let Some(text) = start.get_mut(key) {
                    *text = "".into();
                }
            }
            if let Some(input) = start.get_mut("input") {
                *input = json!({});
            }
            stream += &messages::event(
                "content_block_start",
                json!({ "index": index, "content_block": start }),
            );
            stream += &deltas.concat();
            stream += &messages::event("content_block_stop", json!({ "index": index }));
        }
        let delta = json!({ "stop_reason": response["stop_reason"] });
        let usage = json!({ "output_tokens": 5 });
        stream += &messages::event("message_delta", json!({ "delta": delta, "usage": usage }));
        stream + &messages::event("message_stop", json!({}))
    }

    fn assemble(stream: &str) -> Json {
        let mut message = messages::message(stream);
        for block in message["content"].as_array_mut().unwrap() {
            if let Some(json) = block.as_object_mut().unwrap().remove("json") {
                block["input"] = serde_json::from_str(json.as_str().unwrap()).unwrap();
            }
        }
        message
    }

    fn comparable(response: &Json) -> Json {
        response.clone()
    }

    fn client_turn(response: &Json) -> Vec<Json> {
        let blocks = response["content"].as_array().unwrap();
        let own = blocks.iter().filter(|block| block["type"] == "tool_use");
        let results: Vec<Json> = own
            .map(|block| json!({ "type": "tool_result", "tool_use_id": block["id"], "content": "own" }))
            .collect();
        let content = if results.is_empty() { "and now?".into() } else { Json::from(results) };
        vec![
            json!({ "role": "assistant", "content": blocks }),
            json!({ "role": "user", "content": content }),
        ]
    }

    fn check_extends(seen: &[Json], restored: &[Json], replied: &[Json]) {
        let (hidden, seen) = seen.split_last().unwrap();
        let (last, restored) = restored.split_last().unwrap();
        assert_eq!(restored, seen, "what the provider has seen and said");
        let own = &replied[1]["content"];
        let expected = match own.as_array() {
            Some(own) => {
                Json::from([hidden["content"].as_array().unwrap().clone(), own.clone()].concat())
            }
            None => own.clone(),
        };
        assert_eq!(last["content"], expected);
    }
}

struct Chat;

impl DialectFormat for Chat {
    const DIALECT: Dialect = Dialect::ChatCompletions;
    const CONVERSATION: &'static str = "messages";

    fn response(turn: usize, said: &[OutputPiece]) -> Json {
        let (mut text, mut thoughts, mut list) = (String::new(), String::new(), Vec::new());
        for (part, said) in said.iter().enumerate() {
            let mut call = |name: &str, arguments: &str| {
                list.push(json!({ "id": format!("c{turn}_{part}"), "type": "function",
                    "function": { "name": name, "arguments": arguments } }));
            };
            match said {
                Text(said) => text += said,
                Thought(said) => thoughts += said,
                Hidden(arguments) => call(ECHO, arguments),
                Own(arguments) => call("bash", arguments),
            }
        }
        let mut message = json!({ "role": "assistant", "content": null });
        if !text.is_empty() {
            message["content"] = text.into();
        }
        if !thoughts.is_empty() {
            message["reasoning_content"] = thoughts.into();
        }
        if !list.is_empty() {
            message["tool_calls"] = list.into();
        }
        let finish = if has_calls(said) { "tool_calls" } else { "stop" };
        json!({ "id": format!("c{turn}"), "object": "chat.completion",
            "choices": [{ "index": 0, "message": message, "finish_reason": finish }],
            "usage": { "prompt_tokens": 10, "completion_tokens": 5 } })
    }

    fn to_stream(response: &Json) -> String {
        let id = response["id"].as_str().unwrap();
        let choice = &response["choices"][0];
        let message = &choice["message"];
        let mut stream = chat::delta(id, json!({ "role": "assistant", "content": "" }));
        for key in ["reasoning_content", "content"] {
            for letter in message[key].as_str().unwrap_or_default().chars() {
                stream += &chat::delta(id, json!({ key: letter.to_string() }));
            }
        }
        for (index, call) in message["tool_calls"].as_array().into_iter().flatten().enumerate() {
            let mut first = call.clone();
            first["index"] = json!(index);
            first["function"]["arguments"] = "".into();
            stream += &chat::delta(id, json!({ "tool_calls": [first] }));
            let arguments = &call["function"]["arguments"];
            let more = json!({ "index": index, "function": { "arguments": arguments } });
            stream += &chat::delta(id, json!({ "tool_calls": [more] }));
        }
        let end = json!([{ "index": 0, "delta": {}, "finish_reason": choice["finish_reason"] }]);
        stream += &chat::chunk(id, end, Json::Null);
        stream += &chat::chunk(id, json!([]), response["usage"].clone());
        stream + "data: [DONE]\n\n"
    }

    fn assemble(stream: &str) -> Json {
        let mut gathered = chat::completion(stream);
        for call in gathered["message"]["tool_calls"].as_array_mut().unwrap() {
            call.as_object_mut().unwrap().remove("index");
        }
        gathered
    }

    fn comparable(response: &Json) -> Json {
        let choice = &response["choices"][0];
        let mut message = choice["message"].clone();
        if message["content"].is_null() {
            message["content"] = "".into();
        }
        if message["tool_calls"].is_null() {
            message["tool_calls"] = json!([]);
        }
        json!({ "id": response["id"], "message": message, "finish": choice["finish_reason"],
            "usage": response["usage"] })
    }

    fn client_turn(response: &Json) -> Vec<Json> {
        let message = &response["choices"][0]["message"];
        let own = message["tool_calls"].as_array().into_iter().flatten();
        let results =
            own.map(|call| json!({ "role": "tool", "tool_call_id": call["id"], "content": "own" }));
        [message.clone()].into_iter().chain(results).collect()
    }

    fn check_extends(seen: &[Json], restored: &[Json], replied: &[Json]) {
        assert_eq!(restored[..seen.len()], *seen, "what the provider has seen and said");
        assert_eq!(restored[seen.len()..], replied[1..]);
    }
}

struct Responses;

impl DialectFormat for Responses {
    const DIALECT: Dialect = Dialect::Responses;
    const CONVERSATION: &'static str = "input";

    fn response(turn: usize, said: &[OutputPiece]) -> Json {
        let call = |part: usize, name: &str, arguments: &str| {
            json!({ "type": "function_call", "id": format!("fc{turn}_{part}"), "name": name,
                "call_id": format!("c{turn}_{part}"), "arguments": arguments })
        };
        let items = said.iter().enumerate().map(|(part, said)| match said {
            Text(text) => json!({ "type": "message", "id": format!("m{turn}_{part}"),
                "role": "assistant", "content": [{ "type": "output_text", "text": text }] }),
            Thought(text) => json!({ "type": "reasoning", "id": format!("r{turn}_{part}"),
                "summary": [{ "type": "summary_text", "text": text }],
                "encrypted_content": signature(turn, part) }),
            Hidden(arguments) => call(part, ECHO, arguments),
            Own(arguments) => call(part, "bash", arguments),
        });
        let items: Vec<Json> = items.collect();
        responses::response(&format!("resp_{turn}"), "completed", &items)
    }

    fn to_stream(response: &Json) -> String {
        responses::turn(
            response["id"].as_str().unwrap(),
            response["output"].as_array().unwrap(),
            "completed",
        )
    }

    fn assemble(stream: &str) -> Json {
        responses::whole(stream)
    }

    fn comparable(response: &Json) -> Json {
        response.clone()
    }

    fn client_turn(response: &Json) -> Vec<Json> {
        let items = response["output"].as_array().unwrap();
        let own = items.iter().filter(|item| item["type"] == "function_call");
        let outputs = own.map(|item| {
            json!({ "type": "function_call_output", "call_id": item["call_id"], "output": "own" })
        });
        items.iter().cloned().chain(outputs).collect()
    }

    fn check_extends(seen: &[Json], restored: &[Json], replied: &[Json]) {
        assert_eq!(restored[..seen.len()], *seen, "what the provider has seen and said");
        let own = replied.iter().filter(|item| item["type"] == "function_call_output");
        assert!(restored[seen.len()..].iter().eq(own));
    }
}

proptest! {
    #[test]
    fn messages_streams_and_bodies_agree(turns in turns(), cut in 1_usize..400) {
        check::<Messages>(&turns, cut);
    }

    #[test]
    fn chat_streams_and_bodies_agree(turns in turns(), cut in 1_usize..400) {
        check::<Chat>(&turns, cut);
    }

    #[test]
    fn responses_streams_and_bodies_agree(turns in turns(), cut in 1_usize..400) {
        check::<Responses>(&turns, cut);
    }
}
