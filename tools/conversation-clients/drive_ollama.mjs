// Drives a running server with the Ollama client for JavaScript, and checks what its users rely on.
//
//     node drive_ollama.mjs http://127.0.0.1:8181 [--tools]
//
// Exits with 1 if something is not as it should be.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

// The package is found through NODE_PATH.
const { Ollama } = createRequire(import.meta.url)("ollama");
const [address, ...flags] = process.argv.slice(2);
const client = new Ollama({ host: address });
const options = { temperature: 0, num_predict: 200 };
const messages = [{ role: "user", content: "Say hello to me." }];

const { models } = await client.list();
assert.equal(models.length > 0, true, "models are listed");
const model = models[0].name;
const shown = await client.show({ model });
assert.equal(shown.capabilities.includes("completion"), true, "capabilities");
assert.equal((await client.ps()).models[0].name, model, "running models");

const whole = await client.chat({ model, messages, options });
assert.equal(whole.done, true);
assert.notEqual(whole.message.content, "", "an answer has a text");
let text = "";
for await (const part of await client.chat({ model, messages, options, stream: true })) {
  text += part.message.content;
}
assert.equal(text, whole.message.content, "a stream has the text of the whole answer");

const { embeddings } = await client.embed({ model, input: ["one", "two"] });
assert.equal(embeddings.length, 2, "vectors");
const { response } = await client.generate({ model, prompt: "Once upon a time", raw: true, options });
assert.equal(typeof response, "string", "a completion");

const schema = { type: "object", properties: { age: { type: "integer", minimum: 0, maximum: 150 } }, required: ["age"], additionalProperties: false };
const held = await client.chat({ model, messages: [{ role: "user", content: "Ada is 36 years old. Describe her as JSON." }], format: schema, options });
assert.equal(Number.isInteger(JSON.parse(held.message.content).age), true, "an answer in a form");

if (flags.includes("--tools")) {
  const tool = {
    type: "function",
    function: { name: "get_weather", description: "Tells the weather in a city.", parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] } },
  };
  const asked = [{ role: "user", content: "What is the weather in Paris and in Oslo? Use the tool." }];
  const answer = await client.chat({ model, messages: asked, tools: [tool], options });
  const calls = answer.message.tool_calls ?? [];
  assert.deepEqual(calls.map((call) => call.function.arguments.city), ["Paris", "Oslo"], "calls");
  const results = calls.map((call) => ({ role: "tool", tool_name: "get_weather", content: `18 degrees in ${call.function.arguments.city}` }));
  const last = await client.chat({ model, messages: [...asked, answer.message, ...results], tools: [tool], options });
  assert.equal(last.message.content.includes("18 degrees"), true, "an answer after the results");
}

await assert.rejects(client.chat({ model: "no-such-model", messages }), { name: "ResponseError", status_code: 404 });
console.log(`ok: the Ollama client for JavaScript with ${model}`);
