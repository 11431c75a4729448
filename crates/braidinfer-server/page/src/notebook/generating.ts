// Has the model continue a notebook's text, and takes that back.

import { saidIn, streamed } from "../api/answers";
import { fieldsFor, modelFor } from "../chat/answering";
import { Stopwatch } from "../chat/stopwatch";
import { touch } from "../conversations/collection";
import { titleFrom, type Conversation, type Figures } from "../conversations/conversation";
import { announce } from "../page/announcements";
import { lookAtModels } from "../page/models";
import { state } from "../page/state";
import { changed } from "../page/store";
import { joined, rangesAfterEdit } from "./ranges";

/** Models that only continue texts seldom come to an end. */
const TOKENS = 200;
const SAVING_PERIOD = 1000;

type Text = Conversation["notebook"];

/** What goes with a notebook while it is open. */
export interface Desk {
  undone: Text[];
  before: Text[];
  figures: Figures | null;
  end: string | null;
  failure: string | null;
}

const desks = new Map<string, Desk>();

export function deskOf({ id }: Conversation): Desk {
  const desk = desks.get(id) ?? { undone: [], before: [], figures: null, end: null, failure: null };
  desks.set(id, desk);
  return desk;
}

export async function generate(conversation: Conversation): Promise<void> {
  if (state.runs.has(conversation.id)) return;
  const desk = deskOf(conversation);
  const stopper = new AbortController();
  state.runs.set(conversation.id, { conversation, turn: null, stopper });
  const before = conversation.notebook;
  // Also where the model leaves no choice: another one may do.
  conversation.mode = "notebook";
  if (conversation.title === "") conversation.title = titleFrom(before.text);
  Object.assign(desk, { figures: null, end: null, failure: null });
  const saving = setInterval(() => void touch(conversation), SAVING_PERIOD);
  announce("Writing");
  changed();
  try {
    await write(conversation, desk, stopper.signal);
    desk.end = stopper.signal.aborted ? "stopped" : desk.end;
  } catch (error) {
    if (stopper.signal.aborted) desk.end = "stopped";
    else desk.failure = (error as Error).message;
  }
  clearInterval(saving);
  state.runs.delete(conversation.id);
  if (conversation.notebook.text !== before.text) {
    desk.before.push(before);
    desk.undone = [];
    announce(conversation.notebook.text.slice(before.text.length));
  }
  void touch(conversation);
  void lookAtModels();
}

async function write(conversation: Conversation, desk: Desk, signal: AbortSignal): Promise<void> {
  const model = await modelFor(conversation);
  const { max_completion_tokens, ...fields } = fieldsFor(conversation, model, false);
  const body = { model: model.name, prompt: conversation.notebook.text, max_tokens: max_completion_tokens ?? TOKENS, ...fields };
  const stopwatch = new Stopwatch();
  for await (const chunk of streamed("v1/completions", body, signal)) {
    if (signal.aborted) break;
    stopwatch.take(chunk);
    append(conversation, saidIn(chunk.choices?.[0]));
    desk.figures = stopwatch.figures();
    changed();
  }
  desk.end = stopwatch.finish === "length" ? "cut at the limit of tokens" : null;
}

function append(conversation: Conversation, piece: string): void {
  const { text, written } = conversation.notebook;
  conversation.notebook = { text: text + piece, written: joined([...written, [text.length, text.length + piece.length]]) };
}

/** The person changes the text. */
export function rewrite(conversation: Conversation, text: string): void {
  const before = conversation.notebook;
  conversation.notebook = { text, written: rangesAfterEdit(before.written, before.text, text) };
  changed();
}

/** The text as it was before the model wrote the last time. */
export function undo(conversation: Conversation): void {
  const desk = deskOf(conversation);
  const before = desk.before.pop();
  if (!before) return;
  desk.undone.push(conversation.notebook);
  putBack(conversation, before, "Undone");
}

export function redo(conversation: Conversation): void {
  const desk = deskOf(conversation);
  const undone = desk.undone.pop();
  if (!undone) return;
  desk.before.push(conversation.notebook);
  putBack(conversation, undone, "Done again");
}

function putBack(conversation: Conversation, text: Text, said: string): void {
  conversation.notebook = text;
  announce(said);
  void touch(conversation);
}
