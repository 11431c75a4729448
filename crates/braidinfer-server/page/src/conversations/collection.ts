// The conversations of the person: which one is open, and what is done to them.

import { announce, notify } from "../page/announcements";
import { keep, recall } from "../page/memory";
import { modelOf, state } from "../page/state";
import { changed } from "../page/store";
import { newConversation, shownTitle, summaryOf, type Conversation, type Mode, type Turn } from "./conversation";
import { allSummaries, deleteConversation, onOtherTab, openDatabase, readConversation, saveConversation, type Message } from "./database";
import { branchedOff, merged } from "./tree";

/** What a tab that is left in the middle of an answer writes down at the last moment. */
interface Interrupted {
  conversation: string;
  turn: Turn;
}

export async function startCollection(): Promise<void> {
  state.isKept = await openDatabase();
  onOtherTab((message) => void hear(message));
  addEventListener("pagehide", () => {
    writeDownInterrupted();
    for (const id of pending.keys()) void saveNow(id);
  });
  state.summaries = await allSummaries().catch(() => []);
  await recoverInterrupted();
  const last = recall<string | null>("sessionStorage", "conversation", null);
  const found = last === null ? null : await readConversation(last).catch(() => null);
  if (found) state.conversation = found;
  else startWithDefaults();
  changed();
}

function startWithDefaults(): void {
  const model = recall<string | null>("localStorage", "model", null);
  const unsaved = recall<Partial<Conversation>>("sessionStorage", "unsaved", {});
  state.conversation = newConversation({ settings: { ...state.defaults }, model, ...unsaved });
}

/** IndexedDB does not wait for a page that is left. */
function writeDownInterrupted(): void {
  const interrupted = [...state.runs.values()].flatMap(({ conversation, turn }): Interrupted[] => {
    const written = turn === null ? undefined : conversation.turns[turn];
    return written ? [{ conversation: conversation.id, turn: written }] : [];
  });
  if (interrupted.length > 0) keep("sessionStorage", "interrupted", interrupted);
}

async function recoverInterrupted(): Promise<void> {
  for (const { conversation, turn } of recall<Interrupted[]>("sessionStorage", "interrupted", [])) {
    const found = await readConversation(conversation);
    if (!found?.turns[turn.id]) continue;
    found.turns[turn.id] = { ...turn, end: "stopped", changed: Date.now() };
    await saveConversation(found);
  }
  keep("sessionStorage", "interrupted", null);
}

/** An answer that is still coming must not bring its conversation back. */
const deleted = new Set<string>();

export async function save(conversation: Conversation): Promise<void> {
  if (deleted.has(conversation.id)) return;
  try {
    const whole = await saveConversation(conversation);
    // What other tabs added; turns of ours may have changed while it was written.
    for (const [id, turn] of Object.entries(whole.turns)) conversation.turns[id] ??= turn;
    for (const id of whole.removed) delete conversation.turns[id];
    conversation.removed = whole.removed;
  } catch (error) {
    notify({ text: `This conversation could not be kept: ${(error as Error).message}`, isFailure: true });
  }
  if (!deleted.has(conversation.id)) putSummary(conversation);
}

/** Saves what the person changed, as of now. */
export function touch(conversation: Conversation): Promise<void> {
  conversation.changed = Date.now();
  if (!deleted.has(conversation.id)) putSummary(conversation);
  return save(conversation);
}

/** After the last of several changes, in milliseconds. */
const SAVED_AFTER = 300;
const pending = new Map<string, { conversation: Conversation; timer: ReturnType<typeof setTimeout> }>();

/** Saves what the person is still changing, when there has been a pause. */
export function touchSoon(conversation: Conversation): void {
  clearTimeout(pending.get(conversation.id)?.timer);
  const timer = setTimeout(() => void saveNow(conversation.id), SAVED_AFTER);
  pending.set(conversation.id, { conversation, timer });
}

/** Saves what is waiting for a pause. */
async function saveNow(id: string): Promise<void> {
  const waiting = pending.get(id);
  if (!waiting) return;
  clearTimeout(waiting.timer);
  pending.delete(id);
  const { conversation } = waiting;
  const hasContent = conversation.notebook.text !== "" || Object.keys(conversation.turns).length > 0;
  if (hasContent || isSaved(conversation)) await touch(conversation);
  else if (conversation === state.conversation) keepUnsaved();
}

