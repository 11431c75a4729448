// Asking, answering anew, continuing, stopping.

import { saidIn, streamed, thoughtIn, type CallPiece, type Chunk } from "../api/answers";
import { Failure } from "../api/requests";
import type { Model } from "../api/models";
import { isEmpty, newTurn, titleFrom, type AttachedFile, type Conversation, type End, type ToolCall, type ToolResult, type Turn } from "../conversations/conversation";
import { save, touch } from "../conversations/collection";
import { addTurn, branchTo, choose, putTurn, removeTurn, shownBranch, siblingsOf } from "../conversations/tree";
import { announce } from "../page/announcements";
import { lookAtModels } from "../page/models";
import { currentRun, modelOf, state, type Run } from "../page/state";
import { changed } from "../page/store";
import { requestOf } from "../settings/fields";
import { messagesOf, messagesToContinue, type Message } from "./messages";
import { Stopwatch } from "./stopwatch";
import { partsOf } from "./thoughts";

/** While an answer comes, it is saved this often, in milliseconds. */
const SAVING_PERIOD = 1000;
/** A model that has to be loaded first is looked at when an answer is this late. */
const LATE = 1500;

const CHAT = "v1/chat/completions";

/** Asks at the end of the branch that is shown. */
export function ask(text: string, files: AttachedFile[]): void {
  const { conversation } = state;
  const question = addTurn(conversation, newTurn({ role: "user", parent: shownBranch(conversation).at(-1)?.id ?? null, text, files }));
  if (conversation.title === "") conversation.title = titleFrom(text) || (files[0]?.name ?? "");
  void answerTo(conversation, question);
}

/** Another version of a question, answered anew. */
export function askAnew(before: Turn, text: string): void {
  const { conversation } = state;
  const question = addTurn(conversation, newTurn({ role: "user", parent: before.parent, text, files: before.files }));
  void answerTo(conversation, question);
}

/** Another version of an answer, written by the person. */
export function putAnswer(before: Turn, text: string): void {
  const { conversation } = state;
  addTurn(conversation, newTurn({ role: "assistant", parent: before.parent, text, model: before.model, edited: true, end: "complete" }));
  void touch(conversation);
}

export function giveResults(call: Turn, results: ToolResult[]): void {
  const { conversation } = state;
  const given = addTurn(conversation, newTurn({ role: "tool", parent: call.id, results }));
  void answerTo(conversation, given);
}

/** Another version of an answer; one in which nothing came is replaced. */
export function regenerate(answer: Turn): void {
  const { conversation } = state;
  const asked = answer.parent === null ? undefined : conversation.turns[answer.parent];
  if (!asked || currentRun()) return;
  if (isEmpty(answer)) removeTurn(conversation, answer.id);
  void answerTo(conversation, asked, isEmpty(answer) ? null : answer);
}

/** Whether an answer ended before it was complete. */
export function canContinue({ end, text }: Turn): boolean {
  return text !== "" && (end === "stopped" || end === "length" || end === "broken");
}

export async function continueAnswer(answer: Turn): Promise<void> {
  const { conversation } = state;
  if (currentRun()) return;
  const messages = messagesToContinue(branchTo(conversation, answer.id), conversation.settings.system ?? "");
  const begun: Turn = { ...answer, failure: null, end: null, changed: Date.now() };
  putTurn(conversation, begun);
  await run(conversation, begun, messages, { continue_final_message: true, add_generation_prompt: false });
  finish(conversation, begun.id);
}

/** Whether there was something to stop. */
export function stop(): boolean {
  const running = currentRun();
  running?.stopper.abort();
  return running !== undefined;
}

async function answerTo(conversation: Conversation, asked: Turn, before: Turn | null = null): Promise<void> {
  if (currentRun()) return;
  const messages = messagesOf(branchTo(conversation, asked.id), conversation.settings.system ?? "");
  const answer = addTurn(conversation, newTurn({ role: "assistant", parent: asked.id }));
  if (before) putTurnQuietly(conversation, { ...before, failure: null });
  await run(conversation, answer, messages, {});
  const came = conversation.turns[answer.id];
  if (came && before && isEmpty(came)) bringBack(conversation, came, before);
  finish(conversation, answer.id);
}

function putTurnQuietly(conversation: Conversation, turn: Turn): void {
  conversation.turns[turn.id] = turn;
}

/** Nothing came: the answer that was there is shown again, with what went wrong. */
function bringBack(conversation: Conversation, came: Turn, before: Turn): void {
  const kept: Turn = { ...before, failure: came.failure, changed: Date.now() };
  removeTurn(conversation, came.id);
  putTurn(conversation, kept);
}

