// What a model thought, and what it said.

import type { Turn } from "../conversations/conversation";

/** Where the server does not tell them apart. Some chat templates open the thought themselves, before the answer begins. */
function split(text: string): { thought: string; said: string } {
  const found = /^\s*(?:<think>)?([^]*?)<\/think>([^]*)$/.exec(text) ?? /^\s*<think>([^]*)()$/.exec(text);
  return found === null ? { thought: "", said: text } : { thought: (found[1] ?? "").trim(), said: (found[2] ?? "").trimStart() };
}

export function partsOf({ thought, text }: Pick<Turn, "thought" | "text">): { thought: string; said: string } {
  return thought ? { thought, said: text } : split(text);
}
