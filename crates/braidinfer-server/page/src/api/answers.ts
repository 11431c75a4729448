// Answers as they come.

import { EventReader } from "./events";
import { Failure, isAbort, postJson } from "./requests";

export interface CallPiece {
  index?: number;
  id?: string;
  function?: { name?: string; arguments?: string };
}

export interface Choice {
  delta?: { content?: string | null; reasoning_content?: string | null; reasoning?: string | null; tool_calls?: CallPiece[] };
  text?: string;
  finish_reason?: string | null;
}

export interface Usage {
  prompt_tokens?: number;
  completion_tokens?: number;
  prompt_tokens_details?: { cached_tokens?: number } | null;
  completion_tokens_details?: { reasoning_tokens?: number } | null;
}

export interface Chunk {
  choices?: Choice[];
  usage?: Usage | null;
  error?: { message?: string };
}

export const saidIn = (choice?: Choice): string => choice?.delta?.content ?? choice?.text ?? "";
export const thoughtIn = (choice?: Choice): string => choice?.delta?.reasoning_content ?? choice?.delta?.reasoning ?? "";

/** Chunks of an answer; throws if it breaks off. `path` is that of chats or of completions. */
export async function* streamed(path: string, fields: Record<string, unknown>, signal: AbortSignal): AsyncGenerator<Chunk> {
  const response = await postJson(path, { stream: true, stream_options: { include_usage: true }, ...fields }, { signal });
  if (response.body === null) throw new Failure("The server sent no answer.");
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    yield chunkOf(data);
  }
  throw new Failure("The connection was closed before the answer was complete.");
}

function chunkOf(data: string): Chunk {
  let chunk: Chunk;
  try {
    chunk = JSON.parse(data) as Chunk;
  } catch {
    throw new Failure("The server sent something that is no answer.");
  }
  if (chunk.error) throw new Failure(`The server broke the answer off: ${chunk.error.message ?? "it does not say why"}`);
  return chunk;
}

async function* events(stream: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const events = new EventReader();
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  try {
    for (let step = await reader.read(); !step.done; step = await reader.read()) {
      yield* events.read(decoder.decode(step.value, { stream: true }));
    }
  } catch (error) {
    if (isAbort(error) || error instanceof Failure) throw error;
    throw new Failure("The connection broke in the middle of the answer.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
