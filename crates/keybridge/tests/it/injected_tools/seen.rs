//! Responses as clients assemble them, as strict as the SDKs.

use serde_json::{Value, json};

use super::{CHAT, MESSAGES};
use crate::support::{Answer, StatusAndBody};

/// What a client reads from a response.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) status: u16,
    pub(crate) id: String,
    /// All text.
    pub(crate) text: String,
    /// What it sends back as the model's turn: content blocks, a message or output items.
    pub(crate) said: Value,
    /// The ids of the tool calls that it has to make.
    pub(crate) calls: Vec<String>,
    /// Input tokens, cached ones included where the dialect does so, and output tokens.
    pub(crate) tokens: (u64, u64),
    pub(crate) stop: String,
    /// The message of an error, in an event or as the whole response.
    pub(crate) error: Option<String>,
    pub(crate) raw: String,
}

impl StatusAndBody for Seen {
    fn status(&self) -> u16 {
        self.status
    }

    fn shown_body(&self) -> String {
        self.raw.clone()
    }
}

impl Seen {
    pub(crate) fn read((path, stream): (&str, bool), answer: &Answer) -> Self {
        let raw = answer.text();
        let mut seen = Self { status: answer.status.as_u16(), raw, ..Self::default() };
        let is_stream = answer.headers["content-type"].to_str().unwrap().contains("event-stream");
        assert!(stream || !is_stream);
        if is_stream {
            let events = events(&seen.raw);
            match path {
                MESSAGES => seen.message_stream(&events),
                CHAT => seen.chat_stream(&events),
                _ => seen.response_stream(&events),
            }
            return seen;
        }
        let body = answer.json();
        if let Some(message) = body["error"]["message"].as_str() {
            seen.error = Some(message.to_owned());
            return seen;
        }
        match path {
            MESSAGES => seen.message(&body),
            CHAT => seen.completion(&body),
            _ => seen.response(&body),
        }
        seen
    }

    fn message(&mut self, message: &Value) {
        self.id = text(&message["id"]);
        self.stop = text(&message["stop_reason"]);
        self.tokens = tokens(&message["usage"], "input_tokens", "output_tokens");
        self.said = message["content"].clone();
        for block in message["content"].as_array().unwrap() {
            self.text += block["text"].as_str().unwrap_or_default();
            if block["type"] == "tool_use" {
                self.calls.push(text(&block["id"]));
            }
        }
    }

    fn message_stream(&mut self, events: &[Value]) {
        let mut message = Value::Null;
        let mut blocks: Vec<Value> = Vec::new();
        for event in events {
            match event["type"].as_str().unwrap() {
                "message_start" => {
                    assert!(message.is_null(), "one message_start");
                    message = event["message"].clone();
                }
                "content_block_start" => {
                    assert_eq!(event["index"], blocks.len(), "indexes are consecutive");
                    blocks.push(event["content_block"].clone());
                }
                "content_block_delta" => {
                    assert_eq!(event["index"], blocks.len() - 1);
                    let block = blocks.last_mut().unwrap();
                    let delta = event["delta"].as_object().unwrap().iter();
                    for (key, added) in delta.filter(|(key, _)| *key != "type") {
                        block[key] = format!("{}{}", text(&block[key]), text(added)).into();
                    }
                }
                "message_delta" => {
                    message["stop_reason"] = event["delta"]["stop_reason"].clone();
                    for (key, figure) in event["usage"].as_object().unwrap() {
                        message["usage"][key] = figure.clone();
                    }
                }
                "error" => self.error = Some(text(&event["error"]["message"])),
                _ => {}
            }
        }
        for block in &mut blocks {
            if let Some(json) = block.as_object_mut().unwrap().remove("partial_json") {
                block["input"] = serde_json::from_str(json.as_str().unwrap()).unwrap();
            }
        }
        message["content"] = blocks.into();
        self.message(&message);
    }

    fn completion(&mut self, completion: &Value) {
        let choice = &completion["choices"][0];
        self.id = text(&completion["id"]);
        self.stop = text(&choice["finish_reason"]);
        self.tokens = tokens(&completion["usage"], "prompt_tokens", "completion_tokens");
        self.text = text(&choice["message"]["content"]);
        self.said = choice["message"].clone();
        let calls = choice["message"]["tool_calls"].as_array().into_iter().flatten();
        self.calls = calls.map(|call| text(&call["id"])).collect();
    }

