// A branch of a conversation as the messages of a request.

import type { AttachedFile, Turn } from "../conversations/conversation";
import { partsOf } from "./thoughts";

export type Message = Record<string, unknown>;

/** Messages up to where the answer begins. */
export function messagesOf(branch: Turn[], system: string): Message[] {
  const messages = branch.flatMap((turn, at) => (isLeftOut(branch, at) ? [] : messagesOfTurn(turn, branch[at + 1])));
  return system.trim() === "" ? messages : [{ role: "system", content: system.trim() }, ...messages];
}

/** Messages whose last one is the beginning of an answer, which the server is to continue. */
export function messagesToContinue(branch: Turn[], system: string): Message[] {
  const begun = branch.at(-1) as Turn;
  const last: Message = { role: "assistant", content: begun.text };
  if (begun.thought !== "") last.reasoning_content = begun.thought;
  return [...messagesOf(branch.slice(0, -1), system), last];
}

/** Questions without an answer are left out, but for the last: many chat templates want the two to alternate. */
function isLeftOut(branch: Turn[], at: number): boolean {
  const [turn, next] = [branch[at] as Turn, branch[at + 1]];
  if (turn.role === "assistant") return turn.text === "" && turn.calls.length === 0;
  return turn.role === "user" && next !== undefined && (next.role !== "assistant" || isLeftOut(branch, at + 1));
}

function messagesOfTurn(turn: Turn, next: Turn | undefined): Message[] {
  switch (turn.role) {
    case "user":
      return [{ role: "user", content: questionWithFiles(turn) }];
    case "tool":
      return turn.results.map(({ id, text }) => ({ role: "tool", tool_call_id: id, content: text }));
    case "assistant": {
      const content = partsOf(turn).said || turn.text;
      // Calls whose results are missing would leave the template waiting for them.
      if (turn.calls.length === 0 || next?.role !== "tool") return content === "" ? [] : [{ role: "assistant", content }];
      const calls = turn.calls.map(({ id, name, arguments: text }) => ({ id, type: "function", function: { name, arguments: text } }));
      return [{ role: "assistant", content, tool_calls: calls }];
    }
  }
}

function questionWithFiles({ text, files }: Pick<Turn, "text" | "files">): string {
  return [...files.map(fenced), text].filter((part) => part !== "").join("\n\n");
}

/** A file's text under its name, in a fence that is longer than any in the text. */
export function fenced({ name, text }: Pick<AttachedFile, "name" | "text">): string {
  const longest = Math.max(2, ...(text.match(/`+/g) ?? []).map((run) => run.length));
  const fence = "`".repeat(longest + 1);
  return `File ${JSON.stringify(name)}:\n${fence}\n${text.replace(/\n$/, "")}\n${fence}`;
}