function putSummary(conversation: Conversation): void {
  state.summaries = [...state.summaries.filter(({ id }) => id !== conversation.id), summaryOf(conversation)];
  if (conversation.id === state.conversation.id) keep("sessionStorage", "conversation", conversation.id);
  changed();
}

async function hear({ kind, id }: Message): Promise<void> {
  if (kind === "saved") {
    deleted.delete(id);
    const stored = await readConversation(id);
    if (stored === null) return;
    state.summaries = [...state.summaries.filter((each) => each.id !== id), summaryOf(stored)];
    const mine = state.runs.get(id)?.conversation ?? (id === state.conversation.id ? state.conversation : null);
    // In place: an answer that is coming is written into it.
    if (mine) Object.assign(mine, merged(stored, mine), state.runs.has(id) ? { notebook: mine.notebook, chosen: mine.chosen } : {});
  } else {
    forget(id);
  }
  changed();
}

function forget(id: string): void {
  deleted.add(id);
  state.runs.get(id)?.stopper.abort();
  state.summaries = state.summaries.filter((each) => each.id !== id);
  if (state.conversation.id === id) startAnew();
}

export function startAnew(): void {
  const model = state.conversation.model;
  state.conversation = newConversation({ settings: { ...state.defaults }, model });
  keep("sessionStorage", "unsaved", null);
  leave();
}

export async function open(id: string): Promise<void> {
  const found = await held(id);
  if (found === null) {
    notify({ text: "This conversation could not be read.", isFailure: true });
    return;
  }
  state.conversation = found;
  leave();
  keep("sessionStorage", "conversation", id);
}

/** What belonged to the conversation that was open before. */
function leave(): void {
  state.editing = null;
  state.isDrawerOpen = false;
  keep("sessionStorage", "conversation", null);
  changed();
}

export async function rename(id: string, title: string): Promise<void> {
  const conversation = await held(id);
  if (conversation === null) return;
  conversation.title = title.trim();
  await save(conversation);
}

/** The conversation as this tab has it, if it has it, and else as it was saved. */
export async function held(id: string): Promise<Conversation | null> {
  if (id === state.conversation.id) return state.conversation;
  await saveNow(id);
  return state.runs.get(id)?.conversation ?? (await readConversation(id).catch(() => null));
}

export async function remove(id: string): Promise<void> {
  const conversation = await held(id);
  forget(id);
  await deleteConversation(id);
  if (conversation === null) return;
  const undo = () => {
    deleted.delete(id);
    void save(conversation).then(() => open(id)).then(() => announce("The conversation is back"));
  };
  notify({ text: `Deleted “${shownTitle(conversation)}”.`, undo });
}

/** Takes conversations in that are new, under ids of their own. */
export async function takeIn(conversations: Conversation[]): Promise<void> {
  for (const conversation of conversations) await save(conversation);
}

export function chooseModel(name: string): void {
  state.conversation.model = name;
  keep("localStorage", "model", name);
  if (isSaved(state.conversation)) void save(state.conversation);
  else keepUnsaved();
  changed();
}

export function isSaved({ id }: Conversation): boolean {
  return state.summaries.some((summary) => summary.id === id);
}

/** Whether the conversation continues a text; without a chat template there is nothing else. */
export function isNotebook(conversation: Conversation): boolean {
  return conversation.mode === "notebook" || modelOf(conversation)?.chats === false;
}

/** The turns up to one of them, as a conversation of their own. */
export async function startBranch(turn: Turn): Promise<void> {
  const branched = branchedOff(state.conversation, turn.id);
  await save(branched);
  await open(branched.id);
  announce("A new conversation begins with the turns up to this one");
}

export function setMode(mode: Mode): void {
  state.conversation.mode = mode;
  if (isSaved(state.conversation)) void save(state.conversation);
  else keepUnsaved();
  changed();
}

/** A conversation in which nothing was said is not kept with the others, but what was chosen for it survives a reload. */
function keepUnsaved(): void {
  const { settings, mode, model } = state.conversation;
  keep("sessionStorage", "unsaved", { settings, mode, model });
}
