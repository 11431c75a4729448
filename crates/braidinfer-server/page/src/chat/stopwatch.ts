// Measures one answer while it comes.

import { saidIn, thoughtIn, type Chunk, type Usage } from "../api/answers";
import type { Figures } from "../conversations/conversation";

/** Less time than this between tokens, in seconds, says nothing about a rate. */
const SHORTEST_STREAM = 0.005;

export class Stopwatch {
  private readonly sent = performance.now();
  private first: number | null = null;
  private last = 0;
  private firstThought: number | null = null;
  private firstSaid: number | null = null;
  private pieces = 0;
  private usage: Usage | null = null;
  finish: string | null = null;

  take(chunk: Chunk): void {
    const choice = chunk.choices?.[0];
    this.usage = chunk.usage ?? this.usage;
    this.finish = choice?.finish_reason ?? this.finish;
    if (!saidIn(choice) && !thoughtIn(choice) && !choice?.delta?.tool_calls) return;
    this.last = performance.now();
    this.first ??= this.last;
    this.pieces += 1;
    if (thoughtIn(choice)) this.firstThought ??= this.last;
    else this.firstSaid ??= this.last;
  }

  /** How long the model thought before it began to speak. */
  thoughtSeconds(): number | null {
    return this.firstThought === null ? null : ((this.firstSaid ?? this.last) - this.firstThought) / 1000;
  }

  figures(): Figures {
    const tokens = this.usage?.completion_tokens ?? this.pieces;
    const streamed = (this.last - (this.first ?? this.last)) / 1000;
    return {
      tokens,
      counted: this.usage !== null,
      perSecond: tokens > 1 && streamed > SHORTEST_STREAM ? (tokens - 1) / streamed : null,
      firstAfter: this.first === null ? null : (this.first - this.sent) / 1000,
      promptTokens: this.usage?.prompt_tokens ?? null,
      cachedTokens: this.usage?.prompt_tokens_details?.cached_tokens ?? 0,
      thoughtTokens: this.usage?.completion_tokens_details?.reasoning_tokens ?? null,
    };
  }
}
