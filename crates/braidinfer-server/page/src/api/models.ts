// The models of the server and their states.

import { postJson, request } from "./requests";

export type ModelState = "unloaded" | "loading" | "loaded" | "unloading";

export interface Model {
  name: string;
  /** Absent from servers that do not say it. */
  state: ModelState | null;
  /** Layers that are there, and all of them, while it is being loaded. */
  layers: [number, number] | null;
  memory: number | null;
  inUse: number;
  error: string | null;
  /** Tokens of its context. */
  context: number | null;
  /** Models without a chat template only continue texts. */
  chats: boolean;
  thinks: boolean;
  /** Whether it writes text at all. */
  writes: boolean;
  /** The model that an adapter changes. */
  parent: string | null;
  sampling: Record<string, number>;
}

interface Entry {
  id: string;
  status?: { value?: ModelState; layers?: [number, number]; memory?: number; in_use?: number; error?: string };
  max_model_len?: number;
  has_chat_template?: boolean;
  parent?: string | null;
  capabilities?: string[];
  default_sampling?: Record<string, unknown>;
}

export async function fetchModels(signal?: AbortSignal): Promise<Model[]> {
  const body = (await (await request("v1/models", signal ? { signal } : {})).json()) as { data?: Entry[] };
  return (body.data ?? []).map(described);
}

function described({ id, status, max_model_len, has_chat_template, capabilities, default_sampling, parent }: Entry): Model {
  const numbers = Object.entries(default_sampling ?? {}).filter((entry): entry is [string, number] => typeof entry[1] === "number");
  return {
    name: id,
    state: status?.value ?? null,
    layers: status?.layers ?? null,
    memory: status?.memory ?? null,
    inUse: status?.in_use ?? 0,
    error: status?.error ?? null,
    context: max_model_len ?? null,
    chats: has_chat_template ?? true,
    thinks: capabilities?.includes("thinking") ?? false,
    writes: capabilities?.some((word) => word === "chat" || word === "completion") ?? true,
    parent: parent ?? null,
    sampling: Object.fromEntries(numbers),
  };
}

export async function loadModel(name: string): Promise<void> {
  await postJson("v1/models/load", { model: name });
}

export async function unloadModel(name: string): Promise<void> {
  await postJson("v1/models/unload", { model: name });
}

export interface TokenCount {
  tokens: number;
  context: number;
}

export async function countTokens(model: string, prompt: string, signal?: AbortSignal): Promise<TokenCount> {
  const body = { model, prompt, add_special_tokens: false };
  const response = await postJson("tokenize", body, signal ? { signal } : {});
  const { count, max_model_len } = (await response.json()) as { count: number; max_model_len: number };
  return { tokens: count, context: max_model_len };
}

/** The text of a PDF. */
export async function extractText(file: Blob): Promise<{ text: string; pages: number }> {
  const response = await request("v1/extract_text", { method: "POST", headers: { "Content-Type": "application/pdf" }, body: file });
  return (await response.json()) as { text: string; pages: number };
}
