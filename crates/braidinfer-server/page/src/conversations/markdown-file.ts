// The shown branch of a conversation as Markdown, and back. Comments, which readers of Markdown do not show, say what is what.

import { newConversation, newTurn, type Conversation, type Turn } from "./conversation";
import { ImportFault, LIMITS } from "./json";
import { addTurn, shownBranch } from "./tree";

const MARK = "<!-- braidinfer:";
const MARK_LINE = /^<!-- braidinfer:([a-z]+)(?: (.*))? -->$/;

interface Part {
  kind: string;
  fields: Record<string, unknown>;
  text: string;
}

export function exportedMarkdown(conversation: Conversation): string {
  const parts = [
    part("conversation", { title: conversation.title }, `# ${conversation.title.replaceAll("\n", " ") || "Untitled"}`),
    ...(conversation.settings.system ? [part("system", {}, conversation.settings.system, "System prompt")] : []),
    ...(conversation.mode === "notebook" ? [part("notebook", {}, conversation.notebook.text, "Text")] : shownBranch(conversation).flatMap(partsOf)),
  ];
  return parts.join("\n");
}

function partsOf(turn: Turn): string[] {
  switch (turn.role) {
    case "user":
      return [part("user", {}, turn.text, "You"), ...turn.files.map(({ name, text }) => part("file", { name }, text, "File"))];
    case "tool":
      return turn.results.map(({ id, name, text }) => part("result", { id, name }, text, "Result of a tool"));
    case "assistant":
      return [
        part("assistant", { model: turn.model }, turn.text, "Answer"),
        ...(turn.thought === "" ? [] : [part("thought", {}, turn.thought, "Thoughts")]),
        ...turn.calls.map((call) => part("call", { id: call.id, name: call.name }, call.arguments, "Call of a tool")),
      ];
  }
}

function part(kind: string, fields: Record<string, unknown>, text: string, heading = ""): string {
  const known = Object.entries(fields).filter(([, value]) => value !== null);
  // A name with `-->` would end the comment.
  const details = known.length === 0 ? "" : ` ${JSON.stringify(Object.fromEntries(known)).replaceAll(">", "\\u003e")}`;
  const title = heading === "" ? "" : `## ${heading}\n\n`;
  return `${MARK}${kind}${details} -->\n${title}${escaped(text)}\n`;
}

/** Lines that look like marks get a sign that is taken away again. */
function escaped(text: string): string {
  return text.replace(/^(\\*)<!-- braidinfer:/gm, "\\$1<!-- braidinfer:");
}

function unescaped(text: string): string {
  return text.replace(/^\\(\\*<!-- braidinfer:)/gm, "$1");
}

export function isMarkdownExport(text: string): boolean {
  return text.startsWith(`${MARK}conversation`);
}

export function importedMarkdown(text: string): Conversation {
  if (text.length > LIMITS.bytes) throw new ImportFault(`This file has more than ${LIMITS.bytes / 1e6} MB.`);
  const parts = partsIn(text);
  const first = parts[0];
  if (!isMarkdownExport(text) || first === undefined) throw new ImportFault("This Markdown was not exported from this page.");
  if (parts.length > LIMITS.turns) throw new ImportFault(`This file has more than ${LIMITS.turns} parts.`);
  const conversation = newConversation({ title: word(first, "title").slice(0, LIMITS.title) });
  let last: Turn | null = null;
  for (const each of parts.slice(1)) last = taken(conversation, each, last);
  return conversation;
}

/** Puts a part into the conversation; the turn to which the next part may belong. */
function taken(conversation: Conversation, { kind, fields, text }: Part, last: Turn | null): Turn | null {
  const add = (turn: Partial<Turn> & { role: Turn["role"] }) => addTurn(conversation, newTurn({ parent: last?.id ?? null, ...turn }));
  const own = { kind, fields, text };
  switch (kind) {
    case "system":
      conversation.settings.system = text;
      return last;
    case "notebook":
      conversation.mode = "notebook";
      conversation.notebook = { text, written: [] };
      return last;
    case "user":
      return add({ role: "user", text });
    case "assistant":
      return add({ role: "assistant", text, model: word(own, "model") || null, end: "complete" });
    case "file":
      last?.files.push({ name: word(own, "name"), text, tokens: null });
      return last;
    case "thought":
      if (last) last.thought = text;
      return last;
    case "call":
      last?.calls.push({ id: word(own, "id"), name: word(own, "name"), arguments: text });
      return last;
    case "result": {
      const turn = last?.role === "tool" ? last : add({ role: "tool" });
      turn.results.push({ id: word(own, "id"), name: word(own, "name"), text });
      return turn;
    }
    default:
      throw new ImportFault(`This Markdown has a part "${kind}", which this page does not know.`);
  }
}

function word({ kind, fields }: Part, name: string): string {
  const value = fields[name] ?? "";
  if (typeof value === "string" && value.length <= LIMITS.name) return value;
  throw new ImportFault(`The ${name} of a part "${kind}" should be a short text.`);
}

function partsIn(text: string): Part[] {
  const parts: { kind: string; fields: Record<string, unknown>; lines: string[] }[] = [];
  for (const line of text.replaceAll("\r\n", "\n").split("\n")) {
    const found = MARK_LINE.exec(line);
    if (found) parts.push({ kind: found[1] as string, fields: fieldsIn(found[2]), lines: [] });
    else parts.at(-1)?.lines.push(line);
  }
  return parts.map(({ kind, fields, lines }) => ({ kind, fields, text: unescaped(withoutHeading(lines).join("\n")) }));
}

/** The title that `part` wrote, and the empty line that ends a part. */
function withoutHeading(lines: string[]): string[] {
  const rest = lines[0]?.startsWith("## ") && lines[1] === "" ? lines.slice(2) : lines;
  return rest.at(-1) === "" ? rest.slice(0, -1) : rest;
}

function fieldsIn(details: string | undefined): Record<string, unknown> {
  if (details === undefined) return {};
  try {
    const fields: unknown = JSON.parse(details);
    if (typeof fields === "object" && fields !== null) return fields as Record<string, unknown>;
  } catch {
    // Said below.
  }
  throw new ImportFault(`This Markdown has a mark that cannot be read: ${details.slice(0, 40)}`);
}