function finish(conversation: Conversation, id: string): void {
  const turn = conversation.turns[id];
  if (turn && !turn.failure) announce(partsOf(turn).said || (turn.calls.length > 0 ? "The model calls a tool" : ""));
  void touch(conversation);
}

/** Writes an answer into its turn, until it has ended in whatever way. */
async function run(conversation: Conversation, turn: Turn, messages: Message[], more: Record<string, unknown>): Promise<void> {
  const running: Run = { conversation, turn: turn.id, stopper: new AbortController() };
  state.runs.set(conversation.id, running);
  state.editing = null;
  announce("Answering");
  const saved = touch(conversation);
  const writer = new Writer(conversation, turn);
  const saving = setInterval(() => void save(conversation), SAVING_PERIOD);
  const late = setTimeout(() => void lookAtModels(), LATE);
  try {
    const model = await modelFor(conversation);
    writer.begin(model.name);
    const fields = { model: model.name, messages, ...fieldsFor(conversation, model), ...more };
    for await (const chunk of streamed(CHAT, fields, running.stopper.signal)) {
      if (running.stopper.signal.aborted) break;
      writer.take(chunk);
      clearTimeout(late);
      changed();
    }
    writer.end(running.stopper.signal.aborted ? "stopped" : null);
  } catch (error) {
    if (running.stopper.signal.aborted) writer.end("stopped");
    else writer.end("broken", (error as Error).message);
    // The server may have been started again with another model.
    if (error instanceof Failure && error.status === 404) void lookAtModels();
  }
  clearTimeout(late);
  clearInterval(saving);
  await saved;
  state.runs.delete(conversation.id);
  changed();
}

/** The model of a conversation, which may not be known yet. */
export async function modelFor(conversation: Conversation): Promise<Model> {
  if (modelOf(conversation) === null || state.modelsFailure !== null) await lookAtModels();
  const model = modelOf(conversation);
  if (model === null || state.modelsFailure !== null) throw new Failure(state.modelsFailure ?? "The server has no model.");
  return model;
}

/** What the settings add to a request; those that are wrong are said, and nothing is sent. */
export function fieldsFor(conversation: Conversation, model: Model, chat = true): Record<string, unknown> {
  const { fields, faults } = requestOf(conversation.settings, { thinking: model.thinks, chat });
  const fault = Object.values(faults)[0];
  if (fault !== undefined) throw new Failure(`Nothing was sent, because of a setting: ${fault}`);
  return fields;
}

/** Puts what comes into a turn. */
class Writer {
  private stopwatch = new Stopwatch();
  private calls: ToolCall[] = [];

  constructor(private readonly conversation: Conversation, private turn: Turn) {}

  begin(model: string): void {
    this.stopwatch = new Stopwatch();
    this.put({ model });
  }

  take(chunk: Chunk): void {
    this.stopwatch.take(chunk);
    const choice = chunk.choices?.[0];
    for (const piece of choice?.delta?.tool_calls ?? []) this.takeCall(piece);
    this.put({
      text: this.turn.text + saidIn(choice),
      thought: this.turn.thought + thoughtIn(choice),
      thoughtSeconds: this.stopwatch.thoughtSeconds() ?? this.turn.thoughtSeconds,
      calls: this.calls,
      figures: this.stopwatch.figures(),
    });
  }

  private takeCall({ index = 0, id, function: called }: CallPiece): void {
    // Calls come in order; an index far off would only cost memory.
    if (!(index >= 0 && index <= this.calls.length)) return;
    const before = this.calls[index] ?? { id: "", name: "", arguments: "" };
    this.calls = [...this.calls];
    this.calls[index] = { id: id || before.id, name: before.name + (called?.name ?? ""), arguments: before.arguments + (called?.arguments ?? "") };
  }

  end(end: End | null, failure: string | null = null): void {
    const finished: End = this.stopwatch.finish === "length" ? "length" : this.calls.length > 0 ? "calls" : "complete";
    this.put({ end: end ?? finished, failure, figures: this.stopwatch.figures() });
  }

  /** Turns are replaced, not changed, so that what did not change need not be drawn again. */
  private put(fields: Partial<Turn>): void {
    this.turn = { ...this.turn, ...fields, changed: Date.now() };
    putTurnQuietly(this.conversation, this.turn);
  }
}

export function showVersion(turn: Turn, step: number): void {
  const { conversation } = state;
  const versions = siblingsOf(conversation, turn);
  const other = versions[versions.findIndex(({ id }) => id === turn.id) + step];
  if (!other || currentRun()) return;
  choose(conversation, other);
  announce(`Version ${versions.indexOf(other) + 1} of ${versions.length}`);
  void save(conversation);
  changed();
}
