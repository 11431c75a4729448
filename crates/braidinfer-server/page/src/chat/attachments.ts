// Files that go into a question: texts, and PDFs whose text the server finds.

import { countTokens, extractText } from "../api/models";
import { Failure } from "../api/requests";
import type { AttachedFile } from "../conversations/conversation";
import { modelOf, state } from "../page/state";

const LONGEST_TEXT = 5_000_000;
const LARGEST_PDF = 50_000_000;

/** The text of a file; throws with what is wrong with it. */
export async function readAttachment(file: File): Promise<AttachedFile> {
  const name = file.name || "pasted file";
  const text = await ((await isPdf(file)) ? pdfText(file, name) : plainText(file, name));
  if (text.trim() === "") throw new Failure(`“${name}” has no text.`);
  return { name, text, tokens: null };
}

async function isPdf(file: File): Promise<boolean> {
  return file.type === "application/pdf" || (await file.slice(0, 5).text()) === "%PDF-";
}

async function pdfText(file: File, name: string): Promise<string> {
  if (file.size > LARGEST_PDF) throw new Failure(`“${name}” has more than ${LARGEST_PDF / 1e6} MB.`);
  try {
    const { text } = await extractText(file);
    return bounded(text, name);
  } catch (error) {
    throw new Failure(`The text of “${name}” could not be read. ${(error as Error).message}`);
  }
}

async function plainText(file: File, name: string): Promise<string> {
  if (file.size > LONGEST_TEXT) throw tooLong(name);
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    throw noText(name);
  }
  if (text.includes("\0")) throw noText(name);
  return bounded(text, name);
}

function bounded(text: string, name: string): string {
  if (text.length > LONGEST_TEXT) throw tooLong(name);
  return text;
}

const tooLong = (name: string) => new Failure(`“${name}” has more than ${LONGEST_TEXT / 1e6} MB of text.`);
const noText = (name: string) => new Failure(`“${name}” is no text in UTF-8 and no PDF. Only those can be attached.`);

/** How many tokens a text has for the model of this conversation, and how many fit; `null` if the server does not say. */
export async function counted(text: string): Promise<{ tokens: number; context: number } | null> {
  const model = modelOf(state.conversation);
  if (model === null) return null;
  return countTokens(model.name, text).catch(() => null);
}
