// Conversations as JSON. What is imported may come from anywhere: it is looked through field by field, and copied under new ids.

import {
  newConversation,
  newId,
  newTurn,
  type AttachedFile,
  type Conversation,
  type End,
  type Mode,
  type Range,
  type Role,
  type Settings,
  type ToolCall,
  type ToolResult,
  type Turn,
} from "./conversation";
import { FIELD_NAMES } from "../settings/fields";

const FORMAT = "braidinfer-conversations";
const VERSION = 1;

/** Bounds of what is taken in. */
export const LIMITS = {
  bytes: 50_000_000,
  conversations: 5_000,
  turns: 10_000,
  text: 10_000_000,
  title: 300,
  name: 300,
  setting: 1_000_000,
  list: 200,
};

/** What is wrong with a file, for the person. */
export class ImportFault extends Error {}

export function exportedJson(conversations: Conversation[]): string {
  const plain = conversations.map(({ id: _, removed: __, turns, ...kept }) => ({ ...kept, turns: Object.values(turns) }));
  return JSON.stringify({ format: FORMAT, version: VERSION, conversations: plain }, null, 1);
}

/** The conversations of a file, all of them or none. */
export function importedJson(text: string): Conversation[] {
  const file = objectIn(parsed(text), "the file");
  if (file.format !== FORMAT) throw new ImportFault("This file was not exported from this page: it does not say that it holds conversations.");
  if (file.version !== VERSION) throw new ImportFault(`This file has version ${shown(file.version)}; this page reads version ${VERSION}.`);
  const all = listIn(file.conversations, "conversations", LIMITS.conversations);
  return all.map((value, at) => conversationIn(value, `conversation ${at + 1}`));
}

function parsed(text: string): unknown {
  if (text.length > LIMITS.bytes) throw new ImportFault(`This file has more than ${LIMITS.bytes / 1e6} MB.`);
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new ImportFault(`This file is no JSON: ${(error as Error).message.slice(0, 200)}`);
  }
}

function conversationIn(value: unknown, where: string): Conversation {
  const from = objectIn(value, where);
  const list = listIn(from.turns, `turns of ${where}`, LIMITS.turns);
  const ids = new Map<string, string>();
  const read = list.map((turn, at) => turnIn(turn, `turn ${at + 1} of ${where}`, ids));
  const turns: Record<string, Turn> = {};
  read.forEach((turn, at) => (turns[turn.id] = { ...turn, parent: parentIn(turn.parent, ids, `turn ${at + 1} of ${where}`) }));
  checkTree(turns, where);
  return newConversation({
    title: textIn(from.title, `title of ${where}`, LIMITS.title),
    created: timeIn(from.created, `created of ${where}`),
    changed: timeIn(from.changed, `changed of ${where}`),
    model: optional(from.model, (it) => textIn(it, `model of ${where}`, LIMITS.name)),
    mode: oneOf<Mode>(from.mode, ["chat", "notebook"], `mode of ${where}`),
    settings: settingsIn(from.settings, `settings of ${where}`),
    turns,
    chosen: chosenIn(from.chosen, ids, `chosen of ${where}`),
    notebook: notebookIn(from.notebook, `notebook of ${where}`),
  });
}

function turnIn(value: unknown, where: string, ids: Map<string, string>): Turn {
  const from = objectIn(value, where);
  const old = textIn(from.id, `id of ${where}`, LIMITS.name);
  if (ids.has(old)) throw new ImportFault(`${capital(where)} has the id of an earlier turn.`);
  ids.set(old, newId());
  return newTurn({
    id: ids.get(old) as string,
    // As it is named in the file, until all ids are known.
    parent: optional(from.parent, (it) => textIn(it, `parent of ${where}`, LIMITS.name)),
    role: oneOf<Role>(from.role, ["user", "assistant", "tool"], `role of ${where}`),
    at: timeIn(from.at, `at of ${where}`),
    text: textIn(from.text, `text of ${where}`, LIMITS.text),
    thought: textIn(from.thought ?? "", `thought of ${where}`, LIMITS.text),
    thoughtSeconds: optional(from.thoughtSeconds, (it) => numberIn(it, `thoughtSeconds of ${where}`)),
    files: listIn(from.files ?? [], `files of ${where}`, LIMITS.list).map((file) => fileIn(file, `a file of ${where}`)),
    calls: listIn(from.calls ?? [], `calls of ${where}`, LIMITS.list).map((call) => callIn(call, `a call of ${where}`)),
    results: listIn(from.results ?? [], `results of ${where}`, LIMITS.list).map((result) => resultIn(result, `a result of ${where}`)),
    model: optional(from.model, (it) => textIn(it, `model of ${where}`, LIMITS.name)),
    edited: from.edited === true,
    end: optional(from.end, (it) => oneOf<End>(it, ["complete", "stopped", "length", "calls", "broken"], `end of ${where}`)),
  });
}

function fileIn(value: unknown, where: string): AttachedFile {
  const from = objectIn(value, where);
  return {
    name: textIn(from.name, `name of ${where}`, LIMITS.name),
    text: textIn(from.text, `text of ${where}`, LIMITS.text),
    tokens: optional(from.tokens, (it) => numberIn(it, `tokens of ${where}`)),
  };
}

