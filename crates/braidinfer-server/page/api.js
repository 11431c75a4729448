// The server's API: requests, streams, errors in words, and the key.

import { keep, recall } from "./memory.js";

/** A failure whose message is for the person. */
export class Failure extends Error {
  constructor(message, status = null) {
    super(message);
    this.status = status;
  }
}

const MEANING = {
  400: "The server refused the request",
  401: "The server wants another API key",
  404: "The server does not have this",
  413: "The conversation is too long for the server",
  429: "The server is busy",
  503: "The server is not ready",
};

/** Models that only continue texts seldom come to an end. */
const CONTINUATION_TOKENS = 200;

let key = recall("sessionStorage", "key", null);
let model = null;
let askForKey = async () => null;
let asking = null;

/** `ask(reason)` resolves to a key, or to null if the person has none. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/** The response, if it is a good one. `mayAsk`: whether a refused key may bring up the question for another. */
export async function request(path, { mayAsk = true, headers = {}, ...options } = {}) {
  for (;;) {
    const usedKey = key;
    const authorization = usedKey === null ? {} : { Authorization: `Bearer ${usedKey}` };
    const response = await reach(path, { ...options, headers: { ...headers, ...authorization } });
    if (response.ok) return response;
    if (response.status === 401 && mayAsk && (await hasOtherKey(usedKey))) continue;
    throw await failureOf(response);
  }
}

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server does not answer. Is it still running?");
  }
}

/** Requests that are refused at the same time share one question. */
async function hasOtherKey(refused) {
  if (key !== refused) return true;
  const reason = refused === null ? "This server wants an API key." : "The server does not accept this key.";
  asking ??= askForKey(reason).finally(() => (asking = null));
  const answer = await asking;
  if (answer === null) return false;
  key = answer;
  keep("sessionStorage", "key", key);
  return true;
}

async function failureOf(response) {
  const error = await response.json().then((body) => body.error, () => null);
  const meaning = MEANING[response.status] ?? `The server answered with status ${response.status}`;
  const wait = Number(response.headers.get("Retry-After"));
  const advice = wait > 0 ? ` Try again in ${wait} s.` : "";
  const message = error?.message ? `${meaning}: ${error.message}` : meaning;
  return new Failure(/[.!?]$/.test(message) ? message + advice : `${message}.${advice}`, response.status);
}

/** The served model: its name, and whether it has a chat template. Models without one only continue texts. */
export async function servedModel(signal) {
  model ??= described((await (await request("v1/models", { signal })).json()).data?.[0]);
  if (model === null) throw new Failure("The server has no model.");
  return model;
}

function described(entry) {
  return entry ? { name: entry.id, chats: entry.has_chat_template !== false } : null;
}

/** Chunks of an answer as they come; throws if it breaks off. */
export async function* streamAnswer(messages, sampling, signal) {
  yield* streamed("v1/chat/completions", { messages, ...sampling }, signal);
}

/** Chunks of what follows a text. */
export async function* streamContinuation(prompt, { max_completion_tokens, ...sampling }, signal) {
  yield* streamed("v1/completions", { prompt, max_tokens: max_completion_tokens ?? CONTINUATION_TOKENS, ...sampling }, signal);
}

async function* streamed(path, fields, signal) {
  const { name } = await servedModel(signal);
  const body = { model: name, stream: true, stream_options: { include_usage: true }, ...fields };
  const response = await request(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  }).catch((error) => {
    // The server may have been started again with another model.
    if (error.status === 404) model = null;
    throw error;
  });
  for await (const data of eventData(response.body)) {
    if (data === "[DONE]") return;
    yield chunkOf(data);
  }
  throw new Failure("The connection was closed before the answer was complete.");
}

function chunkOf(data) {
  let chunk;
  try {
    chunk = JSON.parse(data);
  } catch {
    throw new Failure("The server sent something that is no answer.");
  }
  if (chunk.error) throw new Failure(`The server broke the answer off: ${chunk.error.message}`);
  return chunk;
}

/** What the events of a stream carry. */
async function* eventData(stream) {
  let rest = "";
  let data = [];
  for await (const text of pieces(stream.pipeThrough(new TextDecoderStream()).getReader())) {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines.map((line) => line.replace(/\r$/, ""))) {
      if (line.startsWith("data:")) {
        data.push(line.slice(5).replace(/^ /, ""));
      } else if (line === "" && data.length > 0) {
        yield data.join("\n");
        data = [];
      }
    }
  }
}

async function* pieces(reader) {
  try {
    for (let step = await reader.read(); !step.done; step = await reader.read()) yield step.value;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The connection broke in the middle of the answer.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
