// The state of the page.

import type { Model } from "../api/models";
import { newConversation, type Conversation, type Settings, type Summary } from "../conversations/conversation";
import { recall } from "./memory";

export type PanelName = "settings" | "report" | "metrics";

/** An answer that is coming. */
export interface Run {
  conversation: Conversation;
  /** The turn that it is written into; absent in a notebook. */
  turn: string | null;
  stopper: AbortController;
}

/** Something that happened, with what can be done about it. */
export interface Notice {
  text: string;
  isFailure?: boolean;
  undo?: () => void;
}

export const state = {
  models: null as Model[] | null,
  modelsFailure: null as string | null,
  /** Whether conversations are kept after the page is left; unknown until the database was opened. */
  isKept: null as boolean | null,
  summaries: [] as Summary[],
  conversation: newConversation(),
  runs: new Map<string, Run>(),
  defaults: recall<Settings>("localStorage", "settings", {}),
  panel: null as PanelName | null,
  isDrawerOpen: false,
  isSidebarShown: recall("localStorage", "sidebar", true),
  dialog: null as "help" | null,
  notice: null as Notice | null,
  announcement: "",
  /** The turn that is being edited. */
  editing: null as string | null,
};

export function currentRun(): Run | undefined {
  return state.runs.get(state.conversation.id);
}

/** The model that answers in a conversation: the one that was chosen for it, if it is still there. */
export function modelOf({ model }: Pick<Conversation, "model">): Model | null {
  const models = state.models ?? [];
  return models.find(({ name }) => name === model) ?? models.find(({ state }) => state === "loaded") ?? models[0] ?? null;
}