function callIn(value: unknown, where: string): ToolCall {
  const from = objectIn(value, where);
  return {
    id: textIn(from.id, `id of ${where}`, LIMITS.name),
    name: textIn(from.name, `name of ${where}`, LIMITS.name),
    arguments: textIn(from.arguments, `arguments of ${where}`, LIMITS.text),
  };
}

function resultIn(value: unknown, where: string): ToolResult {
  const from = objectIn(value, where);
  return {
    id: textIn(from.id, `id of ${where}`, LIMITS.name),
    name: textIn(from.name, `name of ${where}`, LIMITS.name),
    text: textIn(from.text, `text of ${where}`, LIMITS.text),
  };
}

function parentIn(parent: string | null, ids: Map<string, string>, where: string): string | null {
  if (parent === null) return null;
  const known = ids.get(parent);
  if (known === undefined) throw new ImportFault(`${capital(where)} follows a turn that is not in the file.`);
  return known;
}

/** Every turn must lead back to a first one. */
function checkTree(turns: Record<string, Turn>, where: string): void {
  const rooted = new Set<string>();
  for (const turn of Object.values(turns)) {
    const seen = new Set<string>();
    let at: Turn | undefined = turn;
    while (at && !rooted.has(at.id)) {
      if (seen.has(at.id)) throw new ImportFault(`The turns of ${where} follow each other in a circle.`);
      seen.add(at.id);
      at = at.parent === null ? undefined : turns[at.parent];
    }
    for (const id of seen) rooted.add(id);
  }
}

function chosenIn(value: unknown, ids: Map<string, string>, where: string): Record<string, string> {
  const chosen: Record<string, string> = {};
  for (const [parent, child] of Object.entries(objectIn(value ?? {}, where))) {
    const [newParent, newChild] = [parent === "" ? "" : ids.get(parent), ids.get(String(child))];
    if (newParent !== undefined && newChild !== undefined) chosen[newParent] = newChild;
  }
  return chosen;
}

function settingsIn(value: unknown, where: string): Settings {
  const from = objectIn(value ?? {}, where);
  const known = FIELD_NAMES.filter((name) => Object.hasOwn(from, name));
  return Object.fromEntries(known.map((name) => [name, textIn(from[name], `${name} in ${where}`, LIMITS.setting)]));
}

function notebookIn(value: unknown, where: string): Conversation["notebook"] {
  if (value === undefined || value === null) return { text: "", written: [] };
  const from = objectIn(value, where);
  const text = textIn(from.text, `text of ${where}`, LIMITS.text);
  const written = listIn(from.written ?? [], `written of ${where}`, LIMITS.turns).map((range): Range => {
    const [start, end] = listIn(range, `a range of ${where}`, 2).map((it) => numberIn(it, `a range of ${where}`));
    if (!(start !== undefined && end !== undefined && start >= 0 && end >= start && end <= text.length)) {
      throw new ImportFault(`A range of ${where} lies outside its text.`);
    }
    return [start, end];
  });
  return { text, written };
}

function objectIn(value: unknown, where: string): Record<string, unknown> {
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as Record<string, unknown>;
  throw new ImportFault(`${capital(where)} should be an object, but is ${shown(value)}.`);
}

function listIn(value: unknown, where: string, most: number): unknown[] {
  if (!Array.isArray(value)) throw new ImportFault(`${capital(where)} should be a list, but is ${shown(value)}.`);
  if (value.length > most) throw new ImportFault(`${capital(where)}: there are ${value.length}, and at most ${most} are taken.`);
  return value;
}

function textIn(value: unknown, where: string, longest: number): string {
  if (typeof value !== "string") throw new ImportFault(`${capital(where)} should be a text, but is ${shown(value)}.`);
  if (value.length > longest) throw new ImportFault(`${capital(where)} has ${value.length} characters, and at most ${longest} are taken.`);
  return value;
}

function numberIn(value: unknown, where: string): number {
  if (typeof value === "number" && Number.isFinite(value)) return value;
  throw new ImportFault(`${capital(where)} should be a number, but is ${shown(value)}.`);
}

/** The largest time that a `Date` can have. */
const LAST_TIME = 8.64e15;

function timeIn(value: unknown, where: string): number {
  const time = numberIn(value, where);
  if (Math.abs(time) > LAST_TIME) throw new ImportFault(`${capital(where)} is no time.`);
  return time;
}

function optional<T>(value: unknown, read: (value: unknown) => T): T | null {
  return value === undefined || value === null ? null : read(value);
}

function oneOf<T extends string>(value: unknown, words: T[], where: string): T {
  const found = words.find((word) => word === value);
  if (found === undefined) throw new ImportFault(`${capital(where)} should be one of ${words.join(", ")}, but is ${shown(value)}.`);
  return found;
}

function shown(value: unknown): string {
  return value === undefined ? "missing" : (JSON.stringify(value) ?? String(value)).slice(0, 40);
}

function capital(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
