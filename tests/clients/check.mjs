// node check.mjs BASE      (BASE: http://127.0.0.1:PORT of `flashlm serve builtin`; wants: npm install openai, found in NODE_MODULES)
// OpenAI's client for Node: models, completions and chat, streams that say what the whole says, errors as its classes.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";

let OpenAI;
try {
    ({ default: OpenAI } = createRequire(join(process.env.NODE_MODULES ?? ".", "x"))("openai"));
} catch (missing) {
    console.log(`skipped: ${missing.message.split("\n")[0]}; npm install openai, and NODE_MODULES=FOLDER/node_modules`);
    process.exit(0);
}
const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
assert.deepEqual((await client.models.list()).data.map(model => model.id), ["conv", "builtin"]);
const ask = { model: "builtin", prompt: "Once upon a time", max_tokens: 40, seed: 7, logprobs: 3, n: 2 };
const whole = await client.completions.create(ask);
const texts = ["", ""], tokens = [[], []];
for await (const chunk of await client.completions.create({ ...ask, stream: true })) {
    const choice = chunk.choices[0];
    texts[choice.index] += choice.text;
    tokens[choice.index].push(...choice.logprobs.token_logprobs);
}
assert.deepEqual(texts, whole.choices.map(choice => choice.text));
assert.deepEqual(tokens, whole.choices.map(choice => choice.logprobs.token_logprobs));
const talk = { model: "builtin", messages: [{ role: "user", content: "Once" }], max_tokens: 20, seed: 7 };
const told = await client.chat.completions.create(talk);
let text = "", usage = null;
for await (const chunk of await client.chat.completions.create({ ...talk, stream: true, stream_options: { include_usage: true } })) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
}
assert.deepEqual([text, usage], [told.choices[0].message.content, told.usage]);
for (const [change, kind] of [[{ model: "other" }, OpenAI.NotFoundError], [{ temperature: -1 }, OpenAI.BadRequestError], [{ suffix: "x" }, OpenAI.BadRequestError]]) {
    await assert.rejects(client.completions.create({ model: "builtin", prompt: "a", ...change }), error => error instanceof kind && error.message.length > 20);
}
// A stream that is left takes its text along.
const left = await client.completions.create({ model: "builtin", prompt: "a", max_tokens: 1000000, logit_bias: { 0: -100 }, stream: true });
for await (const chunk of left) if (chunk) break;
const streams = async () => /flashlm_streams (\d+)/.exec(await (await fetch(`${process.argv[2]}/metrics`)).text())[1];
for (let i = 0; i < 200 && (await streams()) !== "0"; i++) await new Promise(done => setTimeout(done, 10));
assert.equal(await streams(), "0");
console.log("openai for Node: models, completions, chat, streams, errors, a stream that is left");
