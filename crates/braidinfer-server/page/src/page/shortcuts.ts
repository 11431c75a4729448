// Shortcuts of the keyboard.

import { regenerate, showVersion, stop } from "../chat/answering";
import { partsOf } from "../chat/thoughts";
import { startAnew } from "../conversations/collection";
import type { Turn } from "../conversations/conversation";
import { shownBranch } from "../conversations/tree";
import { announce } from "./announcements";
import { copyText } from "./clipboard";
import { showList, toggleList } from "./narrow";
import { closePanel, openPanel, showHelp } from "./panels";
import { isAsking } from "./questions";
import { isMac, KEYS } from "./shortcut-keys";
import { currentRun, state } from "./state";
import { changed } from "./store";

const focus = (id: string) => document.getElementById(id)?.focus();

const ACTIONS: Record<string, () => void> = {
  KeyN: startAnew,
  KeyK: () => {
    showList();
    // The list may be drawn only now.
    setTimeout(() => focus("search"), 50);
  },
  KeyO: () => openPanel("settings"),
  KeyP: () => document.getElementById("model")?.click(),
  KeyI: () => focus(document.getElementById("notebook") ? "notebook" : "question"),
  KeyC: () => void copyLastAnswer(),
  KeyG: () => withLastAnswer(regenerate),
  KeyJ: () => withLastAnswer((answer) => showVersion(answer, -1)),
  KeyL: () => withLastAnswer((answer) => showVersion(answer, 1)),
  KeyU: toggleList,
};

export const SHORTCUTS: [keys: string, does: string][] = [
  ["Enter", "Send the question"],
  ["Shift+Enter", "Start a new line"],
  ["Esc", "Stop the answer; close what is open"],
  ["↑", "Edit the last question, while the message is empty"],
  ["Ctrl+Enter", "Generate in a notebook"],
  [KEYS.anew, "New conversation"],
  [KEYS.search, "Search conversations"],
  [KEYS.list, "Show or hide the list of conversations"],
  [KEYS.model, "Choose a model"],
  [KEYS.settings, "Settings"],
  [KEYS.composer, "Write a message"],
  [KEYS.copy, "Copy the last answer"],
  [KEYS.regenerate, "Answer the last question again"],
  [KEYS.earlier, "Earlier version of the last answer"],
  [KEYS.later, "Later version of the last answer"],
  ["?", "This help, while you are not writing"],
];

export function startShortcuts(): void {
  document.addEventListener("keydown", (event) => {
    if (event.isComposing || document.querySelector("dialog[open]") || isAsking()) return;
    if (event.key === "Escape") onEscape(event);
    else if (event.key === "?" && !isWriting(event.target)) showHelp();
    else if (hasModifier(event) && ACTIONS[event.code]) {
      event.preventDefault();
      ACTIONS[event.code]?.();
    }
  });
}

/** Alt Gr writes signs. */
function hasModifier(event: KeyboardEvent): boolean {
  if (isMac) return event.ctrlKey && event.shiftKey && !event.altKey && !event.metaKey;
  return event.altKey && !event.ctrlKey && !event.metaKey && !event.shiftKey && !event.getModifierState("AltGraph");
}

function isWriting(target: EventTarget | null): boolean {
  return target instanceof HTMLElement && target.matches("input, textarea");
}

function onEscape(event: KeyboardEvent): void {
  // It closes by itself.
  if (document.querySelector(":popover-open")) return;
  if (stop() || closeEditor() || closePanel() || closeDrawer()) event.preventDefault();
}

function closeEditor(): boolean {
  if (state.editing === null) return false;
  state.editing = null;
  changed();
  return true;
}

function closeDrawer(): boolean {
  if (!state.isDrawerOpen) return false;
  state.isDrawerOpen = false;
  changed();
  focus("show-list");
  return true;
}

function withLastAnswer(does: (answer: Turn) => void): void {
  const answer = shownBranch(state.conversation).findLast(({ role }) => role === "assistant");
  if (answer && !currentRun()) does(answer);
}

async function copyLastAnswer(): Promise<void> {
  const answer = shownBranch(state.conversation).findLast(({ role }) => role === "assistant");
  if (answer) announce((await copyText(partsOf(answer).said)) ? "Copied" : "Not copied");
}
