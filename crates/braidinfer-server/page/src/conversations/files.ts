// Conversations as files on the person's computer.

import { notify } from "../page/announcements";
import { state } from "../page/state";
import { held, open, takeIn } from "./collection";
import { shownTitle, type Conversation } from "./conversation";
import { exportedJson, importedJson, ImportFault, LIMITS } from "./json";
import { exportedMarkdown, importedMarkdown, isMarkdownExport } from "./markdown-file";

export async function exportAsJson(ids: string[]): Promise<void> {
  const found = (await Promise.all(ids.map(held))).filter((each) => each !== null);
  const name = found.length === 1 && found[0] ? fileName(found[0]) : "conversations";
  download(`${name}.json`, "application/json", exportedJson(found));
}

export async function exportAsMarkdown(id: string): Promise<void> {
  const conversation = await held(id);
  if (conversation) download(`${fileName(conversation)}.md`, "text/markdown", exportedMarkdown(conversation));
}

export function exportAll(): Promise<void> {
  return exportAsJson(state.summaries.map(({ id }) => id));
}

function fileName(conversation: Conversation): string {
  const plain = shownTitle(conversation).normalize("NFC").replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "");
  return plain.slice(0, 60) || "conversation";
}

function download(name: string, type: string, text: string): void {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

/** Takes in what a file has, or says what is wrong with it; what is there already stays as it is. */
export async function importFile(file: File): Promise<void> {
  try {
    if (file.size > LIMITS.bytes) throw new ImportFault(`This file has more than ${LIMITS.bytes / 1e6} MB.`);
    const conversations = read(await decoded(file));
    await takeIn(conversations);
    notify({ text: conversations.length === 1 ? "Imported one conversation." : `Imported ${conversations.length} conversations.` });
    if (conversations.length === 1 && conversations[0]) await open(conversations[0].id);
  } catch (error) {
    notify({ text: `Nothing was imported from “${file.name}”. ${(error as Error).message}`, isFailure: true });
  }
}

async function decoded(file: File): Promise<string> {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    throw new ImportFault("This file is no text in UTF-8.");
  }
}

function read(text: string): Conversation[] {
  return isMarkdownExport(text) ? [importedMarkdown(text)] : importedJson(text);
}
