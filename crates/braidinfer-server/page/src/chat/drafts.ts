// What the person is writing in each conversation, and has not sent.

import { isSaved } from "../conversations/collection";
import type { AttachedFile, Conversation } from "../conversations/conversation";
import { keep, recall } from "../page/memory";

/** Files are too large for the browser's small memory; their drafts end with the tab. */
export interface Draft {
  text: string;
  files: AttachedFile[];
}

const files = new Map<string, AttachedFile[]>();

/** A conversation that was never saved has another id after a reload. */
const nameOf = (conversation: Conversation) => (isSaved(conversation) ? conversation.id : "new");

export function draftOf(conversation: Conversation): Draft {
  const texts = recall<Record<string, string>>("sessionStorage", "drafts", {});
  return { text: texts[nameOf(conversation)] ?? "", files: files.get(conversation.id) ?? [] };
}

export function keepDraft(conversation: Conversation, draft: Draft): void {
  const { [nameOf(conversation)]: _, ...others } = recall<Record<string, string>>("sessionStorage", "drafts", {});
  keep("sessionStorage", "drafts", draft.text === "" ? others : { ...others, [nameOf(conversation)]: draft.text });
  files.set(conversation.id, draft.files);
}
