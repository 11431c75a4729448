// What a conversation is. Its turns form a tree, of which one branch is shown.

export type Role = "user" | "assistant" | "tool";

/** A file whose text goes into the prompt. */
export interface AttachedFile {
  name: string;
  text: string;
  tokens: number | null;
}

export interface ToolCall {
  id: string;
  name: string;
  arguments: string;
}

export interface ToolResult {
  id: string;
  name: string;
  text: string;
}

/** How an answer ended. */
export type End = "complete" | "stopped" | "length" | "calls" | "broken";

/** Measured while an answer came. */
export interface Figures {
  tokens: number;
  counted: boolean;
  perSecond: number | null;
  firstAfter: number | null;
  promptTokens: number | null;
  cachedTokens: number;
  thoughtTokens: number | null;
}

export interface Turn {
  id: string;
  /** Absent for the first turns of a conversation. */
  parent: string | null;
  role: Role;
  /** Milliseconds since 1970. */
  at: number;
  changed: number;
  text: string;
  thought: string;
  thoughtSeconds: number | null;
  files: AttachedFile[];
  calls: ToolCall[];
  /** Of a turn with the role `tool`. */
  results: ToolResult[];
  model: string | null;
  edited: boolean;
  figures: Figures | null;
  end: End | null;
  failure: string | null;
}

/** What the person wrote into the fields of the settings, by name; what was not set is absent. */
export type Settings = Record<string, string>;

export type Mode = "chat" | "notebook";

/** A part of a notebook's text, from its first character to the one after its last. */
export type Range = [number, number];

export interface Conversation {
  id: string;
  title: string;
  created: number;
  changed: number;
  model: string | null;
  mode: Mode;
  settings: Settings;
  turns: Record<string, Turn>;
  /** The child that is shown, by parent; the first turn's under the empty name. */
  chosen: Record<string, string>;
  /** Turns that were deleted, so that another tab does not bring them back. */
  removed: string[];
  notebook: { text: string; written: Range[] };
}

/** What the list of conversations shows. */
export interface Summary {
  id: string;
  title: string;
  created: number;
  changed: number;
}

/** `crypto.randomUUID` exists on https and localhost only; a server on the local network is neither. */
export function newId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function newConversation(fields: Partial<Conversation> = {}): Conversation {
  const now = Date.now();
  return {
    id: newId(),
    title: "",
    created: now,
    changed: now,
    model: null,
    mode: "chat",
    settings: {},
    turns: {},
    chosen: {},
    removed: [],
    notebook: { text: "", written: [] },
    ...fields,
  };
}

export function newTurn(fields: Partial<Turn> & { role: Role; parent: string | null }): Turn {
  const now = Date.now();
  return {
    id: newId(),
    at: now,
    changed: now,
    text: "",
    thought: "",
    thoughtSeconds: null,
    files: [],
    calls: [],
    results: [],
    model: null,
    edited: false,
    figures: null,
    end: null,
    failure: null,
    ...fields,
  };
}

export function isEmpty(turn: Turn): boolean {
  return turn.text === "" && turn.thought === "" && turn.calls.length === 0 && turn.results.length === 0;
}

export function summaryOf({ id, title, created, changed }: Conversation): Summary {
  return { id, title, created, changed };
}

const LONGEST_TITLE = 60;

/** The first line of what was asked, shortened. */
export function titleFrom(text: string): string {
  const line = text.trim().split("\n", 1)[0]?.trim() ?? "";
  return line.length <= LONGEST_TITLE ? line : `${line.slice(0, LONGEST_TITLE - 1).trimEnd()}…`;
}

export function shownTitle({ title }: { title: string }): string {
  return title === "" ? "Untitled" : title;
}
