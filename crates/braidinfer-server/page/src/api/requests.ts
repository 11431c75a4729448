// Requests to the server, errors in words, and the key.

import { keep, recall } from "../page/memory";

/** A failure whose message is for the person. */
export class Failure extends Error {
  constructor(message: string, readonly status: number | null = null) {
    super(message);
  }
}

const MEANING: Record<number, string> = {
  400: "The server refused the request",
  401: "The server wants another API key",
  404: "The server does not have this",
  413: "This is too long for the server",
  429: "The server is busy",
  503: "The server is not ready",
};

export interface GivenKey {
  key: string;
  isRemembered: boolean;
}

let key = recall<string | null>("sessionStorage", "key", null) ?? recall<string | null>("localStorage", "key", null);
let askForKey: (reason: string) => Promise<GivenKey | null> = async () => null;
let asking: Promise<GivenKey | null> | null = null;

/** `ask(reason)` resolves to `null` if the person has no key. */
export function onKeyNeeded(ask: typeof askForKey): void {
  askForKey = ask;
}

export function hasKey(): boolean {
  return key !== null;
}

export function forgetKey(): void {
  key = null;
  keep("sessionStorage", "key", null);
  keep("localStorage", "key", null);
}

function useKey(given: GivenKey): void {
  key = given.key;
  keep("sessionStorage", "key", key);
  keep("localStorage", "key", given.isRemembered ? key : null);
}

export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}

interface Options extends RequestInit {
  /** Whether a refused key may bring up the question for another. */
  mayAsk?: boolean;
  headers?: Record<string, string>;
}

/** The response, if it is a good one. */
export async function request(path: string, { mayAsk = true, headers = {}, ...options }: Options = {}): Promise<Response> {
  for (;;) {
    const usedKey = key;
    const authorization: Record<string, string> = usedKey === null ? {} : { Authorization: `Bearer ${usedKey}` };
    const response = await reach(path, { ...options, headers: { ...headers, ...authorization } });
    if (response.ok) return response;
    if (response.status === 401 && mayAsk && (await hasOtherKey(usedKey))) continue;
    throw await failureOf(response);
  }
}

export async function postJson(path: string, body: unknown, options: Options = {}): Promise<Response> {
  return request(path, { method: "POST", body: JSON.stringify(body), ...options, headers: { "Content-Type": "application/json" } });
}

async function reach(path: string, options: RequestInit): Promise<Response> {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new Failure("The server does not answer. Is it still running?");
  }
}

/** Requests that are refused at the same time share one question. */
async function hasOtherKey(refused: string | null): Promise<boolean> {
  if (key !== refused) return true;
  const reason = refused === null ? "This server wants an API key." : "The server does not accept this key.";
  asking ??= askForKey(reason).finally(() => (asking = null));
  const answer = await asking;
  if (answer === null) return false;
  useKey(answer);
  return true;
}

async function failureOf(response: Response): Promise<Failure> {
  const body: unknown = await response.json().catch(() => null);
  const detail = (body as { error?: { message?: unknown } } | null)?.error?.message;
  const meaning = MEANING[response.status] ?? `The server answered with status ${response.status}`;
  const wait = Number(response.headers.get("Retry-After"));
  const advice = wait > 0 ? ` Try again in ${wait} s.` : "";
  const message = typeof detail === "string" && detail !== "" ? `${meaning}: ${detail}` : meaning;
  return new Failure(/[.!?]$/.test(message) ? message + advice : `${message}.${advice}`, response.status);
}
