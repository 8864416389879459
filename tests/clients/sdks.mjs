// The official JavaScript SDKs: each API's stream, put together by the SDK itself. tools.py says on
// standard input what to ask, and judges what is printed.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(`${process.argv[2]}/`);
const { Anthropic } = require("@anthropic-ai/sdk");
const { OpenAI } = require("openai");

const { url, token, headers, prompt, models, tools } = JSON.parse(readFileSync(0, "utf8"));
const options = { apiKey: token, defaultHeaders: headers, maxRetries: 0, timeout: 60_000 };
const anthropic = new Anthropic({ ...options, baseURL: `${url}/anthropic` });
const openai = new OpenAI({ ...options, baseURL: `${url}/openai/v1` });
const messages = [{ role: "user", content: prompt }];
let seen = 0;

// Every event, as the SDK hands it out, must be silent about injected tools.
async function watched(stream) {
  for await (const event of stream) {
    seen += 1;
    const text = JSON.stringify(event);
    if (text.includes("bmcp_")) throw new Error(`an injected call was shown: ${text}`);
  }
  return stream;
}

const message = await watched(
  anthropic.messages.stream({
    model: models.messages, max_tokens: 2000, messages, tools: [tools.messages],
  }),
);
const chat = await watched(
  openai.chat.completions.stream({
    model: models.chat, messages, tools: [tools.chat], stream_options: { include_usage: true },
  }),
);
const response = await watched(
  openai.responses.stream({ model: models.responses, input: messages, tools: [tools.responses] }),
);

const answers = {
  seen,
  messages: await message.finalMessage(),
  chat: await chat.finalChatCompletion(),
  responses: await response.finalResponse(),
};
console.log(JSON.stringify(answers));
