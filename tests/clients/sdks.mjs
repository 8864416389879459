// The JavaScript SDKs read merged streams; a line of JSON for each, with what they made of it.
import { createRequire } from "node:module";

const { BRIDGE, TOKEN, TURNS, MODULES } = process.env;
const load = createRequire(`${MODULES}/`);
const { default: Anthropic } = load("@anthropic-ai/sdk");
const { default: OpenAI } = load("openai");
const headers = { "x-sim-turns": TURNS };
const tell = (whole, text, tokens) =>
  console.log(JSON.stringify({ whole: JSON.stringify(whole), text, tokens }));

const claude = new Anthropic({ baseURL: `${BRIDGE}/anthropic`, authToken: TOKEN, apiKey: null, maxRetries: 0 });
const message = await claude.messages
  .stream({ model: "claude-opus-5-5", max_tokens: 1000, messages: [{ role: "user", content: "hi" }] }, { headers })
  .finalMessage();
const texts = message.content.filter((block) => block.type === "text").map((block) => block.text);
tell(message, texts.join(""), [message.usage.input_tokens, message.usage.output_tokens]);

const gpt = new OpenAI({ baseURL: `${BRIDGE}/openai/v1`, apiKey: TOKEN, maxRetries: 0 });
const completion = await gpt.chat.completions
  .stream(
    { model: "gpt-5.5", messages: [{ role: "user", content: "hi" }], stream_options: { include_usage: true } },
    { headers },
  )
  .finalChatCompletion();
tell(completion, completion.choices[0].message.content, [
  completion.usage.prompt_tokens,
  completion.usage.completion_tokens,
]);

const response = await gpt.responses.stream({ model: "gpt-5.5", input: "hi" }, { headers }).finalResponse();
tell(response, response.output_text, [response.usage.input_tokens, response.usage.output_tokens]);
