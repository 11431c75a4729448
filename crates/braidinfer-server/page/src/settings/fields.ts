// The settings of a conversation: their fields, what is wrong with a value, and what of them is sent. Names are those of the API.

import type { Settings } from "../conversations/conversation";

export interface NumberField {
  name: string;
  label: string;
  min: number;
  max: number;
  whole?: boolean;
  /** Whether the smallest value itself is too small. */
  isAbove?: boolean;
}

export const NUMBER_FIELDS: NumberField[] = [
  { name: "temperature", label: "Temperature", min: 0, max: 2 },
  { name: "top_p", label: "Top p", min: 0, max: 1, isAbove: true },
  { name: "top_k", label: "Top k", min: -1, max: 1_000_000, whole: true },
  { name: "min_p", label: "Min p", min: 0, max: 1 },
  { name: "repetition_penalty", label: "Repetition penalty", min: 0.001, max: 1000 },
  { name: "presence_penalty", label: "Presence penalty", min: -2, max: 2 },
  { name: "frequency_penalty", label: "Frequency penalty", min: -2, max: 2 },
  { name: "max_completion_tokens", label: "Most tokens of an answer", min: 1, max: 10_000_000, whole: true },
  { name: "seed", label: "Seed", min: 0, max: Number.MAX_SAFE_INTEGER, whole: true },
];

export const THINKING_BUDGET: NumberField = { name: "thinking_budget", label: "Most tokens of thoughts", min: 0, max: 10_000_000, whole: true };

export const FIELD_NAMES = ["system", ...NUMBER_FIELDS.map(({ name }) => name), "stop", "enable_thinking", "thinking_budget", "schema", "tools"];

const MOST_STOPS = 16;

/** Where a request's fields come from, and which settings cannot be sent. */
export interface Request {
  fields: Record<string, unknown>;
  faults: Record<string, string>;
}

/** What a kind of model has: settings of what it has not are left out. */
export interface Abilities {
  thinking: boolean;
  chat: boolean;
}

export function requestOf(settings: Settings, { thinking, chat }: Abilities): Request {
  const request: Request = { fields: {}, faults: {} };
  for (const field of NUMBER_FIELDS) take(request, settings, field.name, (text) => numberIn(text, field));
  take(request, settings, "stop", stopTexts);
  if (chat) {
    take(request, settings, "schema", schemaIn, "response_format");
    take(request, settings, "tools", toolsIn);
  }
  if (chat && thinking) {
    take(request, settings, "enable_thinking", (text) => text === "on");
    take(request, settings, THINKING_BUDGET.name, (text) => numberIn(text, THINKING_BUDGET));
  }
  return request;
}

/** What is wrong with a value, if anything is. */
export function faultIn(name: string, settings: Settings): string | null {
  return requestOf(settings, { thinking: true, chat: true }).faults[name] ?? null;
}

function take(request: Request, settings: Settings, name: string, read: (text: string) => unknown, field = name): void {
  const text = settings[name] ?? "";
  if (text.trim() === "") return;
  try {
    request.fields[field] = read(text);
  } catch (error) {
    request.faults[name] = (error as Error).message;
  }
}

function numberIn(text: string, { label, min, max, whole, isAbove }: NumberField): number {
  const number = Number(text);
  const kind = whole ? "a whole number" : "a number";
  if (!Number.isFinite(number) || (whole && !Number.isInteger(number)) || number < min || number > max || (isAbove && number === min)) {
    throw new Error(`${label} must be ${kind} ${isAbove ? `above ${min} and at most` : `from ${min} to`} ${max}.`);
  }
  return number;
}

/** One on each line; `\n` and `\t` are written so. */
function stopTexts(text: string): string[] {
  const stops = text.split("\n").filter((line) => line !== "").map((line) => line.replaceAll("\\n", "\n").replaceAll("\\t", "\t"));
  if (stops.length > MOST_STOPS) throw new Error(`There may be at most ${MOST_STOPS} stop texts.`);
  return stops;
}

function schemaIn(text: string): unknown {
  const schema = jsonIn(text);
  if (!isObject(schema)) throw new Error("A schema is an object, such as {\"type\": \"object\"}.");
  return { type: "json_schema", json_schema: { name: "answer", schema, strict: true } };
}

function toolsIn(text: string): unknown[] {
  const tools = jsonIn(text);
  if (!Array.isArray(tools)) throw new Error("Tools are a list: [{\"type\": \"function\", …}].");
  tools.forEach((tool: unknown, at) => {
    const described = isObject(tool) && isObject(tool.function) ? tool.function : null;
    if (!isObject(tool) || tool.type !== "function" || described === null) {
      throw new Error(`Tool ${at + 1} should be {"type": "function", "function": {…}}.`);
    }
    if (typeof described.name !== "string" || described.name === "") throw new Error(`Tool ${at + 1} has no name.`);
  });
  return tools;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function jsonIn(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`This is no JSON: ${(error as Error).message.slice(0, 200)}`);
  }
}