    fn chat_stream(&mut self, events: &[Value]) {
        let mut message = json!({ "role": "assistant", "content": "" });
        let mut completion = json!({ "choices": [{}] });
        for chunk in events {
            if chunk["error"].is_object() {
                self.error = Some(text(&chunk["error"]["message"]));
                continue;
            }
            let known = completion["id"].clone();
            assert!(known.is_null() || known == chunk["id"], "one id throughout");
            completion["id"] = chunk["id"].clone();
            if chunk["usage"].is_object() {
                completion["usage"] = chunk["usage"].clone();
            }
            let Some(choice) = chunk["choices"].get(0) else { continue };
            if !choice["finish_reason"].is_null() {
                completion["choices"][0]["finish_reason"] = choice["finish_reason"].clone();
            }
            for key in ["content", "reasoning_content"] {
                if let Some(added) = choice["delta"][key].as_str() {
                    message[key] = format!("{}{added}", text(&message[key])).into();
                }
            }
            for delta in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
                join_call(&mut message, delta);
            }
        }
        completion["choices"][0]["message"] = message;
        self.completion(&completion);
    }

    fn response(&mut self, response: &Value) {
        self.id = text(&response["id"]);
        self.stop = text(&response["status"]);
        self.tokens = tokens(&response["usage"], "input_tokens", "output_tokens");
        self.said = response["output"].clone();
        for item in response["output"].as_array().into_iter().flatten() {
            self.text += item["content"][0]["text"].as_str().unwrap_or_default();
            if item["type"] == "function_call" {
                self.calls.push(text(&item["call_id"]));
            }
        }
    }

    fn response_stream(&mut self, events: &[Value]) {
        let mut done: Vec<Value> = Vec::new();
        let mut added = 0;
        for (number, event) in events.iter().enumerate() {
            assert_eq!(event["sequence_number"], number, "numbers are consecutive: {event}");
            match event["type"].as_str().unwrap() {
                "response.created" => self.id = text(&event["response"]["id"]),
                "response.output_item.added" => {
                    assert_eq!(event["output_index"], added);
                    added += 1;
                }
                "response.output_item.done" => {
                    assert_eq!(event["output_index"], added - 1);
                    done.push(event["item"].clone());
                }
                "response.output_text.delta" => self.text += event["delta"].as_str().unwrap(),
                "response.completed" | "response.incomplete" => {
                    let first = self.id.clone();
                    assert_eq!(event["response"]["output"], Value::from(done.clone()));
                    self.text.clear();
                    self.response(&event["response"]);
                    assert_eq!(self.id, first, "one id throughout");
                }
                "error" => self.error = Some(text(&event["message"])),
                _ => {}
            }
        }
    }

    /// The next request of a client, with the results of its calls.
    pub(crate) fn next(&self, path: &str, stream: bool) -> Value {
        let mut body = super::request(path, stream);
        match path {
            MESSAGES => {
                let result = |id: &String| json!({ "type": "tool_result", "tool_use_id": id, "content": "own" });
                let results: Vec<Value> = self.calls.iter().map(result).collect();
                let messages = body["messages"].as_array_mut().unwrap();
                messages.push(json!({ "role": "assistant", "content": self.said }));
                messages.push(json!({ "role": "user", "content": results }));
            }
            CHAT => {
                let messages = body["messages"].as_array_mut().unwrap();
                messages.push(self.said.clone());
                for id in &self.calls {
                    messages.push(json!({ "role": "tool", "tool_call_id": id, "content": "own" }));
                }
            }
            _ => {
                let mut input = vec![json!({ "role": "user", "content": "hi" })];
                input.extend(self.said.as_array().unwrap().iter().cloned());
                input.extend(self.outputs());
                body["input"] = input.into();
            }
        }
        body
    }

    /// The results of its calls as items of a Responses input.
    pub(crate) fn outputs(&self) -> Vec<Value> {
        let output = |id| json!({ "type": "function_call_output", "call_id": id, "output": "own" });
        self.calls.iter().map(output).collect()
    }
}

fn join_call(message: &mut Value, delta: &Value) {
    if message["tool_calls"].is_null() {
        message["tool_calls"] = json!([]);
    }
    let calls = message["tool_calls"].as_array_mut().unwrap();
    let index = usize::try_from(delta["index"].as_u64().unwrap()).unwrap();
    assert!(index <= calls.len(), "indexes are consecutive");
    if index == calls.len() {
        let mut call = delta.clone();
        call.as_object_mut().unwrap().remove("index");
        calls.push(call);
        return;
    }
    let function = &mut calls[index]["function"];
    let added = text(&delta["function"]["arguments"]);
    function["arguments"] = format!("{}{added}", text(&function["arguments"])).into();
}

fn tokens(usage: &Value, input: &str, output: &str) -> (u64, u64) {
    let figure = |key: &str| usage[key].as_u64().unwrap_or_default();
    (figure(input), figure(output))
}

/// The data of a stream's events, without `[DONE]`.
pub(crate) fn events(stream: &str) -> Vec<Value> {
    let data =
        stream.split("\n\n").flat_map(|event| event.lines().find(|l| l.starts_with("data: ")));
    let data = data.filter_map(|line| line.strip_prefix("data: "));
    data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
