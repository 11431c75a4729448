// Conversations in IndexedDB, each one a record of its own, and other tabs that are told of changes. If the browser has no
// database for us, they are kept in memory until the page is left.

import { openDB, type IDBPDatabase } from "idb";

import { summaryOf, type Conversation, type Summary } from "./conversation";
import { merged } from "./tree";

const NAME = "braidinfer";
const VERSION = 1;

/** What another tab did to a conversation. */
export interface Message {
  kind: "saved" | "deleted";
  id: string;
}

let database: IDBPDatabase | null = null;
const inMemory = new Map<string, Conversation>();
const channel = typeof BroadcastChannel === "undefined" ? null : new BroadcastChannel("braidinfer.conversations");

/** Whether conversations will be there the next time. */
export async function openDatabase(): Promise<boolean> {
  try {
    database = await openDB(NAME, VERSION, {
      upgrade(created) {
        created.createObjectStore("conversations", { keyPath: "id" });
        // Apart, so that the list is there before all texts have been read.
        created.createObjectStore("summaries", { keyPath: "id" });
      },
      blocking: () => database?.close(),
    });
    return true;
  } catch {
    return false;
  }
}

export function onOtherTab(take: (message: Message) => void): void {
  channel?.addEventListener("message", (event: MessageEvent<Message>) => take(event.data));
}

export async function allSummaries(): Promise<Summary[]> {
  if (database === null) return [...inMemory.values()].map(summaryOf);
  return (await database.getAll("summaries")) as Summary[];
}

export async function readConversation(id: string): Promise<Conversation | null> {
  const found = database === null ? inMemory.get(id) : ((await database.get("conversations", id)) as Conversation | undefined);
  return found ? structuredClone(found) : null;
}

/** Writes a conversation; turns that another tab added meanwhile stay, and come back with the result. */
export async function saveConversation(conversation: Conversation): Promise<Conversation> {
  if (database === null) {
    inMemory.set(conversation.id, structuredClone(conversation));
    return conversation;
  }
  const transaction = database.transaction(["conversations", "summaries"], "readwrite");
  const conversations = transaction.objectStore("conversations");
  const stored = (await conversations.get(conversation.id)) as Conversation | undefined;
  const whole = stored ? merged(conversation, stored) : conversation;
  // Neither is waited for by itself: what fails ends the transaction.
  conversations.put(whole).catch(() => {});
  transaction.objectStore("summaries").put(summaryOf(whole)).catch(() => {});
  await transaction.done;
  channel?.postMessage({ kind: "saved", id: conversation.id } satisfies Message);
  return whole;
}

export async function deleteConversation(id: string): Promise<void> {
  if (database === null) {
    inMemory.delete(id);
    return;
  }
  const transaction = database.transaction(["conversations", "summaries"], "readwrite");
  transaction.objectStore("conversations").delete(id).catch(() => {});
  transaction.objectStore("summaries").delete(id).catch(() => {});
  await transaction.done;
  channel?.postMessage({ kind: "deleted", id } satisfies Message);
}

/** Those whose title or texts contain all words. */
export async function searchConversations(words: string[], signal: AbortSignal): Promise<Set<string>> {
  const found = new Set<string>();
  if (database === null) {
    for (const each of inMemory.values()) if (contains(each, words)) found.add(each.id);
    return found;
  }
  let cursor = await database.transaction("conversations").store.openCursor();
  while (cursor && !signal.aborted) {
    const conversation = cursor.value as Conversation;
    if (contains(conversation, words)) found.add(conversation.id);
    cursor = await cursor.continue();
  }
  return found;
}

function contains(conversation: Conversation, words: string[]): boolean {
  const texts = [conversation.title, conversation.notebook.text, ...Object.values(conversation.turns).map(({ text }) => text)].map((text) => text.toLowerCase());
  return words.every((word) => texts.some((text) => text.includes(word)));
}
